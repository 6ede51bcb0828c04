"""The outbox where something is away, stands still, or is poison: what waits, what is counted, and what is said."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import pytest
from sqlalchemy import func, make_url, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from rabbitevents import Bus, Event, Message, Plugin, Publish, Router
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_outbox import Outbox, Tables, TransactionError, tenure
from rabbitevents_outbox.rows import Row
from rabbitevents_outbox.shards import Shards
from rabbitevents_outbox.window import Window
from tests.bed.fixtures import NodeFactory
from tests.bed.pgbouncer import PgBouncer
from tests.bed.postgres import PostgresServer
from tests.committed import Counts, Ledger, processes, until
from tests.committed_service import LEASE, Written, engine_of
from tests.test_outbox import OrderPriced, Shop, Unheard, shop

T = TypeVar("T")


async def attempts(engine: AsyncEngine) -> list[int]:
    row = Tables().outbox.c
    async with engine.connect() as connection:
        return list(await connection.scalars(select(row.attempts).order_by(row.id)))


async def wait_for(look: Callable[[], Awaitable[T]], fits: Callable[[T], bool], what: str, seconds: float = 20) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not fits(seen := await look()):
        assert asyncio.get_running_loop().time() < end, f"{what}: {seen!r} after {seconds:g} s"
        await asyncio.sleep(0.05)


def listening() -> tuple[Router, Ledger]:
    """A router whose one handler notes what comes, one after the other."""
    router, ledger = Router("ledger"), Ledger()

    @router.on(Written, concurrency=1)
    async def take(entry: Event[Written]) -> None:
        ledger.take(entry)

    return router, ledger


# --- the broker ----------------------------------------------------------------------------------------------------


async def test_while_the_broker_is_away_nothing_is_counted_and_two_lines_are_said(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedBroker()
    made = Shop(Outbox(engine))
    with caplog.at_level(logging.INFO, "rabbitevents.outbox"):
        async with running(made.bus, broker=server) as probe:
            server.go_down()
            async with async_sessionmaker(engine).begin() as session:
                await made.outbox.publish(session, *(OrderPriced(f"o-{n}", n) for n in range(20)))
            await wait_for(lambda: _problems(probe.bus), lambda said: "nothing is sent" in said, "the trouble")
            counted = await attempts(engine)

            server.come_up()

            await until(lambda: len(made.got) == 20, "the events", 30)
    said = [record.message for record in caplog.records if "sent" in record.message]
    assert counted == [0] * 20
    assert len(said) == 2, said


async def test_the_row_that_was_tried_last_while_the_broker_was_away_is_not_blamed_for_it(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []
    back = Window.back

    def noted(window: Window, rows: Iterable[Row], *, last: bool = False) -> None:
        tried.append(last)
        back(window, rows, last=last)

    monkeypatch.setattr(Window, "back", noted)
    monkeypatch.setattr(tenure, "PAUSES", (0.05,))
    monkeypatch.setattr(tenure, "SENDING", 0.2)
    server = EmbeddedBroker()
    made = Shop(Outbox(engine))
    async with running(made.bus, broker=server):
        server.go_down()
        async with async_sessionmaker(engine).begin() as session:
            await made.outbox.publish(session, *(OrderPriced(f"o-{n}", n) for n in range(20)))
        await until(lambda: tried[-3:] == [True] * 3, "rows that are tried alone", 30)

        server.come_up()

        await until(lambda: len(made.got) == 20, "the events", 30)
    assert not [record.message for record in caplog.records if "is tried again" in record.message]


async def _problems(bus: Bus) -> str:
    return " ".join(check.detail for check in bus.health().problems)


@pytest.mark.timeout(180)
@pytest.mark.sampled
async def test_a_broker_that_is_killed_and_comes_back_gets_everything(
    own_node: NodeFactory, engine: AsyncEngine
) -> None:
    node = await own_node()
    router, ledger = listening()
    outbox = Outbox(engine)
    bus = Bus(node.url, router, plugins=[outbox])
    async with bus:
        await node.asettle()  # killed within seconds of its declaration, a quorum queue is forgotten by RabbitMQ itself
        await node.akill()
        async with async_sessionmaker(engine).begin() as session:
            written = await outbox.publish(session, *(Written(f"a-{n % 5}", n) for n in range(50)))
        ledger.committed = {str(each.id): ("", 0) for each in written}
        await asyncio.sleep(3)
        counted = await attempts(engine)

        await node.astart()

        await until(lambda: ledger.missing == 0, "the events", 30)
    assert counted == [0] * 50
    assert ledger.judge(Counts()).inversions == 0


# --- the database --------------------------------------------------------------------------------------------------


async def test_while_the_database_is_away_three_lines_are_said_at_most(
    postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(postgres_server.url())
    await Tables().create(engine)
    with caplog.at_level(logging.INFO, "rabbitevents.outbox"):
        async with shop(engine) as (here, probe, sessions):
            await wait_for(lambda: _one(len(caplog.records)), lambda number: number == 1, "the relay to begin")
            caplog.clear()
            await postgres_server.akill()
            await wait_for(lambda: _problems(probe.bus), lambda said: "does not answer" in said, "the trouble")
            await asyncio.sleep(4)

            await postgres_server.astart()

            await wait_for(lambda: _problems(probe.bus), lambda said: not said, "the recovery")
            async with sessions.begin() as session:
                await here.outbox.publish(session, OrderPriced("o-1", 1))
            await until(lambda: here.prices == [1], "the event", 20)
    said = [record.message for record in caplog.records]
    assert len(said) <= 3, said
    assert "waits for its database" in said[0]
    await engine.dispose()


async def _one(value: T) -> T:
    return value


async def test_through_pgbouncer_in_transaction_mode_it_is_the_same(postgres: PostgresServer) -> None:
    name = postgres.database()
    with PgBouncer.before(postgres, name) as url:
        engine = create_async_engine(
            make_url(url).set(drivername="postgresql+psycopg"),
            poolclass=NullPool,
            connect_args={"prepare_threshold": None},
        )
        await Tables().create(engine)
        async with shop(engine) as (here, probe, sessions):
            for n in range(30):
                async with sessions.begin() as session:
                    await here.outbox.publish(session, OrderPriced(f"o-{n % 3}", n))
            await probe.settled(20)

            assert sorted(here.prices) == list(range(30))
        await engine.dispose()


async def test_an_old_snapshot_that_is_open_costs_no_rows(postgres_engine: AsyncEngine) -> None:
    async with postgres_engine.connect() as reader:
        await reader.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        await reader.execute(text("SELECT count(*) FROM rabbitevents_outbox"))
        async with shop(postgres_engine) as (here, _probe, sessions):
            for start in range(0, 1000, 250):
                async with sessions.begin() as session:
                    await here.outbox.publish(
                        session, *(OrderPriced(f"o-{n % 50}", n) for n in range(start, start + 250))
                    )

            await until(lambda: len(here.got) == 1000, "all events", 30)


# --- relays side by side -------------------------------------------------------------------------------------------


@asynccontextmanager
async def relaying(engine: AsyncEngine, number: int, **told: Any) -> AsyncGenerator[list[Shop]]:
    """Run several buses that relay one outbox, each on a broker of its own."""
    made = [Shop(Outbox(engine, **told)) for _ in range(number)]
    async with AsyncExitStack() as stack:
        for each in made:
            await stack.enter_async_context(running(each.bus))
        yield made


async def test_of_twelve_relays_one_sends_and_a_poison_row_is_tried_by_its_own_count(
    postgres_engine: AsyncEngine,
) -> None:
    began = asyncio.get_running_loop().time()
    async with relaying(postgres_engine, 12) as shops:
        async with async_sessionmaker(postgres_engine).begin() as session:
            await shops[0].outbox.publish(session, Unheard(1), *(OrderPriced("o-1", n) for n in range(50)))
        await until(lambda: sum(len(each.got) for each in shops) == 50, "the events", 30)
        await wait_for(lambda: attempts(postgres_engine), lambda counted: counted >= [2], "the second attempt")
        (counted,) = await attempts(postgres_engine)
        elapsed = asyncio.get_running_loop().time() - began

        assert 2**counted <= 2 * (elapsed + 1)  # tried after 0, 1, 3, 7, ... seconds, however many relays there are
        assert sorted(len(each.got) for each in shops) == [0] * 11 + [50]


async def test_what_a_relay_notes_whose_lease_has_passed_to_another_comes_to_nothing(engine: AsyncEngine) -> None:
    tables = Tables()
    async with async_sessionmaker(engine).begin() as session:
        await Outbox(engine).publish(session, OrderPriced("o-1", 1))
    one, other = Shards(engine, tables, 0.3), Shards(engine, tables, 30)
    await one.make(1)
    stale = await one.acquire()
    assert stale is not None
    taken = None
    while taken is None:  # for 0.3 s it is the first one's
        taken = await other.acquire()

    (row,), _ = await other.read(0, after=0, ended=None, limit=10, known=(), full=())
    marked = await one.done(stale, [row.id], None)
    failed = await one.failed(stale, row, "late", pause=1, dead=True)

    assert (marked, failed, await one.renew(stale)) == (0, 0, None)
    assert await attempts(engine) == [0]
    assert await other.done(taken, [row.id], None) == 1


async def test_a_relay_that_leaves_hands_over_at_once(engine: AsyncEngine) -> None:
    first, second = Shop(Outbox(engine)), Shop(Outbox(engine))
    async with running(second.bus):
        pass
    second = Shop(Outbox(engine))
    async with AsyncExitStack() as outer:
        async with running(first.bus):
            await wait_for(lambda: _one(first.outbox.busy()), lambda busy: not busy, "the first one to begin")
            await outer.enter_async_context(running(second.bus))
        async with async_sessionmaker(engine).begin() as session:
            await second.outbox.publish(session, OrderPriced("o-1", 1))

        await until(lambda: second.prices == [1], "the second one", 5)


async def test_shards_are_divided_and_order_within_an_entity_stays(postgres_engine: AsyncEngine) -> None:
    writer = Outbox(postgres_engine, shards=4)
    async with async_sessionmaker(postgres_engine).begin() as session:
        await writer.publish(session, *(OrderPriced(f"o-{n % 20}", n) for n in range(400)))

    async with shop(postgres_engine, shards=4) as (here, _probe, _sessions):
        await until(lambda: len(here.got) == 400, "all events", 30)

    for order in range(20):
        prices = [each.payload.price for each in here.got if each.payload.order_id == f"o-{order}"]
        assert prices == sorted(prices)


@pytest.mark.timeout(180)
async def test_a_relay_that_stood_still_past_its_lease_sends_nothing_more_under_it(
    rabbit_url: str, postgres: PostgresServer
) -> None:
    url = postgres.url(database=postgres.database())
    engine = engine_of(url)
    await Tables().create(engine)
    router, ledger = listening()
    environment = {"AMQP_URL": rabbit_url, "DATABASE_URL": url}
    async with Bus(rabbit_url, router), processes("relay tests.committed_service:relay", 2, environment) as two:
        await until(lambda: any("this process relays" in each.said for each in two), "a relay", 30)
        await until(lambda: all(" runs on " in each.said for each in two), "both", 30)
        suspended = next(each for each in two if "this process relays" in each.said)
        writer = Outbox(engine)

        async def write(start: int) -> None:
            async with async_sessionmaker(engine).begin() as session:
                written = await writer.publish(session, *(Written(f"a-{n % 7}", n) for n in range(start, start + 500)))
            ledger.committed.update({str(each.id): ("", 0) for each in written})

        await write(0)
        suspended.send(signal.SIGSTOP)
        await write(500)
        await until(lambda: ledger.missing == 0, "the other relay", LEASE + 15)
        suspended.send(signal.SIGCONT)
        await write(1000)
        await until(lambda: ledger.missing == 0, "the rest", 20)
    assert ledger.judge(Counts()).inversions == 0
    await engine.dispose()


@pytest.mark.timeout(180)
async def test_clocks_that_are_an_hour_apart_make_no_difference(rabbit_url: str, postgres: PostgresServer) -> None:
    url = postgres.url(database=postgres.database())
    engine = engine_of(url)
    await Tables().create(engine)
    router, ledger = listening()
    environment = {"AMQP_URL": rabbit_url, "DATABASE_URL": url}
    fast = {**environment, "LD_PRELOAD": FAKETIME, "FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    async with (
        Bus(rabbit_url, router),
        processes("relay tests.committed_service:relay", 1, fast) as one,
        processes("relay tests.committed_service:relay", 1, environment) as other,
    ):
        await until(lambda: all(" runs on " in each.said for each in (*one, *other)), "both", 30)
        async with async_sessionmaker(engine).begin() as session:
            written = await Outbox(engine).publish(session, *(Written(f"a-{n % 7}", n) for n in range(200)))
        ledger.committed = {str(each.id): ("", 0) for each in written}

        await until(lambda: ledger.missing == 0, "all events", 20)
        said = [each.said.count("this process relays") for each in (*one, *other)]

    assert sum(said) == 1  # neither took the other's lease for an old one
    assert ledger.came.total() == 200
    await engine.dispose()


FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


@pytest.mark.parametrize(
    "broken", ["event_id = 'junk'", "properties = 'text'", "delay_ms = 'soon'", "body = NULL || 7"]
)
async def test_what_sqlite_lets_anybody_write_stops_that_row_alone(sqlite_engine: AsyncEngine, broken: str) -> None:
    async with async_sessionmaker(sqlite_engine).begin() as session:
        await Outbox(sqlite_engine).publish(session, OrderPriced("broken", 1))
        await session.execute(text(f"UPDATE OR IGNORE rabbitevents_outbox SET {broken}"))
        await Outbox(sqlite_engine).publish(session, OrderPriced("sound", 2))

    async with shop(sqlite_engine) as (here, _probe, _sessions):
        await until(lambda: 2 in here.prices, "the sound one", 15)


async def test_a_relay_that_fails_by_a_defect_says_so_and_goes_on_once_it_can(
    sqlite_engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(sqlite_engine) as (here, probe, sessions):
        async with sessions.begin() as session:
            await here.outbox.publish(session, Unheard(1))
            await session.execute(text("UPDATE rabbitevents_outbox SET attempts = 'many'"))  # which nobody can count on
        await wait_for(lambda: _problems(probe.bus), lambda said: "it failed: TypeError" in said, "the trouble")

        async with sessions.begin() as session:
            await session.execute(Tables().outbox.delete())
            await here.outbox.publish(session, OrderPriced("o-1", 1))

        await until(lambda: here.prices == [1], "the next event", 15)
        await wait_for(lambda: _problems(probe.bus), lambda said: not said, "the recovery")
    assert sum("begun again" in record.message for record in caplog.records) == 1


async def test_what_a_plugin_swallows_fails_the_transaction(engine: AsyncEngine) -> None:
    class Swallows(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            return None

    made = Shop(Outbox(engine), Swallows())
    async with running(made.bus), async_sessionmaker(engine).begin() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(TransactionError, match="did not let the event come here"):
            await made.outbox.publish(session, OrderPriced("o-1", 1))


# --- rows put there by hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        {"properties": b"\xff\xff\xff"},
        {"properties": b""},
        {"routing_key": "x" * 300},
        {"delay_ms": -5},
        {"delay_ms": 9_000_000_000_000_000_000},
        {"exchange": "not-there"},
        {"exchange": "x" * 300},
        {"body": b"x" * 3_000_000},
    ],
)
async def test_a_broken_row_fails_alone_and_says_why(
    rabbit_url: str, postgres_engine: AsyncEngine, broken: dict[str, Any]
) -> None:
    router, got = Router("shop"), list[int]()

    @router.on(OrderPriced)
    async def take(order: OrderPriced) -> None:
        got.append(order.price)

    tables = Tables()
    outbox = Outbox(postgres_engine)
    async with async_sessionmaker(postgres_engine).begin() as session:
        await outbox.publish(session, OrderPriced("broken", 0))
        await session.execute(update(tables.outbox).values(broken))
        await outbox.publish(session, *(OrderPriced(f"o-{n}", n) for n in range(1, 30)))

    async with Bus(rabbit_url, router, plugins=[outbox]):
        await until(lambda: len(set(got) - {0}) == 29, "the sound ones", 30)

        async def error() -> str | None:
            async with postgres_engine.connect() as connection:
                found: str | None = await connection.scalar(select(func.max(tables.outbox.c.last_error)))
                return found

        if broken != {"delay_ms": -5}:  # a time that is past means at once
            await wait_for(error, lambda said: bool(said), "the error")
    assert sorted(set(got) - {0}) == list(range(1, 30))
