"""A process that runs a bus, as the process that started it sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import msgspec

from rabbitevents import Check, Health
from rabbitevents.cli.process import Word
from rabbitevents.cli.settings import Settings

PACKET: Final = 262_144
"""Bytes that a word of a worker may have."""

NUMBER: Final = "RABBITEVENTS_WORKER"
"""The environment variable that has a worker's number, 1 to N; one process alone has none."""

SILENCE: Final = 5.0
"""Seconds after which a worker's last word about its health counts no more."""


class Worker:
    """A process of its own: started, watched, asked to stop, killed.

    It is a process group of its own too, so that Ctrl-C at a terminal reaches it through its supervisor alone, and
    counts once. The two hold a line to each other: the worker says when its bus runs, and drains when its supervisor
    is gone.
    """

    def __init__(self, process: asyncio.subprocess.Process, number: int, line: socket.socket) -> None:
        self.number = number
        self.pid: int = process.pid
        self.grace: float | None = None
        """The grace period of its bus, in seconds; None as long as the bus does not run."""
        self.ready: asyncio.Event = asyncio.Event()
        self._health = Health(())
        self._health_said_at = -SILENCE
        self._process = process
        self._line = line
        loop = asyncio.get_running_loop()
        loop.add_reader(line, self._heard)
        self.ended: asyncio.Task[int] = loop.create_task(self._until_it_ends(), name=f"{self}")
        """Its exit code, once it has ended; negative, the signal that killed it."""

    @classmethod
    async def start(cls, settings: Settings, environment: Mapping[str, str] | None = None) -> Worker:
        """Start a process. Raises OSError when there can be none."""
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # a word is a packet
        ours.setblocking(False)
        with theirs:
            told = msgspec.structs.replace(settings, lifeline=theirs.fileno())
            debug = ["--debug"] if settings.debug else []
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "rabbitevents", *debug, "run"),
                    *(settings.reference, "--settings", told.as_json()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                    env={**os.environ, **_numbered(settings.worker), **(environment or {})},
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, settings.worker, ours)

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})" if self.number else f"the process (pid {self.pid})"

    def _heard(self) -> None:
        """Read what it says: that its bus runs, how it is, and at last, by an empty packet, that it ends."""
        packet = b""
        with suppress(OSError):
            packet = self._line.recv(PACKET)
        if not packet:
            asyncio.get_running_loop().remove_reader(self._line)
            return
        with suppress(msgspec.DecodeError):  # one that was too long: its health is silent, and so is said to fail
            word = msgspec.json.decode(packet, type=Word)
            if word.grace is not None:
                self.grace = word.grace
                self.ready.set()
            if word.health is not None:
                self._health, self._health_said_at = word.health, asyncio.get_running_loop().time()

    def health(self) -> tuple[Check, ...]:
        """Return what it last said of its health, if that was not long ago."""
        if asyncio.get_running_loop().time() - self._health_said_at > SILENCE:
            return (Check("bus", False, f"has said nothing for {SILENCE:g} s"),)
        return self._health.checks

    async def _until_it_ends(self) -> int:
        code = await self._process.wait()
        asyncio.get_running_loop().remove_reader(self._line)
        self._line.close()
        return code

    def stop(self) -> None:
        """Ask it to drain; a second time, to leave at once."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


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
