"""Looking into a dead letter queue, and doing something about what is there: replay, discard, export.

Every look is bounded by what was there when it began, and whatever was not dealt with goes back to its place. A letter
is acknowledged only once its event is confirmed in its queue, or is on disk, or is meant to be gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

import msgspec

from rabbitevents import BrokerError, Browsing, Bus, ConfigurationError, DecodeError, EncodeError
from rabbitevents.arguments import instance, text, whole
from rabbitevents_deadletter.course import Course, Pace, Watch, nobody
from rabbitevents_deadletter.labels import dead_queue_of
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.lines import Lines
from rabbitevents_deadletter.results import By, Groups, Result, Summary
from rabbitevents_deadletter.selection import EVERY, Selection

HOLD: Final = 999
"""How many letters a look keeps in memory, at most (and the broker may send one ahead)."""

BATCH: Final = 100
"""How many letters that are discarded are written to disk together, before they are acknowledged."""

LONGEST = 600.0
"""Seconds that a replay looks at a time: the broker takes a look away whose letters it has waited for too long
(30 minutes, where it is not told otherwise)."""

ENDING = 5.0
"""Seconds that the current event has to be confirmed when a replay is interrupted."""

PATIENCE = 5.0
"""Seconds that somebody else's look is waited for by who replays or discards."""

COURTESY = 1.0
"""Seconds that it is waited for by who only looks."""

_NO_BODIES: Mapping[str, bytes] = MappingProxyType({})


class DeadLetters:
    """The dead letters of one queue, by way of a bus that has started.

    All methods raise `ConfigurationError` where there is no such queue, and `BrokerError` when the connection breaks in
    the middle: what was not dealt with is back in its place then. What replays or discards also raises it, and leaves the
    queue alone, while somebody else consumes from it: a look, or another replay.

    :param bus: A bus that has started, any that leads to the broker.
    :param queue: The queue whose handler failed, or ``delay.lost``.
    :param hold: How many letters a look keeps in memory at most, 1 to 2000: 999. It sees all of them all the same.
    """

    def __init__(self, bus: Bus, queue: str, *, hold: int = HOLD) -> None:
        instance("DeadLetters: bus", bus, Bus, "say DeadLetters(bus, queue)")
        self.queue: str = text("DeadLetters: queue", queue, such_as="shop.payment.charge")
        self.dead_queue: str = dead_queue_of(queue)
        self._bus = bus
        self._hold = whole("DeadLetters: hold", hold, most=2000, why="quorum queues let 2000 out at a time")

    # --- looking ---

    async def summary(self, selection: Selection = EVERY, *, by: By = "") -> Summary:
        """Count what is there by error and type, or ``by`` one of them."""
        groups = Groups(by)
        result = await self.look(selection, take=groups.add)
        return Summary(**msgspec.structs.asdict(result), groups=groups.sorted())

    async def find(self, selection: Selection = EVERY, *, limit: int = 10) -> list[DeadLetterMessage]:
        """Return the first letters that are meant, the oldest first."""
        found: list[DeadLetterMessage] = []
        await self.look(selection, limit=limit, take=found.append)
        return found

    async def get(self, id: str) -> DeadLetterMessage | None:
        """Return the first letter of an event; None if there is none."""
        found = await self.find(Selection(ids=(id,)), limit=1)
        return found[0] if found else None

    async def export(
        self, lines: Lines, selection: Selection = EVERY, *, limit: int | None = None, watch: Watch = nobody
    ) -> Result:
        """Write the letters that are meant to a file, and leave them where they are."""
        result = await self.look(selection, limit=limit, take=lines.write, watch=watch)
        await asyncio.to_thread(lines.sync)
        return result

    async def look(
        self,
        selection: Selection = EVERY,
        *,
        take: Callable[[DeadLetterMessage], object],
        limit: int | None = None,
        watch: Watch = nobody,
    ) -> Result:
        """Hand out the letters that are meant, one after the other, to ``take``; all stay where they are."""
        course = Course(self.dead_queue, selection, limit, watch)
        await self._others_have_left(COURTESY)
        async with self._browse() as look:
            async for letter in course.letters(look):
                try:
                    take(letter)
                    course.did(letter)
                except DecodeError as error:
                    course.refused(letter, error)
        return course.ended()

    # --- doing something about it ---

    async def replay(
        self,
        selection: Selection = EVERY,
        *,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        bodies: Mapping[str, bytes] = _NO_BODIES,
        only: Container[bytes] | None = None,
        to: str | None = None,
        watch: Watch = nobody,
    ) -> Result:
        """Send the events that are meant back to the queue whose handler failed, and to no other, in order.

        Each is acknowledged here only once it is confirmed there. ``rate`` is how many a second, at most; ``bodies``
        stand in for those of the events, by their ids, or by the hexadecimal `DeadLetterMessage.digest` without a body;
        ``only`` narrows to letters by their digests; ``to`` is another queue, such as the renamed one. One that cannot be
        replayed stays, and is among the refused. Raises a `PublishError`, and then neither this event nor a later one was
        acknowledged. A cancellation lets the current one be confirmed first.
        """
        pace = Pace(rate)
        edited = {id.lower(): body for id, body in bodies.items()}
        course = Course(self.dead_queue, selection, limit, watch, only)
        now, going = asyncio.get_running_loop().time, True
        while going:
            going, end = False, now() + LONGEST
            async with self._alone() if not dry_run else self._browse() as look:
                async for letter in course.letters(look):
                    if dry_run:
                        course.passed(letter)
                        continue
                    await self._send(letter, _edit_of(letter, edited), to, pace, course, look)
                    if going := now() > end and not course.complete:
                        break
        return course.ended()

    async def replay_exported(
        self,
        letters: Iterable[DeadLetterMessage],
        selection: Selection = EVERY,
        *,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        to: str | None = None,
        watch: Watch = nobody,
    ) -> Result:
        """Replay letters from a file (`read_lines`) as `replay` does those in the queue, which is left alone.

        Raises `ConfigurationError` for a letter of another queue.
        """
        pace = Pace(rate)
        course = Course(self.dead_queue, selection, limit, watch)
        for letter in letters:
            if letter.dead_queue != self.dead_queue:
                raise ConfigurationError(f"{letter.describe()} is of another queue, and is not sent to {self.queue!r}")
            if not course.takes(letter):
                continue
            if dry_run:
                course.passed(letter)
            else:
                await self._send(letter, None, to, pace, course, None)
            if course.complete:
                break
        return course.ended()

    async def discard(
        self,
        selection: Selection = EVERY,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        lines: Lines | None = None,
        only: Container[bytes] | None = None,
        watch: Watch = nobody,
    ) -> Result:
        """Take the letters that are meant out of the queue, for good.

        With ``lines``, each is on disk before it is acknowledged; one that cannot be written stays. ``only`` narrows to
        letters by their digests: those that somebody has seen.
        """
        batch: list[DeadLetterMessage] = []
        course = Course(self.dead_queue, selection, limit, watch, only)
        async with self._alone() if not dry_run else self._browse() as look:
            async for letter in course.letters(look):
                if dry_run:
                    course.passed(letter)
                elif _written(letter, lines, course):
                    batch.append(letter)
                if len(batch) >= min(BATCH, self._hold):
                    await _acknowledge(look, batch, lines, course)
            await _acknowledge(look, batch, lines, course)
        return course.ended()

    def _browse(self) -> Browsing:
        """Return a look that holds all that it may: what was not held when a look ends stands before what was (3.10)."""
        return self._bus.browse(self.dead_queue, hold=self._hold)

    @asynccontextmanager
    async def _alone(self) -> AsyncGenerator[Browsing]:
        """Look into the queue as its only consumer. Raises `BrokerError` where there are others, also at the same moment."""
        if not await self._others_have_left(PATIENCE):
            raise _others(self.dead_queue)
        async with self._browse() as look:
            depth = await self._bus.depth(self.dead_queue)
            if depth is not None and depth.consumers > (look.depth > 0):
                raise _others(self.dead_queue)
            yield look

    async def _others_have_left(self, patience: float) -> bool:
        """Wait for a while until nobody consumes from the queue; return whether nobody does."""
        end = asyncio.get_running_loop().time() + patience
        while (depth := await self._bus.depth(self.dead_queue)) and depth.consumers:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(0.05)
        return True

    async def _send(
        self,
        letter: DeadLetterMessage,
        body: bytes | None,
        to: str | None,
        pace: Pace,
        course: Course,
        look: Browsing | None,
    ) -> None:
        """Send one event back, and only then acknowledge its letter; also when we are cancelled in between."""
        try:
            message = letter.replay(body=body, to=to)
            await pace.turn()
            sending = asyncio.ensure_future(self._bus.send(message))
            try:
                await asyncio.shield(sending)
            except asyncio.CancelledError:
                await asyncio.wait({sending}, timeout=ENDING)
                if _is_confirmed(sending):
                    _sent(letter, course, look)
                raise
        except (DecodeError, EncodeError) as error:
            course.refused(letter, error)
        else:
            _sent(letter, course, look)


def _edit_of(letter: DeadLetterMessage, edited: Mapping[str, bytes]) -> bytes | None:
    names = (letter.id.lower(), letter.digest(body=False).hex()) if edited else ()
    return next((edited[name] for name in names if name in edited), None)


def _sent(letter: DeadLetterMessage, course: Course, look: Browsing | None) -> None:
    """Take the letter of an event that is confirmed out of its queue; what is in a file stays there."""
    if look is not None:
        look.acknowledge(letter.delivery)
    course.did(letter)


def _is_confirmed(sending: asyncio.Future[None]) -> bool:
    """Say whether a publish has ended well; one that has not ended is left to itself."""
    if not sending.done():
        sending.cancel()
        return False
    return not sending.cancelled() and sending.exception() is None


def _others(queue: str) -> BrokerError:
    return BrokerError(
        f"somebody else looks at queue {queue!r}, or replays what is in it: it was left to them; try again when they have ended"
    )


def _written(letter: DeadLetterMessage, lines: Lines | None, course: Course) -> bool:
    try:
        if lines is not None:
            lines.write(letter)
    except DecodeError as error:
        course.refused(letter, error)
        return False
    return True


async def _acknowledge(look: Browsing, batch: list[DeadLetterMessage], lines: Lines | None, course: Course) -> None:
    """Take a batch out of the queue, once the disk has it."""
    if lines is not None and batch:
        await asyncio.to_thread(lines.sync)
    for letter in batch:
        look.acknowledge(letter.delivery)
        course.did(letter)
    batch.clear()
