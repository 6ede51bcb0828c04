"""AMQP's basic properties as bytes: what one side writes the other reads, and nothing but our error comes of the rest."""

import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from itertools import permutations
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import decode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from rabbitevents.errors import DecodeError, EncodeError
from rabbitevents.properties import (
    MAX_DEPTH,
    HeaderValue,
    Properties,
    Table,
    Timestamp,
    decode_properties,
    encode_properties,
    encoding,
    glance,
)


def scaled(number: int, scale: int) -> Decimal:
    return Decimal(number).scaleb(-scale)


OCTET = st.integers(0, 255)
UNSIGNED = st.integers(0, 2**64 - 1)
NOT_UTF8 = b"\xff\xfe".decode("utf-8", "surrogateescape")

texts = st.text(st.characters(codec="utf-8"), max_size=60) | st.just(NOT_UTF8)
shorts = st.none() | texts
decimals = st.builds(scaled, st.integers(-(2**31), 2**31 - 1), st.integers(0, 255))
scalars: st.SearchStrategy[HeaderValue] = st.one_of(
    texts,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.binary(max_size=20),
    decimals,
    UNSIGNED.map(Timestamp),
    st.none(),
)
values: st.SearchStrategy[HeaderValue] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
properties = st.builds(
    Properties,
    content_type=shorts,
    content_encoding=shorts,
    headers=st.dictionaries(texts, values, max_size=6),
    delivery_mode=st.none() | OCTET,
    priority=st.none() | OCTET,
    correlation_id=shorts,
    reply_to=shorts,
    expiration=shorts,
    message_id=shorts,
    timestamp=st.none() | UNSIGNED,
    type=shorts,
    user_id=shorts,
    app_id=shorts,
    cluster_id=shorts,
)


# --- round trips ---------------------------------------------------------------------------------------------------


@given(properties)
def test_what_is_written_is_read_equal(written: Properties) -> None:
    data = encode_properties(written)

    read = decode_properties(data)

    assert read == written
    assert encode_properties(read) == data  # the types too: True is not 1


@given(properties, st.data())
def test_properties_cut_short_are_an_error_and_never_other_properties(written: Properties, data: st.DataObject) -> None:
    whole = encode_properties(written)
    length = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(DecodeError):
        decode_properties(whole[:length])


@given(properties, st.data())
def test_changed_bytes_are_read_or_are_a_decode_error_and_nothing_else(
    written: Properties, data: st.DataObject
) -> None:
    changed = bytearray(encode_properties(written))
    places = st.integers(0, len(changed) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, OCTET), min_size=1, max_size=8)):
        changed[place] = value

    with suppress(DecodeError):
        dict(decode_properties(bytes(changed)).headers)


@given(st.binary(max_size=200))
@example(b"\x20\x00\xff\xff\xff\xff")
@example(b"\x20\x00\x00\x00\x00\x02\x00D")
def test_random_bytes_are_read_or_are_a_decode_error_and_nothing_else(data: bytes) -> None:
    with suppress(DecodeError):
        dict(decode_properties(data).headers)


@given(st.binary(max_size=60))
@example(b"\x01Z")
@example(b"\x01D\x02\x00\x00\x00\x05")
@example(b"\x01f\x7f\x80\x00\x00\x01B\xff\x01b\xff\x01u\xff\xff\x01i\xff\xff\xff\xff")
@example(b"\x00t\x07")
@example(b"\xc8" + b"k" * 200 + b"V")
def test_every_table_that_can_be_read_can_be_written_again(table: bytes) -> None:
    read = decode_properties(b"\x20\x00" + struct.pack(">I", len(table)) + table)
    try:
        dict(read.headers)
    except DecodeError:
        return

    data = encode_properties(read)

    assert encode_properties(decode_properties(data)) == data
    assert repr(dict(decode_properties(data).headers)) == repr(dict(read.headers))  # NaN is not equal to itself


EACH_ALONE: dict[str, Any] = {
    **dict.fromkeys(["content_type", "content_encoding", "correlation_id", "reply_to", "expiration"], "text"),
    **dict.fromkeys(["message_id", "type", "user_id", "app_id", "cluster_id"], "text"),
    "headers": {"k": [1, "x", {"d": Decimal("1.5")}]},
    "delivery_mode": 1,
    "priority": 9,
    "timestamp": 2**40,
}


@pytest.mark.parametrize("field", EACH_ALONE)
def test_each_property_alone_is_read_whole_or_not_at_all(field: str) -> None:
    alone = msgspec.structs.replace(Properties(delivery_mode=None), **{field: EACH_ALONE[field]})
    whole = encode_properties(alone)

    assert decode_properties(whole) == alone
    for length in range(len(whole)):
        with pytest.raises(DecodeError):
            decode_properties(whole[:length])


def test_no_property_at_all_is_two_bytes() -> None:
    assert encode_properties(Properties(delivery_mode=None)) == b"\x00\x00"
    assert decode_properties(b"\x00\x00") == Properties(delivery_mode=None)


# --- headers are read when somebody asks ---------------------------------------------------------------------------

OURS = Properties(
    content_type="application/json",
    headers={"event-version": 3, "event-time": "2026-01-02T03:04:05+00:00", "attempt": 2},
    correlation_id="corr",
    message_id="01890a5d-ac96-774b-bcce-b302099a8057",
    timestamp=1_767_323_045,
    type="order.placed",
    app_id="shop",
)


def test_headers_that_cannot_be_read_are_a_decode_error_at_every_question_and_only_then() -> None:
    read = decode_properties(b"\x20\x80" + table((b"k", b"Z")) + text(b"the id"))

    assert read.message_id == "the id"
    questions: list[Callable[[], object]] = [
        lambda: read.headers["k"],
        lambda: read.headers.get("other"),
        lambda: "other" in read.headers,
        lambda: len(read.headers),
        lambda: list(read.headers),
        lambda: read.headers.items(),
        lambda: read.headers == {},
        lambda: {**read.headers},
    ]
    for ask in (*questions, *questions):
        with pytest.raises(DecodeError, match="'Z'"):
            ask()


@given(properties, texts)
def test_one_header_is_found_as_if_all_had_been_read(written: Properties, other: str) -> None:
    read = decode_properties(encode_properties(written)).headers
    if not isinstance(read, Table):
        assert read == {}
        return

    for name in (*written.headers, other):
        peeked = Table(read.data).peek(name)

        assert (peeked, type(peeked)) == (written.headers.get(name), type(written.headers.get(name)))


@pytest.mark.parametrize("name", ["event-version", "event-time", "attempt", "absent"])
def test_a_header_of_our_own_events_is_found_wherever_it_stands(name: str) -> None:
    for order in permutations(OURS.headers):
        headers = {each: OURS.headers[each] for each in order}
        read = decode_properties(encode_properties(msgspec.structs.replace(OURS, headers=headers)))

        assert isinstance(read.headers, Table)
        assert read.headers.peek(name) == OURS.headers.get(name)


def test_a_name_that_stands_in_another_header_s_value_is_no_header() -> None:
    forged = {"event-version": 1, "note": "\x0devent-versionl" + "x" * 8, "entity-id": "\x07attemptl" + "y" * 8}

    read = decode_properties(encode_properties(msgspec.structs.replace(OURS, headers=forged))).headers

    assert isinstance(read, Table)
    assert read.peek("event-version") == 1
    assert read.peek("attempt") is None


def test_of_a_header_that_stands_there_twice_the_last_one_counts_whoever_asks() -> None:
    entries = ((b"attempt", b"l" + (2).to_bytes(8)), (b"attempt", b"l" + (3).to_bytes(8)))

    read = decode_properties(with_headers(*entries)).headers

    assert isinstance(read, Table)
    assert read.peek("attempt") == read["attempt"] == 3


def test_a_table_that_ends_within_its_first_number_is_a_decode_error() -> None:
    read = decode_properties(with_headers((b"attempt", b"l" + bytes(7)))).headers

    assert isinstance(read, Table)
    with pytest.raises(DecodeError):
        read.peek("attempt")


def test_every_way_to_end_our_own_properties_too_early_is_a_decode_error() -> None:
    whole = encode_properties(OURS)

    assert decode_properties(whole) == OURS
    for length in range(len(whole)):
        with pytest.raises(DecodeError):
            decode_properties(whole[:length])


@pytest.mark.parametrize(
    "change",
    [
        *({field: value} for field in ("content_type", "type", "app_id") for value in ("", "é" * 127, NOT_UTF8, None)),
        *({field: value} for field in ("correlation_id", "message_id") for value in ("", "é" * 36, NOT_UTF8, None)),
        *({"timestamp": value} for value in (0, 2**64 - 1, None)),
        *({"delivery_mode": value} for value in (0, 1, 255, None)),
        {"headers": {}},
        {"headers": {"event-version": 3}},
        {"priority": 3},
        {"reply_to": "q"},
        {"expiration": "5"},
        {"user_id": "guest"},
        {"cluster_id": "c"},
        {"content_encoding": "utf-8"},
    ],
    ids=str,
)
def test_whatever_differs_from_our_own_shape_is_written_and_read_too(change: dict[str, Any]) -> None:
    written = msgspec.structs.replace(OURS, **change)

    first, second = encode_properties(written), encode_properties(written)

    assert first == second
    assert decode_properties(first) == written


def test_many_different_types_and_sources_leave_no_trace() -> None:
    for number in range(1_000):
        written = msgspec.structs.replace(OURS, type=f"type.{number}", app_id=f"source-{number}")

        assert decode_properties(encode_properties(written)) == written


def inside(of: Any) -> Any:
    """Return the same, to look at what no user sees."""
    return of


def test_of_a_thousand_types_each_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str | None] = []
    make: Callable[..., tuple[bytes, bytes]] = inside(encoding)._make_ends

    def noted(*of: str | None) -> tuple[bytes, bytes]:
        made.append(of[1])
        return make(*of)

    monkeypatch.setattr(encoding, "_make_ends", noted)
    of_each_type = [msgspec.structs.replace(OURS, type=f"kind.{number}", app_id="its own") for number in range(1_000)]

    for written in (*of_each_type, *of_each_type):
        encode_properties(written)

    assert len(made) == 1_000


# --- pamqp as the oracle -------------------------------------------------------------------------------------------

moments = st.integers(0, 2**32 - 1)
pamqp_texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)  # it cuts names after 128 bytes
pamqp_scalars: st.SearchStrategy[Any] = st.one_of(
    pamqp_texts,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, width=32),
    st.booleans(),
    st.binary(max_size=20).map(bytearray),
    st.builds(scaled, st.integers(0, 2**31 - 1), st.integers(0, 20)),
    moments.map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    st.none(),
)
pamqp_values: st.SearchStrategy[Any] = st.recursive(
    pamqp_scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(pamqp_texts, inner, max_size=4),
    max_leaves=12,
)
pamqp_shorts = st.none() | pamqp_texts
pamqp_properties = st.fixed_dictionaries(
    {
        "content_type": pamqp_shorts,
        "content_encoding": pamqp_shorts,
        "headers": st.none() | st.dictionaries(pamqp_texts, pamqp_values, min_size=1, max_size=6),
        "delivery_mode": st.sampled_from([None, 1, 2]),
        "priority": st.none() | OCTET,
        "correlation_id": pamqp_shorts,
        "reply_to": pamqp_shorts,
        "expiration": pamqp_shorts,
        "message_id": pamqp_shorts,
        "timestamp": st.none() | moments.map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
        "message_type": pamqp_shorts,
        "user_id": pamqp_shorts,
        "app_id": pamqp_shorts,
    }
)


def as_ours(value: Any) -> Any:
    """Return what pamqp calls a value as what we call it."""
    if isinstance(value, datetime):
        return Timestamp(int(value.timestamp()))
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, dict):
        return {name: as_ours(item) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [as_ours(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def in_our_words(theirs: Mapping[str, Any]) -> Properties:
    ours = {("type" if name == "message_type" else name): as_ours(value) for name, value in theirs.items()}
    timestamp: Timestamp | None = ours.pop("timestamp")
    headers: dict[str, HeaderValue] = ours.pop("headers") or {}
    return Properties(**ours, headers=headers, timestamp=None if timestamp is None else int(timestamp))


@given(pamqp_properties)
def test_what_pamqp_writes_is_read_equal(theirs: dict[str, Any]) -> None:
    frame = ContentHeader(properties=Basic.Properties(**theirs)).marshal()

    read = decode_properties(frame[12:])

    assert read == in_our_words(theirs)


@given(pamqp_properties)
def test_what_is_written_is_read_equal_by_pamqp(theirs: dict[str, Any]) -> None:
    frame = struct.pack(">HxxQ", 60, 0) + encode_properties(in_our_words(theirs))

    header = ContentHeader()
    header.unmarshal(frame)

    assert {name: getattr(header.properties, name) for name in theirs} == theirs


@given(pamqp_values)
def test_a_first_header_of_any_kind_is_found_as_if_all_had_been_read(value: Any) -> None:
    frame = ContentHeader(properties=Basic.Properties(headers={"first": value, "other": 1})).marshal()

    read = decode_properties(frame[12:]).headers

    assert isinstance(read, Table)
    peeked = Table(read.data).peek("first")
    assert (peeked, type(peeked)) == (read["first"], type(read["first"]))


@pytest.mark.parametrize("octet", [0x00, 0x01, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize(("kind", "size"), [*zip("tbBsuIilL", (1, 1, 1, 2, 2, 4, 4, 8, 8), strict=True)])
def test_every_kind_of_number_is_read_as_pamqp_reads_it(kind: str, size: int, octet: int) -> None:
    value = kind.encode() + bytes((octet,)) * size

    read = decode_properties(with_headers((b"k", value))).headers["k"]

    _, expected = decode.embedded_value(value)
    assert (read, type(read)) == (expected, type(expected))


# --- what other clients die of (the variants of a poisoned content header) -----------------------------------------


def text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def table(*entries: tuple[bytes, bytes]) -> bytes:
    data = b"".join(text(name) + value for name, value in entries)
    return struct.pack(">I", len(data)) + data


def with_headers(*entries: tuple[bytes, bytes]) -> bytes:
    return b"\x20\x00" + table(*entries)


def nested(depth: int) -> bytes:
    inner = b"V"
    for _ in range(depth):
        inner = b"F" + table((b"x", inner))
    return with_headers((b"x", inner))


NANOSECONDS = 1_700_000_000_123_456_789


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x00\x40" + struct.pack(">Q", NANOSECONDS), Properties(delivery_mode=None, timestamp=NANOSECONDS)),
        (b"\x00\x40" + b"\xff" * 8, Properties(delivery_mode=None, timestamp=2**64 - 1)),
        (b"\x00\x80" + text(b"\xff\xfe"), Properties(delivery_mode=None, message_id=NOT_UTF8)),
        (with_headers((b"\xff\xfe", b"V")), Properties(delivery_mode=None, headers={NOT_UTF8: None})),
        (
            with_headers((b"k", b"S" + struct.pack(">I", 2) + b"\xff\xfe")),
            Properties(delivery_mode=None, headers={"k": NOT_UTF8}),
        ),
        (
            with_headers((b"when", b"T" + struct.pack(">Q", 2**63))),
            Properties(delivery_mode=None, headers={"when": Timestamp(2**63)}),
        ),
        (with_headers((b"", b"V")), Properties(delivery_mode=None, headers={"": None})),
        (with_headers((b"k" * 255, b"V")), Properties(delivery_mode=None, headers={"k" * 255: None})),
    ],
    ids=["ns", "2^64-1", "message_id", "key", "value", "header 2^63", "empty key", "long key"],
)
def test_values_that_other_clients_die_of_survive_a_round_trip(data: bytes, found: Properties) -> None:
    read = decode_properties(data)

    assert read == found
    assert encode_properties(read) == data


@pytest.mark.parametrize("depth", [900, 5_000])
def test_tables_nested_absurdly_deep_are_a_decode_error(depth: int) -> None:
    with pytest.raises(DecodeError, match="deeper"):
        dict(decode_properties(nested(depth)).headers)


def test_tables_may_nest_as_deep_as_the_limit_says_both_ways() -> None:
    deepest = nested(MAX_DEPTH)

    assert encode_properties(decode_properties(deepest)) == deepest
    with pytest.raises(DecodeError, match="deeper"):
        dict(decode_properties(nested(MAX_DEPTH + 1)).headers)


def test_an_unknown_field_type_is_a_decode_error_that_names_it() -> None:
    with pytest.raises(DecodeError, match="'Z'"):
        dict(decode_properties(with_headers((b"k", b"Z\x00\x00"))).headers)


@pytest.mark.parametrize("kind", [*"tbBsuIilLfdT"])
def test_a_number_that_runs_past_its_table_does_not_eat_what_follows(kind: str) -> None:
    size = {**dict.fromkeys("tbB", 1), **dict.fromkeys("su", 2), **dict.fromkeys("Iif", 4)}.get(kind, 8)
    short_of_one = table((b"k", kind.encode() + bytes(size - 1)))

    for follows in (b"", text(b"the message id")):
        data = (b"\x20\x80" if follows else b"\x20\x00") + short_of_one + follows

        with pytest.raises(DecodeError):
            dict(decode_properties(data).headers)


@pytest.mark.parametrize("kind", [*"tbBsuIilLfdT"])
def test_a_number_in_an_inner_table_does_not_eat_what_follows_it(kind: str) -> None:
    inner = b"F" + struct.pack(">I", 3) + b"\x01k" + kind.encode()
    data = with_headers((b"in", inner), (b"next", b"S" + struct.pack(">I", 9) + b"nine more"))

    with pytest.raises(DecodeError):
        dict(decode_properties(data).headers)


def test_a_decimal_that_runs_past_its_table_does_not_eat_what_follows() -> None:
    data = b"\x20\x80" + table((b"k", b"D\x02")) + text(b"the message id")

    with pytest.raises(DecodeError):
        dict(decode_properties(data).headers)


# --- what cannot be written ----------------------------------------------------------------------------------------


def deep(levels: int) -> HeaderValue:
    value: HeaderValue = 1
    for level in range(levels):
        value = {"x": value} if level % 2 else [value]
    return value


@pytest.mark.parametrize(
    "field",
    [
        "content_type",
        "content_encoding",
        "correlation_id",
        "reply_to",
        "expiration",
        "message_id",
        "type",
        "user_id",
        "app_id",
        "cluster_id",
    ],
)
def test_a_text_of_more_than_255_bytes_is_an_encode_error_that_names_it(field: str) -> None:
    fits = msgspec.structs.replace(Properties(), **{field: "é" * 127 + "x"})
    too_long = msgspec.structs.replace(Properties(), **{field: "é" * 128})

    assert decode_properties(encode_properties(fits)) == fits
    with pytest.raises(EncodeError, match=field):
        encode_properties(too_long)


@pytest.mark.parametrize(
    "headers",
    [
        {"k": deep(MAX_DEPTH + 1)},
        {"k": deep(900)},
        {"k": 2**63},
        {"k": -(2**63) - 1},
        {"k": Timestamp(-1)},
        {"k": Timestamp(2**64)},
        {"k": Decimal("NaN")},
        {"k": Decimal("Infinity")},
        {"k": Decimal(2**31)},
        {"k": Decimal("1E+5")},
        {"k": Decimal("1E-256")},
        {"k": Decimal((0, (1,) * 6_000, 0))},
        {"k": "\ud800"},
        {"\ud800": "v"},
        {"k" * 256: "v"},
        {"k": object()},
        {"k": {1, 2}},
        {"k": 1j},
        {"k": [datetime(2026, 1, 1, tzinfo=UTC)]},
    ],
    ids=lambda headers: repr(headers).partition(" at 0x")[0],
)
def test_headers_that_amqp_cannot_carry_are_an_encode_error(headers: Any) -> None:
    with pytest.raises(EncodeError):
        encode_properties(Properties(headers=headers))


@pytest.mark.parametrize(
    "changes",
    [
        {"delivery_mode": 256},
        {"delivery_mode": -1},
        {"priority": 256},
        {"priority": -1},
        {"timestamp": -1},
        {"timestamp": 2**64},
        {"timestamp": 10**5000},
        {"type": "\ud800"},
    ],
    ids=["mode 256", "mode -1", "priority 256", "priority -1", "before 1970", "2^64", "10^5000", "half a surrogate"],
)
def test_properties_that_amqp_cannot_carry_are_an_encode_error(changes: dict[str, Any]) -> None:
    with pytest.raises(EncodeError):
        encode_properties(msgspec.structs.replace(Properties(), **changes))


def test_many_different_header_names_leave_no_trace() -> None:
    names: Sequence[str] = [f"name-{number}" for number in range(2_000)]

    for name in names:
        written = Properties(headers={name: name})

        assert decode_properties(encode_properties(written)).headers == {name: name}


@given(st.text(max_size=20), st.uuids(), st.integers(0, 2**31 - 1), st.text("abc.", min_size=1, max_size=9), st.data())
def test_a_glance_says_what_reading_says_or_nothing(
    correlation_id: str, id: UUID, version: int, kind: str, data: st.DataObject
) -> None:
    whole = encode_properties(
        Properties(
            content_type="application/json",
            headers={"event-version": version, "event-time": "now", "entity-id": "o-1"},
            correlation_id=correlation_id,
            message_id=str(id),
            timestamp=1,
            type=kind,
            app_id="shop",
        )
    )
    assert glance(whole) == (kind, version)

    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    changed = whole[:place] + bytes((byte,)) + whole[place + 1 :]
    seen = glance(changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed)

    if seen is not None:
        read = decode_properties(changed)
        assert (read.type, read.content_type, len(read.message_id or "")) == (seen[0], "application/json", 36)
        with suppress(DecodeError):  # headers behind the first one may be broken: whoever reads them is told
            assert read.headers.get("event-version") == seen[1]


@pytest.mark.parametrize(
    "other",
    [
        {"content_type": "text/json"},
        {"message_id": "m-1"},
        {"message_id": "00000000-0000-0000-0000-000000000000"},
        {"type": ""},
        {"headers": {"entity-id": "o-1", "event-version": 1}},
        {"headers": {"event-version": "1"}},
        {"app_id": None},
    ],
    ids=str,
)
def test_a_glance_says_nothing_of_what_is_otherwise(other: dict[str, Any]) -> None:
    ours: dict[str, Any] = {
        "content_type": "application/json",
        "headers": {"event-version": 1},
        "correlation_id": "c",
        "message_id": "01936b2e-7c1a-7e3b-9f00-0123456789ab",
        "timestamp": 1,
        "type": "a.b",
        "app_id": "shop",
    }

    assert glance(encode_properties(Properties(**ours))) == ("a.b", 1)
    assert glance(encode_properties(Properties(**{**ours, **other}))) is None
