"""Between two attempts: what they know of each other, and the spans that say what became of the event meanwhile."""

from __future__ import annotations

from time import time_ns
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from rabbitevents import DecodeError, Delivery, Message, facts
from rabbitevents_tracing.attributes import (
    Attributes,
    Value,
    ids,
    number,
    of_attempt,
    of_delivery,
    of_origin,
    of_place,
    shown,
)
from rabbitevents_tracing.carrier import FORWARDED_AT, LINK, OLDEST, REPLAYED_AT, TRACEPARENT, Headers, Times, read
from rabbitevents_tracing.destinations import SYSTEM


class Attempt(NamedTuple):
    """One attempt to handle one delivery, as those need it who come after it in the same task."""

    owner: object
    """Who traces it: a handler may have a plugin of its own, and every plugin hears of every fact."""
    delivery: Delivery
    context: Context
    """With the attempt's span in it, for what happens next to be its child."""
    told: int = 0
    """When it was said that the event waits in this process, in ns."""
    is_buried: bool = False
    """Whether it was said that this was the last one."""

    @property
    def place(self) -> tuple[str, int, int]:
        """Which delivery it is of."""
        return self.delivery.place

    @property
    def ids(self) -> Attributes:
        """What all spans of this event say."""
        return of_delivery(self.delivery)

    @property
    def number(self) -> int:
        """Which attempt it is, as a span may say it; 0 where that cannot be read."""
        try:
            return number(self.delivery.attempt)
        except DecodeError:
            return 0

    @property
    def event(self) -> str:
        """The event's id, by which those who decide what becomes of it report; empty where that cannot be read."""
        try:
            return str(self.delivery.id)
        except DecodeError:
            return ""

    @property
    def span(self) -> SpanContext:
        """Which span is this attempt's."""
        return get_current_span(self.context).get_span_context()


class Arrival(NamedTuple):
    """A delivery that came, and what led to it."""

    delivery: Delivery
    headers: Headers
    """Nothing where they cannot be read."""
    came: Context
    """What the event carries."""
    producer: SpanContext
    before: Attempt | None
    """The attempt before this one, where that was in this process too: tried again inline, or held."""
    previous: SpanContext | None
    """The span of the attempt before this one, wherever that was."""
    is_root: bool
    """Whether its attempt begins a trace."""
    is_late: bool
    """Whether it does since the event lay for long: what comes of it then is no part of what was long ago."""
    now: int
    """When it came, in ns."""

    @property
    def is_another(self) -> bool:
        """Whether there was an attempt before it, here or elsewhere."""
        return self.before is not None or FORWARDED_AT in self.headers or REPLAYED_AT in self.headers

    @property
    def times(self) -> Times:
        """Since when it is under way. Raises `DecodeError`."""
        return Times.of(self.headers, self.delivery.properties.timestamp, self.now)

    def said(self, destination: Attributes) -> dict[str, Value]:
        """Return what the span of its attempt says: of which event, as far as that can be read, and from where."""
        delivery = self.delivery
        said = {**destination, **of_place(delivery)}
        try:
            said |= ids(delivery.type, delivery.properties, self.headers)
            said |= of_attempt(delivery, self.headers, self.times, self.now, is_new=self.before is None)
            if self.is_root or not self.producer.trace_flags.sampled:
                said |= of_origin(delivery)
        except DecodeError:
            pass  # reading it further in says so
        return said


class Between:
    """Says what became of an event: at once where an attempt led to it, with the next attempt how long it took."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def forwarded(self, attempt: Attempt, queue: str, message: Message) -> None:
        """Say that a copy goes on, to be tried again, to the dead letters, or elsewhere."""
        after = message.after.total_seconds() if message.after is not None else 0.0
        to = message.exchange or message.routing_key
        if to == f"{queue}.dead":
            if not attempt.is_buried:
                self.buried(attempt, to)
        elif to == queue:
            again = number(message.headers.get("attempt")) > attempt.number
            self.goes_on("retry" if again else "postpone", attempt, queue, after)
        else:
            self.goes_on("forward", attempt, to, after)

    def goes_on(self, operation: str, attempt: Attempt, to: str, after: float) -> None:
        """Say that it goes on in ``after`` seconds."""
        self._tell(operation, attempt, to, {"rabbitevents.delay": round(after, 3)})

    def buried(self, attempt: Attempt, queue: str) -> None:
        """Say that it was given up on."""
        self._tell("dead-letter", attempt, queue, {})

    def _tell(self, operation: str, attempt: Attempt, to: str, more: Attributes) -> None:
        said = {**_named(operation, to), **attempt.ids, "rabbitevents.attempt": attempt.number, **more}
        span = self._tracer.start_span(f"{operation} {shown(to)}", context=attempt.context, attributes=said)
        if operation == "dead-letter":
            span.set_status(Status(StatusCode.ERROR, "dead-lettered"))
        span.end()

    def relayed(self, fact: facts.Relayed) -> None:
        """Say how long an event stood in an outbox."""
        now, waited = time_ns(), round(fact.waited * 1e9)
        if not 0 <= waited < OLDEST:
            return
        kind, _, id = (fact.entity or "").partition("/")
        told = {
            **_named("wait", fact.outbox),
            "rabbitevents.event.type": shown(fact.type),
            "messaging.message.id": shown(fact.id),
            **({"rabbitevents.entity.type": shown(kind), "rabbitevents.entity.id": shown(id)} if id else {}),
        }
        context = read({TRACEPARENT: fact.traceparent})
        self._tracer.start_span(
            f"wait {shown(fact.outbox)}", context=context, attributes=told, start_time=now - waited
        ).end(now)

    def what_was(self, arrival: Arrival, attempt: Attempt) -> None:
        """Say how long the event waited for the attempt that begins: since the last one, or since it was replayed.

        That stands beside the attempts, below the publish; where that is elsewhere, below the last attempt. A wait for
        longer than a trace is to be is no span: the attempt says how long it was.
        """
        try:
            times, queue = arrival.times, arrival.delivery.queue
        except DecodeError:
            return  # reading it further in says so
        before, previous = arrival.before, arrival.previous
        since = before.told if before is not None else times.replayed or times.forwarded
        beside = arrival.came
        if arrival.is_root and previous is not None:
            beside = set_span_in_context(NonRecordingSpan(previous))
        if not since or arrival.is_late or (arrival.is_root and previous is None):
            return
        operation = "replay" if before is None and times.replayed else "wait"
        links = [Link(previous, {LINK: "previous attempt"})] if operation == "replay" and previous is not None else None
        told = {**_named(operation, queue), **attempt.ids}
        told |= of_attempt(arrival.delivery, arrival.headers, times, arrival.now, is_new=before is None)
        told.pop("rabbitevents.wait", None)  # that is how long it is
        name = f"{operation} {queue}"
        self._tracer.start_span(name, context=beside, attributes=told, links=links, start_time=since).end(arrival.now)

    def brought_back(self, arrival: Arrival, context: Context, links: list[Link]) -> Context:
        """Begin a trace with the replay of what lay dead for long, for its attempt to be the child; else leave ``context``."""
        delivery, headers, now = arrival.delivery, arrival.headers, arrival.now
        times = Times.of(headers, delivery.properties.timestamp, now)
        if arrival.before is not None or not times.replayed:
            return context
        said = {
            **_named("replay", delivery.queue),
            **ids(delivery.type, delivery.properties, headers),
            "rabbitevents.queue": delivery.queue,
            **of_attempt(delivery, headers, times, now, is_new=True),
        }
        said.pop("rabbitevents.wait", None)  # that is how long it is
        name = f"replay {delivery.queue}"
        span = self._tracer.start_span(name, context=context, attributes=said, links=links, start_time=times.replayed)
        span.end(now)
        return set_span_in_context(span, context)


def _named(operation: str, to: str) -> dict[str, Value]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.destination.name": shown(to),
    }
