"""Events that a queue is bound to and no handler of it is for: kept, said with the command that unbinds them, and in nobody's way."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from attrs import frozen

from rabbitevents import Bus, Event, Fact, Plugin, Router, event, facts
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetters
from tests.shop import eventually

QUEUE = "shop.record"
COMMAND = "`rabbitevents topology apply MODULE:BUS --prune` unbinds"


@event("order.placed", entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str


@event("order.cancelled", entity="order", key="order_id")
@frozen
class OrderCancelled:
    order_id: str


class Shop(Plugin):
    """A handler that was for two types, and is for one."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)

    def older(self) -> Bus:
        """The code of before: for both."""
        router = Router("shop")

        @router.on(OrderPlaced, OrderCancelled, name="record")
        async def record(order: Event[OrderPlaced | OrderCancelled]) -> None:
            self.handled.append(f"older {order.payload.order_id}")

        return Bus("memory://", router, grace=1)

    def bus(self, *, declare: Any = "active", **how: Any) -> Bus:
        """The code of now."""
        router = Router("shop")

        @router.on(OrderPlaced, name="record", prefetch=10, **how)
        async def record(order: OrderPlaced) -> None:
            self.handled.append(order.order_id)

        return Bus("memory://", router, plugins=[self], declare=declare, grace=1)


@pytest.fixture
async def bound() -> EmbeddedBroker:
    """A broker at which the queue is bound to both types."""
    broker = EmbeddedBroker()
    async with running(Shop().older(), broker=broker):
        return broker


async def test_more_of_them_than_the_window_holds_do_not_stop_the_others_and_each_is_kept(
    bound: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()

    async with running(shop.bus(), broker=bound) as probe:
        await probe.bus.publish_many([OrderCancelled(f"c-{number}") for number in range(42)])
        await probe.bus.publish_many([OrderPlaced(f"p-{number}") for number in range(5)])
        await eventually(lambda: len(shop.handled) == 5, "the others")
        letters = await DeadLetters(probe.bus, QUEUE).find(limit=100)

    left = probe.waiting(QUEUE)
    assert len(letters) + left == 42
    assert left < 5
    assert {(letter.type, letter.reason) for letter in letters} == {("order.cancelled", "rejected")}
    assert len([fact for fact in shop.facts if isinstance(fact, facts.DeadLettered)]) == len(letters)
    assert "takes nothing new" not in caplog.text
    assert f"are put aside, to {QUEUE}.dead (rabbitevents dlq), the last of type 'order.cancelled'" in caplog.text
    assert COMMAND in caplog.text


async def test_a_few_of_them_are_left_to_other_code_as_in_a_deploy(bound: EmbeddedBroker) -> None:
    shop = Shop()
    async with running(shop.bus(), broker=bound) as probe:
        await probe.bus.publish(OrderCancelled("c-1"))
        await eventually(lambda: probe.bus.load[QUEUE].held == 1, "it to be held")

    async with running(shop.older(), broker=bound) as probe:
        await probe.settled()

    assert shop.handled == ["older c-1"]
    assert probe.waiting(f"{QUEUE}.dead") == 0


async def test_where_an_order_is_kept_the_next_of_its_entity_does_not_wait_behind_it(bound: EmbeddedBroker) -> None:
    shop = Shop()

    async with running(shop.bus(ordered=True), broker=bound) as probe:
        await probe.bus.publish_many([OrderCancelled("o-1"), OrderPlaced("o-1")])
        await probe.settled()

    assert (shop.handled, probe.waiting(f"{QUEUE}.dead")) == (["o-1"], 1)


async def test_where_nothing_is_known_to_keep_them_they_are_held_as_other_failures_are(
    bound: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()

    async with running(shop.bus(declare="none"), broker=bound) as probe:
        await probe.bus.publish_many([OrderCancelled(f"c-{number}") for number in range(10)])
        await eventually(lambda: probe.bus.load[QUEUE].held == 5, "half of the window")

    assert probe.waiting(QUEUE) == 10
    assert "takes nothing new" in caplog.text
    assert COMMAND in caplog.text


async def test_what_fails_otherwise_is_held_beside_them(bound: EmbeddedBroker) -> None:
    shop = Shop()
    async with running(shop.bus(), broker=bound) as probe:
        broken = probe.bus.prepare(OrderPlaced("o-1"))[1]
        await probe.bus.publish_many([OrderCancelled(f"c-{number}") for number in range(4)])
        await eventually(lambda: probe.bus.load[QUEUE].held == 4, "them to be held")
        await probe.bus.send(msgspec.structs.replace(broken, body=b"no JSON"))
        await eventually(lambda: probe.waiting(f"{QUEUE}.dead") == 4, "those that no handler is for")
        held = probe.bus.load[QUEUE].held

    assert held == 1
