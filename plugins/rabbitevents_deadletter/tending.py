"""What happens to dead letter queues while a service runs: the broker's own letters get a label, and old ones an end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rabbitevents import BrokerError, Bus, Check, ConfigurationError, DecodeError, EncodeError, PublishError
from rabbitevents_deadletter.labels import LOST, dead_queue_of
from rabbitevents_deadletter.letters import GONE, DeadLetterMessage
from rabbitevents_deadletter.workbench import DeadLetters, Lines, Selection

log: Final = logging.getLogger("rabbitevents.deadletter")

FIRST, PAUSE, SWEEP = 1.0, 10.0, 3600.0
"""Seconds until the queues are looked at first (the handlers come first), between two looks at how many there are, and
between two looks for what is too old."""

SHARE: Final = 20
"""How much longer than a look takes it is until the next one: what it holds, nobody else gets."""

HOLD: Final = 100
"""How many letters are held at a time, with their bodies: it is a service's memory."""

LEAVING: Final = 5.0
"""Seconds that a stop waits at most for a look that is under way: the broker may be away."""

BROUGHT: Final = frozenset({"delivery_limit", "expired", "maxlen", GONE})
"""The reasons of those that get a label. A rejected one is rejected because it can have none."""


class Tending:
    """Looks after the dead letter queues of some queues, and after ``delay.lost``, as long as it is `at_work`.

    How many letters there are is in `checks`. ``found`` is told of each that the broker brought, once, by whichever
    process of the service labels it. With ``keep`` and ``archive``, what is older is written to a new file there, and then
    discarded.
    """

    def __init__(
        self,
        bus: Bus,
        queues: Iterable[str],
        found: Callable[[DeadLetterMessage], Awaitable[None]],
        keep: timedelta | None,
        archive: Path | None,
    ) -> None:
        self._bus = bus
        self._found = found
        self._keep = keep
        self._archive = archive
        self._known = dict.fromkeys((*queues, LOST), 0)
        """How many letters each queue had, and how many of its own the plugin has sent there since."""
        self._next: dict[str, float] = {}

    def sent(self, queue: str) -> None:
        """Note that the plugin itself sends a letter, which has a label."""
        if queue in self._known:
            self._known[queue] += 1

    def checks(self) -> Iterable[Check]:
        """Say how many dead letters there are, of those queues that have some."""
        for queue, number in self._known.items():
            if number:
                what = "came back when their queue was gone" if queue == LOST else "were given up on"
                yield Check(f"dead letters {dead_queue_of(queue)}", True, f"{number:,} {what} (rabbitevents dlq)")

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """Look after the queues in a task. Raises at the end what ended it before: a defect."""
        task = asyncio.create_task(self._run(), name=f"{self._bus.name} dead letters")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=LEAVING)
        if task.done() and not task.cancelled():
            task.result()

    async def _run(self) -> None:
        """Look after the queues, again and again. Whatever the broker says to it, the next look may go well."""
        now = asyncio.get_running_loop().time
        await asyncio.sleep(FIRST)
        sweep = now()
        while True:
            sweeps, begun = now() >= sweep, now()
            for queue in self._known:
                try:
                    await self._look_after(queue)
                    if sweeps and self._archive is not None and queue != LOST:
                        await self._sweep(queue, self._archive)
                except (BrokerError, PublishError, ConfigurationError, OSError) as error:
                    log.warning("the dead letters of %s could not be looked after: %s", queue, error)
            sweep = begun + SWEEP if sweeps else sweep
            await asyncio.sleep(PAUSE)

    async def _look_after(self, queue: str) -> None:
        """Count, and where there are more than is known, label those that the broker brought, unless somebody else looks."""
        depth, now = await self._bus.depth(dead_queue_of(queue)), asyncio.get_running_loop().time
        more = 0 if depth is None else depth.ready - self._known[queue]
        if depth is None or (more > 0 and (depth.consumers or now() < self._next.get(queue, 0))):
            return
        if more > 0:
            began = now()
            try:
                await self._label(queue)
            finally:
                self._next[queue] = now() + SHARE * (now() - began)
        self._known[queue] += more  # the plugin may have sent further ones meanwhile

    async def _label(self, queue: str) -> None:
        async with self._bus.browse(dead_queue_of(queue), hold=HOLD) as look:
            async for delivery in look.through():
                letter = DeadLetterMessage.of(delivery)
                if letter.reason not in BROUGHT or not delivery.via_exchange:
                    continue
                try:
                    await self._bus.send(letter.labelled())
                except (DecodeError, EncodeError):
                    continue  # its body was not kept, or its headers leave no room: it stays as it came
                look.acknowledge(delivery)
                await self._found(letter)

    async def _sweep(self, queue: str, archive: Path) -> None:
        """Write what is too old to a file of its own, and discard it."""
        dead = dead_queue_of(queue)
        name = f"{dead}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.jsonl".replace(os.sep, "_")
        with Lines(archive / name) as lines:
            letters = DeadLetters(self._bus, queue, hold=HOLD)
            result = await letters.discard(Selection(older_than=self._keep), lines=lines)
        self._known[queue] = max(0, self._known[queue] - result.done)
        if result.done or result.failed:
            told = dead, result.done, self._keep, lines.path, result.failed
            what = "%s: %d dead letters older than %s were taken out, and are in %s; %d could not be written and stay"
            log.warning(what, *told)
