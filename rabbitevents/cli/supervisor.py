"""Several processes of one bus: started one after the other, replaced when they crash or hang, stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from rabbitevents import Check, Health
from rabbitevents.cli import logs, orphans
from rabbitevents.cli.codes import CRASHED, WRONG
from rabbitevents.cli.crew import Crew
from rabbitevents.cli.line import BEAT
from rabbitevents.cli.relay import Relay
from rabbitevents.cli.settings import Settings
from rabbitevents.cli.worker import Worker, how_it_ended
from rabbitevents.health import QUESTIONS, SUPERVISOR, HealthServer

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds before a worker that crashed is started again: each time twice as long, up to the longest."""

STEADY: Final = 30.0
"""Seconds after which a worker counts as having run well: its next crash is a first one again."""

LOUD: Final = 3
"""Crashes in a row from which on each is an ERROR: it will not mend itself."""

START: Final = 10
"""How many times as long as a hanging event loop a process may take where it has none: at the import, and at the end."""

UNENDING: Final = 30
"""Looks after which a process that was killed and has not ended is beyond us: the kernel holds it."""


class Supervisor:
    """Keeps as many workers running as the settings say.

    The first one goes ahead: what is written wrong, or a broker that is away, is found once and said once, and ends
    us. After that, a worker that ends without having been asked to is started again, and one whose event loop hangs is
    killed first: it cannot drain.
    """

    def __init__(self, settings: Settings, relay: Relay) -> None:
        self._settings = settings
        self._relay = relay
        self._crew = Crew(relay)
        self._refused: dict[int, str] = {}
        """Workers that could not be started, and why."""
        self._proven = asyncio.Event()
        """Whether a bus has run: that what is written can work."""

    async def run(self) -> int:
        """Keep the workers until a signal comes; return the exit code."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch())
            async with asyncio.TaskGroup() as keepers:
                for number in range(1, self._settings.workers + 1):
                    keepers.create_task(self._keep(number))
            watching.cancel()
        return self._crew.code

    def health(self) -> Health:
        """Say how the workers are, each check under its worker's name, and first whether we can replace them."""
        beyond = [f"{each} was killed and does not end" for each in self._crew.workers if _is_unending(each)]
        why = "; ".join([*self._refused.values(), *beyond])
        checks = [Check(SUPERVISOR, not why, why)]
        running = {worker.number: worker for worker in self._crew.workers}
        for number in range(1, self._settings.workers + 1):
            worker = running.get(number)
            said = worker.health() if worker is not None else (Check("bus", False, "does not run"),)
            checks.extend(msgspec.structs.replace(each, name=f"worker {number}: {each.name}") for each in said)
        return Health(tuple(checks))

    async def measured(self) -> bytes:
        """Return what all workers measure, as one page. Raises what is wrong with a page."""
        from rabbitevents.exposition import union

        running = {worker.number: worker for worker in self._crew.workers}
        asked = [running[number] for number in sorted(running)]
        pages = dict.fromkeys(range(1, self._settings.workers + 1), b"")
        for worker, page in zip(asked, await asyncio.gather(*(each.measured() for each in asked)), strict=True):
            pages[worker.number] = page
        return await asyncio.to_thread(union, pages)

    async def _watch(self) -> None:
        """Look after the workers once a beat, and take up the orphans of a container."""
        while True:
            await asyncio.sleep(BEAT)
            for worker in self._crew.workers:
                self._look_at(worker)
            if not self._crew.starting:
                orphans.take_up({worker.pid for worker in self._crew.workers})

    def _look_at(self, worker: Worker) -> None:
        """Kill a worker that hangs.

        Time is counted in our own looks: where all of us stood still, as in a laptop that slept, nobody hung. And a worker
        that waits for somebody to read what it writes hangs no more than its next one would.
        """
        worker.silent = 0 if self._relay.stuck and not worker.killed else worker.silent + 1
        limit = self._settings.hang if worker.turns else self._settings.hang * START
        if limit and worker.silent * BEAT > limit:
            what = "its event loop has not turned" if worker.turns else "it has no event loop yet, or no more,"
            place = f" ({worker.place})" if worker.place else ""
            self._crew.kill(worker, f"hangs: {what} for {limit:g} s{place}")

    async def _keep(self, number: int) -> None:
        if number > 1:
            await self._first_of(self._proven.wait())
        settings = msgspec.structs.replace(self._settings, worker=number)
        pause, crashes = FIRST_PAUSE, 0
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            ended, hung = await self._run_one(settings)
            if self._stopping:
                return
            if not self._proven.is_set():
                logs.log.error("%s before its bus ran", ended)
                self._crew.give_up(CRASHED)
                return
            if asyncio.get_running_loop().time() - began > STEADY:
                pause, crashes = FIRST_PAUSE, 0
            crashes += not hung  # which was said
            say = logs.log.warning if crashes < LOUD else logs.log.error
            often = f" (it ended {crashes} times in a row)" if crashes > 1 else ""
            say("%s; starting another one in %g s%s", ended, pause, often)
            await self._first_of(asyncio.sleep(pause))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _run_one(self, settings: Settings) -> tuple[str, bool]:
        """Run a worker until it ends; say how it did, and whether that is as it hung."""
        try:
            worker = await self._crew.start(settings)
        except OSError as error:
            why = f"worker {settings.worker} could not be started ({error.strerror or error})"
            self._refused[settings.worker] = why
            return why, False
        self._refused.pop(settings.worker, None)
        ready = asyncio.ensure_future(worker.ready.wait())
        await asyncio.wait({ready, worker.ended}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if worker.ready.is_set():
            self._proven.set()
        code = await worker.ended
        if not self._proven.is_set() and code == WRONG:
            self._crew.give_up(code)  # it has said why
        return f"{worker} {how_it_ended(code)}", worker.killed

    @property
    def _stopping(self) -> bool:
        return self._crew.stopping.is_set()

    async def _first_of(self, wait: Coroutine[Any, Any, Any]) -> None:
        """Return when ``wait`` is over, or somebody asks us to stop."""
        either = {asyncio.ensure_future(wait), asyncio.ensure_future(self._crew.stopping.wait())}
        _, rest = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for each in rest:
            each.cancel()


def _is_unending(worker: Worker) -> bool:
    return worker.killed and worker.silent > UNENDING


def supervise(settings: Settings) -> int:
    """Run several processes until a signal comes; return the exit code."""
    relay = Relay()
    try:
        with relay.own_lines():
            logs.configure(settings)
            return asyncio.run(_supervise(settings, relay))
    finally:
        relay.close()


async def _supervise(settings: Settings, relay: Relay) -> int:
    supervisor = Supervisor(settings, relay)
    if settings.health is None:
        return await supervisor.run()
    async with HealthServer(supervisor.health, settings.health, measured=supervisor.measured) as server:
        logs.tell(f"health on port {server.port}: {QUESTIONS}")
        return await supervisor.run()
