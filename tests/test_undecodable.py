"""Frames that client libraries break on: the connection lives, good neighbours are handled, the bad one is kept."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pamqp import commands

from rabbitevents import BrokerError, Bus, Event, Message, Router
from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.calls import within
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.frames import BODY, HEADER, METHOD, frame
from rabbitevents.properties import Properties, short
from rabbitevents.testing import running
from tests.bed.fake_broker import FakeBroker
from tests.bed.rabbitmq import RabbitNode
from tests.shop import Effects, OrderPlaced, eventually, recording


def table(entries: bytes) -> bytes:
    """A properties list that has only headers."""
    return b"\x20\x00" + struct.pack(">I", len(entries)) + entries


def deep(levels: int) -> bytes:
    """Tables within tables."""
    entries = b""
    for _ in range(levels):
        entries = b"\x01aF" + struct.pack(">I", len(entries)) + entries
    return table(entries)


TYPE = short("order.placed")
JSON = short("application/json")

VARIANTS = {
    "timestamp in nanoseconds": b"\x00\x60" + struct.pack(">Q", 1_760_000_000_000_000_000) + TYPE,
    "timestamp of 2^64-1": b"\x00\x60" + struct.pack(">Q", 2**64 - 1) + TYPE,
    "message_id that is not UTF-8": b"\x00\xa0" + b"\x04\xff\xfe\x80\x81" + TYPE,
    "header key that is not UTF-8": table(b"\x02\xff\xfe" + b"S\x00\x00\x00\x01v"),
    "unknown field type Z": table(b"\x01aZ\x00\x00\x00\x01v"),
    "900 nested tables": deep(900),
    "5,000 nested tables": deep(5_000),
    "header timestamp of 2^63": table(b"\x01aT" + struct.pack(">Q", 2**63)),
    "headers longer than they are": b"\x20\x00" + struct.pack(">I", 5_000) + b"\x01at\x01",
}
READABLE = {"timestamp in nanoseconds", "timestamp of 2^64-1", "message_id that is not UTF-8"}
"""What says order.placed and can be read after all: it is handled as any other."""


REFUSED = {"unknown field type Z", "headers longer than they are"}
"""What RabbitMQ may refuse to take (3.10 answers 541 and closes the publisher's connection)."""


async def taken_by_the_broker(url: str, properties: bytes) -> bool:
    """Publish frames that no client library would write to the handler's queue; say whether the broker took them."""
    connection = await Connection.open(Address(url), name="raw", heartbeat=0, context=None, timeout=10)
    channel = await connection.channel()
    body = b'{"order_id": "bad"}'
    publish = b"\x00\x3c\x00\x28\x00\x00" + short("") + short("shop.record") + b"\x00"
    head = b"\x00\x3c\x00\x00" + len(body).to_bytes(8, "big") + properties
    frames = ((METHOD, publish), (HEADER, head), (BODY, body))
    connection.transport.write(b"".join(frame(kind, channel.number, payload) for kind, payload in frames))
    try:
        await within(10, channel.basic_qos(prefetch_count=1), "a question after it")
    except BrokerError:
        return False
    finally:
        await connection.close()
    return True


@pytest.mark.parametrize("variant", VARIANTS)
async def test_on_a_real_broker_one_bad_message_costs_nobody_else_anything(
    variant: str, rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    effects = Effects()
    bus = Bus(rabbit_url, recording(effects), delivery_limit=3)
    async with bus:
        await bus.publish_many([OrderPlaced(f"before {i}") for i in range(50)])
        taken = await taken_by_the_broker(rabbit_url, VARIANTS[variant])
        await bus.publish_many([OrderPlaced(f"after {i}") for i in range(50)])

        await effects.until(100)
        if taken:
            await eventually(lambda: bus.load["shop.record"].held == 1 or "bad" in effects.done, "the bad one")
        lost_connections = [c for c in bus.health().checks if "connection" in c.name and not c.ok]
        held = bus.load["shop.record"].held

    assert lost_connections == []
    assert {o for o in effects.done if o != "bad"} == {f"{w} {i}" for w in ("before", "after") for i in range(50)}
    assert set(effects.done.values()) == {1}
    assert taken or variant in REFUSED
    assert ("bad" in effects.done) == (variant in READABLE)
    kept = (await rabbit_node.aqueue_counts("shop.record", rabbit_url)).ready
    assert kept == (taken and variant not in READABLE) == held


@pytest.fixture
async def consuming(fake_broker: FakeBroker) -> AsyncIterator[tuple[FakeBroker, Bus, Effects]]:
    effects = Effects()
    bus = Bus(fake_broker.url, recording(effects), grace=1)
    async with bus:
        yield fake_broker, bus, effects


@pytest.mark.parametrize("variant", VARIANTS)
async def test_every_variant_among_good_ones_leaves_the_connection_alive(
    variant: str, consuming: tuple[FakeBroker, Bus, Effects]
) -> None:
    fake, bus, effects = consuming
    consume = await fake.received(commands.Basic.Consume)
    good = b"\x80\xa0" + JSON + short("a good one") + TYPE
    for tag in range(1, 12):
        bad = tag == 6
        consume.connection.deliver(
            consume.channel,
            consume.frame.consumer_tag,
            tag,
            b'{"order_id": "%d"}' % tag,
            VARIANTS[variant] if bad else good,
            exchange="events",
            routing_key="nobody.knows" if bad else "order.placed",
        )

    await eventually(lambda: len({o for o in effects.done if o != "6"}) == 10, "ten good ones")
    await eventually(lambda: bus.load["shop.record"].held == 1 or "6" in effects.done, "the bad one")

    assert bus.load["shop.record"].held == ("6" not in effects.done)
    assert ("6" in effects.done) == (variant in READABLE)
    assert all(c.ok for c in bus.health().checks if "connection" in c.name or "consumer" in c.name)
    await asyncio.sleep(0)


@pytest.mark.parametrize("body", [b"", b"{", b"no JSON", b'{"order_id": "o-1"', b"\xff", b"[" * 100_000])
async def test_a_handler_of_any_event_is_not_called_with_what_is_no_json_and_it_is_not_acknowledged(
    body: bytes,
) -> None:
    router, called = Router("shop"), list[Event[Any]]()

    @router.on("order.placed")
    async def record(order: Event[Any]) -> None:
        called.append(order)

    properties = Properties(content_type="application/json", type="order.placed", headers={"event-version": 1})
    for form in (properties, Properties()):
        async with running(Bus("memory://", router)) as probe:
            await probe.bus.send(Message(exchange="events", routing_key="order.placed", body=body, properties=form))
            await eventually(lambda: probe.bus.load["shop.record"].held == 1, "the bad one to be held")

            assert probe.waiting("shop.record") == 1
    assert called == []
