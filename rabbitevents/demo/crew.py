"""The crew: each service in a process of its own, started again when it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import msgspec

from rabbitevents import RabbitEventsError
from rabbitevents.demo.settings import Settings

READY: Final = b"ready\n"
"""What a process writes when its service has started."""

START_TIMEOUT: Final = 60.0
"""Seconds that all services together have to start."""

STOP_TIMEOUT: Final = 12.0
"""Seconds that a service has to end; its bus takes 10 at most."""

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
"""Seconds between the end of a process and the start of the next one: doubled each time, from the first to the longest."""


class Assignment(msgspec.Struct, frozen=True):
    """Which service a process is, and where. It is handed over through a pipe: command lines are for all to read."""

    service: str
    folder: str
    settings: Settings


class ServiceNotStartedError(RabbitEventsError):
    """A process did not become a running service."""


class Crew:
    """Processes, one for each assignment (and none for none), for as long as the context is open.

    ``say`` hears of each start and end. Raises `ServiceNotStartedError` on entering.
    """

    def __init__(self, assignments: Sequence[Assignment], say: Callable[[str], None]) -> None:
        self._members = [Member(each, say) for each in assignments]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def restarts(self) -> int:
        """How many processes have ended by themselves."""
        return sum(member.restarts for member in self._members)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(member.keep()) for member in self._members]
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.gather(*(member.ready.wait() for member in self._members))
        except TimeoutError:
            await self._stop()
            missing = ", ".join(member.name for member in self._members if not member.ready.is_set())
            raise ServiceNotStartedError(f"no {missing} service within {START_TIMEOUT:g} s") from None
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(member.stop() for member in self._members))


class Member:
    """One service's process, and the next one when that ends."""

    def __init__(self, assignment: Assignment, say: Callable[[str], None]) -> None:
        self.name: str = assignment.service
        self.ready: asyncio.Event = asyncio.Event()
        self.restarts: int = 0
        self._assignment = assignment
        self._say = say
        self._process: Process | None = None

    async def keep(self) -> None:
        """Keep a process running, until cancelled."""
        pause = FIRST_PAUSE
        while True:
            started = asyncio.get_running_loop().time()
            ended = await self._run()
            if asyncio.get_running_loop().time() - started > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            self.restarts += 1
            self._say(f"{self.name} {ended}; it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _run(self) -> str:
        """Run a process to its end, and say how it ended."""
        command = (sys.executable, "-m", "rabbitevents.demo.worker")
        try:
            # A session of its own: Ctrl-C is for us alone, and the services are stopped in order.
            process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True)
        except OSError as error:
            return f"cannot be started: {sys.executable}: {error.strerror}"
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        # Standard input stays open: its end tells the process that we are gone.
        process.stdin.write(msgspec.json.encode(self._assignment) + b"\n")
        if await process.stdout.readline() == READY:
            self._say(f"{self.name} runs as process {process.pid}")
            self.ready.set()
        code = await process.wait()
        who = f"(process {process.pid})"
        return f"{who} was killed by {signal.Signals(-code).name}" if code < 0 else f"{who} ended with exit code {code}"

    async def stop(self) -> None:
        """Have the process finish what it does, and end; kill it if it does not."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            self._say(f"{self.name} (process {process.pid}) does not end, and is killed")
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
