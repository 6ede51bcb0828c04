"""One attempt after the other: what they know of each other, and the short spans between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, Tracer, get_current_span

from rabbitevents import Delivery, Message
from rabbitevents_tracing.carrier import LINK, Headers, previous_attempt, replayed_at
from rabbitevents_tracing.destinations import SYSTEM

Place = tuple[str, int, int]
"""A delivery's queue, generation and tag: unlike its id, no other delivery has the same."""


def place_of(delivery: Delivery) -> Place:
    """Return what tells a delivery from every other one in this process."""
    return delivery.queue, delivery.generation, delivery.tag


class Attempt(NamedTuple):
    """One attempt to handle one delivery, as those need it who come after it in the same task."""

    owner: object
    """Who traces it: a handler may have a plugin of its own, and every plugin hears of every fact."""
    place: Place
    event: str
    """The event's id; empty where nobody records."""
    number: int
    context: Context
    """With the attempt's span in it, for what happens next to be its child."""
    error: str = ""
    buried: bool = False
    """Whether it was said that this was the last one."""

    @property
    def span(self) -> SpanContext:
        """Which span is this attempt's."""
        return get_current_span(self.context).get_span_context()


class Stories:
    """Tells in short spans what became of an event: they are children of the attempt that led to it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def forwarded(self, attempt: Attempt, queue: str, message: Message) -> None:
        """Say that a copy goes on, to be tried again, to the dead letters, or elsewhere."""
        after = message.after.total_seconds() if message.after is not None else 0.0
        to = message.exchange or message.routing_key
        if to == f"{queue}.dead":
            if not attempt.buried:
                self.buried(attempt, to)
        elif to == queue:
            count = message.headers.get("attempt")
            again = isinstance(count, int) and count > attempt.number
            self.waits("retry" if again else "postpone", attempt, queue, after)
        else:
            self.waits("forward", attempt, to, after)

    def waits(self, operation: str, attempt: Attempt, to: str, after: float) -> None:
        """Say that it goes on in ``after`` seconds."""
        told = f"{operation} in {after:.3g} s" if after else operation
        self._tell(attempt, operation, to, told, {"rabbitevents.delay": after})

    def buried(self, attempt: Attempt, queue: str) -> None:
        """Say that it was given up on."""
        self._tell(attempt, "dead-letter", queue, "dead-lettered", {})

    def replayed(self, came: Context, headers: Headers, event: str, queue: str) -> None:
        """Say that it was brought back from the dead letters, at the time when that was done."""
        moment = replayed_at(headers)
        if moment is None:
            return
        previous = previous_attempt(headers)
        at = int(moment.timestamp() * 1e9)
        span = self._tracer.start_span(
            f"replay {queue}",
            context=came,
            attributes={**_common("replay", queue), "messaging.message.id": event},
            links=[Link(previous, {LINK: "previous attempt"})] if previous is not None else None,
            start_time=at,
        )
        count = headers.get("replay-count")
        if isinstance(count, int):
            span.set_attribute("rabbitevents.replays", count)
        span.add_event("replayed", timestamp=at)
        span.end(at)

    def _tell(self, attempt: Attempt, operation: str, to: str, told: str, more: Mapping[str, str | float]) -> None:
        span = self._tracer.start_span(f"{operation} {to}", context=attempt.context)
        if span.is_recording():
            span.set_attributes({**_common(operation, to), "rabbitevents.attempt": attempt.number, **more})
            if attempt.event:
                span.set_attribute("messaging.message.id", attempt.event)
            if attempt.error:
                span.set_attribute("error.type", attempt.error)
            if operation == "dead-letter":
                span.set_status(Status(StatusCode.ERROR, told))
            span.add_event(told)
        span.end()


def _common(operation: str, queue: str) -> dict[str, str | float]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
    }
