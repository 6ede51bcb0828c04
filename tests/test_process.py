"""Processes: state, events and timeouts commit together, once for each event, on both databases."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from attrs import define, evolve, frozen
from pydantic import BaseModel
from sqlalchemy import create_engine, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import sessionmaker
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, ConfigurationError, Event, Fact, Message, Plugin, Publish, event, facts
from rabbitevents.operations.wiring import wiring
from rabbitevents.testing import Probe, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_process import DONE, LateForProcess, Process, ProcessTables, Step, Timeout
from rabbitevents_retry import Retry
from tests.ordering import (
    HALF_AN_HOUR,
    CardCharged,
    ChargeCard,
    Fulfilment,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    RemindCustomer,
    StockReserved,
    fulfilling,
)
from tests.shop import eventually

ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
QUEUE = "fulfilment.events"


class World(Plugin):
    """A bus with a process: what is seen of it from outside. Facts are kept by itself, a plugin."""

    def __init__(self, engine: AsyncEngine, process: Process, *further_in: Plugin) -> None:
        self.engine = engine
        self.process = process
        self.facts: list[Fact] = []
        inbox = Inbox(async_sessionmaker(engine), busy=0.1)
        outbox = Outbox(engine, unroutable="ignore", poll=0.02)
        retry = Retry(wait=wait_fixed(10), stop=stop_after_attempt(3))
        self.bus = Bus("memory://", process, plugins=[self, DeadLetter(), retry, inbox, *further_in, outbox])

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)

    def count(self, kind: type[Fact]) -> int:
        return sum(isinstance(each, kind) for each in self.facts)

    @property
    def reasons(self) -> list[str]:
        """Why events were given up on."""
        return [each.reason for each in self.facts if isinstance(each, facts.DeadLettered)]

    async def rows(self) -> Sequence[Any]:
        async with self.engine.connect() as connection:
            return (await connection.execute(select(self.process.tables.process))).all()

    async def state(self) -> Any:
        """The document of the one process that there is."""
        (row,) = await self.rows()
        return bytes(row.state).decode()

    async def change(self, **values: Any) -> None:
        """Change what is kept, as somebody else has."""
        async with self.engine.begin() as connection:
            await connection.execute(update(self.process.tables.process).values(**values))


@asynccontextmanager
async def world(
    engine: AsyncEngine, process: Process | None = None, *further_in: Plugin
) -> AsyncGenerator[tuple[World, Probe]]:
    made = World(engine, process or fulfilling(), *further_in)
    await made.process.tables.create(engine)
    async with running(made.bus) as probe:
        yield made, probe


async def publish(probe: Probe, *events: Any) -> None:
    """Publish events one after another, each when what came of the one before has settled."""
    for each in events:
        await probe.bus.publish(each)
        await probe.settled()


# --- from the beginning to the end ------------------------------------------------------------------------------------


async def test_a_process_begins_goes_on_and_ends(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"), StockReserved("42"))
        between = await here.state()
        await publish(probe, CardCharged("42"))

        assert json.loads(between) == {"state": {"order_id": "42", "paid": False, "reserved": True, "reminders": 0}}
        assert probe.published(ChargeCard) == [ChargeCard("42")]
        assert probe.published(OrderConfirmed) == [OrderConfirmed("42")]
        (row,) = await here.rows()
        assert (row.process, row.key, row.done_at is None) == ("fulfilment", "42", False)


async def test_each_key_has_a_process_of_its_own(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(
            probe, OrderPlaced("1"), OrderPlaced("2"), CardCharged("1"), StockReserved("2"), StockReserved("1")
        )

        assert probe.published(OrderConfirmed) == [OrderConfirmed("1")]
        assert sorted((row.key, row.done_at is None) for row in await here.rows()) == [("1", False), ("2", True)]


async def test_what_is_published_is_caused_by_the_event_and_has_the_same_id_at_each_attempt(
    engine: AsyncEngine,
) -> None:
    class Fails(Plugin):
        ids: list[str] = []  # noqa: RUF012

        async def publish(self, proceed: Publish, message: Message) -> None:
            if message.type == "card.to-be-charged":
                self.ids.append(message.id)
                if len(self.ids) == 1:
                    raise ConnectionError
            await proceed(message)

    fails = Fails()
    async with world(engine, None, fails) as (_, probe):
        await probe.bus.publish(OrderPlaced("42"), id=ID)
        await probe.advance(20)

        assert len(fails.ids) == 2
        assert len(set(fails.ids)) == 1
        assert probe.published(ChargeCard) == [ChargeCard("42")]


async def test_an_event_that_comes_twice_is_one_step(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        for _ in range(2):
            await probe.bus.publish(OrderPlaced("42"), id=ID)
            await probe.settled()

        assert probe.published(ChargeCard) == [ChargeCard("42")]
        assert (here.count(facts.Duplicate), here.count(facts.Retried)) == (1, 0)


async def test_where_publishing_fails_nothing_is_kept(engine: AsyncEngine) -> None:
    class Fails(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            if message.type == "card.to-be-charged":
                raise ConnectionError
            await proceed(message)

    async with world(engine, None, Fails()) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        await probe.advance(60)

        assert await here.rows() == []
        assert probe.published(here.process.timed_out) == []
        assert here.reasons == ["ConnectionError"]


async def test_a_function_may_write_to_the_database_in_the_same_transaction(engine: AsyncEngine) -> None:
    process = Process("fulfilment", Fulfilment, key="order_id")
    calls: list[str] = []

    @process.starts(OrderPlaced)
    async def begin(order: Event[OrderPlaced], session: AsyncSession) -> Step:
        await session.execute(text("INSERT INTO effects VALUES (:id)"), {"id": order.payload.order_id})
        calls.append(str(order.entity_id))
        if len(calls) == 1:
            raise ConnectionError
        return Step(Fulfilment("42"))

    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (order_id TEXT PRIMARY KEY)"))
    async with world(engine, process) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        await probe.advance(20)

        async with engine.connect() as connection:
            assert list(await connection.scalars(text("SELECT order_id FROM effects"))) == ["42"]
        assert calls == ["42", "42"]
        assert len(await here.rows()) == 1


# --- missing, late, and once more -------------------------------------------------------------------------------------


async def test_an_event_that_finds_nothing_is_tried_again_and_then_among_the_dead_letters(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, CardCharged("42"))
        await probe.advance(60)

        assert here.reasons == ["NoSuchProcessError"]
        assert here.count(facts.Retried) == 2
        assert await here.rows() == []


async def test_an_event_that_is_early_goes_on_once_its_process_has_begun(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, CardCharged("42"), OrderPlaced("42"))
        await probe.advance(20)
        await publish(probe, StockReserved("42"))

        assert probe.published(OrderConfirmed) == [OrderConfirmed("42")]
        assert here.reasons == []


async def test_an_event_that_finds_nothing_is_acknowledged_and_told_where_that_is_said(engine: AsyncEngine) -> None:
    async with world(engine, fulfilling(missing="ignore")) as (here, probe):
        await publish(probe, CardCharged("42"))

        (told,) = (each for each in here.facts if isinstance(each, facts.Discarded))
        assert (told.subscription, told.error) == (QUEUE, "NoSuchProcessError")
        assert here.count(facts.Retried) == 0


async def test_an_event_after_the_end_is_acknowledged_and_told(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"), CardCharged("42"), StockReserved("42"))
        await publish(probe, CardCharged("42"), OrderPlaced("42"))

        told = [each for each in here.facts if isinstance(each, LateForProcess)]
        assert [(each.type, each.process, each.key) for each in told] == [
            ("card.charged", "fulfilment", "42"),
            ("order.placed", "fulfilment", "42"),
        ]
        assert len(probe.published(ChargeCard)) == 1
        assert here.count(facts.Retried) == 0


async def test_what_has_ended_begins_again_where_that_is_said(engine: AsyncEngine) -> None:
    async with world(engine, fulfilling(restart=True)) as (here, probe):
        await publish(probe, OrderPlaced("42"), CardCharged("42"), StockReserved("42"))
        await here.change(started_at=text("CURRENT_DATE"))
        (before,) = await here.rows()
        await publish(probe, CardCharged("42"), OrderPlaced("42"))

        (row,) = await here.rows()
        assert (row.done_at, row.started_at > before.started_at) == (None, True)
        assert len(probe.published(ChargeCard)) == 2
        assert here.count(LateForProcess) == 1
        await publish(probe, CardCharged("42"), StockReserved("42"))
        assert len(probe.published(OrderConfirmed)) == 2


async def test_a_start_of_what_runs_is_said_at_once(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"), OrderPlaced("42"))

        assert (here.reasons, here.count(facts.Retried)) == (["AlreadyRunningError"], 0)
        assert len(probe.published(ChargeCard)) == 1


async def test_what_has_ended_is_forgotten_after_a_time(engine: AsyncEngine) -> None:
    async with world(engine, fulfilling(keep=timedelta(days=3))) as (here, probe):
        await publish(probe, *(OrderPlaced(key) for key in "123"))
        for key in "12":
            await publish(probe, CardCharged(key), StockReserved(key))
        async with engine.begin() as connection:
            row = here.process.tables.process
            await connection.execute(update(row).where(row.c.key == "1").values(done_at=text("'2001-01-01 00:00:00'")))
            await connection.execute(
                update(row).where(row.c.key == "3").values(changed_at=text("'2001-01-01 00:00:00'"))
            )

    async with running(here.bus):
        await eventually_rows(here, 2)

    assert sorted(row.key for row in await here.rows()) == ["2", "3"]


async def eventually_rows(here: World, number: int) -> None:
    left = [0]

    async def look() -> int:
        left[0] = len(await here.rows())
        return left[0]

    for _ in range(1000):
        if await look() == number:
            return
    raise AssertionError(left[0])


# --- timeouts --------------------------------------------------------------------------------------------------------


async def test_a_timeout_comes_when_it_is_due(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        await probe.advance(HALF_AN_HOUR * 0.9)
        early = probe.published(OrderCancelled)
        await probe.advance(HALF_AN_HOUR * 0.3)

        assert (early, probe.published(OrderCancelled)) == ([], [OrderCancelled("42")])
        (row,) = await here.rows()
        assert row.done_at is not None


async def test_a_timeout_may_set_itself_anew(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        await probe.advance(HALF_AN_HOUR * 0.9)

        assert len(probe.published(RemindCustomer)) == 2
        assert '"reminders":2' in await here.state()


async def test_a_timeout_that_was_cleared_is_nothing(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"), CardCharged("42"))
        await probe.advance(timedelta(hours=2))

        assert (probe.published(OrderCancelled), probe.published(RemindCustomer)) == ([], [])
        assert len(probe.published(here.process.timed_out)) == 2
        assert (here.count(facts.Retried), here.count(LateForProcess), here.reasons) == (0, 0, [])


async def test_a_timeout_that_was_set_again_comes_at_the_later_time_alone(engine: AsyncEngine) -> None:
    process = Process("fulfilment", Fulfilment, key="order_id")

    @process.starts(OrderPlaced)
    @process.on(CardCharged)
    def wait(happened: OrderPlaced | CardCharged) -> Step:
        return Step(Fulfilment(happened.order_id), timeout=Timeout("unpaid", HALF_AN_HOUR))

    @process.timeout("unpaid")
    def give_up(state: Fulfilment) -> Step:
        return Step(DONE, OrderCancelled(state.order_id))

    async with world(engine, process) as (_, probe):
        await publish(probe, OrderPlaced("42"))
        await probe.advance(HALF_AN_HOUR * 0.8)
        await publish(probe, CardCharged("42"))
        await probe.advance(HALF_AN_HOUR * 0.8)
        early = probe.published(OrderCancelled)
        await probe.advance(HALF_AN_HOUR * 0.4)

        assert (early, probe.published(OrderCancelled)) == ([], [OrderCancelled("42")])


async def test_a_timeout_of_an_earlier_life_is_nothing_to_the_next_one(engine: AsyncEngine) -> None:
    async with world(engine, fulfilling(restart=True)) as (_, probe):
        await publish(probe, OrderPlaced("42"), CardCharged("42"), StockReserved("42"))
        await probe.advance(HALF_AN_HOUR * 0.9)
        await publish(probe, OrderPlaced("42"))
        await probe.advance(HALF_AN_HOUR * 0.25)

        assert probe.published(OrderCancelled) == []


async def test_a_timeout_of_what_is_gone_starts_nothing(engine: AsyncEngine) -> None:
    async with world(engine, fulfilling(restart=True)) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        async with engine.begin() as connection:
            await connection.execute(here.process.tables.process.delete())
        await probe.advance(timedelta(hours=2))

        assert (await here.rows(), here.reasons, here.count(facts.Retried)) == ([], [], 0)


async def test_a_timeout_whose_function_is_gone_is_said(engine: AsyncEngine) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        del here.process.script.timeouts["unpaid"]  # as a new version of the code has
        await probe.advance(timedelta(hours=1))

        assert here.reasons == ["ConfigurationError"]


# --- the state changes its shape --------------------------------------------------------------------------------------


@define
class Shipped:
    """What the state is in a later version: a field has another name."""

    order_id: str
    has_paid: bool


@define
class Cheaper:
    """What the state is with a field that has a default."""

    order_id: str
    paid: bool
    reserved: bool
    reminders: int
    discount: int = 0


def with_state(state: Any, version: int = 1) -> Process:
    process = Process("fulfilment", state, key="order_id", version=version)

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(DONE)

    return process


async def test_an_older_state_is_led_up_to_what_it_is_now(engine: AsyncEngine) -> None:
    process = with_state(Shipped, 3)
    seen: list[Shipped] = []

    @process.on(CardCharged)
    def pay(card: CardCharged, state: Shipped) -> Step:
        seen.append(state)
        return Step(state)

    @process.upcast(from_version=1)
    def renamed(document: dict[str, Any]) -> dict[str, Any]:
        return {"order_id": document["order_id"], "was_paid": document["paid"]}

    @process.upcast(from_version=2)
    def renamed_again(document: dict[str, Any]) -> dict[str, Any]:
        document["has_paid"] = document.pop("was_paid")
        return document

    async with world(engine) as (_, probe):
        await publish(probe, OrderPlaced("42"))
    async with world(engine, process) as (here, probe):
        await publish(probe, CardCharged("42"))

        (row,) = await here.rows()
        assert (seen, row.schema_version) == ([Shipped("42", False)], 3)


async def test_a_field_with_a_default_needs_no_version(engine: AsyncEngine) -> None:
    process = with_state(Cheaper)

    @process.on(CardCharged)
    def pay(card: CardCharged, state: Cheaper) -> Step:
        return Step(evolve(state, discount=state.discount + 1))

    async with world(engine) as (_, probe):
        await publish(probe, OrderPlaced("42"))
    async with world(engine, process) as (here, probe):
        await publish(probe, CardCharged("42"))

        assert '"discount":1' in await here.state()


@pytest.mark.parametrize(
    ("version", "kept", "said"),
    [
        (
            1,
            1,
            r"process fulfilment 42: its state is version 1, and does not fit: give what is new a default, or say version=2",
        ),
        (3, 1, r"its state is version 1, and does not fit: write @fulfilment.upcast\(from_version=1\)"),
        (1, 2, r"its state is version 2, and this code knows 1: a newer one has written it"),
    ],
    ids=["no version", "no step", "a newer one"],
)
async def test_a_state_that_does_not_fit_is_tried_again_and_says_the_way_out(
    engine: AsyncEngine, version: int, kept: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    process = with_state(Shipped, version)
    calls: list[object] = []

    @process.on(CardCharged)
    def pay(card: CardCharged, state: Shipped) -> Step:
        calls.append(state)
        return Step(DONE)

    if version == 3:
        process.upcast(from_version=2)(dict)
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        await here.change(schema_version=kept)
        before = await here.state()
    async with world(engine, process) as (here, probe):
        await publish(probe, CardCharged("42"))
        await probe.advance(60)

        assert re.search(said, caplog.text)
        assert (calls, here.reasons, here.count(facts.Retried)) == ([], ["StateError"], 2)
        assert await here.state() == before


async def test_what_a_late_event_finds_is_not_read(engine: AsyncEngine) -> None:
    """The state of what has ended may be of any shape: nobody needs it."""
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced("42"), CardCharged("42"), StockReserved("42"))
        await here.change(state=b"{}")
        await publish(probe, CardCharged("42"))
        await probe.advance(timedelta(hours=1))

        assert (here.count(LateForProcess), here.reasons) == (1, [])


@dataclasses.dataclass(frozen=True)
class Waiting:
    order_id: str


class Charging(BaseModel):
    order_id: str
    attempts: int = 0


@pytest.mark.parametrize("state", [Waiting, Charging])
async def test_a_state_may_be_a_dataclass_or_a_model(engine: AsyncEngine, state: type[Waiting | Charging]) -> None:
    process = Process("fulfilment", state, key="order_id")
    seen: list[object] = []

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(state(order_id="42"))

    def pay(card: CardCharged, now: Any) -> Step:
        seen.append(now)
        return Step(DONE)

    pay.__annotations__["now"] = state
    process.on(CardCharged)(pay)
    async with world(engine, process) as (_, probe):
        await publish(probe, OrderPlaced("42"), CardCharged("42"))

    assert seen == [state(order_id="42")]


# --- what events are for ------------------------------------------------------------------------------------------------


@event("parcel.sent")
@frozen
class ParcelSent:
    parcel: str
    order: str | None


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800", "x" * 501, None])
async def test_an_event_without_a_usable_key_is_said_at_once(engine: AsyncEngine, key: str | None) -> None:
    process = Process("fulfilment", Fulfilment, key=lambda happened: key)

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(Fulfilment("42"))

    async with world(engine, process) as (here, probe):
        await publish(probe, OrderPlaced("42"))

        assert (here.reasons, here.count(facts.Retried), await here.rows()) == (["NoKeyError"], 0, [])


@pytest.mark.parametrize("key", ["'; DROP TABLE rabbitevents_process; --", "ключ 🎂", "x" * 500, "%s :key ?"])
async def test_any_text_may_be_a_key(engine: AsyncEngine, key: str) -> None:
    async with world(engine) as (here, probe):
        await publish(probe, OrderPlaced(key), CardCharged(key), StockReserved(key))

        assert probe.published(OrderConfirmed) == [OrderConfirmed(key)]
        assert [row.key for row in await here.rows()] == [key]


async def test_events_may_name_their_key_differently(engine: AsyncEngine) -> None:
    def key_of(happened: OrderPlaced | ParcelSent) -> str | None:
        return happened.order if isinstance(happened, ParcelSent) else happened.order_id

    process = Process("fulfilment", Fulfilment, key=key_of)

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(Fulfilment("42"))

    @process.on(ParcelSent)
    def sent(parcel: ParcelSent, state: Fulfilment) -> Step:
        return Step(DONE, OrderConfirmed(state.order_id))

    async with world(engine, process) as (_, probe):
        await publish(probe, OrderPlaced("42"), ParcelSent("p-1", "42"))

        assert probe.published(OrderConfirmed) == [OrderConfirmed("42")]


async def test_two_processes_of_one_bus_know_nothing_of_each_other(engine: AsyncEngine) -> None:
    other = Process("counting", Fulfilment, key="order_id")

    @other.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(Fulfilment(order.order_id))

    here = World(engine, fulfilling())
    await here.process.tables.create(engine)
    bus = Bus("memory://", here.process, other, plugins=here.bus.plugins)
    async with running(bus) as probe:
        await publish(probe, OrderPlaced("42"), CardCharged("42"), StockReserved("42"))

    assert sorted((row.process, row.done_at is None) for row in await here.rows()) == [
        ("counting", True),
        ("fulfilment", False),
    ]


async def test_who_waits_for_a_row_longer_than_five_seconds_fails_and_is_tried_again(
    postgres_engine: AsyncEngine,
) -> None:
    async with world(postgres_engine) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        row = here.process.tables.process
        async with postgres_engine.begin() as connection:
            await connection.execute(select(row).with_for_update())
            await probe.bus.publish(CardCharged("42"))
            await eventually(lambda: here.count(facts.Retried) == 1, "the failure")
        await probe.advance(20)

        assert '"paid":true' in await here.state()


# --- at start ---------------------------------------------------------------------------------------------------------


def without_inbox(engine: AsyncEngine, process: Process) -> Bus:
    return Bus("memory://", process, plugins=[Outbox(engine)])


def without_outbox(engine: AsyncEngine, process: Process) -> Bus:
    return Bus("memory://", process)


@pytest.mark.parametrize("made", [without_inbox, without_outbox])
async def test_a_bus_without_inbox_or_outbox_does_not_start(sqlite_engine: AsyncEngine, made: Any) -> None:
    process = fulfilling()
    await process.tables.create(sqlite_engine)

    with pytest.raises(ConfigurationError, match=r"process 'fulfilment' needs an Inbox and an Outbox.*plugins=\["):
        async with running(made(sqlite_engine, process)):
            pass


async def test_a_process_that_leaves_the_inbox_out_does_not_start(sqlite_engine: AsyncEngine) -> None:
    process = fulfilling(plugins={"once": None})
    await process.tables.create(sqlite_engine)
    inbox = Inbox(async_sessionmaker(sqlite_engine))

    with pytest.raises(ConfigurationError, match="process 'fulfilment' needs an Inbox and an Outbox"):
        async with running(Bus("memory://", process, plugins=[inbox, Outbox(sqlite_engine)])):
            pass


async def test_an_inbox_for_threads_does_not_do(sqlite_engine: AsyncEngine) -> None:
    process = fulfilling()
    await process.tables.create(sqlite_engine)
    threads = create_engine(f"sqlite:///{sqlite_engine.url.database}")

    with pytest.raises(ConfigurationError, match="nobody can serve its parameter 'session: AsyncSession'"):
        async with running(Bus("memory://", process, plugins=[Inbox(sessionmaker(threads)), Outbox(sqlite_engine)])):
            pass
    threads.dispose()


async def test_missing_tables_are_said_at_start(engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match=r"rabbitevents_process.*rabbitevents sql print MODULE:BUS --dialect"):
        async with running(World(engine, fulfilling()).bus):
            pass


async def test_tables_of_another_version_are_said_at_start(engine: AsyncEngine) -> None:
    here = World(engine, fulfilling())
    await here.process.tables.create(engine)
    async with engine.begin() as connection:
        await connection.execute(update(here.process.tables.version).values(version=7))

    with pytest.raises(ConfigurationError, match="says version 7, and this version of rabbitevents needs 1"):
        async with running(here.bus):
            pass


async def test_the_sql_that_is_printed_makes_tables_that_do(engine: AsyncEngine) -> None:
    tables = ProcessTables("shop_")
    sql = tables.sql("sqlite") if engine.dialect.name == "sqlite" else tables.sql("postgresql")
    async with engine.begin() as connection:
        for statement in sql.split(";\n")[:-1]:
            await connection.execute(text(statement))

    async with world(engine, fulfilling(tables=tables)) as (here, probe):
        await publish(probe, OrderPlaced("42"))

        assert [row.key for row in await here.rows()] == ["42"]


async def test_tables_may_be_in_a_schema(postgres_engine: AsyncEngine) -> None:
    tables = ProcessTables(schema="messaging")
    async with postgres_engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA messaging"))

    async with world(postgres_engine, fulfilling(tables=tables)) as (here, probe):
        await publish(probe, OrderPlaced("42"))

        assert tables.process.fullname == "messaging.rabbitevents_process"
        assert len(await here.rows()) == 1


async def test_creating_tables_twice_is_the_same_as_once(engine: AsyncEngine) -> None:
    tables = ProcessTables()
    await tables.create(engine)
    async with engine.begin() as connection:
        made = {"process": "x", "key": "y", "state": b"", "schema_version": 1, "timeouts": b"{}"}
        await connection.execute(insert(tables.process).values(made))

    await tables.create(engine)

    async with engine.connect() as connection:
        assert len((await connection.execute(select(tables.process))).all()) == 1


def test_what_it_is_made_of_is_explained() -> None:
    found = wiring(Bus("memory://", fulfilling()))

    said = repr(found)
    assert "OrderPlaced" in said
    assert "unpaid" in said
