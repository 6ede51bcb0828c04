"""A process that runs a bus, as the process that started it sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Final

import msgspec

from rabbitevents import Check, Health
from rabbitevents.cli.line import HURRY, MEASURE, PACKET, STOP, Word
from rabbitevents.cli.relay import Relay
from rabbitevents.cli.settings import Settings

NUMBER: Final = "RABBITEVENTS_WORKER"
"""The environment variable that has a worker's number, 1 to N; one process alone has none."""

SILENCE: Final = 5.0
"""Seconds after which a worker's last word about its health counts no more."""

MEASURING: Final = 2.0
"""Seconds that a worker has to write down what it measures."""

LONGEST_PAGE: Final = 16_777_216
"""Bytes that it may write then."""


class Worker:
    """A process of its own: started, watched, asked to stop, killed.

    It is a process group of its own too, so that Ctrl-C at a terminal reaches it through its supervisor alone. The two
    hold a line to each other (`rabbitevents.cli.line`), and the worker drains when its supervisor is gone.
    """

    def __init__(self, process: asyncio.subprocess.Process, number: int, line: socket.socket) -> None:
        self.number = number
        self.pid: int = process.pid
        self.grace: float | None = None
        """The grace period of its bus, in seconds; None as long as the bus does not run."""
        self.ready: asyncio.Event = asyncio.Event()
        self.turns: bool = False
        """Whether its event loop should be turning: not while its module is imported, nor when it is about to end."""
        self.drains: bool = False
        """Whether it has said that it drains."""
        self.silent: int = 0
        """How often it was looked at since it said that its loop turns; or else, was started, or killed."""
        self.place: str = ""
        """Where it is, as far as it has said so since then."""
        self.killed: bool = False
        self._health = Health(())
        self._health_said_at = -SILENCE
        self._process = process
        self._line = line
        loop = asyncio.get_running_loop()
        loop.add_reader(line, self._hear)
        self.ended: asyncio.Task[int] = loop.create_task(self._until_it_ends(), name=f"{self}")
        """Its exit code, once it has ended; negative, the signal that killed it."""

    @classmethod
    async def start(
        cls, settings: Settings, environment: Mapping[str, str] | None = None, relay: Relay | None = None
    ) -> Worker:
        """Start a process; what it writes goes through ``relay``, if there is one. Raises OSError when there can be none."""
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # a word is a packet
        ours.setblocking(False)
        outputs = None if relay is None else (relay.outputs[0].descriptor, relay.outputs[1].descriptor)
        told = msgspec.structs.replace(settings, lifeline=theirs.fileno(), outputs=outputs)
        try:
            with theirs, nullcontext((None, None)) if relay is None else relay.pipes() as (stdout, stderr):
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "rabbitevents", *(["--debug"] if settings.debug else []), "run"),
                    *(settings.reference, "--settings", told.as_json()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=[theirs.fileno(), *(outputs or ())],
                    process_group=0,
                    env={**os.environ, **_numbered(settings.worker), **(environment or {})},
                )
        except BaseException:
            ours.close()
            raise
        return cls(process, settings.worker, ours)

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})" if self.number else f"the process (pid {self.pid})"

    def _hear(self) -> bool:
        """Read what it says, and return whether there was something; at last, by an empty packet, that it ends."""
        try:
            packet = self._line.recv(PACKET)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            asyncio.get_running_loop().remove_reader(self._line)
            return False
        word = Word()
        with suppress(msgspec.DecodeError):  # one that was too long: its health is silent, and so is said to fail
            word = msgspec.json.decode(packet, type=Word)
        self._take(word)
        return True

    def _take(self, word: Word) -> None:
        if word.place is not None:
            self.place = word.place
            return
        self.silent, self.place, self.turns = 0, "", word.phase != "leaves"
        if word.grace is not None:
            self.grace = word.grace
            self.ready.set()
        if word.health is not None:
            self._health, self._health_said_at = word.health, asyncio.get_running_loop().time()
        if word.phase == "drains":
            self.drains = True

    def health(self) -> tuple[Check, ...]:
        """Return what it last said of its health, if that was not long ago."""
        if asyncio.get_running_loop().time() - self._health_said_at > SILENCE:
            return (Check("bus", False, f"has said nothing for {SILENCE:g} s"),)
        return self._health.checks

    async def measured(self) -> bytes:
        """Return what it measures, as Prometheus reads it; nothing, if it does not say so in time."""
        if self.turns:
            with suppress(OSError, TimeoutError):
                ours, theirs = socket.socketpair()
                with ours:
                    async with asyncio.timeout(MEASURING):
                        with theirs:
                            socket.send_fds(self._line, [MEASURE], [theirs.fileno()])
                        return await _page(ours)
        return b""

    async def _until_it_ends(self) -> int:
        code = await self._process.wait()
        asyncio.get_running_loop().remove_reader(self._line)
        while self._hear():  # what it said before it ended counts
            pass
        self._line.close()
        return code

    def stop(self) -> None:
        """Ask it to drain."""
        self._ask(STOP)

    def hurry(self) -> None:
        """Ask it to leave at once."""
        self._ask(HURRY)

    def kill(self) -> None:
        """End it, whatever it does."""
        self.killed, self.silent = True, 0
        self._signal(signal.SIGKILL)

    def _ask(self, what: bytes) -> None:
        """Say it on the line; where nobody reads it yet, SIGTERM ends what has not begun."""
        if self.turns:
            with suppress(OSError):
                self._line.send(what)
        elif not self.ready.is_set():
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


async def _page(source: socket.socket) -> bytes:
    """Read until the end; nothing, if that is too long."""
    reader, writer = await asyncio.open_connection(sock=source)
    try:
        page = bytearray()
        while block := await reader.read(LONGEST_PAGE):
            page += block
            if len(page) > LONGEST_PAGE:
                return b""
        return bytes(page)
    finally:
        writer.close()


def _numbered(worker: int) -> dict[str, str]:
    """Return what tells a worker its number among several, for what each of them needs for itself, such as a port."""
    return {NUMBER: str(worker)} if worker else {}


def how_it_ended(code: int) -> str:
    """Say an exit code in words."""
    if code >= 0:
        return "left" if code == 0 else f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
