"""Looking into a dead letter queue, and doing something about what is there: replay, discard, export.

Every look is bounded by what was there when it began, and whatever was not dealt with goes back to its place. A letter
is acknowledged only once its event is confirmed in its queue, or is on disk, or is meant to be gone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from rabbitevents import BrokerError, Browsing, Bus, ConfigurationError, Message, UnroutableError
from rabbitevents.arguments import instance, text, whole
from rabbitevents.partitions import GUARD as PARTITIONS
from rabbitevents_deadletter.labels import dead_queue_of
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.workbench.course import Course, Pace, Watch, nobody
from rabbitevents_deadletter.workbench.lines import Lines
from rabbitevents_deadletter.workbench.results import By, Group, Result, Summary, count
from rabbitevents_deadletter.workbench.selection import EVERY, Selection

HOLD: Final = 999
"""How many letters a look keeps in memory, at most (and the broker may send one ahead)."""

BATCH: Final = 100
"""How many letters that are discarded are written to disk together, before they are acknowledged."""

LONGEST = 600.0
"""Seconds that a replay looks at a time: the broker takes a look away whose letters it has waited for too long
(30 minutes, where it is not told otherwise)."""

ENDING = 5.0
"""Seconds that the current event has to be confirmed when a replay is interrupted."""

PATIENCE, COURTESY = 5.0, 1.0
"""Seconds that somebody else's look is waited for: by who replays or discards, and by who only looks."""

Deal = Callable[[DeadLetterMessage, Browsing], Awaitable[object]]
"""Does with one letter what is to be done, and says so to the course."""


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
        self._divided = False
        """Whether the queue is none, and partitions stand in its place."""
        self._hold = whole("DeadLetters: hold", hold, most=2000, why="quorum queues let 2000 out at a time")

    # --- looking ---

    async def summary(self, selection: Selection = EVERY, *, by: By = "") -> Summary:
        """Count what is there by error and type, or ``by`` one of them."""
        groups: dict[tuple[str, str], Group] = {}
        result = await self.look(selection, take=lambda letter: count(groups, letter, by))
        ordered = sorted(groups.values(), key=lambda group: (-group.count, group.error, group.type))
        return Summary(**msgspec.structs.asdict(result), groups=tuple(ordered))

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

        async def deal(letter: DeadLetterMessage, look: Browsing) -> None:
            take(letter)
            course.did(letter)

        return await self._go(course, deal, alone=False)

    # --- doing something about it ---

    async def replay(
        self,
        selection: Selection = EVERY,
        *,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        bodies: Mapping[str, bytes] | None = None,
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
        edited = {name.lower(): body for name, body in (bodies or {}).items()}
        course = Course(self.dead_queue, selection, limit, watch, only)

        async def deal(letter: DeadLetterMessage, look: Browsing) -> None:
            names = (letter.id.lower(), letter.digest(body=False).hex()) if edited else ()
            body = next((edited[name] for name in names if name in edited), None)
            await self._send(letter, letter.replay(body=body, to=to), pace, course, look)

        return await self._go(course, None if dry_run else deal)

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
            if course.takes(letter):
                with course.trying(letter):
                    if dry_run:
                        course.passed(letter)
                    else:
                        await self._send(letter, letter.replay(to=to), pace, course, None)
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
        course = Course(self.dead_queue, selection, limit, watch, only)
        size = 1 if lines is None else min(BATCH, self._hold)
        written: list[DeadLetterMessage] = []

        async def let_go(look: Browsing) -> None:
            if lines is not None and written:
                await asyncio.to_thread(lines.sync)
            for letter in written:
                look.acknowledge(letter.delivery)
                course.did(letter)
            written.clear()

        async def deal(letter: DeadLetterMessage, look: Browsing) -> None:
            if lines is not None:
                lines.write(letter)
            written.append(letter)
            if len(written) >= size:
                await let_go(look)

        return await self._go(course, None if dry_run else deal, at_the_end=let_go)

    # --- the way that all of them take ---

    async def _go(
        self,
        course: Course,
        deal: Deal | None,
        *,
        alone: bool = True,
        at_the_end: Callable[[Browsing], Awaitable[object]] | None = None,
    ) -> Result:
        """Have each letter that is meant dealt with, in as many looks as the course wants; without ``deal``, leave it."""
        alone = alone and deal is not None
        while course.goes_on:
            async with self._looking(alone=alone) as look:
                async for letter in course.letters(look, LONGEST if alone else math.inf):
                    with course.trying(letter):
                        if deal is None:
                            course.passed(letter)
                        else:
                            await deal(letter, look)
                if at_the_end is not None:
                    await at_the_end(look)
        return course.ended()

    @asynccontextmanager
    async def _looking(self, *, alone: bool) -> AsyncGenerator[Browsing]:
        """Look into the queue; ``alone``: as its only consumer. Raises `BrokerError` where there are others, also at the same moment.

        It holds all that it may: what was not held when a look ends stands before what was (3.10).
        """
        others = BrokerError(
            f"somebody else looks at queue {self.dead_queue!r}, or replays what is in it: it was left to them; try again when "
            "they have ended"
        )
        if not await self._others_have_left(PATIENCE if alone else COURTESY) and alone:
            raise others
        async with self._bus.browse(self.dead_queue, hold=self._hold) as look:
            depth = await self._bus.depth(self.dead_queue) if alone else None
            if depth is not None and depth.consumers > (look.depth > 0):
                raise others
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
        self, letter: DeadLetterMessage, message: Message, pace: Pace, course: Course, look: Browsing | None
    ) -> None:
        """Send one event back, and only then take its letter out of the queue; what is in a file stays there."""

        async def moved() -> None:
            await self._put(message)
            if look is not None:
                look.acknowledge(letter.delivery)
            course.did(letter)

        await pace.turn()
        await _unbroken(moved())

    async def _put(self, message: Message) -> None:
        """Send an event to its queue; where there are partitions in its place, to that of its entity."""
        among = msgspec.structs.replace(message, exchange=f"{message.routing_key}{PARTITIONS}")
        if self._divided:
            if error := await self._refused(among):
                raise error
            return
        try:
            await self._bus.send(message)
        except UnroutableError:
            if message.exchange or await self._refused(among):
                raise
            self._divided = True

    async def _refused(self, message: Message) -> Exception | None:
        """Send, and return why no queue has it."""
        (error,) = await self._bus.send_many([message])
        return error


async def _unbroken(doing: Coroutine[Any, Any, None]) -> None:
    """Do what must not be broken off in the middle: when we are cancelled, it has a while to come to its end first."""
    task = asyncio.ensure_future(doing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=ENDING)
        task.cancel()
        raise
