"""Properties and header values as JSON, and back again: with their types, whatever they hold.

What JSON has a word for is written as that. Any other value is an object with one key that begins with a dollar sign:
``{"$bytes": base64}``, ``{"$text": base64}`` for text that is not UTF-8, ``{"$decimal": "1.50"}``,
``{"$timestamp": seconds}``, ``{"$float": hex}`` for the eight bytes of what is infinite or no number, and
``{"$table": [[name, value], ...]}`` for a table with a name that is not UTF-8 or begins with a dollar sign itself.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

from rabbitevents import DecodeError, HeaderValue, Properties, Timestamp

Json: TypeAlias = "str | int | float | bool | None | list[Json] | dict[str, Json]"
"""What JSON can hold."""

_ONE_WORD = 1


def pack(value: HeaderValue) -> Any:
    """Return a header value as what JSON can hold."""
    if isinstance(value, str):
        return _packed_text(value)
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, Timestamp):
        return {"$timestamp": int(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": struct.pack(">d", value).hex()}
    if isinstance(value, Mapping):
        return _packed_table(value)
    if isinstance(value, (list, tuple)):
        return [pack(each) for each in value]
    return value


def _packed_text(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        return {"$text": base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()}
    return text


def _packed_table(table: Mapping[str, HeaderValue]) -> Any:
    packed = [(_packed_text(name), pack(value)) for name, value in table.items()]
    if any(not isinstance(name, str) or name.startswith("$") for name, _ in packed):
        return {"$table": packed}
    return dict(packed)


def unpack(value: Json) -> HeaderValue:
    """Return the header value that `pack` made this of. Raises `DecodeError`."""
    if isinstance(value, list):
        return [unpack(each) for each in value]
    if not isinstance(value, dict):
        return value
    name, content = next(iter(value.items()), ("", None))
    if not name.startswith("$"):
        return {each: unpack(inner) for each, inner in value.items()}
    if len(value) != _ONE_WORD or name not in _WORDS:
        raise DecodeError(f"a header value has the unknown word {name[:40]!r}")
    try:
        return _WORDS[name](content)
    except (ValueError, TypeError, ArithmeticError, struct.error) as error:
        raise DecodeError(f"a header value is no {name[1:]}") from error


def _bytes(content: str) -> bytes:
    return base64.b64decode(content, validate=True)


def _text(content: str) -> str:
    return _bytes(content).decode("utf-8", "surrogateescape")


def _float(content: str) -> float:
    number: float = struct.unpack(">d", bytes.fromhex(content))[0]
    return number


def _table(content: list[list[Any]]) -> Mapping[str, HeaderValue]:
    return {str(unpack(name)): unpack(value) for name, value in content}


_WORDS: dict[str, Callable[[Any], HeaderValue]] = {
    "$bytes": _bytes,
    "$text": _text,
    "$decimal": Decimal,
    "$timestamp": Timestamp,
    "$float": _float,
    "$table": _table,
}


def pack_properties(properties: Properties) -> dict[str, Any]:
    """Return AMQP's properties as what JSON can hold: those that are there, under AMQP's names."""
    packed = {name: pack(value) for name, value in msgspec.structs.asdict(properties).items() if value is not None}
    if not properties.headers:
        del packed["headers"]
    return packed


def unpack_properties(packed: Mapping[str, Json]) -> Properties:
    """Return the properties that `pack_properties` made this of. Raises `DecodeError`."""
    given = {name: unpack(value) for name, value in packed.items()}
    headers = given.pop("headers", None) or {}
    if not isinstance(headers, Mapping):
        raise DecodeError("its headers are no table")
    try:
        plain = msgspec.convert(given, _Plain)
    except msgspec.ValidationError as error:
        raise DecodeError(f"its properties cannot be read: {error}") from error
    return Properties(headers=headers, **msgspec.structs.asdict(plain))


class _Plain(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The properties but for the headers, as they may be in a line."""

    content_type: str | None = None
    content_encoding: str | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None
