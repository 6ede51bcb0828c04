"""Looking into a dead letter queue, and doing something about what is there: replay, discard, export.

Every look is bounded by what was there when it began, and whatever was not dealt with goes back to its place. A letter
is acknowledged only once its event is confirmed in its queue, or is on disk, or is meant to be gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from rabbitevents import Browsing, Bus, ConfigurationError, DecodeError, Delivery, EncodeError
from rabbitevents.arguments import instance, text, whole
from rabbitevents_deadletter.course import Course, Pace, Watch, nobody
from rabbitevents_deadletter.labels import DEAD
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.lines import Lines
from rabbitevents_deadletter.results import Result, Summary, grouped
from rabbitevents_deadletter.selection import EVERY, Selection

HOLD: Final = 999
"""How many messages a look keeps from everybody else, at most (and the broker may send one ahead)."""

BATCH: Final = 100
"""How many letters that are discarded are written to disk together, before they are acknowledged."""

LONGEST: Final = 600.0
"""Seconds that a letter is held before its turn comes, where the rate is slow: the broker takes a look away whose letters
it has waited for too long (30 minutes, where it is not told otherwise)."""

ENDING: Final = 5.0
"""Seconds that the current event has to be confirmed when a replay is interrupted."""

_NO_BODIES: Mapping[str, bytes] = MappingProxyType({})


class DeadLetters:
    """The dead letters of one queue, by way of a bus that has started.

    All methods raise `ConfigurationError` where there is no such queue, and `BrokerError` when the connection breaks in
    the middle: what was not dealt with is back in its place then.

    :param bus: A bus that has started.
    :param queue: The queue whose handler failed: "shop.payment.charge".
    :param hold: How many letters a look keeps at a time, 1 to 2000: 999.
    """

    def __init__(self, bus: Bus, queue: str, *, hold: int = HOLD) -> None:
        instance("DeadLetters: bus", bus, Bus, "say DeadLetters(bus, queue)")
        self.queue: str = text("DeadLetters: queue", queue, such_as="shop.payment.charge")
        self.dead_queue: str = queue + DEAD
        self._bus = bus
        self._hold = whole("DeadLetters: hold", hold, most=2000, why="quorum queues let 2000 out at a time")

    # --- looking ---

    async def summary(self, selection: Selection = EVERY) -> Summary:
        """Count what is there by error and type, of as many as a look may hold."""
        found: list[DeadLetterMessage] = []
        result = await self._look(selection, None, nobody, found.append)
        return Summary(queue=self.dead_queue, there=result.there, looked_at=result.looked_at, groups=grouped(found))

    async def find(self, selection: Selection = EVERY, *, limit: int = 10) -> list[DeadLetterMessage]:
        """Return the first letters that are meant, the oldest first."""
        found: list[DeadLetterMessage] = []
        await self._look(selection, limit, nobody, found.append)
        return found

    async def get(self, id: str) -> DeadLetterMessage | None:
        """Return the letter of an event; None if it is not among those that a look may hold."""
        found = await self.find(Selection(ids=(id,)), limit=1)
        return found[0] if found else None

    async def export(
        self, lines: Lines, selection: Selection = EVERY, *, limit: int | None = None, watch: Watch = nobody
    ) -> Result:
        """Write the letters that are meant to a file, and leave them where they are."""
        result = await self._look(selection, limit, watch, lines.write)
        await asyncio.to_thread(lines.sync)
        return result

    async def _look(
        self, selection: Selection, limit: int | None, watch: Watch, take: Callable[[DeadLetterMessage], object]
    ) -> Result:
        """Hand out the letters that are meant; all go back."""
        async with self._browse(selection, limit) as look:
            course = Course(self.dead_queue, look.depth, selection, limit, watch)
            async for delivery in look:
                letter = DeadLetterMessage.of(delivery)
                if course.takes(letter):
                    try:
                        take(letter)
                        course.did(letter)
                    except DecodeError as error:
                        course.refused(letter, error)
                if course.complete:
                    break
            return course.ended(full=look.full)

    def _browse(self, selection: Selection, limit: int | None, rate: float | None = None) -> Browsing:
        """Return a look that holds no more than it needs: nobody else gets what it holds, and bodies take memory."""
        hold = self._hold
        if selection == EVERY:  # otherwise what is skipped has to be held, until what is meant has come
            hold = min(hold, limit or hold, hold if rate is None else max(1, int(rate * LONGEST)))
        return self._bus.browse(self.dead_queue, hold=hold)

    # --- doing something about it ---

    async def replay(
        self,
        selection: Selection = EVERY,
        *,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        bodies: Mapping[str, bytes] = _NO_BODIES,
        watch: Watch = nobody,
    ) -> Result:
        """Send the events that are meant back to the queue whose handler failed, and to no other, in order.

        Each is acknowledged here only once it is confirmed there. ``rate`` is how many a second, at most; ``bodies``
        stand in for those of the events, by their ids. One that cannot be replayed stays, and is among the refused.
        Raises a `PublishError`, and then neither this event nor a later one was acknowledged. A cancellation lets the
        current one be confirmed first.
        """
        pace = Pace(rate)
        edited = {id.lower(): body for id, body in bodies.items()}
        async with self._browse(selection, limit, rate) as look:
            course = Course(self.dead_queue, look.depth, selection, limit, watch)
            async for delivery in look:
                letter = DeadLetterMessage.of(delivery)
                if not course.takes(letter):
                    continue
                if dry_run:
                    course.passed(letter)
                else:
                    acknowledge = partial(look.acknowledge, delivery)
                    await self._replay(letter, edited.get(letter.id.lower()), pace, course, acknowledge)
                if course.complete:
                    break
            return course.ended(full=look.full)

    async def replay_exported(
        self,
        letters: Iterable[DeadLetterMessage],
        selection: Selection = EVERY,
        *,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        watch: Watch = nobody,
    ) -> Result:
        """Replay letters from a file (`read_lines`) as `replay` does those in the queue, which is left alone.

        Raises `ConfigurationError` for a letter of another queue.
        """
        pace = Pace(rate)
        course = Course(self.dead_queue, 0, selection, limit, watch)
        for letter in letters:
            if letter.queue != self.queue:
                raise ConfigurationError(f"{letter.describe()} is of another queue, and is not sent to {self.queue!r}")
            if not course.takes(letter):
                continue
            if dry_run:
                course.passed(letter)
            else:
                await self._replay(letter, None, pace, course, _nothing)
            if course.complete:
                break
        return course.ended(full=False)

    async def _replay(
        self,
        letter: DeadLetterMessage,
        body: bytes | None,
        pace: Pace,
        course: Course,
        acknowledge: Callable[[], object],
    ) -> None:
        """Send one event back, and only then acknowledge its letter; also when we are cancelled in between."""
        try:
            message = letter.replay(body=body)
            await pace.turn()
            sending = asyncio.ensure_future(self._bus.send(message))
            try:
                await asyncio.shield(sending)
            except asyncio.CancelledError:
                await asyncio.wait({sending}, timeout=ENDING)
                if _confirmed(sending):
                    acknowledge()
                    course.did(letter)
                raise
        except (DecodeError, EncodeError) as error:
            course.refused(letter, error)
        else:
            acknowledge()
            course.did(letter)

    async def discard(
        self,
        selection: Selection = EVERY,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        lines: Lines | None = None,
        watch: Watch = nobody,
    ) -> Result:
        """Take the letters that are meant out of the queue, for good.

        With ``lines``, each is on disk before it is acknowledged; one that cannot be written stays.
        """
        batch: list[tuple[Delivery, DeadLetterMessage]] = []
        async with self._browse(selection, limit) as look:
            course = Course(self.dead_queue, look.depth, selection, limit, watch)
            async for delivery in look:
                letter = DeadLetterMessage.of(delivery)
                if course.takes(letter):
                    if dry_run:
                        course.passed(letter)
                    elif _written(letter, lines, course):
                        batch.append((delivery, letter))
                if len(batch) == BATCH or look.full or course.complete:
                    await _acknowledge(look, batch, lines, course)
                if course.complete:
                    break
            await _acknowledge(look, batch, lines, course)
            return course.ended(full=look.full)


def _nothing() -> None:
    """Acknowledge nothing: what is in a file stays there."""


def _confirmed(sending: asyncio.Future[None]) -> bool:
    """Say whether a publish has ended well; one that has not ended is left to itself."""
    if not sending.done():
        sending.cancel()
        return False
    return not sending.cancelled() and sending.exception() is None


def _written(letter: DeadLetterMessage, lines: Lines | None, course: Course) -> bool:
    if lines is None:
        return True
    try:
        lines.write(letter)
    except DecodeError as error:
        course.refused(letter, error)
        return False
    return True


async def _acknowledge(
    look: Browsing, batch: list[tuple[Delivery, DeadLetterMessage]], lines: Lines | None, course: Course
) -> None:
    """Take a batch out of the queue, once the disk has it."""
    if lines is not None and batch:
        await asyncio.to_thread(lines.sync)
    for delivery, letter in batch:
        look.acknowledge(delivery)
        course.did(letter)
    batch.clear()
