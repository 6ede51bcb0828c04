"""Dead letters as JSON lines: what is read again is what was written, to the last bit."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitevents import ConfigurationError, DecodeError, Delivery, HeaderValue, Properties, Timestamp
from rabbitevents.properties import decode_properties, encode_properties
from rabbitevents.texts import cut, printable
from rabbitevents_deadletter import DeadLetterMessage, Lines, Selection, read_lines
from rabbitevents_deadletter.commands.rendering import excerpt
from rabbitevents_deadletter.labels import LABELS
from rabbitevents_deadletter.workbench.lines import read_line, write_line
from rabbitevents_deadletter.workbench.selection import age
from tests.deadletters import DEAD

# Text as it comes off the wire: bytes that are no UTF-8 are there as surrogate escapes.
wire_text = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
plain: st.SearchStrategy[HeaderValue] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    wire_text,
    st.binary(max_size=40),
    st.integers(0, 2**64 - 1).map(Timestamp),
    st.decimals(-(2**31), 2**31 - 1, places=0).map(lambda number: number.scaleb(-5)),
)
names = st.one_of(wire_text, st.sampled_from(["$bytes", "$table", "$", "dead-letter-error", "x-death"]))
values: st.SearchStrategy[HeaderValue] = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)


def letter(body: bytes, properties: Properties | bytes | None = None, **address: str) -> DeadLetterMessage:
    return DeadLetterMessage.of(
        Delivery(
            DEAD, 7, 1, True, address.get("exchange", ""), address.get("key", DEAD), body, properties or Properties()
        )
    )


short = st.one_of(st.none(), wire_text)


@given(
    st.builds(
        Properties,
        headers=st.dictionaries(names, values, max_size=4),
        delivery_mode=st.none() | st.integers(0, 255),
        priority=st.none() | st.integers(0, 255),
        timestamp=st.none() | st.integers(0, 2**64 - 1),
        content_type=short,
        content_encoding=short,
        correlation_id=short,
        reply_to=short,
        expiration=short,
        message_id=short,
        type=short,
        user_id=short,
        app_id=short,
        cluster_id=short,
    ),
    st.binary(max_size=60) | st.from_type(dict[str, int]).map(lambda d: json.dumps(d).encode()),
    wire_text,
)
def test_a_letter_is_the_same_after_its_line(properties: Properties, body: bytes, key: str) -> None:
    original = letter(body, decode_properties(encode_properties(properties)), key=key)

    line = write_line(original)
    again = read_line(line)

    assert b"\n" not in line
    assert json.loads(line)["queue"] == "shop.record"
    assert again.body == body
    assert again.delivery.via_routing_key == key
    assert encode_properties(again.delivery.properties) == encode_properties(original.delivery.properties)
    assert write_line(again) == line


AS_IS = [b'{"a": 1.0, "a": 1e300}', b"null", b'"\xc3\xa9"', b"[1,2,  3]", b"0", b'{"\\u0000": "\\u202e"}']
IN_BASE64 = [
    b"",
    b" {}",
    b"{}\n",
    b'{"pretty":\n 1}',
    b"NaN",
    b"\xff",
    b'"\xff"',
    b"[" * 100_000 + b"]" * 100_000,
    b"\x00",
    b'"\x1b[2J"',
]


@pytest.mark.parametrize("body", AS_IS)
def test_a_body_that_is_json_stands_in_its_line_as_it_is(body: bytes) -> None:
    line = write_line(letter(body))

    assert b'"body":' + body in line
    assert read_line(line).body == body


@pytest.mark.parametrize("body", IN_BASE64, ids=[repr(body[:12]) for body in IN_BASE64])
def test_any_other_body_stands_there_in_base64(body: bytes) -> None:
    line = write_line(letter(body))

    assert base64.b64decode(json.loads(line)["body_base64"]) == body
    assert read_line(line).body == body


def test_properties_that_cannot_be_read_are_written_as_their_bytes() -> None:
    unreadable = b"\x20\x00\x00\x00\x00\x08\x01aZ\x00\x00\x00\x01v"

    again = read_line(write_line(letter(b"{}", unreadable)))

    assert again.delivery.raw == unreadable
    assert "unknown field type" in again.unreadable
    with pytest.raises(DecodeError):
        again.replay()


def test_a_body_that_was_not_kept_is_not_written() -> None:
    gone = DeadLetterMessage.of(Delivery(DEAD, 1, 1, False, "", DEAD, b"", Properties(), 5_000))

    with pytest.raises(DecodeError, match="5,000 bytes was over the limit"):
        write_line(gone)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rabbitevents": "other/1"}, "it is 'other/1', and not 'dead-letter/2'"),
        ({"properties": None}, "it has no properties"),
        ({"body": ...}, "it has no body"),
        ({"body_base64": "?"}, "it is no line of an export"),
        ({"properties": "?"}, "it is no line of an export"),
        ({"properties": {"type": "order.placed"}}, "it is no line of an export"),
        ({"address": ["", "", ""]}, "it is no line of an export"),
        (
            {"rabbitevents": "dead-letter/1"},
            "it is 'dead-letter/1', and not 'dead-letter/2': take the version that wrote it",
        ),
        ({"queue": ["x"]}, "it is no line of an export"),
    ],
)
def test_a_line_that_was_spoilt_is_refused_by_its_number(change: dict[str, object], why: str, tmp_path: Path) -> None:
    line = write_line(letter(b"{}"))
    spoilt = {k: v for k, v in {**json.loads(line), **change}.items() if v is not ...}
    path = tmp_path / "dead.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\n" + json.dumps(spoilt).encode() + b"\n")

    with pytest.raises(ConfigurationError, match="line 3") as raised:
        list(read_lines(path))

    assert why in str(raised.value)


def test_a_line_that_was_broken_off_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    path.write_bytes(write_line(letter(b"{}")) + b"\n" + write_line(letter(b"{}"))[:50])

    with pytest.raises(ConfigurationError, match=r"line 2: .*; it has no end: its writing was broken off"):
        list(read_lines(path))


def test_lines_are_written_to_a_new_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"

    with Lines(path) as lines:
        lines.write(letter(b"{}"))
        lines.write(letter(b"[]"))

    assert [each.body for each in read_lines(path)] == [b"{}", b"[]"]
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="is there already"):
        Lines(path)
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        Lines(tmp_path / "nowhere" / "dead.jsonl")


def test_a_file_that_stayed_empty_is_taken_away_again(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"

    with Lines(path):
        assert path.exists()

    assert not path.exists()


# --- selections ----------------------------------------------------------------------------------------------------

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def failed(**said: HeaderValue) -> DeadLetterMessage:
    headers = {f"dead-letter-{name.replace('_', '-')}": value for name, value in said.items()}
    return letter(b"{}", Properties(message_id="Id-1", type="order.placed", headers=headers))


A_LETTER = failed(error="shop.PaymentError", failed_at="2026-05-01T11:00:00+00:00")


@pytest.mark.parametrize(
    ("selection", "takes"),
    [
        (Selection(), True),
        (Selection(ids=("other", "id-1")), True),
        (Selection(ids=("other",)), False),
        (Selection(types=("order.*",)), True),
        (Selection(types=("order",)), False),
        (Selection(errors=("PaymentError",)), True),
        (Selection(errors=("shop.*",)), True),
        (Selection(errors=("paymenterror",)), False),
        (Selection(older_than=timedelta(minutes=59)), True),
        (Selection(older_than=timedelta(minutes=61)), False),
        (Selection(newer_than=timedelta(minutes=61)), True),
        (Selection(newer_than=timedelta(minutes=59)), False),
        (Selection(types=("order.*",), errors=("KeyError",)), False),
    ],
)
def test_a_selection_takes_what_is_all_that_it_says(selection: Selection, takes: bool) -> None:
    assert selection.takes(A_LETTER, NOW) == takes


def test_what_does_not_say_when_it_failed_has_no_age() -> None:
    for said in ("", "yesterday", "2026-13-01T00:00:00Z"):
        ageless = failed(error="E", failed_at=said)

        assert Selection().takes(ageless, NOW)
        assert not Selection(older_than=timedelta()).takes(ageless, NOW)
        assert not Selection(newer_than=timedelta.max).takes(ageless, NOW)


def test_ages_are_read_with_their_units() -> None:
    assert [age(text).total_seconds() for text in ("90s", "1.5m", "2 h", "7d", "1w")] == [90, 90, 7200, 604800, 604800]
    for text in ("90", "h", "-1h", "1y", "", "1e3s", "9999999s"):
        with pytest.raises(ConfigurationError, match="is no age"):
            age(text)


# --- texts ---------------------------------------------------------------------------------------------------------


@given(st.text() | wire_text)
def test_a_harmless_text_is_printable_whatever_it_was(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text, lines=True).replace("\n", "").replace("\t", "").isprintable()
    assert printable(text) == text or not text.isprintable()


def test_what_would_move_a_terminal_is_shown_as_an_escape() -> None:
    assert printable("\x1b[2J \u202eevil\u2066 \x07\r\n\x9b1m\x00 \u200b \udcff") == (
        r"\x1b[2J \u202eevil\u2066 \x07\r\n\x9b1m\x00 \u200b \xff"
    )


@given(st.binary(max_size=300), st.integers(1, 300))
def test_an_excerpt_of_anything_is_printable(data: bytes, limit: int) -> None:
    assert excerpt(data, limit, 80).replace("\n", "").replace("\t", "").isprintable()


def test_bytes_are_shown_as_a_table() -> None:
    assert excerpt(bytes(range(17)), 100, 80).splitlines() == [
        "00000000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  ................",
        "00000010  10                                               .",
    ]


@given(st.text(st.characters()), st.integers(3, 50))
def test_a_text_is_cut_at_a_sign_and_never_longer(text: str, limit: int) -> None:
    found = cut(text, limit)

    assert len(found.encode()) <= limit
    assert cut(found, limit) == found


@given(st.dictionaries(st.sampled_from([*LABELS, "x-death", "replay-count", "origin-exchange"]), values), wire_text)
def test_any_headers_make_a_letter(headers: dict[str, HeaderValue], exchange: str) -> None:
    read = letter(b"{}", decode_properties(encode_properties(Properties(headers=headers))), exchange=exchange)

    assert read.describe().isprintable()
    assert not math.isnan(read.replayed)
    assert read.replay().routing_key == "shop.record"


def test_letters_that_show_nothing_are_shown() -> None:
    assert printable("a\u3164\u115f\u1160\uffa0\u2800b") == "a\\u3164\\u115f\\u1160\\uffa0\\u2800b"
