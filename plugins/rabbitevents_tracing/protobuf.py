"""Spans as the bytes that OTLP says they are, written as they come: no object is made for an attribute.

Source: opentelemetry-proto 1.x, ``trace.proto``, ``common.proto`` and ``resource.proto``, whose field numbers are stable;
protobuf's encoding (https://protobuf.dev/programming-guides/encoding/). A span that is odd spoils no other one's batch:
text that is no UTF-8 has a question mark, and a number or a time that does not fit its field is text, or 0.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status

_KEPT: Final = 4096
_LONGEST_KEPT: Final = 64
"""Characters of a text whose bytes are kept, and of how many; most of a service's attributes are always the same."""

_SMALL: Final = [bytes((number,)) for number in range(128)]
_INT64: Final = 2**63
_LOCAL, _REMOTE = (0x100).to_bytes(4, "little"), (0x300).to_bytes(4, "little")
"""What a span says of its parent: that it knows whether that is remote, and that it is."""

_Scopes = dict[int, tuple[InstrumentationScope | None, list[bytes]]]
"""The spans of each scope; objects are told apart by which they are, since a resource takes long to compare."""

_double = struct.Struct("<d").pack


def _varint(number: int) -> bytes:
    if number < 128:
        return _SMALL[number]
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def _part(tag: bytes, data: bytes) -> bytes:
    """Return a field that says its length: a text, bytes, or a message."""
    return tag + _varint(len(data)) + data


def _text(tag: bytes, text: str | None) -> bytes:
    return _part(tag, text.encode("utf-8", "replace")) if text else b""


def _count(tag: bytes, number: int) -> bytes:
    return tag + _varint(number) if number else b""


def _time(moment: int | None) -> bytes:
    return moment.to_bytes(8, "little") if moment is not None and 0 <= moment < 2 * _INT64 else bytes(8)


class Encoder:
    """Writes spans, and knows the bytes of texts that it wrote before."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._known: dict[bytes, dict[tuple[str, str], bytes]] = {}

    def request(self, spans: Sequence[ReadableSpan]) -> bytes:
        """Return an ``ExportTraceServiceRequest`` with these spans."""
        groups: dict[int, tuple[Resource, _Scopes]] = {}
        for span in spans:
            resource, scope = span.resource, span.instrumentation_scope
            scopes = groups.setdefault(id(resource), (resource, {}))[1]
            scopes.setdefault(id(scope), (scope, []))[1].append(_part(b"\x12", self._span(span)))
        return b"".join([_part(b"\x0a", self._resource_spans(*group)) for group in groups.values()])

    def _resource_spans(self, resource: Resource, scopes: _Scopes) -> bytes:
        said = self._attributes(b"\x0a", resource.attributes)
        of_scopes = [_part(b"\x12", self._scope_spans(*each)) for each in scopes.values()]
        return b"".join((_part(b"\x0a", said), *of_scopes, _text(b"\x1a", resource.schema_url)))

    def _scope_spans(self, scope: InstrumentationScope | None, spans: list[bytes]) -> bytes:
        return b"".join((self._scope(scope), *spans, _text(b"\x1a", scope.schema_url if scope else None)))

    def _scope(self, scope: InstrumentationScope | None) -> bytes:
        if scope is None:
            return b"\x0a\x00"
        said = self._attributes(b"\x1a", scope.attributes)
        return _part(b"\x0a", _text(b"\x0a", scope.name) + _text(b"\x12", scope.version) + said)

    def _span(self, span: ReadableSpan) -> bytes:
        context: SpanContext | None = span.get_span_context()
        parent = span.parent
        assert context is not None  # the SDK's spans have one
        fields = [
            *_ids(context),
            _text(b"\x1a", context.trace_state.to_header()) if context.trace_state else b"",
            b"\x22\x08" + parent.span_id.to_bytes(8) if parent else b"",
            _text(b"\x2a", span.name),
            b"\x30",
            _SMALL[span.kind.value + 1],
            b"\x39",
            _time(span.start_time),
            b"\x41",
            _time(span.end_time),
            self._attributes(b"\x4a", span.attributes),
            _count(b"\x50", span.dropped_attributes),
            *map(self._event, span.events),
            _count(b"\x60", span.dropped_events),
            *map(self._link, span.links),
            _count(b"\x70", span.dropped_links),
            _status(span.status),
            b"\x85\x01",
            _flags(parent),
        ]
        return b"".join(fields)

    def _event(self, event: Event) -> bytes:
        said = self._attributes(b"\x1a", event.attributes), _count(b"\x20", event.dropped_attributes)
        return _part(b"\x5a", b"".join((b"\x09", _time(event.timestamp), _text(b"\x12", event.name), *said)))

    def _link(self, link: Link) -> bytes:
        said = self._attributes(b"\x22", link.attributes), _count(b"\x28", link.dropped_attributes)
        return _part(b"\x6a", b"".join((*_ids(link.context), *said, b"\x35", _flags(link.context))))

    def _attributes(self, tag: bytes, attributes: Mapping[str, Any] | None) -> bytes:
        if not attributes:
            return b""
        known = self._known.setdefault(tag, {})
        if len(known) >= _KEPT:
            known.clear()
        written: list[bytes] = []
        for name, value in attributes.items():
            if type(value) is str and len(value) <= _LONGEST_KEPT:
                found = known.get((name, value))
                if found is None:
                    found = known[name, value] = self._attribute(tag, name, value)
                written.append(found)
            else:
                written.append(self._attribute(tag, name, value))
        return b"".join(written)

    def _attribute(self, tag: bytes, name: str, value: Any) -> bytes:
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) >= _KEPT:
                self._keys.clear()
            key = self._keys[name] = _text(b"\x0a", name)
        return _part(tag, key + _part(b"\x12", self._value(value)))

    def _value(self, value: Any) -> bytes:
        """Return an ``AnyValue``: whatever an attribute may be."""
        match value:
            case str():
                return _part(b"\x0a", value.encode("utf-8", "replace"))
            case bool():
                return b"\x10\x01" if value else b"\x10\x00"
            case int():
                fits = -_INT64 <= value < _INT64
                return b"\x18" + _varint(value & 2 * _INT64 - 1) if fits else self._value(str(value))
            case float():
                return b"\x21" + _double(value)
            case bytes():
                return _part(b"\x3a", value)
            case Mapping():
                inner = {str(name): each for name, each in cast("Mapping[object, Any]", value).items()}
                return _part(b"\x32", self._attributes(b"\x0a", inner))
            case None:
                return b""
            case _:  # the SDK makes a tuple of any other sequence, and lets nothing else be an attribute
                return _part(b"\x2a", b"".join([_part(b"\x0a", self._value(each)) for each in value]))


def _ids(context: SpanContext) -> tuple[bytes, bytes, bytes, bytes]:
    return b"\x0a\x10", context.trace_id.to_bytes(16), b"\x12\x08", context.span_id.to_bytes(8)


def _status(status: Status) -> bytes:
    if status.is_unset:
        return b"\x7a\x00"
    return _part(b"\x7a", _text(b"\x12", status.description) + _count(b"\x18", status.status_code.value))


def _flags(context: SpanContext | None) -> bytes:
    return _REMOTE if context is not None and context.is_remote else _LOCAL
