"""What other clients send is received as what it is: by content type, charset and encoding, and unread where none asks."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
from attrs import frozen

from rabbitevents import Bus, DecodeError, Delivery, Event, Message, Metadata, Properties, Router, event
from rabbitevents.events import now
from rabbitevents.ids import new_id
from rabbitevents.properties import encode_properties, glance
from rabbitevents.testing import running
from rabbitevents.wire import glean, identify, read, write
from rabbitevents.wire.amqp import FULL_CORRELATION
from rabbitevents_idempotency import Idempotency, MemoryStore
from tests.shop import eventually

BOM = b"\xef\xbb\xbf"
CLOUD = "application/cloudevents+json"


@event("order.placed")
@frozen
class OrderPlaced:
    name: str


@event("parcel.sent")
@frozen
class ParcelSent:
    """A payload with the field names of an envelope."""

    type: str
    payload: str
    id: str = ""


@event("order.noted")
@frozen
class OrderNoted:
    name: str


def message(body: bytes, key: str = "order.placed", **properties: Any) -> Message:
    return Message(exchange="events", routing_key=key, body=body, properties=Properties(**properties))


async def received(*messages: Message) -> tuple[list[str], list[str]]:
    """Send messages to a handler of the class; return the names that it got, and what health says."""
    router, names = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    async def note(order: OrderPlaced) -> None:
        names.append(order.name)

    async with running(Bus("memory://", router)) as probe:
        for each in messages:
            await probe.bus.send(each)
        await probe.settled()
        return names, [check.detail for check in probe.bus.health().problems]


# --- unread ----------------------------------------------------------------------------------------------------------

UNREADABLE: dict[str, dict[str, Any]] = {
    "no JSON": {"body": b"{no"},
    "nothing at all": {"body": b""},
    "no text": {"body": b"\xff\xfe\x00", "content_type": "application/json"},
    "another content type": {"body": b"<order/>", "content_type": "application/xml"},
    "a pickle": {"body": b"\x80\x04.", "content_type": "application/x-python-serialize", "content_encoding": "binary"},
    "compressed": {"body": b"\x1f\x8b\x08", "content_type": "application/json", "content_encoding": "gzip"},
    "another charset": {"body": b"{}", "content_type": "application/json; charset=utf-16"},
    "a broken CloudEvent": {"body": b"[]", "content_type": CLOUD},
    "a broken document": {"body": b"[]", "content_type": "application/vnd.rabbitevents.event+json"},
    "a broken envelope of MassTransit": {"body": b"{}", "content_type": "application/vnd.masstransit+json"},
    "a version that is none": {"body": b"{}", "type": "x", "headers": {"event-version": "newest"}},
    "a content type without end": {"body": b"{}", "content_type": "x" * 255},
}


@pytest.mark.parametrize("of", UNREADABLE)
async def test_a_handler_that_asks_only_for_the_delivery_gets_every_message(of: str) -> None:
    router, bodies, ids = Router("shop"), list[bytes](), set[object]()
    body, properties = UNREADABLE[of]["body"], {k: v for k, v in UNREADABLE[of].items() if k != "body"}

    @router.on("any.#")
    async def keep(delivery: Delivery, bus: Bus) -> OrderNoted:
        bodies.append(delivery.body)
        ids.add(delivery.id)
        return OrderNoted("kept")

    async with running(Bus("memory://", router, plugins=[Idempotency(MemoryStore())])) as probe:
        await probe.bus.send(message(body, "any.thing", **properties))
        await probe.settled()

        assert probe.bus.health().ok
        assert probe.published(OrderNoted) == [OrderNoted("kept")]
    assert bodies == [body]
    assert len(ids) == 1


async def test_a_handler_of_a_class_that_asks_only_for_the_delivery_gets_what_its_type_does_not_name() -> None:
    router, keys = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    async def keep(delivery: Delivery) -> None:
        keys.append(delivery.type)

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(message(b"{no"))
        await probe.bus.send(message(b"{}", type="Com.Shop.OrderPlaced"))
        await probe.bus.send(Message(exchange="", routing_key="shop.keep", body=b"5", properties=Properties(type="x")))
        await probe.settled()

        assert probe.bus.health().ok
    assert keys == ["order.placed", "Com.Shop.OrderPlaced", "x"]


@pytest.mark.parametrize("known_by", ["property", "routing key"])
async def test_on_a_shared_queue_the_type_decides_as_far_as_it_is_known(known_by: str) -> None:
    router, bodies, names = Router("shop"), list[bytes](), list[str]()

    @router.on("raw.*", queue="all")
    async def keep(delivery: Delivery) -> None:
        bodies.append(delivery.body)

    @router.on(OrderPlaced, queue="all")
    async def note(order: OrderPlaced) -> None:
        names.append(order.name)

    def send(body: bytes, kind: str) -> Message:
        if known_by == "property":
            return Message(exchange="", routing_key="shop.all", body=body, properties=Properties(type=kind))
        return message(body, kind)

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(send(b"{no", "raw.thing"))
        await probe.bus.send(send(b'{"name": "one"}', "order.placed"))
        await probe.bus.send(send(b"{no", "order.placed"))
        await eventually(lambda: probe.bus.load["shop.all"].held == 1, "the one that cannot be read to be held")
        await probe.settled()

    assert (bodies, names) == ([b"{no"], ["one"])


async def test_a_body_that_was_not_kept_goes_to_no_handler() -> None:
    too_large = Delivery("q", 1, 1, False, "events", "any.thing", b"", Properties(), oversize=17 << 20)

    with pytest.raises(DecodeError, match="over the limit"):
        glean(too_large)


# --- JSON, by whatever name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "properties",
    [
        {"content_type": content_type, "content_encoding": encoding}
        for content_type in (
            None,
            "",
            "application/json",
            "application/vnd.shop+json",
            "application/problem+json; charset=UTF-8",
            "text/json",
            "TEXT/JSON;charset=utf8",
            'application/json; charset="utf-8"; profile=x',
            "application/octet-stream",
            "text/plain",
            "text/plain; charset=us-ascii",
        )
        for encoding in (None, "", "utf-8", "utf8", "UTF-8", "identity", "binary", "8bit")
    ],
    ids=lambda p: f"{p['content_type']} {p['content_encoding']}",
)
@pytest.mark.parametrize("mark", [b"", BOM], ids=["", "BOM"])
def test_json_is_read_under_each_of_its_names(properties: dict[str, Any], mark: bytes) -> None:
    raw = Properties(headers={}, **properties)
    it = Delivery("q", 1, 1, False, "events", "order.placed", mark + b'{"name":"\xc3\xa9"}', raw)

    identify(it)
    found = read(it)

    assert (found.type, found.version, found.body) == ("order.placed", 1, b'{"name":"\xc3\xa9"}')


@pytest.mark.parametrize(
    ("properties", "version"),
    [
        ({"type": "order.placed", "headers": {"event-version": 2}, "content_type": "application/json"}, 2),
        ({"type": "order.placed", "headers": {"event-version": 2}, "content_type": "text/json"}, 2),
        ({"type": "order.placed", "content_type": "application/json", "content_encoding": "UTF-8"}, 1),
    ],
)
def test_a_byte_order_mark_is_passed_over_in_every_form(properties: dict[str, Any], version: int) -> None:
    it = Delivery("q", 1, 1, False, "events", "order.placed", BOM + b"{}", Properties(**properties))

    identify(it)

    assert (read(it).version, read(it).body) == (version, b"{}")


def test_a_byte_order_mark_before_an_event_in_our_own_words_harms_nothing() -> None:
    ours = Event(new_id(), "order.placed", 1, None, None, now(), OrderPlaced("n"), Metadata("c", None, "shop"))
    body, properties = write(ours, b'{"name":"n"}', "amqp")
    raw = encode_properties(properties)
    it = Delivery("q", 1, 1, False, "events", "order.placed", BOM + body, raw)

    identify(it)

    assert glance(raw) is not None
    assert read(it).body == body


@pytest.mark.parametrize(
    "said",
    [
        {"content_type": "application/json; charset=ISO-8859-1"},
        {"content_type": "text/plain; charset=latin1"},
        {"content_type": "application/json", "content_encoding": "latin-1"},
        {"content_encoding": "iso-8859-1", "content_type": "application/json; charset=iso-8859-1"},
    ],
)
async def test_latin_1_is_read_as_the_text_that_it_is(said: dict[str, Any]) -> None:
    names, problems = await received(message('{"name":"é"}'.encode("latin-1"), **said))

    assert (names, problems) == (["é"], [])


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"content_type": "application/json; charset=utf-16"}, "charset 'utf-16'"),
        ({"content_type": "application/json; charset=windows-1252"}, "charset 'windows-1252'"),
        ({"content_type": "application/json", "content_encoding": "gzip"}, "content encoding 'gzip'"),
        ({"content_type": "application/json", "content_encoding": "br"}, "content encoding 'br'"),
        ({"content_encoding": "x\n\x1b[31m" + "y" * 200}, r"content encoding 'x\\n\\x1b"),
        ({"content_type": "application/json; charset=zip\n" + "y" * 200}, "charset 'zip"),
        ({"headers": {"compression": "application/x-gzip"}}, "compression 'application/x-gzip'"),
        ({"content_type": "application/cloudevents-batch+json"}, "content type 'application/cloudevents-batch"),
        ({"content_type": "application/msgpack"}, "content type 'application/msgpack'"),
    ],
)
def test_what_is_not_understood_is_refused_by_name_in_one_short_line(said: dict[str, Any], named: str) -> None:
    it = Delivery("q", 1, 1, False, "events", "order.placed", b'{"name":"n"}', Properties(**said))
    identify(it)

    with pytest.raises(DecodeError, match=named) as refused:
        read(it)

    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("content_type", ["application/vnd.shop+json", "text/json", "application/json; charset=utf-8"])
async def test_a_cloud_event_may_say_any_of_json_s_types(content_type: str) -> None:
    attributes = {"specversion": "1.0", "id": "1", "type": "order.placed", "source": "/s"}
    structured = msgspec.json.encode({**attributes, "datacontenttype": content_type, "data": {"name": "s"}})
    headers: dict[str, Any] = {f"cloudEvents:{name}": value for name, value in attributes.items()}

    names, problems = await received(
        message(BOM + structured, content_type="application/cloudevents+json; charset=UTF-8", content_encoding="utf8"),
        message(b'{"name":"b"}', content_type=content_type, headers={**headers, "cloudEvents:id": "2"}),
    )

    assert (names, problems) == (["s", "b"], [])


# --- what looks like a document ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("properties", [{}, {"content_type": "application/json"}, {"type": "parcel.sent"}], ids=str)
@pytest.mark.parametrize("id", ["", "p-1"])
async def test_a_payload_with_the_fields_of_a_document_is_taken_as_what_it_is(
    properties: dict[str, Any], id: str
) -> None:
    router, parcels = Router("shop"), list[ParcelSent]()

    @router.on(ParcelSent)
    async def note(parcel: ParcelSent) -> None:
        parcels.append(parcel)

    body = msgspec.json.encode({"type": "gift", "payload": "a book", "id": id})
    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(message(body, "parcel.sent", **properties))
        await probe.settled()
        await probe.bus.publish(ParcelSent("parcel.sent", "{}", id))
        await probe.settled()

        assert probe.bus.health().ok
    assert parcels == [ParcelSent("gift", "a book", id), ParcelSent("parcel.sent", "{}", id)]


# --- correlation ids and ids that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["amqp", "cloudevents", "cloudevents-binary"])
@pytest.mark.parametrize("long", ["z" * 256, "é" * 128, "z" * 20_000])
async def test_a_correlation_id_over_255_bytes_goes_on_as_always_the_same_uuid(form: Any, long: str) -> None:
    router, noted = Router("shop"), list[Metadata]()

    @router.on(OrderPlaced)
    async def place(order: OrderPlaced) -> OrderNoted:
        return OrderNoted(order.name)

    @router.on(OrderNoted)
    async def note(order: Event[OrderNoted]) -> None:
        noted.append(order.metadata)

    by_hand = Event(new_id(), "order.placed", 1, None, None, now(), OrderPlaced("hand"), Metadata(long))
    cloud = {"specversion": "1.0", "id": "1", "type": "order.placed", "source": "/s", "correlationid": long}
    async with running(Bus("memory://", router, form=form)) as probe:
        published = await probe.bus.publish(OrderPlaced("said"), correlation_id=long)
        await probe.bus.publish(by_hand)
        await probe.bus.send(message(msgspec.json.encode({**cloud, "data": {"name": "c"}}), content_type=CLOUD))
        await probe.settled()

        assert probe.bus.health().ok
    assert published.metadata.extra == {FULL_CORRELATION: long}
    assert len(noted) == 3
    assert {each.correlation_id for each in noted} == {published.metadata.correlation_id}


async def test_three_messages_with_an_empty_id_are_three_events(caplog: pytest.LogCaptureFixture) -> None:
    router, names = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    async def note(order: OrderPlaced) -> None:
        names.append(order.name)

    with caplog.at_level(logging.WARNING):
        async with running(Bus("memory://", router, plugins=[Idempotency(MemoryStore())])) as probe:
            for name in ("one", "two", "three"):
                body = msgspec.json.encode({"name": name})
                await probe.bus.send(message(body, message_id="", content_type="application/json"))
            await probe.settled()

    assert names == ["one", "two", "three"]
