"""The basic properties as a value, what a header can hold, and AMQP's short strings and unsigned numbers.

Source: AMQP 0-9-1 specification, section 4.2.5 (data types), with RabbitMQ's errata for field types
(https://www.rabbitmq.com/amqp-0-9-1-errata).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import TypeAlias

import msgspec

from rabbitevents.errors import EncodeError

MAX_DEPTH = 16
"""How deep tables and arrays may nest, both ways. RabbitMQ's own ``x-death`` nests two deep."""


class Timestamp(int):
    """A field value of AMQP's timestamp type: seconds since 1970, kept as the number that came."""


HeaderValue: TypeAlias = (
    "str | int | float | bool | bytes | Decimal | Timestamp | None | Mapping[str, HeaderValue] | Sequence[HeaderValue]"
)
"""What a header can hold. Integers beyond 64 bits are refused."""

Headers: TypeAlias = Mapping[str, HeaderValue]

NO_HEADERS: Headers = MappingProxyType({})


class Properties(msgspec.Struct, frozen=True, kw_only=True):
    """The fourteen basic properties, under AMQP's names. ``timestamp`` is in seconds since 1970."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Headers = NO_HEADERS
    delivery_mode: int | None = 2
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


def short(text: str, what: str = "text") -> bytes:
    """Return a short string: one length byte, then at most 255 bytes of UTF-8. Raises `EncodeError` beyond."""
    data = utf8(text)
    if len(data) > 255:
        raise EncodeError(f"{what} is {len(data)} bytes long; AMQP carries at most 255: {text[:40]!r}...")
    return _OCTETS[len(data)] + data


_OCTETS = tuple(bytes((number,)) for number in range(256))


def utf8(text: str) -> bytes:
    """Return a text as bytes, those that were no UTF-8 as they came. Raises `EncodeError`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise EncodeError("a text of the properties holds half of a surrogate pair, which UTF-8 cannot say") from error


def unsigned(number: int, size: int, what: str) -> bytes:
    """Return a number in ``size`` bytes. Raises `EncodeError` beyond."""
    try:
        return number.to_bytes(size, "big")
    except OverflowError as error:
        raise EncodeError(f"{what} is not among the numbers that AMQP carries there, 0 to {256**size - 1}") from error


known_names: dict[str, bytes] = {}
"""Header names as short strings: the few that every event carries are made once. Bounded by `name_bytes`."""


def name_bytes(name: str) -> bytes:
    """Return a header's name as a short string. Raises `EncodeError` beyond 255 bytes."""
    data = known_names.get(name)
    if data is None:
        data = short(name, "the header name")
        if len(known_names) < 512:
            known_names[name] = data
    return data
