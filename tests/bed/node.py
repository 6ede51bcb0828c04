"""The life of a broker process: start, stop, kill, suspend, resume, and two ways to talk to it from outside."""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from asyncio import to_thread
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

from tests.bed import preload
from tests.bed.layout import Layout, lay_out
from tests.bed.network import Host
from tests.bed.processes import spawn, suspend, unpin

_BIN = "/usr/lib/rabbitmq/bin"
_START = b"AMQP\x00\x00\x09\x01"
_calls = itertools.count(1)
_ANSWER = re.compile(rb'\{ok, "([A-Za-z0-9+/=]*)"\}')


class NodeError(Exception):
    """A node did not do what it was told; the text is what it said."""


class Node:
    """One broker process with its data, which outlive each other: kill it, start it, and it is the same node.

    `config` are lines of rabbitmq.conf, `advanced` is the Erlang term of advanced.config, `tls` adds a listener
    with a certificate for localhost, `management` one for HTTP, and `root` is the folder of another system whose
    RabbitMQ to run. `beside` is a running node with which this one can form a cluster: they share a cookie and a name
    server, which is that node's; on a `host`, a machine of its own, a node has its own.
    Every method blocks; each that can last has a twin that leaves the event loop running: `astart` for `start`.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, str] | None = None,
        advanced: str = "[]",
        tls: bool = False,
        management: bool = False,
        root: Path | str | None = None,
        beside: Node | None = None,
        host: Host | None = None,
    ) -> None:
        folder = None if root is None else Path(root).resolve()
        self.layout: Layout = lay_out(
            folder,
            config or {},
            advanced,
            tls=tls,
            management=management,
            beside=beside.layout if beside else None,
            host=host,
        )
        self._has_own_epmd = beside is None or host is not None
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port for AMQP without TLS; it stays the same for all lives of the node."""
        return self.layout.port

    @property
    def pid(self) -> int:
        """The process id of the Erlang virtual machine; raises NodeError when it was never started."""
        if self._server is None:
            raise NodeError(f"{self.layout.name} was not started")
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether the process is there, suspended or not."""
        return self._server is not None and self._server.poll() is None

    @cached_property
    def version(self) -> str:
        """RabbitMQ's version, such as 3.10.8."""
        return self.eval("rabbit_misc:version()").strip('"')

    def start(self, timeout: float = 60) -> Self:
        """Start the node and wait until it greets an AMQP client, at most `timeout` seconds.

        Raises NodeError with the end of the log when it ends or is late.
        """
        if self.running:
            raise NodeError(f"{self.layout.name} runs already")
        deadline = time.monotonic() + timeout
        self._start_epmd(deadline)
        preload.use(self.layout)
        self._server = self._spawn(f"{_BIN}/rabbitmq-server")
        while not _greets(self.layout.address, self.port):
            self._check_alive(deadline)
        self.eval("rabbit:await_startup()")  # RabbitMQ 4 greets before it listens for TLS
        unpin(self.pid)
        preload.learn(self.layout, self.eval)
        return self

    def stop(self, timeout: float = 30) -> None:
        """Let the node shut down in order; one that needs more than `timeout` seconds is killed."""
        if self.running:
            self.resume()
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End the node at once by SIGKILL, as the kernel's out-of-memory killer would."""
        if self.running:
            self._signal(signal.SIGKILL)
            self._wait(10)

    def suspend(self) -> None:
        """Stop the process (SIGSTOP): its sockets stay open and nothing answers."""
        if not self.running:
            raise NodeError(f"{self.layout.name} does not run")
        suspend(self.pid)

    def resume(self) -> None:
        """Let a suspended process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the node and remove its data."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
        shutil.rmtree(self.layout.folder, ignore_errors=True)

    def ctl(self, *words: str, timeout: float = 60) -> str:
        """Run rabbitmqctl (about half a second) and return what it prints; raises NodeError when it fails."""
        return self._run([f"{_BIN}/rabbitmqctl", "-n", self.layout.name, *words], timeout).decode()

    def eval(self, expression: str, timeout: float = 30) -> str:
        """Evaluate an Erlang expression (ASCII) inside of the node, in 2 ms, and return the value as Erlang prints it.

        A sequence `a(), b()` is one expression. Raises NodeError with Erlang's words when it does not end well.
        """
        source = expression.strip().rstrip(".")
        printed = f'unicode:characters_to_binary(io_lib:format("~0tp", [begin {source} end]))'
        # A name of its own for each call: erl_call's random one is one of few, and a node refuses a name that is in use.
        caller = f"caller-{os.getpid()}-{next(_calls)}"
        call = ["erl_call", "-h", caller, "-n", self.layout.name, "-c", self.layout.cookie, "-e"]
        said = self._run(call, timeout, f"base64:encode_to_string({printed}).\n".encode())
        answer = _ANSWER.fullmatch(said)
        if answer is None:
            raise NodeError(said.decode(errors="replace"))
        return base64.b64decode(answer[1]).decode()

    async def astart(self, timeout: float = 60) -> Self:
        """See `start`."""
        return await to_thread(self.start, timeout)

    async def astop(self, timeout: float = 30) -> None:
        """See `stop`."""
        await to_thread(self.stop, timeout)

    async def akill(self) -> None:
        """See `kill`."""
        await to_thread(self.kill)

    async def actl(self, *words: str, timeout: float = 60) -> str:
        """See `ctl`."""
        return await to_thread(self.ctl, *words, timeout=timeout)

    async def aeval(self, expression: str, timeout: float = 30) -> str:
        """See `eval`."""
        return await to_thread(self.eval, expression, timeout)

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of everything that the node wrote: its log files and its standard output."""
        files = [*sorted(self.layout.log.glob("*.log")), self.layout.folder / "output"]
        text = "".join(file.read_text(errors="replace") for file in files if file.exists())
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        try:
            return self.start()
        except NodeError:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, *words: str) -> subprocess.Popen[bytes]:
        return spawn(self.layout.command(*words), self.layout.environment(), self.layout.folder / "output")

    def _start_epmd(self, deadline: float) -> None:
        # A name server of its own for each node: the shared one would be a daemon that stays behind.
        if not self._has_own_epmd or (self._epmd is not None and self._epmd.poll() is None):
            return
        self._epmd = self._spawn("epmd", "-port", str(self.layout.epmd_port), "-address", self.layout.address)
        while not _listens(self.layout.address, self.layout.epmd_port):
            if self._epmd.poll() is not None or time.monotonic() > deadline:
                raise NodeError(f"epmd of {self.layout.name} did not start:\n{self.log_tail()}")
            time.sleep(0.01)

    def _check_alive(self, deadline: float) -> None:
        if not self.running:
            raise NodeError(f"{self.layout.name} ended while it started:\n{self.log_tail()}")
        if time.monotonic() > deadline:
            raise NodeError(f"{self.layout.name} did not start in time:\n{self.log_tail()}")
        time.sleep(0.05)

    def _signal(self, number: signal.Signals) -> None:
        if not self.running:
            raise NodeError(f"{self.layout.name} does not run")
        os.kill(self.pid, number)

    def _wait(self, timeout: float) -> None:
        assert self._server is not None
        self._server.wait(timeout)

    def _run(self, words: list[str], timeout: float, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            self.layout.command(*words),
            env=self.layout.environment(),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise NodeError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout.decode(errors='replace')}")
        return done.stdout


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def _greets(address: str, port: int) -> bool:
    """Whether a broker answers the protocol header with Connection.Start (frame type 1, class 10, method 10)."""
    try:
        with socket.create_connection((address, port), timeout=2) as probe:
            probe.sendall(_START)
            greeting = probe.recv(11)
    except OSError:
        return False
    return greeting[:1] == b"\x01" and greeting[7:11] == b"\x00\x0a\x00\x0a"
