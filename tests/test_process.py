"""Processes: state, events and timeouts commit together, once for each event, on both databases."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from uuid import UUID

import pytest
from attrs import frozen
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rabbitevents import Bus, Event, Message, Plugin, Publish, event, facts
from rabbitevents.testing import running
from rabbitevents_process import DONE, LateForProcess, Process, Step
from tests.ordering import (
    CardCharged,
    ChargeCard,
    Fulfilment,
    OrderConfirmed,
    OrderPlaced,
    StockReserved,
    fulfilling,
)
from tests.process_world import World, publish, world
from tests.shop import eventually

ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
QUEUE = "fulfilment.events"


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
        await until_rows(here, 2)

    assert sorted(row.key for row in await here.rows()) == ["2", "3"]


async def until_rows(here: World, number: int) -> None:
    end = asyncio.get_running_loop().time() + 15
    while len(there := await here.rows()) != number:
        assert asyncio.get_running_loop().time() < end, there
        await asyncio.sleep(0.01)


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
