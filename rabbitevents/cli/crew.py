"""The processes that run at the moment, and what a signal to whoever started them means for them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Final

from rabbitevents.bus import HARD_STOP
from rabbitevents.cli import logs
from rabbitevents.cli.codes import CRASHED
from rabbitevents.cli.line import UNKNOWN_GRACE
from rabbitevents.cli.relay import Relay
from rabbitevents.cli.settings import Settings
from rabbitevents.cli.worker import Worker, how_it_ended

LATE: Final = "did not leave in time"


class Crew:
    """The processes that run at the moment.

    The first SIGTERM or SIGINT lets all of them drain, the second has them leave at once, the third kills them. What
    they write goes through ``relay``; without one they write where we do.
    """

    def __init__(self, relay: Relay | None = None) -> None:
        self.stopping: asyncio.Event = asyncio.Event()
        self.code: int = 0
        """What we exit with."""
        self.workers: set[Worker] = set()
        """Those that run."""
        self.starting: int = 0
        """How many are being started, whose ids nobody knows yet."""
        self._relay = relay
        self._late: set[Worker] = set()
        """Those that were killed after they were to stop."""
        self._signals = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)

    async def start(self, settings: Settings, environment: Mapping[str, str] | None = None) -> Worker:
        """Start a process. Raises OSError."""
        self.starting += 1
        try:
            worker = await Worker.start(settings, environment, self._relay)
        finally:
            self.starting -= 1
        self.workers.add(worker)
        worker.ended.add_done_callback(lambda _: self._over(worker))
        if self.stopping.is_set():  # while it was being started
            worker.stop()
        return worker

    def _over(self, worker: Worker) -> None:
        """Note how a process ended. One that did not drain when it was to is why we exit with 1.

        That is one that we killed meanwhile, or that ended otherwise after it had begun. One that had ended before it
        heard of the stop is a crash like any other, and none of the stop's; and SIGTERM is what it was asked to end by.
        """
        self.workers.discard(worker)
        code = worker.ended.result()
        if not self.stopping.is_set() or code in (0, -signal.SIGTERM):
            return
        if worker.drains or worker in self._late:
            logs.log.error("%s %s", worker, how_it_ended(code))
            self.code = self.code or CRASHED
        else:
            logs.log.warning("%s %s before it heard of the stop", worker, how_it_ended(code))

    async def end(self, worker: Worker) -> None:
        """Let one process drain, and return when it is gone."""
        worker.stop()
        await asyncio.wait({worker.ended}, timeout=_patience(worker))
        if not worker.ended.done():
            self.kill(worker, LATE)
        await worker.ended

    def kill(self, worker: Worker, why: str) -> None:
        """End a process that does not by itself, and say why, once."""
        if worker.killed:
            return
        logs.log.error("%s %s; killing it", worker, why)
        if self.stopping.is_set():
            self._late.add(worker)
        worker.kill()

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
            for worker in self.workers:
                worker.hurry()
            self._kill_after(HARD_STOP)
        else:
            self._kill_all()

    def _stop(self) -> None:
        self.stopping.set()
        for worker in self.workers:
            worker.stop()
        self._kill_after(max(map(_patience, self.workers), default=0.0))

    def _kill_after(self, patience: float) -> None:
        asyncio.get_running_loop().call_later(patience, self._kill_all)

    def _kill_all(self) -> None:
        for worker in self.workers:
            self.kill(worker, LATE)


def _patience(worker: Worker) -> float:
    """Return how many seconds a process has to stop."""
    return (UNKNOWN_GRACE if worker.grace is None else worker.grace) + HARD_STOP
