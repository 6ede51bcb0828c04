"""How an event looks on the wire: the contract for other languages, written and read."""

import asyncio
import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from rabbitevents import Bus, DecodeError, Delivery, EncodeError, Event, Limits, Message, Metadata, Router, event
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.ids import derived_id, new_id
from rabbitevents.message import as_uuid
from rabbitevents.payload.codec import Codec
from rabbitevents.properties import HeaderValue, Properties, Timestamp, decode_properties, encode_properties
from rabbitevents.wire import Form, Received, identify, read, read_time, read_version, write


@event("order.placed", version=3, oldest=3, entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    total: Decimal


@event("stock.reserved")
@frozen
class StockReserved:
    sku: str


CODEC = Codec(OrderPlaced)
ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)
BODY = b'{"order_id":"o-1","total":"9.90"}'
FORMS: tuple[Form, ...] = ("amqp", "cloudevents", "cloudevents-binary")


def delivery(
    body: bytes = BODY,
    *,
    routing_key: str = "order.placed",
    headers: Mapping[str, HeaderValue] | None = None,
    oversize: int = 0,
    **properties: Any,
) -> Delivery:
    raw = encode_properties(Properties(headers=headers or {}, **properties))
    return Delivery("shop.record", 1, 1, False, "events", routing_key, body, raw, oversize)


def document(**changes: Any) -> bytes:
    """Return the structured JSON document; a change to ``...`` leaves the field out."""
    fields = {
        "id": str(ID),
        "type": "order.placed",
        "entity_type": "order",
        "entity_id": "o-1",
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "version": 3,
        "payload": {"order_id": "o-1", "total": "9.90"},
        "metadata": {"correlation_id": "corr", "causation_id": "cause", "source": "shop", "tenant": "t"},
        **changes,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not ...})


def cloud_event(**changes: Any) -> bytes:
    fields = {
        "specversion": "1.0",
        "id": str(ID),
        "source": "shop",
        "type": "order.placed",
        "time": "2026-01-02T03:04:05.678901Z",
        "subject": "o-1",
        "entitytype": "order",
        "eventversion": "3",
        "correlationid": "corr",
        "causationid": "cause",
        "tenant": "t",
        "datacontenttype": "application/json",
        "data": {"order_id": "o-1", "total": "9.90"},
        **changes,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not ...})


PLACED = Event(
    id=ID,
    type="order.placed",
    version=3,
    entity_type="order",
    entity_id="o-1",
    timestamp=MOMENT,
    payload=OrderPlaced("o-1", Decimal("9.90")),
    metadata=Metadata("corr", "cause", "shop", {"tenant": "t"}),
)


def received(it: Delivery) -> Event[OrderPlaced]:
    """Read a delivery as a consumer does: identified first, then read, in its envelope."""
    identify(it)
    found = read(it)
    return found.envelope(CODEC.decode(found.body, found.version))


def travelled(written: Event[OrderPlaced], form: Form) -> Event[OrderPlaced]:
    body, properties = write(written, CODEC, form)
    raw = encode_properties(properties)
    return received(Delivery("q", 1, 1, False, "events", written.type, body, raw))


# --- as it is written ------------------------------------------------------------------------------------------------


def test_an_event_travels_in_amqp_s_own_words() -> None:
    body, properties = write(PLACED, CODEC, "amqp")

    assert body == BODY
    assert properties == Properties(
        content_type="application/json",
        content_encoding=None,
        delivery_mode=2,
        correlation_id="corr",
        message_id="01890a5d-ac96-774b-bcce-b302099a8057",
        timestamp=1_767_323_045,
        type="order.placed",
        app_id="shop",
        headers={
            "event-version": 3,
            "event-time": "2026-01-02T03:04:05.678901+00:00",
            "entity-type": "order",
            "entity-id": "o-1",
            "causation-id": "cause",
            "meta-tenant": "t",
        },
    )


def test_what_an_event_does_not_have_is_left_out() -> None:
    bare: Event[StockReserved] = Event(ID, "stock.reserved", 1, None, None, MOMENT, StockReserved("s"), Metadata())

    _, properties = write(bare, Codec(StockReserved), "amqp")

    assert properties.headers == {"event-version": 1, "event-time": "2026-01-02T03:04:05.678901+00:00"}
    assert (properties.correlation_id, properties.app_id) == (None, None)


def test_a_cloud_event_is_written_as_its_specification_says() -> None:
    body, properties = write(PLACED, CODEC, "cloudevents")

    assert properties.content_type == "application/cloudevents+json"
    assert properties.message_id == str(ID)
    assert msgspec.json.decode(body) == {
        "specversion": "1.0",
        "id": str(ID),
        "source": "shop",
        "type": "order.placed",
        "time": "2026-01-02T03:04:05.678901+00:00",
        "subject": "o-1",
        "entitytype": "order",
        "eventversion": "3",
        "correlationid": "corr",
        "causationid": "cause",
        "tenant": "t",
        "datacontenttype": "application/json",
        "data": {"order_id": "o-1", "total": "9.90"},
    }


def test_a_binary_cloud_event_is_written_as_its_amqp_binding_says() -> None:
    body, properties = write(PLACED, CODEC, "cloudevents-binary")

    assert body == BODY
    assert properties.content_type == "application/json"
    assert properties.headers == {
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": str(ID),
        "cloudEvents:source": "shop",
        "cloudEvents:type": "order.placed",
        "cloudEvents:time": "2026-01-02T03:04:05.678901+00:00",
        "cloudEvents:subject": "o-1",
        "cloudEvents:entitytype": "order",
        "cloudEvents:eventversion": "3",
        "cloudEvents:correlationid": "corr",
        "cloudEvents:causationid": "cause",
        "cloudEvents:tenant": "t",
    }


@pytest.mark.parametrize("name", ["type", "id", "specversion", "source", "data", "data_base64", "eventversion"])
def test_metadata_cannot_stand_in_for_a_cloud_event_s_attribute(name: str) -> None:
    forged = msgspec.structs.replace(PLACED, metadata=Metadata(extra={name: "forged"}))

    for form in FORMS[1:]:
        with pytest.raises(EncodeError, match=name):
            write(forged, CODEC, form)


@pytest.mark.parametrize("name", ["tenant-id", "tenant_id", "Tenant", "", "é", "a b"])
def test_metadata_that_no_cloud_event_may_carry_is_an_encode_error(name: str) -> None:
    named = msgspec.structs.replace(PLACED, metadata=Metadata(extra={name: "x"}))

    for form in FORMS[1:]:
        with pytest.raises(EncodeError, match="lower-case letters and digits"):
            write(named, CODEC, form)


@pytest.mark.parametrize("value", [1, None, b"x", ["x"]])
def test_metadata_that_is_no_text_is_an_encode_error_in_every_form(value: Any) -> None:
    wrong = msgspec.structs.replace(PLACED, metadata=Metadata(extra={"tenant": value}))

    for form in FORMS:
        with pytest.raises(EncodeError, match=r"metadata 'tenant' of order\.placed must be text"):
            write(wrong, CODEC, form)


@pytest.mark.parametrize("name", ["", "n" * 124])
def test_metadata_whose_name_no_header_can_have_is_an_encode_error(name: str) -> None:
    wrong = msgspec.structs.replace(PLACED, metadata=Metadata(extra={name: "x"}))

    with pytest.raises(EncodeError, match="128 characters"):
        write(wrong, CODEC, "amqp")


def test_limits_name_the_event_and_the_way_out() -> None:
    limits = Limits(body=10, headers=20)

    limits.check(b"x" * 10, b"x" * 20, "order.placed")
    with pytest.raises(EncodeError, match=r"order\.placed: the body is 11 bytes, over the limit of 10.*Limits\(body="):
        limits.check(b"x" * 11, b"", "order.placed")
    with pytest.raises(EncodeError, match=r"order\.placed: its headers are 21 bytes, over the limit of 20"):
        limits.check(b"", b"x" * 21, "order.placed")


# --- as it is published ----------------------------------------------------------------------------------------------


async def published(form: Form = "amqp", **arguments: Any) -> tuple[Event[OrderPlaced], Message]:
    """Publish an event on an embedded broker; return it, and the message that the broker took."""
    broker, taken = EmbeddedBroker(), list[Message]()
    router = Router("shop")

    @router.on("#")
    async def take(_: Delivery) -> None: ...

    broker.witnesses.append(taken.append)
    async with Bus(broker.client(), router, name="till", form=form) as bus:
        placed = await bus.publish(OrderPlaced("o-1", Decimal("9.90")), **arguments)
    return placed, taken[0]


async def test_a_published_event_is_routed_by_its_type_and_persistent() -> None:
    placed, message = await published(metadata={"tenant": "t"})

    assert (message.exchange, message.routing_key) == ("events", "order.placed")
    assert message.body == BODY
    assert message.properties == Properties(
        content_type="application/json",
        delivery_mode=2,
        correlation_id=str(placed.id),
        message_id=str(placed.id),
        timestamp=int(placed.timestamp.timestamp()),
        type="order.placed",
        app_id="till",
        headers={
            "event-version": 3,
            "event-time": placed.timestamp.isoformat(),
            "entity-type": "order",
            "entity-id": "o-1",
            "meta-tenant": "t",
        },
    )


async def test_publishing_returns_the_envelope_that_travels() -> None:
    for form in FORMS:
        placed, message = await published(form, metadata={"tenant": "t"}, correlation_id="corr")

        raw = encode_properties(message.properties)
        there = received(Delivery("q", 1, 1, False, "events", message.routing_key, message.body, raw))

        assert there == placed
        assert placed.id.version == 7
        assert placed.metadata.correlation_id == "corr"


async def test_an_event_that_keeps_its_envelope_is_published_as_it_is() -> None:
    broker, taken = EmbeddedBroker(), list[Message]()
    broker.witnesses.append(taken.append)
    router = Router("shop")

    @router.on(OrderPlaced)
    async def take(_: OrderPlaced) -> None: ...

    async with Bus(broker.client(), router, name="till") as bus:
        returned: Event[OrderPlaced] = await bus.publish(PLACED)

    assert returned == PLACED
    assert taken[0].properties == write(PLACED, CODEC, "amqp")[1]


async def test_what_is_published_while_another_event_is_handled_is_caused_by_it() -> None:
    router, caused, all_there = Router("shop"), list[Event[StockReserved]](), asyncio.Event()

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced, bus: Bus) -> list[StockReserved]:
        await bus.publish(StockReserved("first"))
        return [StockReserved("second"), StockReserved("third")]

    @router.on(StockReserved)
    async def note(reserved: Event[StockReserved]) -> None:
        caused.append(reserved)
        if len(caused) == 3:
            all_there.set()

    async with Bus("memory://", router) as bus:
        placed = await bus.publish(OrderPlaced("o-1", Decimal(1)), correlation_id="corr")
        async with asyncio.timeout(5):
            await all_there.wait()

    assert {each.payload.sku: each.id for each in caused} == {
        sku: derived_id(placed.id, "shop.reserve", "stock.reserved", ordinal)
        for ordinal, sku in enumerate(("first", "second", "third"))
    }
    assert all(each.metadata == Metadata("corr", str(placed.id), "shop") for each in caused)


# --- as it is read back ----------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=4, max_size=10).map(lambda name: f"x{name}")
moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
events = st.builds(
    Event[OrderPlaced],
    id=st.uuids(),
    type=st.just("order.placed"),
    version=st.just(3),
    entity_type=st.none() | texts,
    entity_id=st.none() | texts,
    timestamp=moments,
    payload=st.builds(OrderPlaced, texts, st.decimals(allow_nan=False, allow_infinity=False)),
    metadata=st.builds(
        Metadata, st.none() | texts, st.none() | texts, texts.filter(bool), st.dictionaries(names, texts)
    ),
)


@given(events)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_back_equal(form: Form, written: Event[OrderPlaced]) -> None:
    assert travelled(written, form) == written


@given(events)
def test_every_event_can_be_put_into_amqp_s_properties(written: Event[OrderPlaced]) -> None:
    for form in FORMS:
        _, properties = write(written, CODEC, form)

        assert decode_properties(encode_properties(properties)) == properties


def test_a_moment_before_1970_travels_by_the_event_time_alone() -> None:
    early = msgspec.structs.replace(PLACED, timestamp=datetime(1969, 7, 20, 20, 17, 40, 5, UTC))

    _, properties = write(early, CODEC, "amqp")

    assert properties.timestamp is None
    assert travelled(early, "amqp") == early


# --- the structured document -----------------------------------------------------------------------------------------

DOCUMENT = "application/vnd.rabbitevents.event+json"
CLOUD = "application/cloudevents+json"


@pytest.mark.parametrize(
    "properties",
    [
        {"content_type": DOCUMENT},
        {"content_type": "Application/Vnd.RabbitEvents.Event+JSON; charset=utf-8"},
        {"content_type": "application/json"},
        {"content_type": "application/json; charset=utf-8"},
        {"content_type": None},
        {"content_type": DOCUMENT, "type": "order.placed"},
        {"content_type": "application/json", "type": "order.placed"},
    ],
    ids=str,
)
def test_the_structured_document_is_understood(properties: dict[str, Any]) -> None:
    assert received(delivery(document(), **properties)) == PLACED


@pytest.mark.parametrize("content_type", [DOCUMENT, "application/json", None, CLOUD])
def test_a_document_is_read_alike_however_often_it_is_identified(content_type: str | None) -> None:
    body = cloud_event() if content_type == CLOUD else document()
    it = delivery(body, content_type=content_type)

    first, second, third = received(it), received(it), received(it)

    assert first == second == third == PLACED


@pytest.mark.parametrize("content_type", [DOCUMENT, "application/json", None, CLOUD])
def test_a_copy_of_a_foreign_document_is_read_as_the_original_was(content_type: str | None) -> None:
    it = delivery(cloud_event() if content_type == CLOUD else document(), content_type=content_type)
    original = received(it)

    copy = it.replace(attempt=2)
    again = Delivery("q", 2, 1, False, "", "q", copy.body, encode_properties(copy.properties))

    assert received(again) == original
    assert (again.id, again.type, again.attempt) == (ID, "order.placed", 2)


@pytest.mark.parametrize("version", [3, "3", "3.0", 3.0])
def test_a_version_may_be_a_number_or_a_text(version: Any) -> None:
    assert received(delivery(document(version=version), content_type=DOCUMENT)).version == 3


@pytest.mark.parametrize("version", [None, ...])
def test_a_missing_version_is_the_first(version: Any) -> None:
    assert read(delivery(document(version=version), content_type=DOCUMENT)).version == 1


@pytest.mark.parametrize("version", ["1.5", 1.5, "one", "", "nan", "inf", "-inf", "1e999", "-1", True, [1], {}])
def test_a_version_that_is_no_whole_number_is_a_decode_error(version: Any) -> None:
    with pytest.raises(DecodeError):
        read(delivery(document(version=version), content_type=DOCUMENT))
    with pytest.raises(DecodeError):
        read_version(version)


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("2026-01-02T03:04:05.678901Z", MOMENT),
        ("2026-01-02T03:04:05.678901234Z", MOMENT),
        ("2026-01-02T04:04:05.678901+01:00", MOMENT),
        ("2026-01-02 03:04:05.678901", MOMENT),
        ("2026-01-02T03:04:05Z", MOMENT.replace(microsecond=0)),
        (1_767_323_045, MOMENT.replace(microsecond=0)),
        (1_767_323_045.678901, MOMENT),
        (1_767_323_045_678, MOMENT.replace(microsecond=678_000)),
        (1_767_323_045_678_901, MOMENT),
        (1_767_323_045_678_901_234, MOMENT),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time_may_be_a_text_or_a_number_of_any_unit(timestamp: Any, expected: datetime) -> None:
    there = received(delivery(document(timestamp=timestamp), content_type=DOCUMENT)).timestamp

    assert abs(there - expected) <= timedelta(microseconds=1)
    assert there.tzinfo is UTC


UNREADABLE_TIMES: list[Any] = [
    None,
    "",
    "yesterday",
    "2026-13-01",
    "9999-12-31T23:59:59-12:00",
    "0001-01-01T00:00:00+12:00",
    1e300,
    -5,
    10**21,
    10**30,
]


@pytest.mark.parametrize("timestamp", UNREADABLE_TIMES)
def test_amqp_s_timestamp_stands_in_for_a_time_that_cannot_be_read(timestamp: Any) -> None:
    there = received(delivery(document(timestamp=timestamp), content_type=DOCUMENT, timestamp=1_767_323_045))

    assert there.timestamp == MOMENT.replace(microsecond=0)


@pytest.mark.parametrize("timestamp", [*UNREADABLE_TIMES, float("nan"), float("inf"), 10**400, [], {}, b"x"])
def test_this_moment_stands_in_when_no_time_can_be_read(timestamp: Any) -> None:
    before = datetime.now(UTC)

    there = read_time(timestamp, None)

    assert before <= there <= datetime.now(UTC)


@pytest.mark.parametrize("metadata", [None, ..., {}])
def test_metadata_may_be_missing(metadata: Any) -> None:
    there = received(delivery(document(metadata=metadata), content_type=DOCUMENT))

    assert there.metadata == Metadata()


def test_what_a_document_does_not_say_amqp_may() -> None:
    it = delivery(
        document(metadata={"tenant": 5}, id=...),
        content_type=DOCUMENT,
        message_id=str(ID),
        correlation_id="corr",
        app_id="shop",
        headers={"causation-id": "cause"},
    )

    there = received(it)

    assert there.id == ID
    assert there.metadata == Metadata("corr", "cause", "shop", {"tenant": "5"})


@pytest.mark.parametrize("entity_id", [7, "7"])
def test_an_entity_s_id_is_text(entity_id: Any) -> None:
    assert received(delivery(document(entity_id=entity_id), content_type=DOCUMENT)).entity_id == "7"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"type": "order.placed"}',
        b'{"payload": {}}',
        b'{"type": 1, "payload": {}}',
        b'{"type": "t", "payload": {}, "metadata": []}',
        b'{"type": "t", "payload": {}, "version": [1]}',
        b'{"type": "t", "payload": ' + b"[" * 100_000,
        b"\xff",
    ],
    ids=range(11),
)
def test_a_document_that_cannot_be_read_is_a_decode_error(body: bytes) -> None:
    it = delivery(body, content_type=DOCUMENT)

    identify(it)

    with pytest.raises(DecodeError):
        read(it)


def test_a_payload_that_merely_looks_like_a_document_stays_a_payload() -> None:
    body = b'{"type": "gift", "payload": "a book"}'

    ours = read(delivery(body, content_type="application/json", type="parcel.sent", headers={"event-version": 1}))
    theirs = read(delivery(body, content_type="application/json", type="parcel.sent"))
    list_of_both = read(delivery(b'["type", "payload"]', content_type="application/json"))

    assert (ours.type, ours.body) == ("parcel.sent", body)
    assert (theirs.type, theirs.body) == ("parcel.sent", body)
    assert list_of_both.type == "order.placed"


# --- CloudEvents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [CLOUD, f"{CLOUD}; charset=utf-8", CLOUD.upper()])
def test_a_structured_cloud_event_is_understood(content_type: str) -> None:
    assert received(delivery(cloud_event(), content_type=content_type)) == PLACED


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_"])
@pytest.mark.parametrize("content_type", ["application/json", None, "application/json; charset=utf-8"])
def test_a_binary_cloud_event_is_understood_with_either_prefix(prefix: str, content_type: str | None) -> None:
    attributes: dict[str, Any] = msgspec.json.decode(cloud_event(data=..., datacontenttype=...))
    headers = {f"{prefix}{name}": value for name, value in attributes.items()}

    assert received(delivery(content_type=content_type, headers=headers)) == PLACED


def test_data_in_base64_is_understood() -> None:
    body = cloud_event(data=..., data_base64=base64.b64encode(BODY).decode())

    assert received(delivery(body, content_type=CLOUD)) == PLACED


def test_data_keeps_every_digit_on_its_way() -> None:
    body = cloud_event(data="DATA").replace(b'"DATA"', b'{"order_id": "o-1", "total": 0.12345678901234567890123}')

    there = received(delivery(body, content_type=CLOUD))

    assert there.payload.total == Decimal("0.12345678901234567890123")


def test_a_cloud_event_without_extensions_is_enough() -> None:
    body = cloud_event(entitytype=..., eventversion=..., correlationid=..., causationid=..., time=..., subject=...)

    found = read(delivery(body, content_type=CLOUD, timestamp=1_767_323_045))

    assert (found.type, found.version) == ("order.placed", 1)
    assert found.envelope(None).timestamp == MOMENT.replace(microsecond=0)
    assert found.envelope(None).entity_id is None


@pytest.mark.parametrize(
    "changes",
    [
        {"type": ...},
        {"type": 5},
        {"specversion": ...},
        {"specversion": "0.3"},
        {"specversion": 1.0},
        {"datacontenttype": "application/xml"},
        {"data": ..., "data_base64": "!!!"},
        {"data": ..., "data_base64": 5},
        {"eventversion": "two"},
    ],
    ids=str,
)
def test_a_cloud_event_that_is_none_is_a_decode_error(changes: dict[str, Any]) -> None:
    it = delivery(cloud_event(**changes), content_type=CLOUD)

    identify(it)

    with pytest.raises(DecodeError):
        read(it)


def test_a_binary_cloud_event_s_content_type_is_that_of_its_data() -> None:
    headers = {"cloudEvents:specversion": "1.0", "cloudEvents:type": "order.placed", "cloudEvents:id": "1"}

    with pytest.raises(DecodeError, match="application/xml"):
        read(delivery(b"5", content_type="application/xml", headers=headers))


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"5", b"{", b"[" * 100_000, b'{"data": ' + b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_no_cloud_event(body: bytes) -> None:
    with pytest.raises(DecodeError):
        read(delivery(body, content_type=CLOUD))


# --- from strangers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/json", "APPLICATION/JSON;charset=utf-8", None, ""])
def test_bare_json_is_the_event_that_it_was_routed_as(content_type: str | None) -> None:
    it = delivery(b"{}", content_type=content_type, routing_key="stock.counted")

    identify(it)
    found = read(it)

    assert (found.type, found.version, found.body) == ("stock.counted", 1, b"{}")
    assert it.type == "stock.counted"


def test_bare_json_may_say_its_type_and_version_in_amqp_s_words() -> None:
    it = delivery(b"{}", type="stock.counted", headers={"event-version": "2.0"}, routing_key="x")

    found = read(it)

    assert (found.type, found.version) == ("stock.counted", 2)


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "application/x-pickle", "json"])
def test_an_unknown_content_type_is_a_decode_error_that_names_it(content_type: str) -> None:
    it = delivery(content_type=content_type, type="order.placed")

    identify(it)

    with pytest.raises(DecodeError, match=re.escape(content_type)) as refused:
        read(it)
    assert refused.value.type == "order.placed"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "base64"])
def test_an_unknown_content_encoding_is_a_decode_error_that_names_it(encoding: str) -> None:
    with pytest.raises(DecodeError, match=encoding):
        read(delivery(content_type="application/json", content_encoding=encoding, headers={"event-version": 3}))


@pytest.mark.parametrize("encoding", ["", "identity", "utf-8", None])
def test_an_encoding_that_changes_nothing_is_understood(encoding: str | None) -> None:
    there = read(delivery(content_type="application/json", content_encoding=encoding, type="order.placed"))

    assert there.body == BODY


def test_a_body_over_the_limit_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match=r"17,825,792 bytes, over the limit"):
        read(delivery(b"", oversize=17 << 20))


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
stated = st.dictionaries(
    st.sampled_from(["id", "type", "entity_type", "entity_id", "timestamp", "version", "payload", "metadata"])
    | st.sampled_from(
        ["specversion", "source", "time", "subject", "eventversion", "data", "data_base64", "datacontenttype"]
    ),
    json_values | st.sampled_from(["1.0", "order.placed", "application/json", "e30="]),
)
header_values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    texts,
    st.just("1.0"),
    st.binary(max_size=5),
    st.integers(0, 2**64 - 1).map(Timestamp),
    st.lists(st.integers(0, 9), max_size=2),
)
our_names = ["event-version", "event-time", "entity-id", "meta-x", "causation-id", "attempt", "origin-routing-key"]
cloud_names = ["type", "specversion", "id", "time", "eventversion", "subject"]
header_names = st.sampled_from([*our_names, *(f"cloudEvents:{name}" for name in cloud_names), "cloudEvents_source"])
anything = st.builds(
    delivery,
    stated.map(msgspec.json.encode) | st.binary(max_size=30),
    headers=st.dictionaries(header_names, header_values),
    content_type=st.sampled_from([None, "", "application/json", DOCUMENT, CLOUD, "text/plain"]),
    type=st.none() | texts,
    message_id=st.none() | texts,
    timestamp=st.none() | st.integers(0, 2**64 - 1),
)


@given(anything)
def test_nothing_but_a_decode_error_comes_of_what_strangers_send(it: Delivery) -> None:
    identify(it)

    try:
        found: Received = read(it)
        there = found.envelope(None)
    except DecodeError:
        return

    assert isinstance(there.id, UUID)
    assert there.timestamp.tzinfo is UTC
    assert all(isinstance(value, str) for value in there.metadata.extra.values())
    assert it.id == there.id
    assert it.attempt >= 1


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["order-5", "", "é", b"\xff\xfe".decode("utf-8", "surrogateescape"), "0" * 200])
def test_an_id_that_is_no_uuid_is_always_the_same_uuid(text: str) -> None:
    first, second = delivery(message_id=text), delivery(message_id=text)

    assert first.id == second.id == as_uuid(text)
    assert first.id != delivery(message_id=f"{text}x").id


@pytest.mark.parametrize("content_type", [DOCUMENT, "application/json", None, CLOUD])
@pytest.mark.parametrize("stated", [str(ID), "order-5", "5"])
def test_a_document_s_own_id_is_its_delivery_s_id(content_type: str | None, stated: str) -> None:
    body = cloud_event(id=stated) if content_type == CLOUD else document(id=stated)
    it = delivery(body, content_type=content_type)

    identify(it)

    assert it.id == as_uuid(stated)
    assert it.properties.message_id == str(as_uuid(stated))
    assert it.type == "order.placed"


def test_a_delivery_without_any_id_keeps_the_one_it_is_given() -> None:
    one, other = delivery(content_type="application/json"), delivery(content_type="application/json")

    identify(one)

    assert one.id == one.id
    assert read(one).envelope(None).id == one.id
    assert one.id != other.id


def test_properties_that_cannot_be_read_are_left_for_the_chain() -> None:
    it = Delivery("q", 1, 1, False, "events", "k", b"{}", b"\x20\x00\x00\x00\x00\x04\x01kZ\x00")

    identify(it)

    with pytest.raises(DecodeError):
        read(it)
    assert "unreadable properties" in it.describe()


def test_new_ids_are_of_version_7_and_of_this_moment() -> None:
    before = datetime.now(UTC)

    ids = [new_id() for _ in range(100)]

    assert len(set(ids)) == 100
    for id in ids:
        moment = datetime.fromtimestamp((id.int >> 80) / 1000, UTC)
        assert id.version == 7
        assert id.variant == "specified in RFC 4122"
        assert before - timedelta(milliseconds=1) <= moment <= datetime.now(UTC)


causes = st.uuids() | st.builds(new_id)
words = st.text("abc.", min_size=1, max_size=6)
arguments = st.tuples(causes, words, words, st.integers(0, 3))


@given(arguments)
def test_a_derived_id_is_always_the_same_and_has_its_cause_s_time(of: tuple[UUID, str, str, int]) -> None:
    derived = derived_id(*of)

    assert derived == derived_id(*of)
    assert derived != of[0]
    assert derived.int >> 80 == of[0].int >> 80
    assert derived.version == 7
    assert derived.variant == "specified in RFC 4122"


@given(arguments, arguments)
def test_derived_ids_of_different_things_differ(
    one: tuple[UUID, str, str, int], other: tuple[UUID, str, str, int]
) -> None:
    mixed = (one[0], *other[1:])

    assert (derived_id(*one) == derived_id(*other)) == (one == other)
    assert (derived_id(*one) == derived_id(*mixed)) == (one == mixed)
