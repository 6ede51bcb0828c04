"""The wire contract is what is sent, and its documents are understood."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec
from attrs import frozen

from rabbitevents import Delivery, Event, Metadata, Properties, event
from rabbitevents.events import now
from rabbitevents.ids import new_id
from rabbitevents.payload.codec import Codec
from rabbitevents.wire import DOCUMENT, identify, read, write
from rabbitevents.wire.amqp import FULL_CORRELATION
from rabbitevents_deadletter import labels
from rabbitevents_retry.plugin import SINCE, WAITED
from rabbitevents_tracing.carrier import BAGGAGE, FORWARDED_AT, PREVIOUS
from tests.documents import CHECKOUT, blocks

CONTRACT = CHECKOUT / "docs" / "wire-contract.md"


@event("order.placed", version=1, entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    quantity: int


def said_to_be_sent(where: str) -> set[str]:
    """Return the names of one kind in the contract's first table."""
    return set(re.findall(rf"^\| {where} \| `([^`]+)`", CONTRACT.read_text(), re.MULTILINE))


def test_what_is_sent_is_what_the_contract_says() -> None:
    metadata = Metadata("correlation", "causation", "shop", {"<key>": "value"})
    envelope = Event(new_id(), "order.placed", 1, "order", "o-1", now(), OrderPlaced("o-1", 2), metadata)

    body, properties = write(envelope, Codec(OrderPlaced).encode(envelope.payload), "amqp")

    assert body == b'{"order_id":"o-1","quantity":2}'
    assert set(properties.headers) == said_to_be_sent("header")
    known = msgspec.structs.asdict(properties)
    assert {name for name, value in known.items() if value is not None} - {"headers"} == said_to_be_sent("property")


def test_what_plugins_add_is_in_the_contract() -> None:
    added = {
        *labels.LABELS,
        labels.REPLAY_COUNT,
        labels.REPLAYED_AT,
        labels.REPLAY_EDITED,
        SINCE,
        WAITED,
        PREVIOUS,
        FORWARDED_AT,
        BAGGAGE,
    }

    assert added - set(re.findall(r"`([a-z-]+)`", CONTRACT.read_text())) == set()


def test_the_contracts_structured_document_is_understood() -> None:
    (document,) = (block.text for block in blocks(CONTRACT, "json"))
    properties = Properties(content_type=DOCUMENT)
    delivery = Delivery("queue", 1, 1, False, "events", "order.placed", document.encode(), properties)

    identify(delivery)
    received = read(delivery)
    envelope = received.envelope(Codec(OrderPlaced).decode(received.body, received.version))

    assert (str(envelope.id), envelope.type, envelope.version) == (
        "01936b2e-7c1a-7e3b-9f00-0123456789ab",
        "order.placed",
        1,
    )
    assert (envelope.entity_type, envelope.entity_id) == ("order", "o-1")
    assert envelope.timestamp == datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
    assert envelope.payload == OrderPlaced("o-1", 2)
    assert envelope.metadata.source == "shop"


def test_where_a_handler_finds_a_correlation_id_that_cannot_go_on_is_in_the_contract() -> None:
    assert f"`{FULL_CORRELATION}`" in CONTRACT.read_text()
