"""Messages as other libraries and frameworks write them, byte for byte (`tests/messages`), are handled."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from attrs import frozen

from rabbitevents import Bus, Delivery, Event, Exchange, Message, Router, event
from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.calls import within
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.frames import BODY, HEADER, METHOD, frame
from rabbitevents.ids import as_uuid
from rabbitevents.properties import decode_properties, short
from rabbitevents.testing import running
from rabbitevents.wire import identify, read
from rabbitevents_idempotency import Idempotency, MemoryStore
from tests.shop import eventually

FOLDER = Path(__file__).parent / "messages"
LIBRARIES = sorted(path.stem for path in FOLDER.glob("*.json"))
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@event("order.placed")
@frozen
class OrderPlaced:
    order_id: str
    quantity: int


class Sent(NamedTuple):
    """A message on its way to the broker."""

    exchange: str
    routing_key: str
    properties: bytes
    body: bytes

    @property
    def message(self) -> Message:
        return Message(
            exchange=self.exchange,
            routing_key=self.routing_key,
            body=self.body,
            properties=decode_properties(self.properties),
        )

    @property
    def delivery(self) -> Delivery:
        return Delivery("q", 1, 1, False, self.exchange, self.routing_key, self.body, self.properties)


def sent_by(library: str) -> list[Sent]:
    found = json.loads((FOLDER / f"{library}.json").read_text())["messages"]
    return [
        Sent(m["exchange"], m["routing_key"], m["properties"].encode("latin-1"), m["body"].encode("latin-1"))
        for m in found
    ]


HANDLED = {
    "amqp-client": ["java-1", "java-2", "java-3", "java-4 é", "java-5"],
    "amqp091-go": ["go-1", "go-2", "go-3", "go-4"],
    "amqplib": ["node-1", "node-2 é", "node-3", "node-4"],
    "celery": [],
    "kombu": ["kombu-1", "kombu-2 é", "kombu-4"],
    "masstransit": ["masstransit-1", "masstransit-2", "masstransit-3"],
    "nservicebus": ["nservicebus-1", "nservicebus-2"],
    "pika": ["pika-1", "pika-2", "pika-3 é", "pika-4"],
    "spring": ["spring-1 é", "spring-2", "spring-3", "spring-4"],
    "watermill": ["watermill-1", "watermill-2", "watermill-3"],
}
"""What the handlers of the class get. The rest is no event of ours: tasks, pickles, compressed bodies."""


class Desk:
    """A service that listens to its own exchange, and to those where the libraries publish."""

    def __init__(self) -> None:
        self.router = Router("desk")
        self.orders: list[Event[OrderPlaced]] = []
        self.raw: list[Delivery] = []
        self.router.on("raw.#", name="raw")(self.keep)
        places: dict[str, dict[str, Any]] = {
            "own": {},
            "partner": {"exchange": Exchange("partner", "topic"), "key": "booking.#"},
            "bookings": {"exchange": Exchange("bookings", "fanout"), "key": ""},
            "dotnet": {"exchange": Exchange("Shop.Contracts:OrderPlaced", "fanout")},
        }
        for name, place in places.items():
            self.router.on(OrderPlaced, name=name, **place)(self.place)

    async def place(self, order: Event[OrderPlaced]) -> None:
        self.orders.append(order)

    async def keep(self, delivery: Delivery) -> None:
        self.raw.append(delivery)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_what_a_library_sends_is_handled(library: str) -> None:
    desk, sent = Desk(), sent_by(library)

    async with running(Bus("memory://", desk.router, plugins=[Idempotency(MemoryStore())])) as probe:
        for each in sent:
            await probe.bus.send(each.message)
        await probe.settled()

        assert probe.bus.health().ok
    assert sorted(order.payload.order_id for order in desk.orders) == sorted(HANDLED[library])
    assert len(desk.orders) + len(desk.raw) == len(sent)
    assert all(order.payload.quantity == 2 for order in desk.orders)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_its_very_bytes_are_handled_by_way_of_rabbitmq(library: str, rabbit_url: str) -> None:
    desk, sent = Desk(), sent_by(library)

    async with Bus(rabbit_url, desk.router) as bus:
        async with published_bytes(rabbit_url, sent):
            await eventually(lambda: len(desk.orders) + len(desk.raw) == len(sent), "all messages")

        assert bus.health().ok
    assert sorted(order.payload.order_id for order in desk.orders) == sorted(HANDLED[library])


@asynccontextmanager
async def published_bytes(url: str, messages: list[Sent]) -> AsyncGenerator[None]:
    """Publish properties and bodies as they are, byte for byte, and stay: what is not confirmed goes with its channel."""
    connection = await Connection.open(Address(url), name="raw", heartbeat=0, context=None, timeout=10)
    channel = await connection.channel()
    for each in messages:
        publish = b"\x00\x3c\x00\x28\x00\x00" + short(each.exchange) + short(each.routing_key) + b"\x00"
        head = b"\x00\x3c\x00\x00" + struct.pack(">Q", len(each.body)) + each.properties
        frames = ((METHOD, publish), (HEADER, head), (BODY, each.body))
        connection.transport.write(b"".join(frame(kind, channel.number, payload) for kind, payload in frames))
    await within(10, channel.basic_qos(prefetch_count=1), "a question after them")
    yield
    await connection.close()


def envelope(each: Sent) -> Event[Any]:
    delivery = each.delivery
    identify(delivery)
    return read(delivery).envelope(None)


def test_pika_s_properties_are_in_the_envelope() -> None:
    found = envelope(sent_by("pika")[2])

    assert (found.id, found.type, found.version) == (as_uuid("m-3", "pika-shop"), "order.placed", 1)
    assert (found.timestamp, found.entity_id) == (NOON, "pika-3")
    assert (found.metadata.source, found.metadata.correlation_id) == ("pika-shop", "c-3")
    assert found.metadata.extra == {"tenant": "north"}


def test_a_time_in_milliseconds_as_node_has_it_is_that_time() -> None:
    assert envelope(sent_by("amqplib")[1]).timestamp == NOON.replace(microsecond=123_000)
    assert envelope(sent_by("amqplib")[2]).timestamp == NOON


@pytest.mark.parametrize(("library", "number"), [("amqp-client", 3), ("amqp091-go", 2)])
def test_java_s_and_go_s_field_types_are_read(library: str, number: int) -> None:
    each = sent_by(library)[number]

    found = envelope(each)

    assert (found.timestamp, found.version, found.metadata.extra) == (NOON, 1, {"tenant": "north"})
    assert {"list", "when"} <= set(each.delivery.headers)


async def test_a_celery_task_is_no_event_of_a_class_but_can_be_looked_at() -> None:
    router, tasks, calls = Router("desk"), list[Any](), list[Any]()

    @router.on("raw.celery")
    async def task(task: Event) -> None:
        tasks.append((task.payload[0], task.payload[1], task.metadata.correlation_id))

    @router.on("raw.celery")
    async def call(delivery: Delivery) -> None:
        calls.append(delivery.headers["task"])

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(sent_by("celery")[0].message)
        await probe.settled()

    assert tasks == [(["celery-1"], {"quantity": 2}, "0d4f2b0e-5d5c-4d0e-9d1f-0a6a3c1b2d3e")]
    assert calls == ["shop.place"]


def test_spring_s_type_header_names_a_java_class_and_the_routing_key_the_event() -> None:
    first, second = sent_by("spring")[:2]

    assert first.delivery.headers["__TypeId__"] == "Spring$OrderPlaced"
    assert envelope(first).type == "order.placed"
    assert envelope(second).type == "com.shop.OrderPlaced"
    assert envelope(second).id == as_uuid("s-2")


def test_masstransit_s_envelope_is_opened() -> None:
    first, second, raw = map(envelope, sent_by("masstransit"))

    assert first.id == UUID("82d30000-5d21-0015-4a10-08d8d959e63c")
    assert first.type == "urn:message:Shop.Contracts:OrderPlaced"
    assert first.timestamp == NOON.replace(microsecond=123_456)
    assert first.metadata.source == "rabbitmq://localhost/shop_Api_bus_temporary?temporary=true"
    assert first.metadata.extra["tenant"] == "north"
    assert first.metadata.correlation_id == "82d30000-5d21-0015-770c-08d8d959e63c"
    assert second.metadata.correlation_id == "82d30000-5d21-0015-8c2c-08d7650c1eeb"
    assert second.metadata.causation_id == "82d30000-5d21-0015-1111-08d7650c1eeb"
    assert raw.id == UUID("82d30000-5d21-0015-4a10-08d8d959e63e")


def test_nservicebus_says_its_ids_in_properties() -> None:
    found = envelope(sent_by("nservicebus")[0])

    assert (found.id, found.type) == (UUID("b64a0000-0481-4ca9-a948-08d7650c25d3"), "Shop.Contracts.OrderPlaced")


def test_watermill_s_uuid_is_the_event_s_id_whether_it_is_a_uuid_or_not() -> None:
    first, second, _ = map(envelope, sent_by("watermill"))

    assert first.id == UUID("5c1f6f0e-3a0b-4a4e-8f0e-6b0a2f1d9c11")
    assert second.id == as_uuid("wm-2")


async def test_a_watermill_message_that_comes_twice_is_handled_once() -> None:
    desk, (first, *_) = Desk(), sent_by("watermill")

    async with running(Bus("memory://", desk.router, plugins=[Idempotency(MemoryStore())])) as probe:
        await probe.bus.send(first.message)
        await probe.settled()
        await probe.bus.send(first.message)
        await probe.settled()

    assert len(desk.orders) == 1


def test_every_library_says_what_it_is() -> None:
    assert set(LIBRARIES) == set(HANDLED)
    for library in LIBRARIES:
        said = json.loads((FOLDER / f"{library}.json").read_text())["sent by"]
        assert any(sign.isdigit() for sign in said)
