"""One pass over dead letters: which of them are meant, how many a second, and how far it has come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container, Generator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec

from rabbitevents import Browsing, ConfigurationError, DecodeError, EncodeError
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.workbench.results import MOST_REFUSED, Result
from rabbitevents_deadletter.workbench.selection import Selection

Watch = Callable[[Result, DeadLetterMessage | None], object]
"""Told of every letter that was looked at: how far the pass is, and the letter, where something was done with it."""


def nobody(result: Result, letter: DeadLetterMessage | None) -> None:
    """Watch nothing."""


class Course:
    """A pass over the letters of one queue, in one look or several; ``result`` says how far it is.

    Raises `ConfigurationError` for a limit that is no number of letters. ``only`` has the digests of those letters that
    may be meant.
    """

    def __init__(
        self, queue: str, selection: Selection, limit: int | None, watch: Watch, only: Container[bytes] | None = None
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigurationError(f"limit={limit}: say how many letters, at least 1")
        self.result: Result = Result(queue=queue)
        self.goes_on: bool = True
        """Whether another look is to be taken."""
        self._began = datetime.now(UTC)
        self._selection = selection
        self._limit = limit
        self._watch = watch
        self._only = only
        self._refused: set[bytes] = set()
        self._met: frozenset[bytes] | None = None
        """Those that an earlier look met, and that were left where they are; None at the first look."""

    @property
    def complete(self) -> bool:
        """Whether as many were found as asked for."""
        return self._limit is not None and self.result.meant >= self._limit

    async def letters(self, look: Browsing, longest: float) -> AsyncGenerator[DeadLetterMessage]:
        """Yield those letters of a look that are meant, to the end of the queue, or for so many seconds."""
        now = asyncio.get_running_loop().time
        self.goes_on, end = False, now() + longest
        done, self._met = self.result.done, frozenset(self._refused) if self.result.looked_at else None
        self._note(there=done + look.depth, looked_at=done, meant=done + self.result.failed, others=look.others)
        async for delivery in look.through():
            letter = DeadLetterMessage.of(delivery)
            if self.takes(letter):
                yield letter
                self.goes_on = now() > end and not self.complete
            if self.complete or self.goes_on:
                return

    def takes(self, letter: DeadLetterMessage) -> bool:
        """Count a letter, and say whether it is meant."""
        meant = not self._is_news(letter) and self._selection.takes(letter, self._began)
        if meant and self._only is not None:
            meant = letter.digest() in self._only or letter.digest(body=False) in self._only
        self._note(looked_at=self.result.looked_at + 1, meant=self.result.meant + meant)
        if not meant:
            self._watch(self.result, None)
        return meant

    def _is_news(self, letter: DeadLetterMessage) -> bool:
        """Say whether a later look meets what the first one has met, or could not meet."""
        if self._met is None:
            return False
        times = [each for each in (letter.replayed_at, letter.failed_at) if each is not None]
        return max(times, default=self._began) > self._began or letter.digest() in self._met

    @contextmanager
    def trying(self, letter: DeadLetterMessage) -> Generator[None]:
        """Note what cannot be done with a letter, and why; it is left as it is."""
        try:
            yield
        except (DecodeError, EncodeError) as why:
            refused = (*self.result.refused, (letter.id, str(why)))[:MOST_REFUSED]
            self._note(refused=refused, failed=self.result.failed + 1)
            self._refused.add(letter.digest())
            self._watch(self.result, letter)

    def did(self, letter: DeadLetterMessage) -> None:
        """Note that what was to be done with a letter is done."""
        self._note(done=self.result.done + 1)
        self._watch(self.result, letter)

    def passed(self, letter: DeadLetterMessage) -> None:
        """Note that a letter is left as it is."""
        self._watch(self.result, letter)

    def ended(self) -> Result:
        """Return how far it came, and why no further."""
        self._note(ended=("limit" if self.complete else "gone") if self.result.unseen else "")
        return self.result

    def _note(self, **changes: object) -> None:
        self.result = msgspec.structs.replace(self.result, **changes)


class Pace:
    """Lets one after the other go, ``rate`` of them a second (None: all at once). Raises `ConfigurationError`."""

    def __init__(self, rate: float | None) -> None:
        if rate is not None and not 0 < rate < float("inf"):
            raise ConfigurationError(f"rate={rate:g}: say how many a second, more than 0")
        self._pause = 0.0 if rate is None else 1 / rate
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for one's turn. What was late is not made up for by a burst."""
        now = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._next - now()))
        self._next = max(self._next, now()) + self._pause
