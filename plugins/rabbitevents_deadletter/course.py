"""One pass over dead letters: which of them are meant, how many a second, and how far it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from rabbitevents import ConfigurationError
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.results import Ended, Result
from rabbitevents_deadletter.selection import Selection

Watch = Callable[[Result, DeadLetterMessage | None], object]
"""Told of every letter that was looked at: how far the pass is, and the letter, where something was done with it."""


def nobody(result: Result, letter: DeadLetterMessage | None) -> None:
    """Watch nothing."""


class Course:
    """A pass over the letters of one queue; ``result`` says how far it is.

    Raises `ConfigurationError` for a limit that is no number of letters.
    """

    def __init__(self, queue: str, there: int, selection: Selection, limit: int | None, watch: Watch) -> None:
        if limit is not None and limit < 1:
            raise ConfigurationError(f"limit={limit}: say how many letters, at least 1")
        self.result: Result = Result(queue=queue, there=there)
        self._selection = selection
        self._limit = limit
        self._watch = watch
        self._now = datetime.now(UTC)

    @property
    def complete(self) -> bool:
        """Whether as many were found as asked for."""
        return self._limit is not None and self.result.meant >= self._limit

    def takes(self, letter: DeadLetterMessage) -> bool:
        """Count a letter, and say whether it is meant."""
        meant = self._selection.takes(letter, self._now)
        result = self.result
        self.result = msgspec.structs.replace(result, looked_at=result.looked_at + 1, meant=result.meant + meant)
        if not meant:
            self._watch(self.result, None)
        return meant

    def passed(self, letter: DeadLetterMessage) -> None:
        """Note that a letter is left as it is."""
        self._watch(self.result, letter)

    def did(self, letter: DeadLetterMessage) -> None:
        """Note that what was to be done with a letter is done."""
        self.result = msgspec.structs.replace(self.result, done=self.result.done + 1)
        self._watch(self.result, letter)

    def refused(self, letter: DeadLetterMessage, why: Exception) -> None:
        """Note that it could not be done, and why."""
        refused = (*self.result.refused, (letter.id, str(why)))
        self.result = msgspec.structs.replace(self.result, refused=refused)
        self._watch(self.result, letter)

    def ended(self, *, full: bool) -> Result:
        """Return how far it came, and why no further."""
        why: Ended = ""
        if self.result.unseen:
            why = "limit" if self.complete else "full" if full else "gone"
        self.result = msgspec.structs.replace(self.result, ended=why)
        return self.result


class Pace:
    """Lets one after the other go, ``rate`` of them a second (None: all at once). Raises `ConfigurationError`."""

    def __init__(self, rate: float | None) -> None:
        if rate is not None and not 0 < rate < float("inf"):
            raise ConfigurationError(f"rate={rate:g}: say how many a second, more than 0")
        self._pause = 0.0 if rate is None else 1 / rate
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for one's turn. What was late is not made up for by a burst."""
        if not self._pause:
            return
        now = asyncio.get_running_loop().time
        if self._next > now():
            await asyncio.sleep(self._next - now())
        self._next = max(self._next, now()) + self._pause
