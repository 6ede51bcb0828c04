"""What a message's headers carry of a trace: the propagators' own headers, and where the last attempt left off.

What came over the wire is not trusted: only text is read, only so much of it, and what is malformed is ignored. A time
becomes a span's beginning only if it may be one: exporters throw away the whole batch of a span that they cannot encode.
Limits: W3C Trace Context, 3.3.1.5 (512 characters of tracestate), W3C Baggage, 3.3.2 (8,192 bytes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from opentelemetry import baggage, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

PREVIOUS: Final = "previous-traceparent"
"""The header of a copy that says which attempt made it, in the form of a ``traceparent``."""

FORWARDED_AT: Final = "forwarded-at"
"""The header of a copy that says when it was made (RFC 3339): from then on it waits."""

REPLAYED_AT: Final = "replay-at"
"""The header that a replay from the dead letters leaves; the attempts begin with 1 again."""

LINK: Final = "rabbitevents.link"
"""The attribute of a link that says what it leads to: "producer", or "previous attempt"."""

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"
LONGEST_BAGGAGE: Final = 8192
LONGEST: Final = 512
"""Bytes of baggage, and of any other header of a trace."""

OLDEST: Final = 400 * 86_400 * 1_000_000_000
"""How long ago a header may say that something began, in ns: dead letters lie for months, and no span for centuries."""

_LISTS = frozenset({BAGGAGE, TRACESTATE})
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_MORE = re.compile(r"[\x20-\x7e\t]*")
_TRACE_CONTEXT = TraceContextTextMapPropagator()
_USUAL = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})").fullmatch
_W3C = [TraceContextTextMapPropagator, W3CBaggagePropagator]

Headers = Mapping[str, Any]


class _Reading(Getter[Headers]):
    """Gets text of bearable length out of headers."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        value = carrier.get(key)
        bounded = _bounded(key, value) if isinstance(value, str) else ""
        return [bounded] if bounded else None

    def keys(self, carrier: Headers) -> list[str]:
        return list(carrier)


class _Writing(Setter[dict[str, str]]):
    """Sets headers, as much as may be."""

    def set(self, carrier: dict[str, str], key: str, value: str) -> None:
        bounded = _bounded(key, value)
        if bounded:
            carrier[key] = bounded


_READING = _Reading()
_WRITING = _Writing()


def _bounded(key: str, value: str) -> str:
    """Return ``value`` if it is bearable; of a list, the members from the left that are; else nothing.

    Members of baggage that are malformed are left out here, since OpenTelemetry's propagator would show them in the log.
    """
    limit = LONGEST_BAGGAGE if key == BAGGAGE else LONGEST
    if key not in _LISTS:
        return value if len(value) <= limit else ""
    if key == BAGGAGE:
        members = value[: limit + 1].split(",")
        if len(value) > limit:
            members.pop()  # it was cut through
        return ",".join(filter(None, map(_member, members)))
    return value if len(value) <= limit else value[: limit + 1].rpartition(",")[0]


def _member(text: str) -> str:
    """Return a member of baggage without blanks around its parts; "" for one that is malformed (W3C Baggage, 3.2.1).

    Each part is looked at once; OpenTelemetry's propagator tries each blank at each place.
    """
    name, equals, rest = text.partition("=")
    value, more, properties = rest.partition(";")
    name, value = name.strip(), value.strip()
    if equals and _NAME.fullmatch(name) and _VALUE.fullmatch(value) and _MORE.fullmatch(properties):
        return f"{name}={value}{more}{properties}".rstrip()
    return ""


class _Propagation:
    """The propagators that are configured globally, and whether they are those that OpenTelemetry takes by itself.

    What those say of nearly every event, a ``traceparent`` and nothing else, is written and read here: that takes a third
    of their time. Whatever else there is, and any other propagator, is theirs.
    """

    def __init__(self) -> None:
        self._known: TextMapPropagator | None = None
        self._is_w3c = False

    def is_w3c(self) -> bool:
        """Say whether they are W3C's two, and nobody's own."""
        propagator = propagate.get_global_textmap()
        if propagator is not self._known:
            parts = getattr(propagator, "_propagators", ()) if type(propagator) is CompositePropagator else ()
            self._is_w3c = [type(part) for part in parts] == _W3C
            self._known = propagator
        return self._is_w3c


_PROPAGATION = _Propagation()


def written(context: Context) -> dict[str, str]:
    """Return ``context`` as headers, by the propagators that are configured globally."""
    if _PROPAGATION.is_w3c() and (len(context) <= 1 or not baggage.get_all(context)):  # at most a span, nearly always
        span = trace.get_current_span(context).get_span_context()
        if not span.trace_state:
            return {} if span == INVALID_SPAN_CONTEXT else {TRACEPARENT: _traceparent(span)}
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context, _WRITING)
    return carrier


def read(headers: Headers) -> Context:
    """Return the context that ``headers`` carry; an empty one if they carry none that can be read.

    It begins with an empty one, since a worker runs in the context of whoever started the bus.
    """
    if _PROPAGATION.is_w3c() and TRACESTATE not in headers and BAGGAGE not in headers:
        value = headers.get(TRACEPARENT)
        usual = _USUAL(value) if isinstance(value, str) else None
        if usual is not None:
            id, span_id, flags = usual.groups()
            remote = SpanContext(int(id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
            return trace.set_span_in_context(NonRecordingSpan(remote), Context())
    return propagate.extract(headers, Context(), _READING)


def _traceparent(span: SpanContext) -> str:
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def left_behind(context: SpanContext | None) -> dict[str, str | None]:
    """Return what a copy's headers say of the attempt that made it; None removes what an earlier one said."""
    previous = None
    if context is not None and context.is_valid and context.trace_flags.sampled:
        previous = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    return {PREVIOUS: previous, FORWARDED_AT: datetime.now(UTC).isoformat()}


def onward(context: Context) -> dict[str, str | None]:
    """Return ``context`` as headers that stand in for all that a copy carries of a trace."""
    return {**dict.fromkeys(propagate.get_global_textmap().fields), **written(context)}


def previous_attempt(headers: Headers) -> SpanContext | None:
    """Return the attempt that made this copy, if its headers say so."""
    value = headers.get(PREVIOUS)
    if not isinstance(value, str) or len(value) > LONGEST:
        return None
    found = trace.get_current_span(_TRACE_CONTEXT.extract({"traceparent": value}, Context())).get_span_context()
    return found if found.is_valid else None


class Times(NamedTuple):
    """When an event set out for where it is now, in ns since 1970; 0 for what its headers do not say.

    The clocks are those of two machines: what is still to come, or was ages ago, is not said.
    """

    forwarded: int
    """When its last copy was made, for a retry or for the dead letters."""
    replayed: int
    """When it was brought back from the dead letters, unless a later copy was made."""
    since: int
    """The last of these, or else the event's own time, or AMQP's timestamp."""

    @classmethod
    def of(cls, headers: Headers, sent_at: int | None, now: int) -> Times:
        """Read them. ``sent_at`` is AMQP's timestamp, ``now`` the present in ns."""
        if FORWARDED_AT not in headers and REPLAYED_AT not in headers:  # nearly always
            said = _ns(headers.get("event-time"), now)
            return cls(0, 0, said or _possible((sent_at or 0) * 1_000_000_000, now))
        forwarded, replayed = _ns(headers.get(FORWARDED_AT), now), _ns(headers.get(REPLAYED_AT), now)
        if replayed <= forwarded:
            replayed = 0
        return cls(forwarded, replayed, replayed or forwarded or _ns(headers.get("event-time"), now))


def is_idle(headers: Headers, sent_at: int | None, now: int, longest: float) -> bool:
    """Say whether more than ``longest`` ns went by since the last attempt, or before the first one since the event's time.

    AMQP's timestamp is that to the second, and settles it nearly always.
    """
    sent = (sent_at or 0) * 1_000_000_000
    if FORWARDED_AT not in headers and now - sent <= longest:
        return False
    since = _ns(headers.get(FORWARDED_AT) or headers.get("event-time"), now) or _possible(sent, now)
    return since > 0 and now - since > longest


def seconds(since: int, until: int) -> float | None:
    """Return the seconds between two moments in ns, to the millisecond; None where the first is not known."""
    return round((until - since) / 1e9, 3) if since else None


def _ns(text: object, now: int) -> int:
    """Read a time (RFC 3339) as ns since 1970; 0 for none, and for one that no span may have begun at."""
    if not isinstance(text, str) or len(text) > 64:
        return 0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return _possible(round(moment.timestamp() * 1e6) * 1000, now)


def _possible(moment: int, now: int) -> int:
    return moment if now - OLDEST < moment <= now else 0
