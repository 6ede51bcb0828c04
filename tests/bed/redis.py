"""A Redis server that belongs to the tests: started in a moment, killed, suspended, emptied."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from asyncio import to_thread
from collections.abc import Generator
from pathlib import Path
from typing import Self

from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.processes import spawn, suspend, unpin

_numbers = itertools.count(1)

ON_DISK = {"appendonly": "yes", "appendfsync": "always"}
"""Settings of a server that forgets nothing that it answered."""

SLOTS = (("0", "5460"), ("5461", "10922"), ("10923", "16383"))
"""The first and the last slot of each shard of a cluster."""


class RedisError(Exception):
    """A server did not do what it was told; the text is what it said."""


class RedisServer:
    """One Redis process with its data: kill it, start it, and it has what its persistence kept (by default nothing).

    `settings` are lines of redis.conf, with `_` for `-`: `RedisServer(appendonly="yes")`. Every method blocks, for
    milliseconds; `astart` and `astop`, which can last longer, leave the event loop running.
    """

    def __init__(self, **settings: str) -> None:
        # Named like the folders of RabbitMQ nodes, so that what a killed test run left behind is removed with theirs.
        self.folder = Path(tempfile.mkdtemp(prefix=f"rbt-{os.getpid()}-redis-{next(_numbers)}-"))
        self.port = free_port()
        self._settings = {"save": "", **settings}
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the first database."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id; raises RedisError when it was never started."""
        if self._server is None:
            raise RedisError("the server was not started")
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether the process is there, suspended or not."""
        return self._server is not None and self._server.poll() is None

    def start(self, timeout: float = 20) -> Self:
        """Start the server and wait until it answers; raises RedisError with what it printed if it does not."""
        if self.running:
            raise RedisError("the server runs already")
        options = [word for name, value in self._settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        command = ["redis-server", "--port", str(self.port), "--bind", LOOPBACK, "--dir", str(self.folder), *options]
        self._server = spawn(command, {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}, self.folder / "output")
        deadline = time.monotonic() + timeout
        while self._ping() != b"+PONG\r\n":
            if not self.running or time.monotonic() > deadline:
                raise RedisError(f"the server did not start:\n{(self.folder / 'output').read_text()[-2000:]}")
            time.sleep(0.01)
        unpin(self.pid)
        return self

    def stop(self, timeout: float = 10) -> None:
        """Let the server shut down in order, writing what it persists."""
        if self.running:
            self.resume()
            self._signal(signal.SIGTERM)
            self._wait(timeout)

    def kill(self) -> None:
        """End the process at once by SIGKILL."""
        if self.running:
            self._signal(signal.SIGKILL)
            self._wait(10)

    def suspend(self) -> None:
        """Stop the process (SIGSTOP): its sockets stay open and nothing answers."""
        if not self.running:
            raise RedisError("the server does not run")
        suspend(self.pid)

    def resume(self) -> None:
        """Let a suspended process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def flush(self) -> None:
        """Forget all data, as FLUSHALL does."""
        self.command("FLUSHALL")

    def command(self, *words: str, timeout: float = 5) -> bytes:
        """Send one command (words without spaces) and return the first part of its raw answer; an error is raised."""
        with socket.create_connection((LOOPBACK, self.port), timeout) as connection:
            connection.sendall(" ".join(words).encode() + b"\r\n")
            answer = connection.recv(65_536)
        if answer.startswith(b"-"):
            raise RedisError(answer.decode(errors="replace"))
        return answer

    def close(self) -> None:
        """Kill the server and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def astart(self, timeout: float = 20) -> Self:
        """See `start`."""
        return await to_thread(self.start, timeout)

    async def astop(self, timeout: float = 10) -> None:
        """See `stop`."""
        await to_thread(self.stop, timeout)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except RedisError:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ping(self) -> bytes:
        with contextlib.suppress(OSError, RedisError):
            return self.command("PING", timeout=1)
        return b""

    def _signal(self, number: signal.Signals) -> None:
        if not self.running:
            raise RedisError("the server does not run")
        os.kill(self.pid, number)

    def _wait(self, timeout: float) -> None:
        if self._server is not None:
            self._server.wait(timeout)


@contextlib.contextmanager
def shards(**settings: str) -> Generator[list[RedisServer]]:
    """Start a cluster of three, without replicas, of which none is ever given up; raises RedisError."""
    told = {
        "cluster_enabled": "yes",
        "cluster_require_full_coverage": "no",
        "cluster_node_timeout": "60000",
        **settings,
    }
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(RedisServer(**told, cluster_port=str(free_port()))) for _ in SLOTS]
        for server, (first, last) in zip(servers, SLOTS, strict=True):
            server.command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for server in servers[1:]:
            port = server.command("CONFIG", "GET", "cluster-port").split()[-1].decode()
            servers[0].command("CLUSTER", "MEET", LOOPBACK, str(server.port), port)
        deadline = time.monotonic() + 30
        while not all(map(_is_whole, servers)):
            if time.monotonic() > deadline:
                raise RedisError("the cluster is not whole after 30 s")
            time.sleep(0.05)
        yield servers


def _is_whole(server: RedisServer) -> bool:
    said = server.command("CLUSTER", "INFO")
    return all(word in said for word in (b"cluster_state:ok", b"cluster_slots_ok:16384", b"cluster_known_nodes:3"))
