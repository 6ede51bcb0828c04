"""What is the same event: its id and what it says, or whatever a key says; and what only one process may know."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, ConfigurationError, Delivery, Event, Message, Properties
from rabbitevents.facts import DeadLettered, Duplicate
from rabbitevents.testing import EmbeddedBroker
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import IdConflictError, Idempotency, MemoryStore, RedisStore
from rabbitevents_retry import Retry
from tests.idempotent import Shop, plain_message
from tests.shop import OrderPlaced, eventually
from tests.test_cli_run import service

RETRIED = [DeadLetter(), Retry(stop=stop_after_attempt(5), wait=wait_fixed(0.01))]


def other(envelope: Event[OrderPlaced], payload: object) -> Event[Any]:
    """The same id, with other content."""
    return msgspec.structs.replace(envelope, payload=payload)


# --- the same id ------------------------------------------------------------------------------------------------------


async def test_an_event_with_the_id_of_another_one_that_was_done_is_a_dead_letter_at_once() -> None:
    shop = Shop(MemoryStore(), outer=RETRIED)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await probe.bus.publish(other(envelope, OrderPlaced("o-2")))
        await probe.settled()
        dead = probe.waiting("shop.record.dead")

    (fact,) = shop.observing.of(DeadLettered)
    assert shop.effects == {"o-1": 1}
    assert dead == 1
    assert isinstance(fact, DeadLettered)
    assert (fact.id, fact.attempts, fact.reason) == (str(envelope.id), 1, IdConflictError.__name__)
    assert shop.observing.of(Duplicate) == []


async def test_so_is_one_that_comes_while_the_first_is_handled() -> None:
    go_on = asyncio.Event()

    async def wait(order: OrderPlaced, delivery: Delivery) -> None:
        await go_on.wait()

    shop = Shop(MemoryStore(), work=wait, outer=RETRIED)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.starts["o-1"] == 1, "the first")
        await probe.bus.publish(other(envelope, OrderPlaced("o-2")))
        await eventually(lambda: probe.waiting("shop.record.dead") == 1, "the dead letter")
        go_on.set()
        await probe.settled()

    assert shop.effects == {"o-1": 1}


async def test_the_error_says_what_is_wrong_and_the_way_out_and_nothing_of_the_content() -> None:
    shop = Shop(MemoryStore())

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await probe.bus.publish(other(envelope, OrderPlaced("secret")))
        await eventually(lambda: probe.bus.load["shop.record"].held == 1, "it to be held")
        (problem,) = probe.bus.health().problems

    assert "IdConflictError" in problem.detail
    assert "secret" not in problem.detail


async def test_another_version_or_type_of_the_same_id_is_another_content() -> None:
    shop = Shop(MemoryStore(), outer=RETRIED)
    first = plain_message("order-1", "o-1")
    versions = [first.replace(headers={"event-version": version}) for version in (1, 2, 1)]

    async with shop.open() as probe:
        for message in versions:
            await probe.bus.send(message)
            await probe.settled()
        dead = probe.waiting("shop.record.dead")

    assert shop.effects == {"o-1": 1}
    assert dead == 1
    assert len(shop.observing.of(Duplicate)) == 1


async def test_headers_that_differ_between_attempts_are_no_content() -> None:
    shop = Shop(MemoryStore())

    async with shop.open() as probe:
        for headers in ({}, {"attempt": 3}, {"traceparent": "00-1-2-01", "origin-exchange": "elsewhere"}):
            await probe.bus.send(plain_message("order-1", "o-1").replace(headers=dict(headers)))
            await probe.settled()

    assert shop.effects == {"o-1": 1}
    assert len(shop.observing.of(Duplicate)) == 2


async def test_what_failed_may_come_again_with_other_content_as_an_edited_dead_letter_does() -> None:
    async def fail_at_first(order: OrderPlaced, delivery: Delivery) -> None:
        if order.order_id == "wrong":
            raise ValueError

    shop = Shop(MemoryStore(), work=fail_at_first, outer=RETRIED)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("wrong"))
        await probe.settled()
        await probe.bus.publish(other(envelope, OrderPlaced("right")))
        await probe.settled()
        dead = probe.waiting("shop.record.dead")

    assert dead == 1  # the first one
    assert shop.effects == {"right": 1}


def document(source: str, data: str, time: int = 0) -> Message:
    said = {"specversion": "1.0", "id": "1", "source": source, "type": "order.placed", "data": {"order_id": data}}
    body = msgspec.json.encode({**said, "time": f"2026-11-20T00:00:0{time}Z"})
    properties = Properties(content_type="application/cloudevents+json")
    return Message(exchange="", routing_key="shop.record", body=body, properties=properties)


async def test_of_a_document_the_content_is_its_payload() -> None:
    shop = Shop(MemoryStore(), outer=RETRIED)
    documents = [document("/till", "o-1", 1), document("/till", "o-1", 2), document("/till", "o-2", 1)]

    async with shop.open() as probe:
        for each in (*documents, document("/elsewhere", "o-3")):
            await probe.bus.send(each)
            await probe.settled()
        dead = probe.waiting("shop.record.dead")

    assert shop.effects == {"o-1": 1, "o-3": 1}
    assert len(shop.observing.of(Duplicate)) == 1
    assert dead == 1


# --- a key of one's own -----------------------------------------------------------------------------------------------


def by_order(delivery: Delivery) -> str | None:
    order: str = msgspec.json.decode(delivery.body)["order_id"]
    if order == "broken":
        raise KeyError("order")
    return order.partition("/")[0] if order else None


async def test_a_key_says_what_is_the_same_event_whatever_its_id_and_its_content() -> None:
    shop = Shop(MemoryStore(), key=by_order)

    async with shop.open() as probe:
        for order in ("o-1", "o-1", "o-1/again", "o-2"):
            await probe.bus.publish(OrderPlaced(order))
            await probe.settled()

    assert shop.effects == {"o-1": 1, "o-2": 1}
    assert len(shop.observing.of(Duplicate)) == 2


async def test_what_has_no_key_is_handled_as_often_as_it_comes() -> None:
    shop = Shop(MemoryStore(), key=by_order)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced(""))
        await probe.bus.publish(envelope)
        await probe.settled()

    assert shop.effects == {"": 2}


async def test_an_event_without_an_id_may_have_a_key() -> None:
    shop = Shop(MemoryStore(), key=by_order)

    async with shop.open() as probe:
        for _ in range(3):
            await probe.bus.send(plain_message(None, "o-1"))
            await probe.settled()

    assert shop.effects == {"o-1": 1}


async def test_a_key_that_fails_is_the_failure_of_its_event_alone() -> None:
    shop = Shop(MemoryStore(), key=by_order, outer=RETRIED)

    async with shop.open() as probe:
        for order in ("broken", "o-1"):
            await probe.bus.publish(OrderPlaced(order))
        await probe.settled()
        dead, healthy = probe.waiting("shop.record.dead"), probe.bus.health().ok

    assert shop.effects == {"o-1": 1}
    assert dead == 1
    assert healthy


@pytest.mark.parametrize(("returned", "said"), [(1, "int"), (b"o-1", "bytes"), ("", "an empty text")])
async def test_a_key_that_is_no_text_fails_and_makes_nothing_a_duplicate(
    returned: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(delivery: Delivery) -> str:
        key: str = returned
        return key

    shop = Shop(MemoryStore(), key=wrong, outer=[DeadLetter()])

    async with shop.open() as probe:
        for order in ("o-1", "o-2"):
            await probe.bus.publish(OrderPlaced(order))
        await probe.settled()
        dead = probe.waiting("shop.record.dead")

    assert dead == 2
    assert f"Idempotency(key=...) returned {said}: return a text, or None for what has no key" in caplog.text


async def waiting(delivery: Delivery) -> str:
    return ""


@pytest.mark.parametrize("wrong", ["order_id", waiting], ids=["a text", "a coroutine function"])
def test_a_key_that_is_no_plain_function_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Idempotency: key is .*: give a plain function of the delivery"):
        Idempotency(MemoryStore(), key=wrong)


# --- one bus, one process ---------------------------------------------------------------------------------------------


async def test_an_instance_at_work_in_one_bus_is_refused_by_another_until_that_has_stopped() -> None:
    shop, broker = Shop(MemoryStore()), EmbeddedBroker()
    first = Bus(broker.client(), shop.router, plugins=[shop.plugin])
    second = Bus(EmbeddedBroker().client(), shop.router, plugins=[shop.plugin])

    async with first:
        with pytest.raises(ConfigurationError, match="make another instance"):
            await second.start()
        await first.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.effects["o-1"] == 1, "the effect")

    async with Bus(broker.client(), shop.router, plugins=[shop.plugin]) as third:
        await third.publish(OrderPlaced("o-2"))
        await eventually(lambda: shop.effects["o-2"] == 1, "the effect")


ALONE = """
from rabbitevents import Bus, Router
from rabbitevents_idempotency import Idempotency, MemoryStore
store = Router("store")
@store.on("order.placed"{own})
async def pack() -> None: ...
bus = Bus("amqp://127.0.0.1:1", store, plugins=[{all}])
"""


@pytest.mark.parametrize(
    "source",
    [
        ALONE.format(own="", all="Idempotency(MemoryStore())"),
        ALONE.format(own=", plugins=[Idempotency(MemoryStore())]", all=""),
    ],
    ids=["of the bus", "of a handler"],
)
async def test_several_processes_with_a_memory_store_each_are_refused(source: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", source=source) as told:
        code = await told.ends(30)

    assert code == 2
    assert "parcels:bus: Idempotency(MemoryStore()) knows only what this process has handled" in told.said
    assert "give it a RedisStore(client), or leave out --workers" in told.said


def test_a_store_that_processes_share_needs_no_process_of_its_own() -> None:
    assert Idempotency(RedisStore(Redis())).alone() == ""
