"""The outbox: what a transaction publishes is sent if it commits, in its entity's order, and only then."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from attrs import frozen
from sqlalchemy import create_engine, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.schema import CreateSchema

from rabbitevents import Bus, ConfigurationError, EncodeError, Event, Fact, Plugin, Router, event, facts
from rabbitevents.testing import EmbeddedBroker, Probe, running
from rabbitevents_outbox import Outbox, Tables, TransactionError, tenure
from rabbitevents_outbox.shards import Shards
from rabbitevents_outbox.window import Window
from rabbitevents_sql import at
from tests.bed.postgres import PostgresServer
from tests.shop import OrderPlaced, eventually

T = TypeVar("T")


@event("order.priced", entity="order", key="order_id")
@frozen
class OrderPriced:
    order_id: str
    price: int


@event("nobody.listens")
@frozen
class Unheard:
    n: int


class Noted(Plugin):
    """Keeps the facts."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)


class Shop:
    """A bus with an outbox, and what its handler got."""

    def __init__(self, outbox: Outbox, *plugins: Plugin) -> None:
        router = Router("shop")
        self.got: list[Event[Any]] = []
        self.outbox = outbox
        self.bus = Bus("memory://", router, plugins=[*plugins, outbox])

        @router.on(OrderPlaced, OrderPriced, concurrency=1)
        async def record(order: Event[OrderPlaced | OrderPriced]) -> None:
            self.got.append(order)

    @property
    def prices(self) -> list[int]:
        return [each.payload.price for each in self.got]


@asynccontextmanager
async def shop(
    engine: AsyncEngine, **told: Any
) -> AsyncGenerator[tuple[Shop, Probe, async_sessionmaker[AsyncSession]]]:
    made = Shop(Outbox(engine, **told))
    async with running(made.bus) as probe:
        yield made, probe, async_sessionmaker(engine)


async def rows(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return await connection.scalar(select(func.count()).select_from(Tables().outbox)) or 0


# --- what a transaction publishes ----------------------------------------------------------------------------------


async def test_what_commits_is_sent_and_its_row_is_gone(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, probe, sessions):
        async with sessions.begin() as session:
            placed = await here.outbox.publish(session, OrderPlaced("o-1"))

            assert here.got == []

        await probe.settled()
        assert [each.id for each in here.got] == [placed.id]
        assert here.got[0].metadata.source == "shop"
        await eventually(lambda: not here.outbox.busy(), "the row to be marked")
        assert await rows(engine) == 0


async def test_what_is_rolled_back_is_never_sent(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, probe, sessions):
        with suppress(ZeroDivisionError):
            async with sessions.begin() as session:
                await here.outbox.publish(session, OrderPlaced("lost"))
                raise ZeroDivisionError
        async with sessions.begin() as session:
            await here.outbox.publish(session, OrderPlaced("kept"))

        await probe.settled()

        assert [each.payload.order_id for each in here.got] == ["kept"]


async def test_a_savepoint_that_is_rolled_back_takes_its_events_with_it(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, probe, sessions):
        async with sessions.begin() as session:
            await here.outbox.publish(session, OrderPlaced("outer"))
            with suppress(ZeroDivisionError):
                async with session.begin_nested():
                    await here.outbox.publish(session, OrderPlaced("inner"))
                    raise ZeroDivisionError

        await probe.settled()

        assert [each.payload.order_id for each in here.got] == ["outer"]


async def test_several_events_are_one_statement_and_come_in_order(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, probe, sessions):
        async with sessions.begin() as session:
            events = await here.outbox.publish(session, *(OrderPriced("o-1", n) for n in range(50)))

        await probe.settled()

        assert here.prices == list(range(50))
        assert [each.id for each in events] == [each.id for each in here.got]


async def test_an_event_waits_its_delay_at_the_broker(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, probe, sessions):
        async with sessions.begin() as session:
            await here.outbox.publish(session, OrderPlaced("later"), delay=timedelta(days=10))
        await probe.settled()
        early = list(here.got)

        await probe.advance(timedelta(days=11))

        assert early == []
        assert [each.payload.order_id for each in here.got] == ["later"]


async def test_without_a_running_bus_events_are_written_and_another_process_sends_them(engine: AsyncEngine) -> None:
    writer = Outbox(engine, name="web")
    async with async_sessionmaker(engine).begin() as session:
        placed = await writer.publish(session, OrderPlaced("o-1"), metadata={"tenant": "acme"})

    async with shop(engine) as (here, probe, _):
        await eventually(lambda: len(here.got) == 1, "the event")
        await probe.settled()

    assert here.got[0].id == placed.id
    assert here.got[0].metadata.source == "web"
    assert here.got[0].metadata.extra == {"tenant": "acme"}


async def test_a_connection_serves_as_well_as_a_session(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, _probe, _sessions):
        async with engine.begin() as connection:
            await here.outbox.publish(connection, OrderPlaced("o-1"))

        await eventually(lambda: len(here.got) == 1, "the event")


async def test_a_plain_session_writes_too(postgres: PostgresServer) -> None:
    name = postgres.database()
    engine = create_async_engine(postgres.url(database=name))
    await Tables().create(engine)
    plain = create_engine(postgres.url("psycopg", name))
    async with shop(engine) as (here, _probe, _sessions):

        def work() -> None:
            with sessionmaker(plain).begin() as session:
                here.outbox.write(session, OrderPlaced("o-1"), OrderPlaced("o-2"))

        await asyncio.to_thread(work)
        await eventually(lambda: len(here.got) == 2, "the events")
    plain.dispose()
    await engine.dispose()


async def test_the_insert_serves_every_driver(postgres: PostgresServer) -> None:
    name = postgres.database()
    engine = create_async_engine(postgres.url(database=name))
    await Tables().create(engine)
    outbox = Outbox(engine)
    with psycopg.connect(postgres.url("", name)) as psycopg_connection:
        psycopg_connection.execute(*_literal(outbox.insert(OrderPlaced("psycopg"), OrderPlaced("twice"))))
    async with engine.begin() as own:
        asyncpg: Any = (await own.get_raw_connection()).driver_connection
        statement, parameters = outbox.insert(OrderPlaced("asyncpg"), style="numeric")
        await asyncpg.execute(statement, *parameters)
        statement, named = outbox.insert(OrderPlaced("text"), style="named")
        await own.execute(text(statement), named)

    async with shop(engine) as (here, _probe, _sessions):
        await eventually(lambda: len(here.got) == 4, "the events")

    assert [each.payload.order_id for each in here.got] == ["psycopg", "twice", "asyncpg", "text"]
    await engine.dispose()


def _literal(statement: tuple[str, Any]) -> Any:
    return statement


async def test_the_insert_serves_sqlites_own_driver(sqlite_engine: AsyncEngine) -> None:
    outbox = Outbox(sqlite_engine)
    connection = sqlite3.connect(sqlite_engine.url.database or "")
    with connection:
        connection.execute(*outbox.insert(OrderPlaced("o-1"), style="qmark"))
    connection.close()

    async with shop(sqlite_engine) as (here, _probe, _sessions):
        await eventually(lambda: len(here.got) == 1, "the event")


# --- what goes wrong at the writer ---------------------------------------------------------------------------------


async def test_what_cannot_be_written_fails_the_transaction(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, _probe, sessions):
        with pytest.raises(EncodeError, match="limit"):
            async with sessions.begin() as session:
                await here.outbox.publish(session, OrderPlaced("x" * 2_000_000))

    assert await rows(engine) == 0


@pytest.mark.parametrize("closed", [False, True])
async def test_a_session_without_a_transaction_is_refused(engine: AsyncEngine, closed: bool) -> None:
    outbox = Outbox(engine)
    async with async_sessionmaker(engine)() as session:
        if closed:
            await session.execute(select(1))
            await session.close()

        with pytest.raises(TransactionError, match="no transaction is under way"):
            await outbox.publish(session, OrderPlaced("o-1"))


async def test_a_connection_that_commits_by_itself_is_refused(engine: AsyncEngine) -> None:
    outbox = Outbox(engine)
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(select(1))

        with pytest.raises(TransactionError, match="AUTOCOMMIT"):
            await outbox.publish(connection, OrderPlaced("o-1"))


async def test_a_session_of_another_database_is_refused(sqlite_engine: AsyncEngine) -> None:
    outbox = Outbox(sqlite_engine)
    other = create_async_engine("sqlite+aiosqlite://")
    async with async_sessionmaker(other).begin() as session:
        await session.execute(select(1))

        with pytest.raises(TransactionError, match="the session is of sqlite"):
            await outbox.publish(session, OrderPlaced("o-1"))
    await other.dispose()


async def test_wrong_arguments_are_named(engine: AsyncEngine) -> None:
    outbox: Any = Outbox(engine)
    async with async_sessionmaker(engine).begin() as session:
        await session.execute(select(1))
        with pytest.raises(TransactionError, match="given OrderPlaced"):
            await outbox.publish(OrderPlaced("o-1"), OrderPlaced("o-2"))
        with pytest.raises(ConfigurationError, match="has no events"):
            await outbox.publish(session)
        with pytest.raises(ConfigurationError, match=r"timeout=.*waits for nothing"):
            await outbox.publish(session, OrderPlaced("o-1"), timeout=3)
        with pytest.raises(ConfigurationError, match="is no event"):
            await outbox.publish(session, object())
        with pytest.raises(ConfigurationError, match="one event's alone"):
            await outbox.publish(session, OrderPlaced("o-1"), OrderPlaced("o-2"), id="x")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"batch": 0}, "batch=0"),
        ({"shards": 0}, "shards=0"),
        ({"max_attempts": "10"}, "max_attempts='10'"),
        ({"poll": 0}, "poll=0"),
        ({"keep": -1}, "keep=-1"),
        ({"unroutable": "warn"}, "unroutable='warn'"),
        ({"lease": 0.1}, "lease=0.1"),
        ({"tables": "t"}, "tables is text"),
        ({"relay": None}, "relay=None"),
    ],
)
async def test_a_wrong_setting_is_named(engine: AsyncEngine, told: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Outbox(engine, **told)


async def test_an_engine_of_another_kind_is_refused() -> None:
    made: Any = create_engine("sqlite://")
    with pytest.raises(ConfigurationError, match="create_async_engine"):
        Outbox(made)


async def test_missing_tables_are_said_at_start_with_what_makes_them(postgres: PostgresServer) -> None:
    engine = create_async_engine(postgres.url(database=postgres.database()))

    with pytest.raises(ConfigurationError, match=r"rabbitevents_version.*rabbitevents sql print --dialect postgresql"):
        async with running(Shop(Outbox(engine)).bus):
            pass
    await engine.dispose()


@pytest.mark.parametrize("way", ["create", "sql"])
@pytest.mark.parametrize("schema", [None, "Messaging"])
async def test_postgresql_is_told_to_clear_the_outbox_soon(
    postgres: PostgresServer, way: str, schema: str | None
) -> None:
    engine, tables = create_async_engine(postgres.url(database=postgres.database())), Tables(schema=schema)
    async with engine.begin() as connection:
        if schema is not None:
            await connection.execute(CreateSchema(schema))
        for statement in tables.sql("postgresql").split(";\n\n") if way == "sql" else ():
            await connection.execute(text(statement or "SELECT 1"))
    if way == "create":
        await tables.create(engine)

    async with engine.connect() as connection:
        told = await connection.scalar(
            text("SELECT reloptions FROM pg_class WHERE relname = 'rabbitevents_outbox' AND relkind = 'r'")
        )
    await engine.dispose()
    assert "autovacuum_vacuum_threshold=2000" in told


async def test_tables_of_another_version_are_said_at_start(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(update(Tables().version).values(version=99))

    with pytest.raises(ConfigurationError, match="is of version 99, and this version of rabbitevents needs 1"):
        async with running(Shop(Outbox(engine)).bus):
            pass


async def test_an_older_table_is_said_at_start(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE rabbitevents_outbox DROP COLUMN delay_ms"))

    with pytest.raises(ConfigurationError, match="delay_ms"):
        async with running(Shop(Outbox(engine)).bus):
            pass


async def test_a_database_that_is_away_at_start_is_named() -> None:
    engine = create_async_engine("postgresql+asyncpg://nobody:secret@127.0.0.1:1/shop")

    with pytest.raises(ConfigurationError, match=r"nobody:\*\*\*@127.0.0.1:1/shop does not answer"):
        async with running(Shop(Outbox(engine)).bus):
            pass
    await engine.dispose()


# --- order ---------------------------------------------------------------------------------------------------------


async def test_an_entitys_events_come_in_order_however_many_there_are(engine: AsyncEngine) -> None:
    writer = Outbox(engine)
    async with async_sessionmaker(engine).begin() as session:
        await writer.publish(session, *(OrderPriced(f"o-{n % 7}", n) for n in range(1400)))

    async with shop(engine, batch=20) as (here, _probe, _sessions):
        await eventually(lambda: len(here.got) == 1400, "all events")

    for order in range(7):
        prices = [each.payload.price for each in here.got if each.payload.order_id == f"o-{order}"]
        assert prices == sorted(prices)


class Reads:
    """Every read of a relay: where it began, and something that is done before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.begun: list[int] = []
        read = Shards.read

        async def noted(shards: Shards, *which: int, after: int, **told: Any) -> Any:
            if before is not None:
                await before(after)
            self.begun.append(after)
            return await read(shards, *which, after=after, **told)

        monkeypatch.setattr(Shards, "read", noted)


async def test_what_commits_while_a_backlog_is_read_keeps_its_place(
    postgres_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions, writer = async_sessionmaker(postgres_engine), Outbox(postgres_engine)
    early = sessions()
    await early.begin()
    await writer.publish(early, OrderPriced("late", 1))
    async with sessions.begin() as session:
        await writer.publish(session, *(OrderPriced(f"o-{n}", n) for n in range(50)))
    await writer.publish(early, OrderPriced("late", 2))
    async with sessions.begin() as session:
        await writer.publish(session, *(OrderPriced(f"o-{n}", n) for n in range(50)))

    async def commit(after: int) -> None:
        if after and early.in_transaction():
            await early.commit()
            async with sessions.begin() as session:
                await writer.publish(session, OrderPriced("late", 3))

    reads = Reads(monkeypatch, commit)
    async with shop(postgres_engine, batch=20) as (here, _probe, _sessions):
        await eventually(lambda: len(here.got) == 103, "all events", 30)

    assert [each.payload.price for each in here.got if each.payload.order_id == "late"] == [1, 2, 3]
    assert any(reads.begun)


async def test_what_was_there_when_a_backlog_was_begun_is_read_on_and_not_from_the_beginning(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with async_sessionmaker(engine).begin() as session:
        await Outbox(engine).publish(session, *(OrderPriced(f"o-{n}", n) for n in range(400)))
    reads = Reads(monkeypatch)

    async with shop(engine, batch=20) as (here, _probe, _sessions):
        await eventually(lambda: len(here.got) == 400, "all events", 30)

    backlog = reads.begun[: reads.begun.index(max(reads.begun)) + 1]
    assert backlog == sorted(backlog)
    assert len(set(backlog)) > 10


async def test_where_all_is_sent_reads_begin_there_but_never_past_what_may_still_be_committed(
    postgres_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions, writer = async_sessionmaker(postgres_engine), Outbox(postgres_engine)
    reads = Reads(monkeypatch)
    monkeypatch.setattr(tenure, "FULL_SCAN", 0.1)
    async with shop(postgres_engine, poll=0.05) as (here, _probe, _sessions), sessions() as early:
        await early.begin()
        await here.outbox.publish(early, OrderPriced("late", 1))
        async with sessions.begin() as session:
            await writer.publish(session, OrderPriced("o-1", 1))
        await eventually(lambda: len(here.got) == 1, "the event", 20)
        begun = len(reads.begun)
        await eventually(lambda: len(reads.begun) > begun + 10, "some reads", 20)
        monkeypatch.setattr(tenure, "FULL_SCAN", 1000.0)
        begun = len(reads.begun)
        await eventually(lambda: len(reads.begun) > begun + 3, "the last scan", 20)
        meanwhile = list(reads.begun)

        await early.commit()
        async with sessions.begin() as session:
            await writer.publish(session, OrderPriced("late", 2))
        await eventually(lambda: len(here.got) == 3, "all events", 20)

    assert not any(meanwhile)
    assert here.prices == [1, 1, 2]


@pytest.mark.parametrize("refused", [0, 1], ids=["sent", "refused at first"])
async def test_what_is_committed_just_as_reads_begin_behind_it_keeps_its_place(
    postgres_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    sessions, writer, scans = async_sessionmaker(postgres_engine), Outbox(postgres_engine), 0
    early, transactions, broker = sessions(), Shards.transactions, EmbeddedBroker()
    broker.fail("refuse", when=lambda message: b'"price":1' in message.body.replace(b" ", b""), times=refused)

    async def commit_first(shards: Shards) -> tuple[int, int]:
        nonlocal scans
        scans += 1
        if scans > 20 and early.in_transaction():
            monkeypatch.setattr(tenure, "FULL_SCAN", 1000.0)  # no scan after this one
            await early.commit()
        return await transactions(shards)

    await early.begin()
    await writer.publish(early, OrderPriced("late", 1), OrderPriced("late", 2))
    async with sessions.begin() as session:
        await writer.publish(session, OrderPriced("o-1", 0))
    monkeypatch.setattr(Shards, "transactions", commit_first)
    monkeypatch.setattr(tenure, "FULL_SCAN", 0.05)
    made = Shop(Outbox(postgres_engine, poll=0.05))
    async with running(made.bus, broker=broker):
        await eventually(lambda: not early.in_transaction(), "the commit", 30)
        async with sessions.begin() as session:
            await made.outbox.publish(session, OrderPriced("late", 3))
        await eventually(lambda: len(made.got) == 4, "all events", 30)

    assert made.prices == [0, 1, 2, 3]


async def test_where_all_is_sent_reads_begin_there(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    monkeypatch.setattr(tenure, "FULL_SCAN", 0.1)
    async with shop(engine, poll=0.05) as (here, _probe, sessions):
        async with sessions.begin() as session:
            await here.outbox.publish(session, *(OrderPriced(f"o-{n}", n) for n in range(7)))
        await eventually(lambda: len(here.got) == 7, "the events", 20)
        begun = len(reads.begun)
        await eventually(lambda: len(reads.begun) > begun + 10, "some reads", 20)
        monkeypatch.setattr(tenure, "FULL_SCAN", 1000.0)

        await eventually(lambda: 7 in reads.begun, "a read behind them", 20)


async def test_of_an_entity_that_has_enough_rows_in_hand_no_more_are_read_before_those_of_others(
    engine: AsyncEngine,
) -> None:
    async with async_sessionmaker(engine).begin() as session:
        hot = [OrderPriced("hot", n) for n in range(100)]
        await Outbox(engine).publish(session, *hot, OrderPriced("other", 1))
    shards, window = Shards(engine, Tables(), 30), Window(full=10)
    first, _ = await shards.read(0, after=0, ended=None, limit=50, known=(), full=())
    window.add(first)

    rows, _ = await shards.read(0, after=0, ended=None, limit=50, known=window.known, full=window.full)

    assert window.full == ["order/hot"]
    assert [row.entity for row in rows] == ["order/other"]


# --- what fails ----------------------------------------------------------------------------------------------------


async def test_an_entity_that_was_held_back_is_sent_in_order_though_a_backlog_is_being_read(
    engine: AsyncEngine,
) -> None:
    table = Tables().outbox
    row = table.c
    async with async_sessionmaker(engine).begin() as session:
        backlog = (OrderPriced(f"o-{n}" if n % 10 else "held", n) for n in range(3000))
        await Outbox(engine).publish(session, *backlog)
        first = await session.scalar(select(func.min(row.id)).where(row.entity == "order/held"))
        failed = {"attempts": 1, "next_try_at": at(600)}
        await session.execute(update(table).where(row.id == first).values(failed))

    async with shop(engine, batch=20) as (here, _probe, sessions):
        await eventually(lambda: len(here.got) > 300, "some of the others", 30)
        async with sessions.begin() as session:
            await session.execute(update(table).where(row.id == first).values(next_try_at=None))
            await here.outbox.publish(
                session, OrderPriced("o-last", 3000)
            )  # the relay is woken, and reads from the start
        await eventually(lambda: len(here.got) == 3001, "all events", 60)

    held = [each.payload.price for each in here.got if each.payload.order_id == "held"]
    assert held == list(range(0, 3000, 10))


async def test_an_event_that_nobody_is_bound_for_waits_for_a_queue_and_holds_up_nobody(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, _probe, sessions):
        async with sessions.begin() as session:
            await here.outbox.publish(session, Unheard(1), OrderPlaced("o-1"))

        await eventually(lambda: len(here.got) == 1, "the other event")

        async def failed() -> str | None:
            async with engine.connect() as connection:
                found: str | None = await connection.scalar(select(Tables().outbox.c.last_error))
                return found

        await until(failed, lambda said: said is not None and "UnroutableError" in said)


async def test_where_it_is_to_be_ignored_an_event_without_a_queue_is_done_with(engine: AsyncEngine) -> None:
    async with shop(engine, unroutable="ignore") as (here, _probe, sessions):
        async with sessions.begin() as session:
            await here.outbox.publish(session, Unheard(1))

        await until(lambda: rows(engine), lambda left: left == 0)


async def test_a_row_that_fails_holds_back_its_entity_only(engine: AsyncEngine) -> None:
    tables = Tables()
    async with async_sessionmaker(engine).begin() as session:
        writer = Outbox(engine)
        await writer.publish(session, OrderPriced("broken", 1))
        await session.execute(update(tables.outbox).values(properties=b"\xff"))
        await writer.publish(session, OrderPriced("broken", 2), OrderPriced("sound", 3))

    noted = Noted()
    made = Shop(Outbox(engine), noted)
    async with running(made.bus) as probe:
        await eventually(lambda: len(made.got) == 1, "the sound one")
        await eventually(lambda: [f.dead for f in noted.facts if isinstance(f, facts.Backlog)][-1:] == [1], "the count")

        problems = probe.bus.health().problems

    assert made.prices == [3]
    assert [(each.name, each.degraded) for each in problems] == [("outbox", True)]
    assert "1 dead" in problems[0].detail
    async with engine.connect() as connection:
        found = (await connection.execute(select(tables.outbox).order_by(tables.outbox.c.id))).all()
    assert [(row.attempts, row.dead_at is not None) for row in found] == [(1, True), (0, False)]
    assert "DecodeError" in found[0].last_error


async def test_once_a_dead_row_is_dropped_its_entity_goes_on(engine: AsyncEngine) -> None:
    tables = Tables()
    async with async_sessionmaker(engine).begin() as session:
        writer = Outbox(engine)
        await writer.publish(session, OrderPriced("o-1", 1))
        await session.execute(update(tables.outbox).values(properties=b"\xff"))
        await writer.publish(session, OrderPriced("o-1", 2))
    async with shop(engine) as (here, _probe, _sessions):
        await until(lambda: dead(engine), lambda number: number == 1)

        async with engine.begin() as connection:
            await connection.execute(tables.outbox.delete().where(tables.outbox.c.dead_at.is_not(None)))

        await eventually(lambda: here.prices == [2], "the next one")


async def test_a_row_that_fails_by_itself_is_dead_after_its_attempts(engine: AsyncEngine) -> None:
    async with shop(engine, max_attempts=2) as (here, _probe, sessions):
        async with sessions.begin() as session:
            await here.outbox.publish(session, Unheard(1))

        await until(lambda: dead(engine), lambda number: number == 1)


async def test_while_the_broker_is_away_everything_waits_and_nothing_is_counted(engine: AsyncEngine) -> None:
    server = EmbeddedBroker()
    made = Shop(Outbox(engine))
    async with running(made.bus, broker=server):
        sessions = async_sessionmaker(engine)
        server.block()
        async with sessions.begin() as session:
            await made.outbox.publish(session, OrderPlaced("o-1"))
        await asyncio.sleep(0)
        server.unblock()

        await eventually(lambda: len(made.got) == 1, "the event")


async def dead(engine: AsyncEngine) -> int:
    row = Tables().outbox.c
    async with engine.connect() as connection:
        return await connection.scalar(select(func.count()).where(row.dead_at.is_not(None))) or 0


async def until(look: Callable[[], Awaitable[T]], fits: Callable[[T], bool], seconds: float = 15) -> None:
    """Look, until what is seen fits."""
    end = asyncio.get_running_loop().time() + seconds
    while not fits(seen := await look()):
        assert asyncio.get_running_loop().time() < end, f"saw {seen!r} for {seconds:g} s"
        await asyncio.sleep(0.02)
