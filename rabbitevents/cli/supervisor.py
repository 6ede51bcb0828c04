"""Several processes of one bus: started one after the other, started again when they crash, stopped together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Mapping
from typing import Any, Final

import msgspec

from rabbitevents import Check, Health
from rabbitevents.bus import HARD_STOP
from rabbitevents.cli import logs
from rabbitevents.cli.codes import CRASHED, WRONG
from rabbitevents.cli.settings import Settings
from rabbitevents.cli.worker import Worker, how_it_ended
from rabbitevents.health import HealthServer

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds before a worker that crashed is started again: each time twice as long, up to the longest."""

STEADY: Final = 30.0
"""Seconds after which a worker counts as having run well: its next crash is a first one again."""

UNKNOWN_GRACE: Final = 30.0
"""Seconds that a worker has to stop which has not said its grace period yet."""


class Crew:
    """The processes that run at the moment, and what a signal to us means for them.

    The first SIGTERM or SIGINT lets all of them drain, the second has them leave at once, the third kills them.
    """

    def __init__(self) -> None:
        self.stopping: asyncio.Event = asyncio.Event()
        self.code: int = 0
        """What we exit with."""
        self.workers: set[Worker] = set()
        """Those that run."""
        self._signals = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)

    async def start(self, settings: Settings, environment: Mapping[str, str] | None = None) -> Worker:
        """Start a process. Raises OSError."""
        worker = await Worker.start(settings, environment)
        self.workers.add(worker)
        worker.ended.add_done_callback(lambda _: self._over(worker))
        if self.stopping.is_set():  # while it was being started
            worker.stop()
        return worker

    def _over(self, worker: Worker) -> None:
        """Note how a process ended. One that did not drain when it was to is why we exit with 1."""
        self.workers.discard(worker)
        code = worker.ended.result()
        asked_too_early = code == -signal.SIGTERM and not worker.ready.is_set()
        if self.stopping.is_set() and code != 0 and not asked_too_early:
            logs.log.error("%s %s", worker, how_it_ended(code))
            self.code = self.code or CRASHED

    async def end(self, worker: Worker) -> None:
        """Let one process drain, and return when it is gone."""
        worker.stop()
        await asyncio.wait({worker.ended}, timeout=_patience(worker))
        if not worker.ended.done():
            self._kill({worker})
        await worker.ended

    def give_up(self, code: int) -> None:
        """Stop, and exit with ``code``."""
        self.code = code
        self._stop()

    def _signalled(self) -> None:
        self._signals += 1
        if self._signals == 1:
            logs.tell("stopping: running handlers have the grace period to end; a second signal does not wait")
            self._stop()
        elif self._signals == 2:
            logs.tell("stopping at once; a third signal kills")
            self._ask_to_stop(HARD_STOP)
        else:
            self._kill(self.workers)

    def _stop(self) -> None:
        self.stopping.set()
        self._ask_to_stop(max(map(_patience, self.workers), default=0.0))

    def _ask_to_stop(self, patience: float) -> None:
        for worker in self.workers:
            worker.stop()
        asyncio.get_running_loop().call_later(patience, lambda: self._kill(self.workers))

    def _kill(self, workers: set[Worker]) -> None:
        for worker in workers:
            logs.log.error("%s did not leave in time; killing it", worker)
            worker.kill()


def _patience(worker: Worker) -> float:
    """Return how many seconds a process has to stop."""
    return (UNKNOWN_GRACE if worker.grace is None else worker.grace) + HARD_STOP


class Supervisor:
    """Keeps as many workers running as the settings say.

    The first one goes ahead: what is written wrong, or a broker that is away, is found once and said once, and ends
    us. After that, a worker that ends without having been asked to is started again.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._crew = Crew()
        self._proven = asyncio.Event()
        """Whether a bus has run: that what is written can work."""

    async def run(self) -> int:
        """Keep the workers until a signal comes; return the exit code."""
        async with asyncio.TaskGroup() as keepers:
            for number in range(1, self._settings.workers + 1):
                keepers.create_task(self._keep(number))
        return self._crew.code

    def health(self) -> Health:
        """Say how the workers are, each check under its worker's name."""
        checks: list[Check] = []
        running = {worker.number: worker for worker in self._crew.workers}
        for number in range(1, self._settings.workers + 1):
            worker = running.get(number)
            said = worker.health() if worker is not None else (Check("bus", False, "does not run"),)
            checks.extend(msgspec.structs.replace(each, name=f"worker {number}: {each.name}") for each in said)
        return Health(tuple(checks))

    async def _keep(self, number: int) -> None:
        if number > 1:
            await self._first_of(self._proven.wait())
        settings = msgspec.structs.replace(self._settings, worker=number)
        pause = FIRST_PAUSE
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            ended = await self._run_one(settings)
            if self._stopping:
                return
            if not self._proven.is_set():
                logs.log.error("%s before its bus ran", ended)
                self._crew.give_up(CRASHED)
                return
            if asyncio.get_running_loop().time() - began > STEADY:
                pause = FIRST_PAUSE
            logs.log.warning("%s; starting another one in %g s", ended, pause)
            await self._first_of(asyncio.sleep(pause))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _run_one(self, settings: Settings) -> str:
        """Run a worker until it ends; say how it did."""
        try:
            worker = await self._crew.start(settings)
        except OSError as error:
            return f"worker {settings.worker} could not be started ({error.strerror or error})"
        ready = asyncio.ensure_future(worker.ready.wait())
        await asyncio.wait({ready, worker.ended}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if worker.ready.is_set():
            self._proven.set()
        code = await worker.ended
        if not self._proven.is_set() and code == WRONG:
            self._crew.give_up(code)  # it has said why
        return f"{worker} {how_it_ended(code)}"

    @property
    def _stopping(self) -> bool:
        return self._crew.stopping.is_set()

    async def _first_of(self, wait: Coroutine[Any, Any, Any]) -> None:
        """Return when ``wait`` is over, or somebody asks us to stop."""
        either = {asyncio.ensure_future(wait), asyncio.ensure_future(self._crew.stopping.wait())}
        _, rest = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for each in rest:
            each.cancel()


def supervise(settings: Settings) -> int:
    """Run several processes until a signal comes; return the exit code."""
    logs.configure(settings)
    return asyncio.run(_supervise(settings))


async def _supervise(settings: Settings) -> int:
    supervisor = Supervisor(settings)
    if settings.health is None:
        return await supervisor.run()
    async with HealthServer(supervisor.health, settings.health) as server:
        logs.tell(f"health on port {server.port}: /live, /ready, /health")
        return await supervisor.run()
