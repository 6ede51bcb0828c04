"""What every outbox does: the same orders, the same phases, the same clock.

A contender is a small module beside this one that says how its library writes, relays, consumes and handles. ``compete``
runs one phase of it in this process, and prints what came out as one line of JSON, which ``benchmarks/outbox.py`` reads.
Nothing here knows a library under test, but for SQLAlchemy, which all of them write with.
"""

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aio_pika
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.workload import QUIET, Clock, Tally, at_a_rate, quantiles, settle_the_collector, version_of

EXCHANGE = "bench"
QUEUE = "bench.orders"
TYPE = "order.placed"
WORKERS = 20
"""How many events are handled at a time, each with a connection of the pool."""
PREFETCH = 200
LOOK = 0.01
"""Seconds between two looks at the queue's depth."""
BLOCK = 50
"""Transactions with an event, before as many without one."""
WRITERS = 8
PATIENCE = 300

Document = dict[str, Any]
Handle = Callable[[int], None]


class Base(DeclarativeBase):
    pass


class Thing(Base):
    """What a transaction writes beside its event."""

    __tablename__ = "bench_things"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    customer_id: Mapped[str]


def document(number: int, entities: int) -> Document:
    """Return the order of that number, of one of so many entities: about 300 bytes of JSON."""
    return {
        "order_id": f"order-{number % entities:08d}",
        "number": number,
        "customer_id": f"customer-{number % 997:05d}",
        "total": 87.25,
        "note": "Please leave it with the neighbours. " * 5,
    }


def thing(number: int) -> Thing:
    return Thing(number=number, customer_id=f"customer-{number % 997:05d}")


class Contender(ABC):
    """An outbox, as far as the benchmark needs it."""

    packages: tuple[str, ...]
    """The distributions whose versions belong beside the figures."""
    order: str
    """Whether an entity's events keep their order, and when not."""
    woken: str
    """What tells the relay of a commit."""
    table: str
    """The table whose rows are gone once they are sent."""
    inboxes: tuple[str, ...] = ()
    """The ways of handling that it has, the plain one first."""

    def __init__(self, postgres: str, amqp: str) -> None:
        self.postgres = postgres
        self.amqp = amqp
        self.engine = create_async_engine(postgres, pool_size=WORKERS + 20)
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @abstractmethod
    async def create(self) -> None:
        """Make the tables."""

    @abstractmethod
    def writing(self) -> AbstractAsyncContextManager[None]:
        """While entered, `write` and `fill` may be called; nothing is relayed by it."""

    @abstractmethod
    async def write(self, session: AsyncSession, order: Document) -> None:
        """Publish one event in the session's transaction."""

    @abstractmethod
    async def fill(self, session: AsyncSession, orders: Sequence[Document]) -> None:
        """Publish many in the session's transaction."""

    @abstractmethod
    def relaying(self) -> AbstractAsyncContextManager[None]:
        """Relay while entered, to the topic exchange, persistent and mandatory, each event confirmed."""

    @abstractmethod
    def serving(self, handle: Handle, *, writes: bool) -> AbstractAsyncContextManager[None]:
        """Relay and consume while entered, and let `write` be called if it ``writes`` too."""

    def handling(self, way: str, handle: Handle) -> AbstractAsyncContextManager[None]:
        """Consume in one of the ways of ``inboxes``: write a `Thing` for each event, then call ``handle``."""
        raise NotImplementedError(way)

    async def feed(self, orders: Sequence[Document]) -> None:
        """Put events into the queue that `handling` consumes."""
        raise NotImplementedError

    async def prepare(self) -> None:
        """Make tables, exchange and queue."""
        await self.create()
        async with self.engine.begin() as database:
            await database.run_sync(Base.metadata.create_all)
        async with await aio_pika.connect(self.amqp) as connection, await connection.channel() as channel:
            exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
            queue = await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
            await queue.bind(exchange, TYPE)

    async def left(self) -> int:
        """Count the rows of the outbox."""
        async with self.engine.connect() as connection:
            return int(await connection.scalar(text(f"SELECT count(*) FROM {self.table}")) or 0)

    async def backlog(self, events: int, entities: int) -> None:
        """Write so many events, 500 in a transaction, an entity's one after the other."""
        async with self.writing():
            for first in range(0, events, 500):
                orders = [document(number, entities) for number in range(first, min(first + 500, events))]
                async with self.sessions.begin() as session:
                    await self.fill(session, orders)
        async with self.engine.connect() as connection:
            await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM ANALYZE"))


# --- relayed events a second ---------------------------------------------------------------------------------------


async def relay(contender: Contender, told: argparse.Namespace) -> Document:
    """Relay a backlog: the clock runs from the first events in the queue until all are there and their rows are gone."""
    await contender.prepare()
    await contender.backlog(told.events, told.entities)
    settle_the_collector()
    async with await aio_pika.connect(contender.amqp) as connection, await connection.channel() as channel:
        async with contender.relaying():
            before = await _depth(channel, 1)
            clock = Clock()
            await _depth(channel, told.events)
            await _emptied(contender)
            reading = clock.reading(told.events - before)
        return {**reading, "inversions": await _check(channel, told.events)}


async def _depth(channel: aio_pika.abc.AbstractChannel, least: int) -> int:
    """Wait until so many events are in the queue, and return how many are."""
    async with asyncio.timeout(PATIENCE):
        while True:
            queue = await channel.declare_queue(QUEUE, passive=True)
            if (depth := queue.declaration_result.message_count or 0) >= least:
                return depth
            await asyncio.sleep(LOOK)


async def _emptied(contender: Contender) -> None:
    """Wait until no row is left."""
    async with asyncio.timeout(PATIENCE):
        while await contender.left():  # noqa: ASYNC110 - of the database, no event tells
            await asyncio.sleep(LOOK)


async def _check(channel: aio_pika.abc.AbstractChannel, events: int) -> int:
    """Empty the queue. Raise unless each event is in it once; return how many came after a later one of their entity."""
    numbers = Counter[int]()
    newest = dict[str, int]()
    inversions = 0
    queue = await channel.declare_queue(QUEUE, passive=True)
    depth = queue.declaration_result.message_count or 0
    async with queue.iterator(no_ack=True, timeout=PATIENCE) as messages:
        async for message in messages:
            order = json.loads(message.body)
            inversions += order["number"] < newest.get(order["order_id"], -1)
            newest[order["order_id"]] = max(order["number"], newest.get(order["order_id"], -1))
            numbers[order["number"]] += 1
            if numbers.total() == depth:
                break
    if len(numbers) != events or numbers.total() != events:
        raise RuntimeError(f"{numbers.total()} events relayed, {len(numbers)} distinct, {events} expected")
    return inversions


# --- from commit to handler ----------------------------------------------------------------------------------------


async def latency(contender: Contender, told: argparse.Namespace) -> Document:
    """Commit at a steady rate, and time each event from just before its COMMIT, which is in it, to its handler.

    The writer is in this process, which relays and consumes, or apart, in one of its own.
    """
    await contender.prepare()
    warm_up = told.rate  # a second: the relay has slept until then
    told.events += warm_up
    handled = dict[int, float]()
    complete = asyncio.Event()

    def handle(number: int) -> None:
        handled[number] = time.perf_counter()
        if len(handled) == told.events:
            complete.set()

    settle_the_collector()
    async with contender.serving(handle, writes=not told.apart):
        committed = await (_written_apart(told) if told.apart else _written(contender, told))
        async with asyncio.timeout(PATIENCE):
            await complete.wait()
    delays = [handled[number] - committed[number] for number in range(warm_up, told.events)]
    return quantiles(delays, ("p50_ms", "p99_ms"))


async def _written(contender: Contender, told: argparse.Namespace) -> list[float]:
    """Commit an event each so often; return when each COMMIT was begun. The clock is the machine's, for all processes."""
    committed = [0.0] * told.events

    async def write(number: int) -> None:
        async with contender.sessions.begin() as session:
            session.add(thing(number))
            await contender.write(session, document(number, 1000))
            await session.flush()
            committed[number] = time.perf_counter()

    await at_a_rate(told.rate, told.events, write)
    return committed


async def _written_apart(told: argparse.Namespace) -> list[float]:
    words = [sys.executable, "-m", told.module, "--phase", "write", "--postgres", told.postgres, "--amqp", told.amqp]
    words += ["--events", str(told.events), "--rate", str(told.rate)]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, env=os.environ)
    printed, _ = await process.communicate()
    return list(json.loads(printed)["committed"])


async def write(contender: Contender, told: argparse.Namespace) -> Document:
    """Be the writer that is apart."""
    async with contender.writing():
        return {"committed": await _written(contender, told)}


# --- what an event costs its transaction ---------------------------------------------------------------------------


async def publish(contender: Contender, told: argparse.Namespace) -> Document:
    """Compare transactions of one row with those of one row and an event, in blocks that take turns."""
    await contender.prepare()

    async def commit(number: int, *, event: bool) -> None:
        async with contender.sessions.begin() as session:
            session.add(thing(number))
            if event:
                await contender.write(session, document(number, 1000))

    async def block(*, event: bool) -> Document:
        clock = Clock()
        for number in range(BLOCK):
            await commit(number, event=event)
        return clock.reading(BLOCK)

    async def crowd(*, event: bool) -> float:
        clock = Clock()
        numbers = iter(range(BLOCK * WRITERS))

        async def some() -> None:
            for number in numbers:
                await commit(number, event=event)

        await asyncio.gather(*(some() for _ in range(WRITERS)))
        return clock.reading(BLOCK * WRITERS)["rate"]

    async with contender.writing():
        for event in (False, True):
            await crowd(event=event)
        settle_the_collector()
        blocks = [(await block(event=False), await block(event=True)) for _ in range(told.events // BLOCK)]
        crowds = [(await crowd(event=False), await crowd(event=True)) for _ in range(max(2, told.events // 500))]
    return {
        "cpu_us": statistics.median(new["cpu_us"] - old["cpu_us"] for old, new in blocks),
        "ms": statistics.median(1e3 / new["rate"] - 1e3 / old["rate"] for old, new in blocks),
        "without_cpu_us": statistics.median(old["cpu_us"] for old, _ in blocks),
        "without_ms": statistics.median(1e3 / old["rate"] for old, _ in blocks),
        "rate": statistics.median(new for _, new in crowds),
        "without_rate": statistics.median(old for old, _ in crowds),
    }


# --- what a mark costs an event ------------------------------------------------------------------------------------


async def inbox(contender: Contender, told: argparse.Namespace) -> Document:
    """Handle a prefilled queue, each event with a row of its own written, in one of the contender's ways."""
    await contender.prepare()
    warm_up = told.events // 10
    tally = Tally(told.events + warm_up, warm_up)
    await contender.feed([document(number, 1000) for number in range(told.events + warm_up)])
    settle_the_collector()
    async with contender.handling(told.way, tally.mark):
        async with asyncio.timeout(PATIENCE):
            await tally.complete.wait()
        assert tally.clock is not None
        reading = tally.clock.reading(told.events)
        await asyncio.sleep(QUIET)
    tally.verify()
    return reading


async def describe(contender: Contender, _told: argparse.Namespace) -> Document:
    """Say what this contender is."""
    return {
        "order": contender.order,
        "woken": contender.woken,
        "inboxes": contender.inboxes,
        "versions": {package: version_of(package) for package in contender.packages},
    }


PHASES: dict[str, Callable[[Contender, argparse.Namespace], Coroutine[None, None, Document]]] = {
    "describe": describe,
    "relay": relay,
    "latency": latency,
    "write": write,
    "publish": publish,
    "inbox": inbox,
}


@asynccontextmanager
async def engine_of(contender: Contender) -> AsyncIterator[None]:
    """Give back the contender's connections at the end."""
    try:
        yield
    finally:
        await contender.engine.dispose()


async def _run(make: Callable[[str, str], Contender], told: argparse.Namespace) -> Document:
    contender = make(told.postgres, told.amqp)
    async with engine_of(contender):
        return await PHASES[told.phase](contender, told)


def compete(module: str, make: Callable[[str, str], Contender]) -> None:
    """Run the phase that the command line names, and print its result as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--phase", choices=PHASES, required=True)
    parser.add_argument("--postgres", default="postgresql+asyncpg://test@127.0.0.1:1/none")
    parser.add_argument("--amqp", default="")
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--entities", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--way", default="")
    told = parser.parse_args()
    told.module = module
    logging.disable(logging.WARNING)
    print(json.dumps(asyncio.run(_run(make, told))), flush=True)
