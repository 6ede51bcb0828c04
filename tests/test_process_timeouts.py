"""What a process waits for, and what an older state becomes, on both databases."""

from __future__ import annotations

import dataclasses
import re
from datetime import timedelta
from typing import Any

import pytest
from attrs import define, evolve
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import facts
from rabbitevents_process import DONE, LateForProcess, Process, Step, Timeout
from tests.ordering import (
    HALF_AN_HOUR,
    CardCharged,
    Fulfilment,
    OrderCancelled,
    OrderPlaced,
    RemindCustomer,
    StockReserved,
    fulfilling,
)
from tests.process_world import publish, world

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


async def test_a_timeout_may_be_longer_than_an_event_can_wait_at_the_broker(engine: AsyncEngine) -> None:
    process = Process("fulfilment", Fulfilment, key="order_id")

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(Fulfilment(order.order_id), timeout=Timeout("unpaid", timedelta(days=75)))

    @process.timeout("unpaid")
    def give_up(state: Fulfilment) -> Step:
        return Step(DONE, OrderCancelled(state.order_id))

    async with world(engine, process) as (here, probe):
        await publish(probe, OrderPlaced("42"))
        await probe.advance(timedelta(days=74))
        early = probe.published(OrderCancelled)
        await probe.advance(timedelta(days=10))

        assert (early, probe.published(OrderCancelled)) == ([], [OrderCancelled("42")])
        assert len(probe.published(process.timed_out)) == 3
        assert here.count(facts.Retried) == 0


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
