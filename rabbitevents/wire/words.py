"""What strangers say, made sound: types, versions, correlation ids and texts, and how an error shows them.

Whatever is read here came from outside. A text in an error is cut, and never a payload's.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from rabbitevents.errors import DecodeError
from rabbitevents.ids import as_uuid

MOST_BYTES: Final = 255
"""How long a type, a content type or a correlation id may be: what AMQP's short strings carry."""

LATEST_VERSION: Final = 2**31 - 1


def shown(text: str) -> str:
    """Return a text from outside as an error shows it: quoted, escaped, and cut."""
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."


def fits(text: str) -> bool:
    """Say whether a text is UTF-8 that one of AMQP's short strings can carry."""
    if text.isascii():
        return len(text) <= MOST_BYTES
    try:
        return len(text.encode()) <= MOST_BYTES
    except UnicodeEncodeError:
        return False


def checked_type(kind: str) -> str:
    """Return a type that a document states. Raises `DecodeError` for one that no property could carry."""
    if not kind or not fits(kind):
        raise DecodeError(f"the type that it states has {len(kind):,} characters; AMQP carries 1 to 255 bytes of UTF-8")
    return kind


def read_content_type(stated: str) -> str:
    """Return a content type without its parameters. Raises `DecodeError` for one that no property could carry."""
    if len(stated) > MOST_BYTES:
        raise DecodeError(f"the content type that it states has {len(stated):,} characters; AMQP carries at most 255")
    return stated.partition(";")[0].strip().lower()


def read_version(value: object) -> int:
    """Read a schema version: ``1``, ``"1"`` or ``"1.0"``. Raises `DecodeError`."""
    number = math.nan
    if type(value) is int:
        if 0 <= value <= LATEST_VERSION:
            return value
    elif isinstance(value, float):
        number = value
    elif isinstance(value, str) and len(value) <= 32:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    if not number.is_integer() or not 0 <= number <= LATEST_VERSION:
        raise DecodeError("the event version is no whole number from 0 to 2,147,483,647")
    return int(number)


def carried(correlation_id: str | None) -> str | None:
    """Return a correlation id as it goes on, or None.

    One that the properties cannot carry, or that is no UTF-8 and so cannot stand in a CloudEvent, is replaced by a
    UUID made from it, always the same: what a handler publishes goes on in the same cascade instead of failing.
    """
    if correlation_id is None or fits(correlation_id):
        return correlation_id
    return str(as_uuid(correlation_id))


def readable(text: str) -> str:
    """Return a text as UTF-8 can say it: bytes that were none are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def plain(value: msgspec.Raw) -> Any:
    """Return a value of a document: a text, a number or a truth as it is, an object or an array as it came.

    What nests is never built, however deep it goes: the parser has been over it, and a handler reads text.
    """
    data = bytes(value)
    return value if data[:1] in (b"{", b"[") else msgspec.json.decode(data)


def text(value: object) -> str:
    """Return a value as text: truths and what nests as JSON writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    return str(value).lower() if isinstance(value, bool) else str(value)
