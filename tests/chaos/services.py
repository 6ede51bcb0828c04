"""The processes under test: a bus for each load, which ``rabbitevents run`` starts, and the publishers.

``python -m tests.chaos.services publish`` publishes until SIGTERM, ``... write`` commits to an outbox instead. Where
everything is, the environment says. What is done is written into the ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

from attrs import frozen
from redis.asyncio import Redis
from sqlalchemy import Column, MetaData, Table, Text, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from tenacity import stop_after_attempt, wait_chain, wait_fixed

from rabbitevents import Batch, Bus, Delivery, Router, event
from rabbitevents.errors import NotSentError, PublishError
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, RedisStore
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_retry import Retry
from tests.chaos.ledger import Ledger

CONCURRENCY = 10
PREFETCH = 50
LEASE = 3.0
"""Seconds: short, so that a process that was killed is soon replaced."""
GRACE = 5.0
"""Seconds that a stop has; the library may take 5 more."""
LONGEST = 0.02
"""Seconds that a handler takes at most."""
PAUSE = 0.05
"""Seconds between two events of a lane, on average."""
TWICE = 0.2
"""Which share of the events is published twice, under one id, where handlers are idempotent."""

EFFECTS = Table("chaos_effects", MetaData(), Column("id", Text))
"""One row for each handling: nothing in it is unique, so that a second one is seen."""


@event("chaos.struck", entity="lane", key="lane")
@frozen
class Struck:
    lane: str
    number: int

    @property
    def id(self) -> str:
        """What the ledger calls it."""
        return f"{self.lane}/{self.number}"


@event("chaos.passed", entity="lane", key="lane")
@frozen
class Passed:
    lane: str
    number: int


class FailsError(Exception):
    """The handler fails."""


def failures(id: str) -> int:
    """Return how often an event fails before it is handled, in a load with retries; 9: it dies."""
    number = int(id.rpartition("/")[2])
    return {3: 1, 7: 2}.get(number % 10, 0) if number % 50 != 12 else 9


def dies(id: str) -> bool:
    """Whether an event fails for good, in a load with retries."""
    return failures(id) > 3


async def work(ledger: Ledger, struck: Struck) -> None:
    """Have one effect, after a while."""
    await ledger.note("start", struck.id)
    await asyncio.sleep(random.uniform(0, LONGEST))
    await ledger.note("effect", struck.id)


def _url() -> str:
    return os.environ["AMQP_URL"]


def _ledger() -> Ledger:
    return Ledger(os.environ["LEDGER"])


def _engine() -> AsyncEngine:
    return create_async_engine(os.environ["DATABASE_URL"], pool_size=30)


# --- services ---


def handle() -> Bus:
    """Handle, and nothing else."""
    ledger, router = _ledger(), Router("chaos")

    @router.on(Struck, concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck) -> None:
        await work(ledger, struck)

    return Bus(_url(), router, plugins=[DeadLetter()], grace=GRACE)


def retries() -> Bus:
    """Fail first: once, tried again in the process, or twice, by way of the broker; some for good."""
    ledger, router = _ledger(), Router("chaos")

    @router.on(Struck, concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck, delivery: Delivery) -> None:
        if delivery.attempt <= failures(struck.id):
            await ledger.note("start", struck.id)
            raise FailsError
        await work(ledger, struck)

    retry = Retry(stop=stop_after_attempt(3), wait=wait_chain(wait_fixed(0.05), wait_fixed(0.5)), inline_below=0.1)
    return Bus(_url(), router, plugins=[DeadLetter(), retry], grace=GRACE)


def ordered() -> Bus:
    """Handle each lane in its order, across processes; some fail first."""
    ledger, router = _ledger(), Router("chaos")

    @router.on(Struck, ordered=True, single_active_consumer=True, concurrency=30, prefetch=200)
    async def take(struck: Struck, delivery: Delivery) -> None:
        if delivery.attempt <= (struck.number % 10 == 3):
            await ledger.note("start", struck.id)
            raise FailsError
        await work(ledger, struck)

    retry = Retry(stop=stop_after_attempt(20), wait=wait_fixed(0.2), inline_below=0.05)
    return Bus(_url(), router, plugins=[DeadLetter(), retry], grace=GRACE)


def batches() -> Bus:
    """Handle many by one call."""
    ledger, router = _ledger(), Router("chaos")

    @router.on(Struck, batch=Batch(size=20, within=0.05), concurrency=2)
    async def take(struck: list[Struck]) -> None:
        ids = [each.id for each in struck]
        await ledger.note("start", *ids)
        await asyncio.sleep(random.uniform(0, LONGEST))
        await ledger.note("effect", *ids)

    return Bus(_url(), router, plugins=[DeadLetter(), Retry()], grace=GRACE)


def idempotent() -> Bus:
    """Handle once, with marks in Redis; one event in five is published twice."""
    ledger, router = _ledger(), Router("chaos")

    @router.on(Struck, concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck) -> None:
        await work(ledger, struck)

    once = Idempotency(RedisStore(Redis(port=int(os.environ["REDIS_PORT"]))), lease=LEASE, keep=timedelta(days=1))
    return Bus(_url(), router, plugins=[DeadLetter(), Retry(), once], grace=GRACE)


def transactions() -> Bus:
    """Handle in an inbox, with a row as the effect, and an event downstream through an outbox."""
    ledger, router, engine = _ledger(), Router("chaos"), _engine()

    @router.on(Struck, concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck, session: AsyncSession) -> Passed:
        await ledger.note("start", struck.id)
        await session.execute(insert(EFFECTS).values(id=struck.id))
        return Passed(struck.lane, struck.number)

    @router.on(Passed, concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def pass_on(passed: Passed) -> None:
        await ledger.note("passed", f"{passed.lane}/{passed.number}")

    plugins = [DeadLetter(), Retry(), Inbox(async_sessionmaker(engine)), Outbox(engine, lease=LEASE)]
    return Bus(_url(), router, plugins=plugins, grace=GRACE)


# --- publishers ---

Send = Callable[[Struck], Awaitable[object]]


class Publishing:
    """Lanes that publish one event after the other, each when the one before it was answered, until told to stop.

    A lane whose event got no answer goes on under another name: it could still come after the next one.
    """

    def __init__(self, ledger: Ledger, send: Send, *, lanes: int) -> None:
        self._ledger = ledger
        self._send = send
        self._lanes = lanes
        self._stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopped.set)

    async def run(self) -> None:
        """Publish until SIGTERM; return when all were answered."""
        await asyncio.gather(*(self._lane(number) for number in range(self._lanes)))

    async def _lane(self, lane: int) -> None:
        life = number = 0
        while not self._stopped.is_set():
            struck = Struck(f"{os.getpid()}-{lane}-{life}", number)
            number += 1
            await self._ledger.note("attempt", struck.id)
            answer = await self._answer(struck)
            await self._ledger.note(answer, struck.id)
            if answer != "confirmed":
                life, number = life + 1, 0
                await asyncio.sleep(0.1)
            await asyncio.sleep(random.uniform(0, 2 * PAUSE))

    async def _answer(self, struck: Struck) -> str:
        try:
            await self._send(struck)
        except NotSentError:
            return "failed"
        except (PublishError, DBAPIError, OSError, TimeoutError) as error:
            print(f"{struck.id}: {error}"[:300], flush=True)
            return "unknown"
        return "confirmed"


async def publish() -> None:
    """Publish at the broker."""
    twice = TWICE if os.environ["LOAD"] == "idempotent" else 0.0
    async with Bus(_url(), name="publisher", unroutable="raise") as bus:

        async def send(struck: Struck) -> None:
            envelope = await bus.publish(struck)
            if random.random() < twice:
                with suppress(PublishError):  # it was confirmed already
                    await bus.publish(envelope)

        await Publishing(_ledger(), send, lanes=20).run()


async def write() -> None:
    """Commit to the outbox; the services relay it."""
    engine = _engine()
    outbox, sessions = Outbox(engine, name="writer", relay=False), async_sessionmaker(engine)

    async def commit(struck: Struck) -> None:
        async with asyncio.timeout(20), sessions.begin() as session:
            await outbox.publish(session, struck)

    await Publishing(_ledger(), commit, lanes=8).run()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run({"publish": publish, "write": write}[sys.argv[1]]())
