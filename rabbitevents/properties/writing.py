"""Field tables as bytes.

Source: AMQP 0-9-1 specification, section 4.2.5 (data types), with RabbitMQ's errata for field types
(https://www.rabbitmq.com/amqp-0-9-1-errata).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from decimal import Decimal

from rabbitevents.errors import EncodeError
from rabbitevents.properties.values import (
    MAX_DEPTH,
    Headers,
    HeaderValue,
    Timestamp,
    known_names,
    name_bytes,
    unsigned,
    utf8,
)


def _value(value: HeaderValue, depth: int) -> bytes:
    if isinstance(value, str):
        data = utf8(value)
        return b"S" + len(data).to_bytes(4, "big") + data
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, Timestamp):
        return b"T" + unsigned(value, 8, "a header's timestamp")
    if isinstance(value, int):
        if -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:
            return b"l" + value.to_bytes(8, "big", signed=True)
        raise EncodeError("a header holds an integer of more than 64 bits")
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"x" + len(value).to_bytes(4, "big") + value
    if isinstance(value, Decimal):
        return _decimal(value)
    return _compound(value, depth)


def _compound(value: HeaderValue, depth: int) -> bytes:
    if depth >= MAX_DEPTH:
        raise EncodeError(f"headers nest deeper than {MAX_DEPTH} tables")
    if isinstance(value, Mapping):
        return b"F" + encode_table(value, depth + 1)
    if isinstance(value, (list, tuple)):
        items = b"".join(_value(item, depth + 1) for item in value)
        return b"A" + len(items).to_bytes(4, "big") + items
    raise EncodeError(f"a header cannot hold a {type(value).__name__}")


def _decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    number = int("".join(map(str, digits[:11])) or "0") * (-1 if sign else 1)
    if not isinstance(exponent, int) or not -255 <= exponent <= 0 or not -(2**31) <= number < 2**31:
        raise EncodeError("a header holds a decimal beyond AMQP's 32 bits; send it as text")
    return b"D" + bytes((-exponent,)) + number.to_bytes(4, "big", signed=True)


_TEXTS = tuple(b"S" + size.to_bytes(4) for size in range(256))
"""What a text begins with in a table, by its size in bytes."""


def encode_table(table: Headers, depth: int = 0) -> bytes:
    """Return a field table: its length in four bytes, then its entries. Raises `EncodeError`."""
    parts: list[bytes] = []
    put = parts.append
    for name, value in table.items():
        put(known_names.get(name) or name_bytes(name))
        if type(value) is str:  # what nearly every header is: written here, without a call
            data = value.encode() if value.isascii() else utf8(value)
            size = len(data)
            put(_TEXTS[size] if size < 256 else b"S" + size.to_bytes(4))
            put(data)
        else:
            put(_value(value, depth))
    data = b"".join(parts)
    return len(data).to_bytes(4) + data
