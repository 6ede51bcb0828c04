"""The inbox: mark, state and events commit together, so an event's effects are exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from attrs import frozen
from sqlalchemy import create_engine, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from tenacity import stop_after_attempt, wait_none

from rabbitevents import Bus, ConfigurationError, Fact, Message, Plugin, Publish, Router, event, facts
from rabbitevents.testing import Probe, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_outbox import Inbox, Outbox, Tables, TransactionError
from rabbitevents_outbox.marks import Marks
from rabbitevents_retry import Retry
from tests.bed.postgres import PostgresServer
from tests.shop import OrderPlaced, eventually

ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


@event("stock.reserved", entity="order", key="order_id")
@frozen
class StockReserved:
    order_id: str


Handle = Callable[[OrderPlaced, AsyncSession, Bus], Awaitable[StockReserved | None]]


async def reserve(order: OrderPlaced, session: AsyncSession, bus: Bus) -> StockReserved:
    await session.execute(text("INSERT INTO effects VALUES (:id)"), {"id": order.order_id})
    return StockReserved(order.order_id)


class Noted(Plugin):
    """Keeps the facts."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)

    def count(self, kind: type[Fact]) -> int:
        return sum(isinstance(each, kind) for each in self.facts)


class Shop:
    """A bus with inbox and outbox, whose first handler is the test's, and whose second one counts what it published."""

    def __init__(self, engine: AsyncEngine, handle: Handle, *further_in: Plugin, concurrency: int = 10) -> None:
        self.engine = engine
        self.calls = 0
        self.reserved: list[str] = []
        self.noted = Noted()
        self.retry = Retry(wait=wait_none(), stop=stop_after_attempt(3))
        router = Router("shop")

        @router.on(OrderPlaced, concurrency=concurrency)
        async def placed(order: OrderPlaced, session: AsyncSession, bus: Bus) -> StockReserved | None:
            self.calls += 1
            return await handle(order, session, bus)

        @router.on(StockReserved)
        async def counted(stock: StockReserved) -> None:
            self.reserved.append(stock.order_id)

        inbox = Inbox(async_sessionmaker(engine), busy=0.1)
        self.bus = Bus(
            "memory://", router, plugins=[self.noted, DeadLetter(), self.retry, inbox, *further_in, Outbox(engine)]
        )

    async def effects(self) -> list[str]:
        async with self.engine.connect() as connection:
            return list(await connection.scalars(text("SELECT order_id FROM effects ORDER BY order_id")))

    async def marks(self) -> int:
        async with self.engine.connect() as connection:
            return await connection.scalar(select(func.count()).select_from(Tables().inbox)) or 0


@asynccontextmanager
async def shop(
    engine: AsyncEngine, handle: Handle = reserve, *further_in: Plugin, concurrency: int = 10
) -> AsyncGenerator[tuple[Shop, Probe]]:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (order_id TEXT PRIMARY KEY)"))
    made = Shop(engine, handle, *further_in, concurrency=concurrency)
    async with running(made.bus) as probe:
        yield made, probe


# --- what commits together -----------------------------------------------------------------------------------------


async def test_an_event_that_comes_twice_has_one_effect_and_publishes_once(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"), id=ID)
        await probe.settled()
        await probe.bus.publish(OrderPlaced("o-1"), id=ID)
        await probe.settled()

        assert (here.calls, await here.effects(), here.reserved) == (1, ["o-1"], ["o-1"])
        assert here.noted.count(facts.Duplicate) == 1
        assert await here.marks() == 2


async def test_two_handlers_of_one_event_are_told_apart(engine: AsyncEngine) -> None:
    seen: list[str] = []
    router = Router("shop")

    @router.on(OrderPlaced)
    async def one(order: OrderPlaced) -> None:
        seen.append("one")

    @router.on(OrderPlaced)
    async def two(order: OrderPlaced) -> None:
        seen.append("two")

    bus = Bus("memory://", router, plugins=[Inbox(async_sessionmaker(engine)), Outbox(engine)])
    async with running(bus) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert sorted(seen) == ["one", "two"]


async def test_what_a_failing_handler_wrote_and_published_is_gone(engine: AsyncEngine) -> None:
    async def fails_once(order: OrderPlaced, session: AsyncSession, bus: Bus) -> StockReserved:
        made = await reserve(order, session, bus)
        await bus.publish(StockReserved(f"early {here.calls}"))
        if here.calls == 1:
            raise ConnectionError
        return made

    async with shop(engine, fails_once) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        assert here.calls == 2
        assert await here.effects() == ["o-1"]
        assert sorted(here.reserved) == ["early 2", "o-1"]


async def test_where_publishing_fails_after_the_handler_the_handler_is_called_again(engine: AsyncEngine) -> None:
    """Its writes were rolled back: to publish alone what it returned would commit events without their state."""

    class Fails(Plugin):
        failures = 1

        async def publish(self, proceed: Publish, message: Message) -> None:
            if message.type == "stock.reserved" and self.failures:
                self.failures -= 1
                raise ConnectionError
            await proceed(message)

    async with shop(engine, reserve, Fails()) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        assert here.calls == 2
        assert (await here.effects(), here.reserved) == (["o-1"], ["o-1"])


async def test_a_failed_statement_that_a_handler_swallows_is_no_success(engine: AsyncEngine) -> None:
    """PostgreSQL answers the COMMIT of such a transaction with a ROLLBACK, and no error."""

    async def swallows(order: OrderPlaced, session: AsyncSession, bus: Bus) -> None:
        if here.calls == 1:
            with suppress(IntegrityError):
                await session.execute(text("INSERT INTO effects VALUES ('there')"))
                await session.execute(text("INSERT INTO effects VALUES ('there')"))
        else:
            await reserve(order, session, bus)

    async with shop(engine, swallows) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        survives = engine.dialect.name == "sqlite"  # where a failed statement does not end its transaction
        assert await here.effects() == (["there"] if survives else ["o-1"])
        assert await here.marks() == 1


async def test_a_savepoint_lets_a_handler_go_on_after_a_failed_statement(engine: AsyncEngine) -> None:
    async def tries(order: OrderPlaced, session: AsyncSession, bus: Bus) -> None:
        await reserve(order, session, bus)
        with suppress(IntegrityError):
            async with session.begin_nested():
                await reserve(order, session, bus)

    async with shop(engine, tries) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        assert (here.calls, await here.effects()) == (1, ["o-1"])


@pytest.mark.parametrize("way", ["commit", "rollback", "close", "begin"])
async def test_a_handler_cannot_end_the_transaction(engine: AsyncEngine, way: str) -> None:
    said: list[str] = []

    async def ends(order: OrderPlaced, session: AsyncSession, bus: Bus) -> None:
        await reserve(order, session, bus)
        try:
            if way == "begin":
                async with session.begin():
                    pass
            else:
                await getattr(session, way)()
        except TransactionError as error:
            said.append(str(error))
            raise

    async with shop(engine, ends) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        assert "leave commit(), rollback(), close() and begin() to it" in said[0]
        assert await here.effects() == []
        assert here.noted.count(facts.DeadLettered) == 1


async def test_what_a_task_publishes_that_outlives_its_handler_is_sent_at_once(engine: AsyncEngine) -> None:
    go = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def later(bus: Bus) -> None:
        await go.wait()
        await bus.publish(StockReserved("late"))

    async def leaves(order: OrderPlaced, session: AsyncSession, bus: Bus) -> None:
        tasks.append(asyncio.create_task(later(bus)))

    async with shop(engine, leaves) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        go.set()
        await tasks[0]
        await probe.settled()

        assert here.reserved == ["late"]


async def test_the_derived_ids_of_a_repeated_attempt_are_the_same(engine: AsyncEngine) -> None:
    ids: list[str] = []

    class Ids(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            ids.append(message.id)
            await proceed(message)

    async def fails_once(order: OrderPlaced, session: AsyncSession, bus: Bus) -> None:
        await bus.publish(StockReserved(order.order_id))
        if here.calls == 1:
            raise ConnectionError

    async with shop(engine, fails_once, Ids()) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        assert here.calls == 2
        assert len(set(ids[1:])) == 1
        assert here.reserved == ["o-1"]


async def test_plain_handlers_get_a_session_in_their_thread(postgres: PostgresServer) -> None:
    name = postgres.database()
    engine = create_async_engine(postgres.url(database=name))
    await Tables().create(engine)
    plain = create_engine(postgres.url("psycopg", name), pool_size=15)
    router, reserved = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    def place(order: OrderPlaced, session: Session) -> StockReserved:
        session.execute(text("INSERT INTO effects VALUES (:id)"), {"id": order.order_id})
        return StockReserved(order.order_id)

    @router.on(StockReserved)
    def count(stock: StockReserved) -> None:
        reserved.append(stock.order_id)

    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (order_id TEXT PRIMARY KEY)"))
    bus = Bus("memory://", router, plugins=[Inbox(sessionmaker(plain)), Outbox(engine)])
    with pytest.raises(ConfigurationError, match="20 events are handled at a time"):
        async with running(
            Bus("memory://", router, plugins=[Inbox(sessionmaker(create_engine(plain.url))), Outbox(engine)])
        ):
            pass
    plain.dispose()
    roomy = create_engine(postgres.url("psycopg", name), pool_size=22)
    bus = Bus("memory://", router, plugins=[Inbox(sessionmaker(roomy)), Outbox(engine)])
    async with running(bus) as probe:
        for _ in range(2):
            await probe.bus.publish(OrderPlaced("o-1"), id=ID)
            await probe.settled()

    assert reserved == ["o-1"]
    roomy.dispose()
    await engine.dispose()


# --- duplicates, side by side --------------------------------------------------------------------------------------


async def test_a_copy_that_comes_while_the_first_is_handled_comes_back_and_is_no_attempt(
    postgres_engine: AsyncEngine,
) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def waits(order: OrderPlaced, session: AsyncSession, bus: Bus) -> StockReserved:
        began.set()
        await go.wait()
        return await reserve(order, session, bus)

    async with shop(postgres_engine, waits) as (here, probe):
        await probe.bus.publish(OrderPlaced("o-1"), id=ID)
        await began.wait()
        await probe.bus.publish(OrderPlaced("o-1"), id=ID)
        await eventually(lambda: here.noted.count(facts.Forwarded) >= 1, "the copy to go back")

        go.set()
        await eventually(lambda: here.reserved == ["o-1"], "the effect")
        await probe.advance(timedelta(seconds=1))

        assert here.calls == 1
        assert here.noted.count(facts.Retried) == 0
        assert here.noted.count(facts.Duplicate) == 1


# --- at start ------------------------------------------------------------------------------------------------------


async def test_an_inbox_without_an_outbox_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match=r"Inbox\(sessions\), Outbox\(engine\)"):
        async with running(Bus("memory://", Router("shop"), plugins=[Inbox(async_sessionmaker(engine))])):
            pass


async def test_an_outbox_outside_of_the_inbox_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match=r"write plugins=\[Inbox\(\), Outbox\(\)\]"):
        Bus("memory://", Router("shop"), plugins=[Outbox(engine), Inbox(async_sessionmaker(engine))])


async def test_a_pool_that_is_too_small_is_refused_with_the_sum(postgres: PostgresServer) -> None:
    engine = create_async_engine(postgres.url(database=postgres.database()), pool_size=3, max_overflow=2)
    await Tables().create(engine)

    with pytest.raises(ConfigurationError, match=r"the engine's pool has 5 connections.*20 events.*pool_size=22"):
        async with running(Shop(engine, reserve).bus):
            pass
    await engine.dispose()


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "sessions=None"), ("x", "sessions is text"), (async_sessionmaker(), "no engine")],
)
def test_what_makes_no_sessions_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Inbox(given)


async def test_a_missing_table_is_said_at_start(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE rabbitevents_inbox"))

    with pytest.raises(ConfigurationError, match=r"rabbitevents_inbox.*rabbitevents sql print"):
        async with running(Shop(engine, reserve).bus):
            pass


# --- old marks -----------------------------------------------------------------------------------------------------


async def test_marks_are_forgotten_by_when_they_were_made(engine: AsyncEngine) -> None:
    """Not by the event's own time: a replayed old event would lose its mark at once."""
    tables = Tables()
    marks = Marks(tables, "sqlite" if engine.dialect.name == "sqlite" else "postgresql")
    async with async_sessionmaker(engine).begin() as session:
        await session.run_sync(lambda s: [marks.make(s.connection(), uuid4(), "shop.placed") for _ in range(3)])
        await session.execute(update(tables.inbox).values(handled_at=func.date("2001-01-01")))
        await session.run_sync(lambda s: marks.make(s.connection(), ID, "shop.placed"))

    async with async_sessionmaker(engine).begin() as session:
        purged = await session.run_sync(marks.purge, timedelta(days=30))
        left = list(await session.scalars(select(tables.inbox.c.event_id)))

    assert (purged, left) == (3, [ID])
