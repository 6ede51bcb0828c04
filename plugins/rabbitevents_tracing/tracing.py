"""The plugin: a producer span for each publish, a consumer span for each attempt, and what happened between attempts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from math import inf
from time import time_ns
from typing import Any, ClassVar, Final, cast

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanKind,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)

from rabbitevents import (
    Consume,
    DecodeError,
    Delivery,
    EncodeError,
    Fact,
    Host,
    Limits,
    Message,
    Plugin,
    Publish,
    Settlement,
    facts,
)
from rabbitevents.arguments import flag, wrong
from rabbitevents_tracing.attributes import Said, fail, of_publish
from rabbitevents_tracing.between import Arrival, Attempt, Between
from rabbitevents_tracing.carrier import (
    LINK,
    Headers,
    is_idle,
    left_behind,
    onward,
    previous_attempt,
    read,
    written,
)
from rabbitevents_tracing.destinations import Destinations

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions that the spans follow."""

_ATTEMPT: ContextVar[Attempt | None] = ContextVar("rabbitevents_tracing_attempt", default=None)
"""The last attempt of the current task: of the delivery that is handled, or of an earlier one."""


class Tracing(Plugin):
    """Trace every event, from its publish through every attempt to handle it.

    :param tracer_provider: Stands in for the global one of OpenTelemetry.
    :param link: When an attempt begins a trace of its own, and is linked to the producer's span, instead of being its
        child: always (True), never (False), or after a longer wait than this timedelta: 10 minutes.
    :param error_text: Whether the text of an exception is told, as the description of the span's status too: False.
        Without it only its class and its stack are, since the text may quote the event.
    """

    role: ClassVar[str] = "trace"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter", "retry"})

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        link: bool | timedelta = timedelta(minutes=10),
        error_text: bool = False,
    ) -> None:
        if not isinstance(cast("object", tracer_provider), TracerProvider | None):
            raise wrong("Tracing: tracer_provider", tracer_provider, "say a TracerProvider of OpenTelemetry")
        self._tracer = trace.get_tracer(
            "rabbitevents", version("rabbitevents"), tracer_provider=tracer_provider, schema_url=SCHEMA
        )
        self._link = link is True
        self._longest = _longest(link)
        self._error_text = flag("Tracing: error_text", error_text)
        self._between = Between(self._tracer)
        self._destinations = Destinations()
        self._limits = Limits()
        self._names: dict[str, str] = {}
        self._held: dict[tuple[str, str], Attempt] = {}
        """The last attempt of each delivery that is held, by subscription and id. The core holds a bounded number."""
        self._reactions: dict[type[Fact], Callable[[Any], object]] = {
            facts.Connected: lambda fact: self._destinations.connected(fact.connection, fact.server),
            facts.Retried: lambda fact: self._goes_on_here("retry", fact),
            facts.Postponed: lambda fact: self._goes_on_here("postpone", fact),
            facts.DeadLettered: self._dead_lettered,
            facts.Duplicate: lambda fact: get_current_span().set_attribute("rabbitevents.duplicate", True),
            facts.Returned: lambda fact: get_current_span().set_attribute("rabbitevents.unroutable", True),
            facts.Held: self._held_back,
            facts.Relayed: self._between.relayed,
            facts.Released: lambda fact: self._held.pop((fact.subscription, fact.id), None),
        }

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Learn what the bus consumes."""
        self._destinations.bind(host.exchange, host.subscriptions)
        self._limits = host.limits
        self._names = {subscription.queue: subscription.name for subscription in host.subscriptions}
        yield

    # --- out ---

    async def publish(self, proceed: Publish, message: Message) -> None:
        """Make the producer span, and let the message carry it."""
        destination = self._destinations.published(message.exchange, message.routing_key)
        said = Said(partial(of_publish, destination.attributes, message))
        span = self._tracer.start_span(destination.named("publish"), kind=SpanKind.PRODUCER, attributes=said)
        context = set_span_in_context(span)
        token = attach(context)
        try:
            carried = written(context)
            await proceed(message.replace(headers=carried) if carried else message)
        except BaseException as error:
            fail(span, error, with_text=self._error_text)
            raise
        finally:
            detach(token)
            span.end()

    # --- in ---

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Make the consumer span of this attempt, in the context that the event carries."""
        span, attempt = self._begun(delivery)
        _ATTEMPT.set(attempt)
        token = attach(attempt.context)
        try:
            settlement = await proceed(delivery)
        except BaseException as error:
            fail(span, error, with_text=self._error_text)
            raise
        else:
            span.set_attribute("rabbitevents.outcome", settlement.outcome.value)
            return settlement
        finally:
            detach(token)
            span.end()

    def _begun(self, delivery: Delivery) -> tuple[Span, Attempt]:
        """Begin the span of an attempt, and say on it which event it is, as far as that can be read."""
        arrival = self._arrived(delivery)
        span = self._start(arrival)
        attempt = Attempt(self, delivery, set_span_in_context(span, arrival.came))
        if arrival.is_another and span.is_recording():
            self._between.what_was(arrival, attempt)
        return span, attempt

    def _arrived(self, delivery: Delivery) -> Arrival:
        now, is_late = time_ns(), False
        try:
            headers: Headers = delivery.headers
            is_late = is_idle(headers, delivery.properties.timestamp, now, self._longest)
        except DecodeError:
            headers = {}  # reading it further in says so
        came = read(headers)
        before = self._before(delivery, headers)
        if before is not None:
            is_late = before.told > 0 and now - before.told > self._longest
            came = before.context if self._is_elsewhere(before, came) else came
        producer = get_current_span(came).get_span_context()
        previous = before.span if before is not None else previous_attempt(headers)
        is_root = self._link or is_late or not producer.is_valid
        return Arrival(delivery, headers, came, producer, before, previous, is_root, is_late, now)

    def _is_elsewhere(self, attempt: Attempt, came: Context) -> bool:
        """Say whether an attempt has begun a trace, which goes on with what comes of it."""
        trace = get_current_span(came).get_span_context().trace_id
        return not self._link and attempt.span.is_valid and attempt.span.trace_id != trace

    def _before(self, delivery: Delivery, headers: Headers) -> Attempt | None:
        last = _ATTEMPT.get()
        if last is not None and last.place == delivery.place:
            return last
        if self._held and headers:
            return self._held.get((self._names.get(delivery.queue, ""), str(delivery.id)))
        return None

    def _start(self, arrival: Arrival) -> Span:
        delivery, came, producer, previous = arrival.delivery, arrival.came, arrival.producer, arrival.previous
        headers = arrival.headers
        # Without headers it is no copy, and was published where it came from.
        exchange = delivery.exchange if headers else delivery.via_exchange
        key = delivery.routing_key if headers else delivery.via_routing_key
        destination = self._destinations.consumed(exchange, key, delivery.queue)
        links = [Link(previous, {LINK: "previous attempt"})] if previous is not None else []
        context = set_span_in_context(INVALID_SPAN, came) if arrival.is_root else came
        if arrival.is_root and producer.is_valid:
            links.insert(0, Link(producer, {LINK: "producer"}))
        if arrival.is_late:
            context = self._between.brought_back(arrival, context, links)
        return self._tracer.start_span(
            destination.named("process"),
            context=context,
            kind=SpanKind.CONSUMER,
            attributes=Said(partial(arrival.said, destination.attributes)),
            links=links or None,
            start_time=arrival.now,
        )

    # --- between two attempts ---

    def forward(self, delivery: Delivery, message: Message) -> Message:
        """Let a copy carry which attempt made it, and when; say in the trace what it is for."""
        attempt = _ATTEMPT.get()
        if attempt is None or attempt.place != delivery.place:  # it was decided before we saw it
            attempt = Attempt(self, delivery, read(message.headers))
            previous = previous_attempt(message.headers)
        else:
            previous = attempt.span
        self._between.forwarded(attempt, delivery.queue, message)
        labels = left_behind(previous)
        if self._is_elsewhere(attempt, read(message.headers)):
            labels |= onward(attempt.context)
        labelled = message.replace(headers=labels)
        try:
            self._limits.check_message(labelled)
        except EncodeError:
            return message  # its headers are full, and a copy that cannot be sent would be held for ever
        return labelled

    def observe(self, fact: Fact) -> None:
        """Learn where the broker is, and say in the trace what happened to an event meanwhile."""
        reaction = self._reactions.get(type(fact))
        if reaction is not None:
            reaction(fact)

    def _goes_on_here(self, operation: str, fact: facts.Retried | facts.Postponed) -> None:
        attempt = self._attempt_of(fact.id)
        if fact.inline and attempt is not None:
            self._between.goes_on(operation, attempt, fact.subscription, fact.after)
            _ATTEMPT.set(attempt._replace(told=time_ns()))

    def _dead_lettered(self, fact: facts.DeadLettered) -> None:
        attempt = self._attempt_of(fact.id)
        if attempt is not None and not attempt.is_buried:
            _ATTEMPT.set(attempt._replace(is_buried=True))
            self._between.buried(attempt, f"{fact.subscription}.dead")

    def _held_back(self, fact: facts.Held) -> None:
        attempt = self._attempt_of(fact.id)
        if attempt is not None:
            self._between.goes_on("hold", attempt, fact.subscription, fact.pause or 0.0)
            self._held[fact.subscription, fact.id] = attempt._replace(told=time_ns())

    def _attempt_of(self, event: str) -> Attempt | None:
        """Return the attempt of the current task, if it was recorded here, and is this event's."""
        attempt = _ATTEMPT.get()
        if attempt is None or attempt.owner is not self or attempt.event != event:
            return None
        return attempt if attempt.span.trace_flags.sampled else None


def _longest(link: object) -> float:
    """Return the longest wait, in ns, after which an attempt is part of the trace that was."""
    if isinstance(link, bool):
        return inf
    if not isinstance(link, timedelta) or link < timedelta(0):
        raise wrong(
            "Tracing: link", link, "say True (always), False (never), or after how long a wait: timedelta(minutes=10)"
        )
    return link.total_seconds() * 1e9
