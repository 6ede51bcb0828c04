"""The demonstration with a store: state, events and what counts in one transaction, and so exactly once."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Event, Router
from rabbitevents.demo.ledger import Ledger
from rabbitevents.demo.orders import make_orders, poisoned
from rabbitevents.demo.past import TABLES, Customer
from rabbitevents.demo.recorder import Recorder
from rabbitevents.demo.report import closing
from rabbitevents.demo.run import Result, run
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.shop import inventory
from rabbitevents.demo.shop.events import (
    InventoryReserved,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OutOfStock,
    PaymentProcessed,
)
from rabbitevents.demo.shop.inventory import Stock
from rabbitevents.demo.shop.order import OrderState, apply
from rabbitevents.demo.store import BOOKS, Line, Store
from rabbitevents.testing import running
from rabbitevents_outbox import Tables
from rabbitevents_process.testing import given
from rabbitevents_retry import Fatal, Retry
from tests.bed.postgres import PostgresServer
from tests.scale import WHOLE
from tests.test_demo import KEYS, Main, Silence, main
from tests.test_demo_processes import Audience, is_running

__all__ = ["main"]

ORDERS = 200 if WHOLE else 60


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Where SQLite makes a database."""
    return f"sqlite:///{tmp_path}/shop.db"


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """An empty database of PostgreSQL's."""
    return postgres.url("", postgres.database())


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """A database of either kind."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


async def ran(orders: int, settings: Settings, *, poison: bool = False) -> Result:
    wanted = list(make_orders(orders, seed=1))
    return await run(poisoned(wanted) if poison else wanted, settings, Silence())


async def rows(url: str, statement: Any) -> list[Any]:
    """What a database answers."""
    driver = url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    engine: AsyncEngine = create_async_engine(driver)
    try:
        async with engine.connect() as connection:
            found = await connection.execute(statement)
            return list(found.all()) if found.returns_rows else []
    finally:
        await engine.dispose()


async def book(url: str, service: str, name: str) -> dict[str, Any]:
    """What a service has noted."""
    which = select(BOOKS.c.key, BOOKS.c.value).where(BOOKS.c.service == service, BOOKS.c.book == name)
    return {key: json.loads(value, parse_float=Decimal) for key, value in await rows(url, which)}


async def happened(url: str, *types: str) -> list[tuple[str, str]]:
    """Which events of these types are stored: the order's id, and the type."""
    event = TABLES.events.c
    found = await rows(url, select(event.entity_id, event.type).where(event.type.in_(types)))
    return [(order, type.removeprefix("order.")) for order, type in found]


async def check_the_past(url: str, placed: int, outcomes: dict[str, str]) -> None:
    """Check that each order was placed once and closed once, and that the table of customers agrees with the analytics."""
    orders = [order for order, _ in await happened(url, "order.placed")]
    assert len(orders) == len(set(orders)) == placed
    assert len(await happened(url, "order.confirmed", "order.cancelled")) == len(outcomes)
    known = await rows(url, select(*Customer.__table__.columns))
    sums = await book(url, "analytics", "sums")
    counted = [sum(row[place] for row in known) for place in (1, 2, 3)]
    assert counted == [placed, sums["confirmed"], sums["cancelled"]]
    assert sum((Decimal(row[4]) for row in known), Decimal(0)) == Decimal(sums["revenue"])


async def check_that_the_books_agree(url: str, placed: int) -> None:
    """Check that five services know the same of every order but for the dead ones, and that their sums are right."""
    outcomes = dict(await happened(url, "order.confirmed", "order.cancelled"))
    await check_the_past(url, placed, outcomes)
    reserved, returned = await book(url, "inventory", "reserved"), await book(url, "inventory", "returned")
    charged = await book(url, "payment", "charged")
    confirmed = {order for order, outcome in outcomes.items() if outcome == "confirmed"}
    assert len(await book(url, "analytics", "placed")) == placed
    refunded = await book(url, "payment", "refunded")
    assert {order for order, price in charged.items() if Decimal(price) > 0} - refunded.keys() == confirmed
    assert all(refunded[order] == charged[order] for order in refunded)
    assert {order for order, kept in reserved.items() if kept["pieces"] and order not in returned} >= confirmed
    assert set(await book(url, "analytics", "confirmed")) == confirmed
    assert set(await book(url, "notification", "sent")) == set(outcomes)
    sums = await book(url, "analytics", "sums")
    assert Decimal(sums["revenue"]) == sum((Decimal(charged[order]) for order in confirmed), Decimal(0))
    assert (sums["confirmed"], sums["cancelled"]) == (len(confirmed), len(outcomes) - len(confirmed))
    taken = await book(url, "inventory", "sums")
    for sku, pieces in taken.items():
        kept = sum(each["pieces"] for each in reserved.values() if each["sku"] == sku)
        assert pieces == kept - sum(each["pieces"] for each in returned.values() if each["sku"] == sku)
        assert 0 <= pieces <= 500
    levels = await book(url, "analytics", "levels")
    assert {sku: level["left"] for sku, level in levels.items()} == {sku: 500 - taken[sku] for sku in levels}


# --- a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.sampled
async def test_each_effect_is_there_once_though_payments_fail_and_an_order_is_poisoned(url: str) -> None:
    result = await ran(ORDERS, Settings(store=url, fail=0.3), poison=True)

    counts = result.counts
    assert (counts.lost, counts.duplicates, counts.unconfirmed) == (0, 0, 0)
    assert counts.placed == counts.confirmed + counts.cancelled + counts.dead == ORDERS
    assert counts.dead >= 1
    assert counts.retried > 0
    assert counts.flawless
    await check_that_the_books_agree(url, ORDERS)
    assert await rows(url, select(func.count()).select_from(Tables().outbox)) == [(0,)]
    inbox = Tables().inbox
    elsewhere = inbox.c.subscription != "shop.payment.events"  # where timeouts are marked too
    marks = await rows(url, select(func.count()).select_from(inbox).where(elsewhere))
    payments = sum(
        result.tally.of_type(type) for type in ("inventory.reserved", "payment.processed", "payment.declined")
    )
    assert marks == [(counts.handled - payments,)]


@pytest.mark.parametrize(("sabotage", "lost", "duplicates"), [("drop", 2, 0), ("dup", 0, 2)])
async def test_sabotage_is_noticed(sqlite_url: str, sabotage: Any, lost: int, duplicates: int) -> None:
    result = await ran(15, Settings(store=sqlite_url, sabotage=sabotage, patience=2))

    assert (result.counts.lost, result.counts.duplicates) == (lost, duplicates)
    assert not result.counts.flawless


async def test_what_was_committed_and_is_never_sent_is_lost(sqlite_url: str) -> None:
    await ran(1, Settings(store=sqlite_url))  # which makes the tables
    vanish = "BEGIN DELETE FROM rabbitevents_outbox WHERE id = NEW.id; END"
    when = "AFTER INSERT ON rabbitevents_outbox WHEN NEW.type = 'order.confirmed'"
    await rows(sqlite_url, text(f"CREATE TRIGGER vanishing {when} {vanish}"))

    counts = (await ran(10, Settings(store=sqlite_url, patience=2))).counts

    assert counts.confirmed > 0
    assert counts.lost == 2 * counts.confirmed  # the analytics have not heard of them, and the customers neither
    assert counts.duplicates == 0
    assert not counts.flawless


async def test_a_second_run_begins_with_an_empty_shop(sqlite_url: str) -> None:
    first = await ran(30, Settings(store=sqlite_url))
    second = await ran(30, Settings(store=sqlite_url))

    assert first.counts.flawless
    assert second.counts.flawless
    assert second.counts.confirmed == first.counts.confirmed
    assert len(await happened(sqlite_url, "order.placed")) == 30


async def test_where_transactions_are_a_duplicate_is_a_flaw_even_after_a_kill(sqlite_url: str) -> None:
    counts = (await ran(1, Settings(store=sqlite_url))).counts
    killed = attrs.evolve(counts, duplicates=1, restarts=1)

    assert counts.flawless
    assert not killed.flawless
    assert closing(killed)[-1] == "0 lost, 1 duplicates"
    assert attrs.evolve(killed, store=None).flawless


def test_the_command_says_where_it_was_committed(main: Main, sqlite_url: str) -> None:
    code, out, _ = main("--orders", "20", "--store", sqlite_url, "--json")
    counts = json.loads(out[0])

    assert code == 0
    assert list(counts) == [*KEYS, "overdue"]
    assert (counts["broker"], counts["store"]) == ("memory://", sqlite_url)
    assert (counts["placed"], counts["lost"], counts["duplicates"]) == (20, 0, 0)


def test_a_server_that_refuses_is_one_clear_line_without_the_password(main: Main, postgres: PostgresServer) -> None:
    wrong = postgres.url("", "nowhere").replace("test@", "test:secret@")

    code, out, err = main("--orders", "20", "--store", wrong)

    assert code == 2
    assert out == []
    assert len(err) == 1
    assert re.search(r'nowhere cannot be used: database "nowhere" does not exist$', err[0])
    assert "secret" not in err[0]


# --- the past, replayed --------------------------------------------------------------------------------------------


@pytest.mark.sampled
async def test_what_is_made_of_the_stored_events_anew_is_what_the_run_has_made(url: str) -> None:
    result = await ran(60, Settings(store=url, replay=True), poison=True)

    counts = result.counts
    assert counts.flawless
    assert (counts.replayed, counts.equal) == (60 + counts.confirmed + counts.cancelled, True)
    assert closing(counts)[-1] == "119 stored events replayed: the read models are equal to those of the run"
    await check_that_the_books_agree(url, 60)


async def test_a_read_model_that_does_not_follow_from_the_events_is_a_flaw(sqlite_url: str) -> None:
    await ran(1, Settings(store=sqlite_url))  # which makes the tables
    table = Customer.__tablename__
    more = f"BEGIN UPDATE {table} SET placed = placed + 1 WHERE name = NEW.name; END"
    await rows(sqlite_url, text(f"CREATE TRIGGER adding AFTER INSERT ON {table} {more}"))
    heard = Audience()

    counts = (await run(list(make_orders(10, seed=1)), Settings(store=sqlite_url, replay=True), heard)).counts

    assert (counts.lost, counts.duplicates) == (0, 0)
    assert (counts.equal, counts.flawless) == (False, False)
    assert heard.lines == ["the read models do not follow from the stored events: 10 customers differ"]
    assert closing(counts)[-1] == "20 stored events replayed: the read models are NOT equal to those of the run"


async def test_a_projection_that_stands_is_a_flaw_and_is_said(sqlite_url: str) -> None:
    await ran(1, Settings(store=sqlite_url))
    refuse = "BEGIN SELECT RAISE(ABORT, 'no more customers'); END"
    await rows(sqlite_url, text(f"CREATE TRIGGER refusing BEFORE INSERT ON {Customer.__tablename__} {refuse}"))
    heard = Audience()

    counts = (await run(list(make_orders(5, seed=1)), Settings(store=sqlite_url, replay=True), heard)).counts

    assert (counts.lost, counts.equal, counts.flawless) == (0, False, False)
    assert "no more customers" in heard.lines[-1]


def test_with_replay_the_command_says_how_many_events_and_whether_all_is_equal(main: Main, sqlite_url: str) -> None:
    code, out, _ = main("--orders", "10", "--store", sqlite_url, "--replay", "--json")
    counts = json.loads(out[0])

    assert code == 0
    assert list(counts) == [*KEYS, "overdue", "replayed", "equal"]
    assert (counts["replayed"], counts["equal"]) == (20, True)


def test_replay_without_a_store_is_refused_with_the_way_out(main: Main) -> None:
    code, out, err = main("--orders", "10", "--replay")

    assert (code, out) == (2, [])
    assert "--replay needs --store sqlite:///shop.db: without a store, no events are kept" in err[0]


# --- services that are killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["order", "inventory", "payment"])
@pytest.mark.sampled
async def test_each_effect_is_there_once_though_a_service_is_killed_in_the_middle(
    rabbit_url: str, postgres_url: str, victim: str
) -> None:
    settings = Settings(broker=rabbit_url, processes=True, fail=0.2, store=postgres_url, replay=True)
    audience = Audience(victim, after=ORDERS // 4)
    orders = poisoned(list(make_orders(ORDERS, seed=1)))

    counts = (await run(orders, settings, audience)).counts

    assert ORDERS // 4 <= audience.killed_at < ORDERS - 1
    assert len(audience.pids(victim)) == 2
    assert counts.restarts == 1
    assert (counts.lost, counts.duplicates, counts.dead) == (0, 0, 1)
    assert (counts.replayed, counts.equal) == (2 * ORDERS - 1, True)
    assert counts.placed == counts.confirmed + counts.cancelled + counts.dead == ORDERS
    assert not any(map(is_running, audience.pids()))
    await check_that_the_books_agree(postgres_url, ORDERS)


# --- an order as what happened to it -------------------------------------------------------------------------------

PLACED = OrderPlaced("1", "c", "mug", 2, Decimal(5))
CONFIRMED = OrderConfirmed("1", "c", Decimal(10))
CANCELLED = OrderCancelled("1", "c", "out of stock")


def test_the_first_word_about_an_order_counts() -> None:
    given([PLACED], apply, OrderState()).when(lambda order: order.close(CONFIRMED)).then(CONFIRMED)
    given([PLACED, CONFIRMED], apply, OrderState()).when(lambda order: order.close(CANCELLED)).then()


def test_an_order_that_nobody_has_placed_becomes_nothing() -> None:
    given([], apply, OrderState()).when(lambda order: order.close(CONFIRMED)).raises(Fatal)


# --- what is noted in a transaction --------------------------------------------------------------------------------


@pytest.fixture
async def store(url: str) -> AsyncGenerator[Store]:
    store = Store(url, 24)
    async with store.opened():
        await store.prepare()
        yield store


async def test_what_is_rolled_back_was_neither_published_nor_handled(store: Store, tmp_path: Path) -> None:
    router = Router("shop.order")
    attempts: list[Event[PaymentProcessed]] = []

    @router.on(PaymentProcessed)
    async def confirm(payment: Event[PaymentProcessed], bus: Bus) -> None:
        attempts.append(payment)
        await bus.publish(OrderConfirmed(f"attempt {len(attempts)}", "c", Decimal(5)))
        if len(attempts) == 1:
            raise ValueError("not today")

    ledger = store.ledger(Ledger(tmp_path / "shop.ledger"))
    plugins = [
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.01)),
        *store.plugins("order", Recorder("order", ledger)),
    ]
    async with running(Bus("amqp://localhost", router, plugins=plugins)) as probe:
        paid = await probe.bus.publish(PaymentProcessed("1", "c", Decimal(5)))
        await probe.settled()
    await ledger.close()
    published, handled = [json.loads(line) for line in await store.take()]

    assert len(attempts) == 2
    assert published[:1] + published[3:5] == ["published", "order.confirmed", str(paid.id)]
    assert published[6] == "attempt 2"
    assert handled == ["handled", "order", "shop.order.confirm", str(paid.id), str(paid.id)]


async def test_two_orders_at_once_are_not_promised_the_same_piece(store: Store, tmp_path: Path) -> None:
    ledger = store.ledger(Ledger(tmp_path / "shop.ledger"))
    bus = Bus("amqp://localhost", inventory.router, plugins=store.plugins("inventory", Recorder("inventory", ledger)))
    bus.provide(Stock, Stock(store.shelf("inventory"), pieces_of_each=25))

    async with running(bus) as probe:
        await probe.bus.publish_many(OrderPlaced(f"o-{n}", "c", "mug", 2, Decimal(1)) for n in range(40))
        await probe.settled()
        reserved, refused = probe.published(InventoryReserved), probe.published(OutOfStock)
    await ledger.close()

    assert (len(reserved), len(refused)) == (12, 28)
    assert {each.left for each in refused} == {1}


async def test_a_line_is_taken_once_and_only_when_it_is_committed(store: Store) -> None:
    async with store.engine.connect() as connection:
        await connection.execute(insert(Line).values(record="[1]"))
        before = [] if store.engine.dialect.name == "sqlite" else await store.take()
        await connection.commit()

    first, second = await store.take(), await store.take()

    assert (before, first, second) == ([], [b"[1]"], [])
