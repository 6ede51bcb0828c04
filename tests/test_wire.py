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
from hypothesis import example, given
from hypothesis import strategies as st

from rabbitevents import Bus, DecodeError, Delivery, EncodeError, Event, Limits, Message, Metadata, Router, event
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.ids import as_uuid
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
    body, properties = write(written, CODEC.encode(written.payload), form)
    raw = encode_properties(properties)
    return received(Delivery("q", 1, 1, False, "events", written.type, body, raw))


# --- as it is written ------------------------------------------------------------------------------------------------


def test_an_event_travels_in_amqp_s_own_words() -> None:
    body, properties = write(PLACED, BODY, "amqp")

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

    _, properties = write(bare, b"{}", "amqp")

    assert properties.headers == {"event-version": 1, "event-time": "2026-01-02T03:04:05.678901+00:00"}
    assert (properties.correlation_id, properties.app_id) == (None, None)


def test_a_cloud_event_is_written_as_its_specification_says() -> None:
    body, properties = write(PLACED, BODY, "cloudevents")

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
    body, properties = write(PLACED, BODY, "cloudevents-binary")

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
        "entity-id": "o-1",
    }


@pytest.mark.parametrize("name", ["type", "id", "specversion", "source", "data", "data_base64", "eventversion"])
def test_metadata_cannot_stand_in_for_a_cloud_event_s_attribute(name: str) -> None:
    forged = msgspec.structs.replace(PLACED, metadata=Metadata(extra={name: "forged"}))

    for form in FORMS[1:]:
        with pytest.raises(EncodeError, match=name):
            write(forged, BODY, form)


@pytest.mark.parametrize("name", ["tenant-id", "tenant_id", "Tenant", "", "é", "a b"])
def test_metadata_that_no_cloud_event_may_carry_is_an_encode_error(name: str) -> None:
    named = msgspec.structs.replace(PLACED, metadata=Metadata(extra={name: "x"}))

    for form in FORMS[1:]:
        with pytest.raises(EncodeError, match="lower-case letters and digits"):
            write(named, BODY, form)


@pytest.mark.parametrize("value", [1, None, b"x", ["x"]])
def test_metadata_that_is_no_text_is_an_encode_error_in_every_form(value: Any) -> None:
    wrong = msgspec.structs.replace(PLACED, metadata=Metadata(extra={"tenant": value}))

    for form in FORMS:
        with pytest.raises(EncodeError, match=r"metadata 'tenant' of order\.placed must be text"):
            write(wrong, BODY, form)


@pytest.mark.parametrize("name", ["", "n" * 124])
def test_metadata_whose_name_no_header_can_have_is_an_encode_error(name: str) -> None:
    wrong = msgspec.structs.replace(PLACED, metadata=Metadata(extra={name: "x"}))

    with pytest.raises(EncodeError, match="128 characters"):
        write(wrong, BODY, "amqp")


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
    assert taken[0].properties == write(PLACED, BODY, "amqp")[1]


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

    assert len({each.id for each in caused}) == 3
    assert {each.id.int >> 80 for each in caused} == {placed.id.int >> 80}
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
        _, properties = write(written, CODEC.encode(written.payload), form)

        assert decode_properties(encode_properties(properties)) == properties


def test_a_moment_before_1970_travels_by_the_event_time_alone() -> None:
    early = msgspec.structs.replace(PLACED, timestamp=datetime(1969, 7, 20, 20, 17, 40, 5, UTC))

    _, properties = write(early, BODY, "amqp")

    assert properties.timestamp is None
    assert travelled(early, "amqp") == early


# --- the structured document -----------------------------------------------------------------------------------------

DOCUMENT = "application/vnd.rabbitevents.event+json"
CLOUD = "application/cloudevents+json"
MASSTRANSIT = "application/vnd.masstransit+json"


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


def test_an_event_in_amqp_s_words_without_a_type_is_the_one_it_was_routed_as() -> None:
    it = delivery(content_type="application/json", headers={"event-version": 2}, routing_key="stock.counted")

    found = read(it)

    assert (found.type, found.version, found.body) == ("stock.counted", 2, BODY)


def test_a_document_is_parsed_once_whoever_asks() -> None:
    it = delivery(document(), content_type=DOCUMENT)
    identify(it)
    first = read(it)

    msgspec.structs.force_setattr(it, "body", b"nobody looks here again")

    assert read(it) == first
    assert read(it.marked(attempt=2)).delivery.attempt == 2


def test_a_payload_that_merely_looks_like_a_document_stays_a_payload() -> None:
    body = b'{"type": "gift", "payload": "a book"}'

    ours = read(delivery(body, content_type="application/json", type="parcel.sent", headers={"event-version": 1}))
    theirs = read(delivery(body, content_type="application/json", type="parcel.sent"))
    list_of_both = read(delivery(b'["type", "payload"]', content_type="application/json"))

    assert (ours.type, ours.body) == ("parcel.sent", body)
    assert (theirs.type, theirs.body) == ("parcel.sent", body)
    assert list_of_both.type == "order.placed"


# --- what is too long, too deep or no text -----------------------------------------------------------------------------


def stating_type(kind: str) -> list[Delivery]:
    """Deliveries that state a type in each way in which no property bounds it."""
    attributes: dict[str, HeaderValue] = {"specversion": "1.0", "type": kind, "id": "1", "source": "shop"}
    return [
        delivery(document(type=kind), content_type=DOCUMENT),
        delivery(document(type=kind), content_type="application/json"),
        delivery(cloud_event(type=kind), content_type=CLOUD),
        delivery(headers={f"cloudEvents:{name}": value for name, value in attributes.items()}),
    ]


@pytest.mark.parametrize("kind", ["k" * 256, "é" * 128, "k" * 1_000_000], ids=["256", "128 of two bytes", "1 MB"])
def test_a_type_that_no_property_could_carry_is_a_decode_error_of_a_few_words(kind: str) -> None:
    for it in stating_type(kind):
        identify(it)

        with pytest.raises(DecodeError) as refused:
            read(it)
        assert len(str(refused.value)) < 200
        assert len(refused.value.type or "") <= 255
        assert it.replace(attempt=2).properties.type != kind


@pytest.mark.parametrize("kind", ["k" * 255, "é" * 127])
def test_a_type_of_255_bytes_is_one(kind: str) -> None:
    for it in stating_type(kind):
        identify(it)

        assert read(it).type == it.type == kind
        assert redelivered(it.replace(attempt=2)).type == kind


SECRET = "4111 1111 1111 1111"


@pytest.mark.parametrize(
    "changes",
    [
        {"datacontenttype": "x" * 900_000},
        {"datacontenttype": "x" * 200},
        {"datacontenttype": {"x": "y" * 900_000}},
        {"eventversion": "1" * 900_000},
        {"eventversion": SECRET},
        {"specversion": "9" * 900_000},
        {"id": {SECRET: SECRET}},
        {"id": [SECRET]},
        {"data": ..., "data_base64": SECRET},
        {"data": ..., "data_base64": {SECRET: 1}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_an_error_says_of_a_cloud_event_is_short_and_nothing_that_is_in_it(changes: dict[str, Any]) -> None:
    it = delivery(cloud_event(**changes), content_type=CLOUD)
    identify(it)

    with pytest.raises(DecodeError) as refused:
        read(it)

    assert len(str(refused.value)) < 300
    assert "4111" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1" * 900_000},
        {"version": 10**25},
        {"version": 2**31},
        {"version": -1},
        {"version": SECRET},
        {"id": [SECRET]},
        {"metadata": [SECRET]},
        {"entity_id": {SECRET: 1}},
    ],
    ids=str,
)
def test_what_an_error_says_of_a_document_is_short_and_nothing_that_is_in_it(changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError) as refused:
        read(delivery(document(**changes), content_type=DOCUMENT))

    assert len(str(refused.value)) < 300
    assert "4111" not in str(refused.value)


@pytest.mark.parametrize(("field", "most"), [("content_type", 200), ("content_encoding", 200)])
def test_a_property_in_an_error_is_cut_and_escaped(field: str, most: int) -> None:
    properties: dict[str, Any] = {"content_type": "application/json", field: "x\n\x1b" + "y" * 240}
    it = delivery(**properties)

    with pytest.raises(DecodeError, match=r"x\\n\\x1by") as refused:
        read(it)
    assert len(str(refused.value)) < most


@pytest.mark.parametrize("version", [-1, 2**31, 2**63 - 1, b"1", [1], None])
def test_a_version_in_the_headers_is_as_strict(version: HeaderValue) -> None:
    it = delivery(content_type="application/json", type="order.placed", headers={"event-version": version})

    with pytest.raises(DecodeError):
        read(it)


@pytest.mark.parametrize("depth", [10, 400, 900])
@pytest.mark.parametrize("content_type", [DOCUMENT, "application/json", CLOUD])
def test_metadata_that_nests_is_its_json_and_is_never_built(depth: int, content_type: str) -> None:
    nested = b"[" * depth + b"]" * depth
    raw = msgspec.Raw(nested)
    body = cloud_event(nested=raw) if content_type == CLOUD else document(metadata={"nested": raw})
    it = delivery(body, content_type=content_type)

    identify(it)

    assert read(it).envelope(None).metadata.extra["nested"] == nested.decode()


@pytest.mark.parametrize("content_type", [DOCUMENT, "application/json", CLOUD])
def test_what_nests_deeper_than_the_parser_goes_is_a_decode_error(content_type: str) -> None:
    raw = msgspec.Raw(b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000)
    it = delivery(
        cloud_event(nested=raw) if content_type == CLOUD else document(metadata={"nested": raw}),
        content_type=content_type,
    )

    identify(it)

    with pytest.raises(DecodeError):
        read(it)


def test_pairs_of_other_kinds_are_text_as_json_writes_them_and_null_is_none() -> None:
    pairs = {"a": 5, "b": True, "c": None, "d": 1.5, "e": {"x": [1]}, "f": "text"}
    expected = {"a": "5", "b": "true", "d": "1.5", "e": '{"x":[1]}', "f": "text"}

    in_document = received(delivery(document(metadata=pairs), content_type=DOCUMENT))
    in_cloud_event = received(delivery(cloud_event(tenant=..., **pairs), content_type=CLOUD))

    assert in_document.metadata.extra == in_cloud_event.metadata.extra == expected


LONG = "c" * 300
NOT_UTF8 = b"corr-\xff".decode("utf-8", "surrogateescape")


def correlated() -> list[tuple[str, Delivery]]:
    """Deliveries whose correlation id cannot go on as it is."""
    return [
        (LONG, delivery(document(metadata={"correlation_id": LONG}), content_type=DOCUMENT)),
        (LONG, delivery(document(metadata={"correlation_id": LONG}))),
        (LONG, delivery(cloud_event(correlationid=LONG), content_type=CLOUD)),
        (NOT_UTF8, delivery(b"{}", correlation_id=NOT_UTF8)),
        (NOT_UTF8, delivery(b"{}", correlation_id=NOT_UTF8, type="order.placed", headers={"event-version": 3})),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_correlation_id_that_cannot_go_on_is_replaced_by_a_uuid_of_it_and_kept_for_the_handler(number: int) -> None:
    said, it = correlated()[number]
    _, again = correlated()[number]
    for each in (it, again):
        identify(each)

    metadata = read(it).envelope(None).metadata

    assert metadata.correlation_id == read(it).correlation_id == read(again).correlation_id == str(as_uuid(said))
    assert metadata.extra["fullcorrelationid"] == said.replace("\udcff", "\\udcff")
    copy = redelivered(it.replace(attempt=2))
    identify(copy)
    assert read(copy).envelope(None).metadata == metadata


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(5))
async def test_what_a_handler_publishes_goes_on_whatever_the_correlation_id_was(form: Form, number: int) -> None:
    said, it = correlated()[number]
    broker, taken = EmbeddedBroker(), list[Message]()
    router, all_there = Router("shop"), asyncio.Event()

    @router.on("order.placed")
    async def reserve(order: Event[Any], bus: Bus) -> StockReserved:
        await bus.publish(msgspec.structs.replace(PLACED, type="order.noted", metadata=order.metadata))
        return StockReserved("s")

    @router.on(StockReserved)
    async def note(reserved: StockReserved) -> None:
        all_there.set()

    broker.witnesses.append(taken.append)
    async with Bus(broker.client(), router, form=form) as bus:
        await bus.send(Message(exchange="events", routing_key="order.placed", body=it.body, properties=it.properties))
        async with asyncio.timeout(5):
            await all_there.wait()

    correlations = {message.type: message.properties.correlation_id for message in taken[1:]}
    assert correlations == dict.fromkeys(["order.noted", "stock.reserved"], str(as_uuid(said)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 255])
def test_a_correlation_id_that_can_go_on_stays_as_it_is(form: Form, length: int) -> None:
    written = msgspec.structs.replace(PLACED, metadata=Metadata("c" * length, None, "shop"))

    assert travelled(written, form) == written


@pytest.mark.parametrize(
    "changes",
    [
        {"entity_id": NOT_UTF8},
        {"entity_type": NOT_UTF8},
        {"metadata": Metadata(NOT_UTF8)},
        {"metadata": Metadata(None, NOT_UTF8)},
        {"metadata": Metadata(source=NOT_UTF8)},
        {"metadata": Metadata(extra={"tenant": NOT_UTF8})},
        {"metadata": Metadata(extra={"tenant": "\ud800"})},
    ],
    ids=range(7),
)
def test_a_text_that_json_cannot_say_is_an_encode_error_in_a_structured_cloud_event(changes: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match=r"order\.placed"):
        write(msgspec.structs.replace(PLACED, **changes), BODY, "cloudevents")


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


@pytest.mark.parametrize(
    "content_type",
    [
        "application/xml",
        "application/x-pickle",
        "application/x-python-serialize",
        "application/msgpack",
        "application/x-ndjson",
        "application/cloudevents-batch+json",
        "application/vnd.masstransit+xml",
        "text/html",
        "json",
    ],
)
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
    )
    | st.sampled_from(["messageType", "message", "messageId", "conversationId", "sentTime", "headers"]),
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
WATERMILL = "_watermill_message_uuid"
our_names = ["event-version", "event-time", "entity-id", "meta-x", "causation-id", "attempt", "origin-routing-key"]
cloud_names = ["type", "specversion", "id", "time", "eventversion", "subject"]
header_names = st.sampled_from(
    [*our_names, *(f"cloudEvents:{name}" for name in cloud_names), "cloudEvents_source", "compression", WATERMILL]
)
anything = st.builds(
    delivery,
    stated.map(msgspec.json.encode) | st.binary(max_size=30),
    headers=st.dictionaries(header_names, header_values),
    content_type=st.sampled_from([None, "", "application/json", DOCUMENT, CLOUD, MASSTRANSIT, "text/plain", "a/b+json"])
    | st.sampled_from(["application/json; charset=latin-1", "text/json;charset=UTF-8", "application/json;charset=\0"])
    | texts,
    content_encoding=st.none() | st.sampled_from(["utf-8", "latin-1", "binary", "gzip"]) | texts,
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


@pytest.mark.parametrize("text", ["order-5", "é", b"\xff\xfe".decode("utf-8", "surrogateescape"), "0" * 200])
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

    assert it.id == as_uuid(stated, "shop")
    assert it.properties.message_id == str(as_uuid(stated, "shop"))
    assert it.type == "order.placed"


NIL = "00000000-0000-0000-0000-000000000000"
NO_IDS = [None, "", " ", "\t\n", NIL, NIL.replace("-", ""), f"{{{NIL}}}", f"urn:uuid:{NIL}"]


@pytest.mark.parametrize("id", NO_IDS)
@pytest.mark.parametrize("headers", [{}, {"event-version": 3}], ids=["foreign", "ours"])
def test_what_says_no_id_gets_a_new_one_that_all_see_and_a_copy_carries_on(
    id: str | None, headers: dict[str, HeaderValue]
) -> None:
    def one() -> Delivery:
        return delivery(content_type="application/json", type="order.placed", message_id=id, headers=headers)

    it, other = one(), one()
    identify(it)
    identify(other)

    further_in = it.marked(attempt=2)
    assert it.id == further_in.id == read(it).envelope(None).id == redelivered(further_in.replace(attempt=2)).id
    assert it.id != other.id
    assert it.id.version == 7
    assert it.properties.message_id is None  # so that whoever asks sees that it came without


@pytest.mark.parametrize("id", NO_IDS)
@pytest.mark.parametrize("content_type", [DOCUMENT, "application/json", CLOUD])
def test_for_a_document_that_says_no_id_amqp_speaks(id: str | None, content_type: str) -> None:
    body = cloud_event(id=id) if content_type == CLOUD else document(id=id)
    it = delivery(body, content_type=content_type, message_id=str(ID))

    identify(it)

    assert it.id == ID


@pytest.mark.parametrize("text", [str(ID), str(ID).upper()])
def test_a_uuid_in_its_canonical_form_is_that_uuid_whoever_sends_it(text: str) -> None:
    assert delivery(message_id=text).id == delivery(message_id=text, app_id="shop").id == ID


def lenient(id: UUID) -> list[str]:
    """What lenient parsers take for a UUID."""
    digits = id.hex
    return [
        digits,
        f"{{{id}}}",
        f"urn:uuid:{id}",
        f" {id}",
        f"{id}\n",
        "-".join(digits),
        f"{digits[0]}-{digits[1:]}",
        f"{digits[:8]}_{digits[8:]}",
        f"0x{digits[2:]}",
        f"{str(id)[:-2]}_{digits[-1]}",
        str(id).replace("-", "\N{EN DASH}"),
        "".join(chr(ord("\N{FULLWIDTH DIGIT ZERO}") + int(d)) if d.isdigit() else d for d in str(id)),
    ]


@given(st.uuids())
def test_what_only_looks_like_a_uuid_is_text_and_no_two_texts_are_one(id: UUID) -> None:
    looks = lenient(id)

    ids = {as_uuid(text) for text in looks}

    assert len(ids) == len(set(looks))
    assert id not in ids


def test_an_id_that_is_no_uuid_is_unique_only_with_its_source() -> None:
    mine, yours = delivery(message_id="5", app_id="mine"), delivery(message_id="5", app_id="yours")

    assert mine.id == delivery(message_id="5", app_id="mine").id != yours.id
    for content_type in (CLOUD, DOCUMENT):
        of = {
            source: delivery(
                cloud_event(id="5", source=source)
                if content_type == CLOUD
                else document(id="5", metadata={"source": source}),
                content_type=content_type,
                app_id="the gateway",
            )
            for source in ("mine", "yours")
        }
        for each in of.values():
            identify(each)

        assert [of["mine"].id, of["yours"].id] == [mine.id, yours.id]


def test_for_a_document_without_a_source_amqp_s_stands_in() -> None:
    bodies = {CLOUD: cloud_event(id="5", source=...), DOCUMENT: document(id="5", metadata=None)}
    for content_type, body in bodies.items():
        it = delivery(body, content_type=content_type, app_id="mine")

        identify(it)

        assert it.id == as_uuid("5", "mine")
        assert read(it).envelope(None).metadata.source == "mine"


sources = st.sampled_from(["", "shop", "1:shop", "shop:", "5"]) | texts
foreign_ids = st.sampled_from(
    ["5", "p5", "5:", "order-5", str(ID), ID.hex, f"{{{ID}}}", str(ID).upper()]
) | texts.filter(lambda text: text.strip() != "")


def sent(form: str, id: str, source: str) -> Delivery:
    """An event of a stranger, in one of the forms."""
    if form == "document":
        return delivery(document(id=id, metadata={"source": source}), content_type=DOCUMENT)
    if form == "bare document":
        return delivery(document(id=id, metadata={"source": source}), type="")
    if form == "cloudevents":
        return delivery(cloud_event(id=id, source=source), content_type=CLOUD)
    if form == "cloudevents-binary":
        headers = {"specversion": "1.0", "type": "order.placed", "id": id, "source": source}
        return delivery(headers={f"cloudEvents:{name}": value for name, value in headers.items()})
    return delivery(message_id=id, app_id=source, content_type="application/json")


foreign_forms = st.sampled_from(["document", "bare document", "cloudevents", "cloudevents-binary", "amqp"])


def identity(id: str, source: str) -> tuple[str, ...]:
    """What makes a foreign event the one it is, by the law in the wire contract."""
    is_uuid = re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", id.lower()) is not None
    return (id.lower(),) if is_uuid and id.isascii() else (id, source)


@given(foreign_forms, foreign_ids, sources, foreign_forms, foreign_ids, sources)
@example("amqp", "b:c", "a", "document", "c", "a:b")
@example("amqp", "bc", "a", "cloudevents", "c", "ab")
@example("amqp", "2:bc", "a", "cloudevents-binary", "bc", "a2:")
def test_two_deliveries_have_one_id_if_and_only_if_they_are_one_event(
    form: str, id: str, source: str, other_form: str, other_id: str, other_source: str
) -> None:
    one, other = sent(form, id, source), sent(other_form, other_id, other_source)
    identify(one)
    identify(other)

    assert (one.id == other.id) == (identity(id, source) == identity(other_id, other_source))


def redelivered(copy: Message) -> Delivery:
    """A copy as it comes off the wire, back to its queue."""
    return Delivery("shop.record", 2, 1, False, "", "shop.record", copy.body, encode_properties(copy.properties))


MASSTRANSIT_BODY = b'{"messageId":"m","messageType":["urn:message:Shop:OrderPlaced"],"message":{},"conversationId":"c"}'

FOREIGN: dict[str, dict[str, Any]] = {
    "document": {"body": document(id="doc-1"), "content_type": DOCUMENT},
    "document as bare JSON": {"body": document(id="doc-1")},
    "document of another type than the key": {"body": document(id="doc-1", type="order.paid")},
    "document of an empty type": {"body": document(id="doc-1", type="")},
    "document of the type of its property": {"body": document(id="doc-1"), "type": "order.placed"},
    "payload that looks like a document": {"body": document(id="doc-1"), "type": "parcel.sent"},
    "document without an id": {"body": document(id=...)},
    "document that cannot be read": {"body": document(id="doc-1", metadata=[])},
    "cloud event": {"body": cloud_event(id="doc-1"), "content_type": CLOUD},
    "cloud event with our version": {
        "body": cloud_event(id="doc-1"),
        "content_type": CLOUD,
        "headers": {"event-version": 3},
    },
    "cloud event without an id": {"body": cloud_event(id=""), "content_type": CLOUD},
    "binary cloud event": {
        "headers": {
            "cloudEvents:specversion": "1.0",
            "cloudEvents:type": "order.placed",
            "cloudEvents:id": "doc-1",
            "cloudEvents:source": "shop",
        }
    },
    "bare JSON": {"body": b"{}"},
    "no JSON": {"body": b"{"},
    "another content type": {"body": b"", "content_type": "application/xml"},
    "MassTransit's envelope": {"body": MASSTRANSIT_BODY, "content_type": "application/vnd.masstransit+json"},
    "Watermill": {"body": b"{}", "headers": {"_watermill_message_uuid": "w-1"}},
    "Watermill, compressed": {"body": b"x", "headers": {"_watermill_message_uuid": "w-1"}, "content_encoding": "gzip"},
}


@pytest.mark.parametrize("message_id", [None, "", "m-1", str(ID)])
@pytest.mark.parametrize("type", [None, ""])
@pytest.mark.parametrize("app_id", [None, "gateway"])
@pytest.mark.parametrize("of", FOREIGN)
def test_an_id_outlives_every_retry(of: str, message_id: str | None, type: str | None, app_id: str | None) -> None:
    properties: dict[str, Any] = {"message_id": message_id, "type": type, "app_id": app_id, **FOREIGN[of]}
    it = delivery(**properties)
    identify(it)
    first = (it.id, it.type, it.properties.correlation_id)

    for attempt in (2, 3, 4):
        it = redelivered(it.replace(attempt=attempt))
        identify(it)

        assert (it.id, it.type, it.properties.correlation_id) == first


def test_an_id_of_a_cloud_event_that_is_no_text_is_a_decode_error_but_a_number_s_text_is_one() -> None:
    number = delivery(cloud_event(id=5), content_type=CLOUD)
    identify(number)

    assert number.id == as_uuid("5", "shop")
    for wrong in (True, 1.5):
        with pytest.raises(DecodeError, match="id"):
            read(delivery(cloud_event(id=wrong), content_type=CLOUD))


def test_properties_that_cannot_be_read_are_left_for_the_chain() -> None:
    it = Delivery("q", 1, 1, False, "events", "k", b"{}", b"\x20\x00\x00\x00\x00\x04\x01kZ\x00")

    identify(it)

    with pytest.raises(DecodeError):
        read(it)
    assert "unreadable properties" in it.describe()
