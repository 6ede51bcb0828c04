"""A process that runs a bus, as the process that started it sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from rabbitevents.cli.process import Ready
from rabbitevents.cli.settings import Settings


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
        self._process = process
        self._line = line
        loop = asyncio.get_running_loop()
        loop.add_reader(line, self._heard)
        self.ended: asyncio.Task[int] = loop.create_task(self._until_it_ends(), name=f"{self}")
        """Its exit code, once it has ended; negative, the signal that killed it."""

    @classmethod
    async def start(cls, settings: Settings, environment: Mapping[str, str] | None = None) -> Worker:
        """Start a process. Raises OSError when there can be none."""
        ours, theirs = socket.socketpair()
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
                    env={**os.environ, **(environment or {})},
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, settings.worker, ours)

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})" if self.number else f"the process (pid {self.pid})"

    def _heard(self) -> None:
        """Read what it says: once, that its bus runs. Then nothing more comes but the end."""
        asyncio.get_running_loop().remove_reader(self._line)
        with suppress(OSError, msgspec.DecodeError):
            self.grace = msgspec.json.decode(self._line.recv(4096), type=Ready).grace
            self.ready.set()

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


def how_it_ended(code: int) -> str:
    """Say an exit code in words."""
    if code >= 0:
        return "left" if code == 0 else f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
