"""A clock that can be moved: the embedded broker's waiting times run on it."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count


class Clock:
    """The event loop's time plus whatever it was moved by, and what is to be done when.

    Left alone it runs in real time. `jump` moves it forward and does what falls due on the way, in order.
    """

    def __init__(self) -> None:
        self._ahead = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._timer: asyncio.TimerHandle | None = None

    def time(self) -> float:
        """Return the time in seconds; only differences mean something."""
        return asyncio.get_running_loop().time() + self._ahead

    def date(self) -> int:
        """Return the time in seconds since 1970, moved like the rest."""
        return int(time.time() + self._ahead)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` at ``when``. There is no taking back: it must look whether it is still wanted."""
        heapq.heappush(self._due, (when, next(self._number), callback))
        self.wind()

    def next_due(self) -> float | None:
        """Return when the next thing is due; None when nothing is."""
        return self._due[0][0] if self._due else None

    def jump(self, when: float) -> None:
        """Move forward to ``when`` and do what is due by then."""
        self._ahead += max(0.0, when - self.time())
        self._run()

    def wind(self) -> None:
        """Wait for what is due next, on the running loop; an earlier loop's timer is let go of."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._due[0][0] - self.time()), self._run)

    def _run(self) -> None:
        now = self.time()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        self.wind()

    def stop(self) -> None:
        """Do nothing more."""
        self._due.clear()
        self.wind()
