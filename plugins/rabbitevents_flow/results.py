"""The last results of a subscription: how many of its events failed, each counted once."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import NamedTuple
from uuid import UUID


class Result(NamedTuple):
    """How an event went, and when (monotonic clock, seconds); ``failed`` is the event's id, None where it went well."""

    when: float
    failed: UUID | None


class Results:
    """The results of the last ``of`` events, none older than ``within`` seconds.

    An event that fails again and again is one failure among them: it must not stop those that go well.
    """

    def __init__(self, of: int, within: float) -> None:
        self._within = within
        self._of = of
        self._last: deque[Result] = deque(maxlen=of)

    def went_well(self) -> None:
        """Note one that succeeded."""
        self._last.append(Result(monotonic(), None))

    def failed(self, event: UUID) -> None:
        """Note one that failed, unless it is known that it did."""
        now = monotonic()
        while self._last and self._last[0].when < now - self._within:
            self._last.popleft()
        if all(result.failed != event for result in self._last):
            self._last.append(Result(now, event))

    @property
    def full(self) -> bool:
        """Whether there are as many as are to be looked at."""
        return len(self._last) == self._of

    @property
    def failures(self) -> int:
        """How many of them failed."""
        return sum(1 for result in self._last if result.failed is not None)

    def forget(self) -> None:
        """Begin anew."""
        self._last.clear()
