"""Field tables from bytes, when somebody asks.

Source: AMQP 0-9-1 specification, section 4.2.5 (data types), with RabbitMQ's errata for field types
(https://www.rabbitmq.com/amqp-0-9-1-errata).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, ItemsView, Iterator, Mapping
from decimal import Decimal

from rabbitevents.errors import DecodeError
from rabbitevents.properties.values import MAX_DEPTH, HeaderValue, Timestamp, known_names, name_bytes

_FIXED: dict[int, tuple[str, int, Callable[[int | float], HeaderValue]]] = {
    ord("t"): (">B", 1, bool),
    ord("b"): (">b", 1, int),
    ord("B"): (">B", 1, int),
    ord("s"): (">h", 2, int),
    ord("u"): (">H", 2, int),
    ord("I"): (">i", 4, int),
    ord("i"): (">I", 4, int),
    ord("l"): (">q", 8, int),
    ord("L"): (">q", 8, int),  # RabbitMQ reads it as signed (errata)
    ord("f"): (">f", 4, float),
    ord("d"): (">d", 8, float),
    ord("T"): (">Q", 8, Timestamp),
}


def _field(data: bytes, at: int, end: int, depth: int) -> tuple[HeaderValue, int]:
    """Read one field value of ``data`` at ``at``; return it and where the next one begins."""
    kind = data[at]
    at += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        form, size, make = fixed
        if at + size > end:
            raise DecodeError("a header value runs past its table's end")
        return make(struct.unpack_from(form, data, at)[0]), at + size
    if kind == ord("V"):
        return None, at
    if kind == ord("D"):
        if at + 5 > end:
            raise DecodeError("a header value runs past its table's end")
        return Decimal(int.from_bytes(data[at + 1 : at + 5], "big", signed=True)).scaleb(-data[at]), at + 5
    if kind not in b"SxFA":
        raise DecodeError(f"a header has the unknown field type {chr(kind)!r}")
    stop = at + 4 + int.from_bytes(data[at : at + 4], "big")
    if stop > end:
        raise DecodeError("a header value runs past its table's end")
    return _sized(kind, data, at + 4, stop, depth), stop


def _sized(kind: int, data: bytes, at: int, end: int, depth: int) -> HeaderValue:
    if kind == ord("S"):
        return data[at:end].decode("utf-8", "surrogateescape")
    if kind == ord("x"):
        return data[at:end]
    if depth >= MAX_DEPTH:
        raise DecodeError(f"headers nest deeper than {MAX_DEPTH} tables")
    if kind == ord("F"):
        return _table(data, at, end, depth + 1)
    return list(_items(data, at, end, depth + 1))


def _items(data: bytes, at: int, end: int, depth: int) -> Iterator[HeaderValue]:
    while at < end:
        value, at = _field(data, at, end, depth)
        yield value


_u32 = struct.Struct(">I").unpack_from
_i64 = struct.Struct(">q").unpack_from


def _table(data: bytes, at: int, end: int, depth: int) -> dict[str, HeaderValue]:
    table: dict[str, HeaderValue] = {}
    while at < end:
        value = at + 1 + data[at]
        if value >= end:
            raise DecodeError("a header has a name and no value")
        name = data[at + 1 : value].decode("utf-8", "surrogateescape")
        kind = data[value]
        if kind == 0x53:  # "S", what nearly every header is: read here, without a call
            at = value + 5 + _u32(data, value + 1)[0]
            if at > end:
                raise DecodeError("a header value runs past its table's end")
            table[name] = data[value + 5 : at].decode("utf-8", "surrogateescape")
        elif kind == 0x6C:  # "l", our own numbers
            at = value + 9
            if at > end:
                raise DecodeError("a header value runs past its table's end")
            table[name] = _i64(data, value + 1)[0]
        else:
            table[name], at = _field(data, value, end, depth)
    return table


class Table(Mapping[str, HeaderValue]):
    """Headers as they came, read at the first question: most deliveries are handled without any.

    Raises `DecodeError`, at each question, when they cannot be read.
    """

    __slots__ = ("_known", "data")

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data
        self._known: dict[str, HeaderValue] | None = None

    def read(self) -> dict[str, HeaderValue]:
        """Return them all, not to be changed."""
        known = self._known
        if known is None:
            data = self.data
            try:
                known = self._known = _table(data, 0, len(data), 0)
            except (IndexError, struct.error) as error:
                raise DecodeError("the headers end in the middle of a value") from error
        return known

    def peek(self, name: str) -> HeaderValue:
        """Return one header, or None, without reading the others where the bytes say enough.

        A name that is nowhere among the bytes is no header's, and what stands before a header is passed over: before
        ``event-version``, in our own events, nothing does. So headers that cannot be read may go unnoticed here.
        """
        known = self._known
        if known is None:
            data = self.data
            key = known_names.get(name) or name_bytes(name)
            last = data.rfind(key)
            if last < 0:
                return None
            try:
                if last == 0 or _begins_entry(data, last):
                    return _value_at(data, last + len(key))
            except (IndexError, struct.error) as error:
                raise DecodeError("the headers end in the middle of a value") from error
            known = self.read()
        return known.get(name)

    def __getitem__(self, name: str) -> HeaderValue:
        return self.read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())

    def __len__(self) -> int:
        return len(self.read())

    def __contains__(self, name: object) -> bool:
        return name in self.read()

    def items(self) -> ItemsView[str, HeaderValue]:
        """Return the entries, as a dict does."""
        return self.read().items()

    def __bool__(self) -> bool:
        return bool(self.data)

    def __eq__(self, other: object) -> bool:
        return self.read() == (other.read() if isinstance(other, Table) else other)

    def __repr__(self) -> str:
        return repr(self._known) if self._known is not None else f"<{len(self.data)} bytes of headers>"


def _begins_entry(data: bytes, place: int) -> bool:
    """Say whether an entry of a table begins at ``place``: what looks like a name may stand in a value."""
    at, end = 0, len(data)
    while at < place:
        value = at + 1 + data[at]
        if data[value] == 0x53:
            at = value + 5 + _u32(data, value + 1)[0]
        else:
            _, at = _field(data, value, end, 0)
    return at == place


def _value_at(data: bytes, at: int) -> HeaderValue:
    if data[at] != 0x6C:
        return _field(data, at, len(data), 0)[0]
    number: int = _i64(data, at + 1)[0]
    return number
