"""The plugin: a producer span for each publish, a consumer span for each attempt, and what happened between attempts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, ClassVar, Final, cast

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanContext,
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
from rabbitevents_tracing.attempts import Attempt, Stories, place_of
from rabbitevents_tracing.attributes import error_type, fail, of_delivery, of_message, of_place
from rabbitevents_tracing.carrier import LINK, Headers, left_behind, previous_attempt, read, written
from rabbitevents_tracing.complaints import calm
from rabbitevents_tracing.destinations import Destination, Destinations

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions that the spans follow."""

_ATTEMPT: ContextVar[Attempt | None] = ContextVar("rabbitevents_tracing_attempt", default=None)
"""The last attempt of the current task: of the delivery that is handled, or of an earlier one."""


class Tracing(Plugin):
    """Trace every event, from its publish through every attempt to handle it.

    :param tracer_provider: Stands in for the global one of OpenTelemetry.
    :param link: Whether an attempt is the root of a trace of its own, and linked to the producer's span, instead of its
        child: False.
    :param error_text: Whether the text of an exception becomes the description of the span's status: False. Without it
        only its class does, since the text may quote the event.
    """

    role: ClassVar[str] = "trace"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter", "retry"})

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, link: bool = False, error_text: bool = False
    ) -> None:
        if not isinstance(cast("object", tracer_provider), TracerProvider | None):
            raise wrong("Tracing: tracer_provider", tracer_provider, "say a TracerProvider of OpenTelemetry")
        self._tracer = trace.get_tracer(
            "rabbitevents", version("rabbitevents"), tracer_provider=tracer_provider, schema_url=SCHEMA
        )
        self._link = flag("Tracing: link", link)
        self._error_text = flag("Tracing: error_text", error_text)
        self._stories = Stories(self._tracer)
        self._destinations = Destinations()
        self._limits = Limits()
        self._names: dict[str, str] = {}
        self._held: dict[tuple[str, str], SpanContext] = {}
        """The last attempt of each delivery that is held, by subscription and id. The core holds a bounded number."""
        self._reactions: dict[type[Fact], Callable[[Any], None]] = {
            facts.Connected: self._connected,
            facts.Retried: self._retried,
            facts.DeadLettered: self._dead_lettered,
            facts.Duplicate: self._duplicate,
            facts.Returned: self._returned,
            facts.Held: self._held_back,
            facts.Released: self._released,
        }

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Learn what the bus consumes, and keep exporters from flooding the log while their collector is away."""
        calm()
        self._destinations.bind(host.exchange, host.subscriptions)
        self._limits = host.limits
        self._names = {subscription.queue: subscription.name for subscription in host.subscriptions}
        yield

    # --- out ---

    async def publish(self, proceed: Publish, message: Message) -> None:
        """Make the producer span, and let the message carry it."""
        destination = self._destinations.published(message.exchange, message.routing_key)
        span = self._tracer.start_span(
            destination.named("publish"), kind=SpanKind.PRODUCER, attributes=destination.attributes
        )
        context = set_span_in_context(span)
        token = attach(context)
        try:
            if span.is_recording():
                span.set_attributes(of_message(message))
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
        headers = _headers(delivery)
        came = read(headers)
        here = self._here_before(delivery)
        span = self._start(delivery, came, here or previous_attempt(headers))
        context = set_span_in_context(span, came)
        attempt = Attempt(self, place_of(delivery), "", 0, context)
        token = attach(context)
        _ATTEMPT.set(attempt)
        try:
            if span.is_recording():
                _ATTEMPT.set(self._described(span, attempt, delivery, came, here_before=here is not None))
            settlement = await proceed(delivery)
            span.set_attribute("rabbitevents.outcome", settlement.outcome.value)
        except BaseException as error:
            fail(span, error, with_text=self._error_text)
            _ATTEMPT.set((_ATTEMPT.get() or attempt)._replace(error=error_type(error)))
            raise
        else:
            return settlement
        finally:
            detach(token)
            span.end()

    def _described(
        self, span: Span, attempt: Attempt, delivery: Delivery, came: Context, *, here_before: bool
    ) -> Attempt:
        """Say on the span which event it is, and return the attempt with its id; as it is where that cannot be read."""
        try:
            span.set_attributes(of_delivery(delivery, here_before=here_before))
            event = str(delivery.id)
        except DecodeError:
            span.set_attributes(of_place(delivery))
            return attempt
        if not here_before and delivery.attempt == 1:
            self._stories.replayed(came, delivery.headers, event, delivery.queue)
        return attempt._replace(event=event, number=delivery.attempt)

    def _start(self, delivery: Delivery, came: Context, previous: SpanContext | None) -> Span:
        destination = self._from(delivery)
        links = [Link(previous, {LINK: "previous attempt"})] if previous is not None else []
        parent = came
        if self._link:
            producer = get_current_span(came).get_span_context()
            if producer.is_valid:
                links.insert(0, Link(producer, {LINK: "producer"}))
            parent = set_span_in_context(INVALID_SPAN, came)
        return self._tracer.start_span(
            destination.named("process"),
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=destination.attributes,
            links=links or None,
        )

    def _from(self, delivery: Delivery) -> Destination:
        try:
            return self._destinations.consumed(delivery.exchange, delivery.routing_key, delivery.queue)
        except DecodeError:
            return self._destinations.consumed(delivery.via_exchange, delivery.via_routing_key, delivery.queue)

    def _here_before(self, delivery: Delivery) -> SpanContext | None:
        """Return the attempt before this one where that was in this process too: tried again inline, or held."""
        last = _ATTEMPT.get()
        if last is not None and last.place == place_of(delivery):
            return last.span
        if self._held and _headers(delivery):
            return self._held.get((self._names.get(delivery.queue, ""), str(delivery.id)))
        return None

    # --- between two attempts ---

    def forward(self, delivery: Delivery, message: Message) -> Message:
        """Let a copy carry which attempt made it, and when; say in the trace what it is for."""
        attempt = _ATTEMPT.get()
        if attempt is None or attempt.place != place_of(delivery):  # it was decided before we saw it
            attempt = Attempt(self, place_of(delivery), "", 0, read(message.headers))
            previous = previous_attempt(message.headers)
        else:
            previous = attempt.span
        self._stories.forwarded(attempt, delivery.queue, message)
        labelled = message.replace(headers=left_behind(previous))
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

    def _connected(self, fact: facts.Connected) -> None:
        self._destinations.connected(fact.connection, fact.address)

    def _retried(self, fact: facts.Retried) -> None:
        attempt = self._attempt_of(fact.id)
        if fact.inline and attempt is not None:
            self._stories.waits("retry", attempt, fact.subscription, fact.after)

    def _dead_lettered(self, fact: facts.DeadLettered) -> None:
        attempt = self._attempt_of(fact.id)
        if attempt is not None and not attempt.buried:
            _ATTEMPT.set(attempt._replace(buried=True))
            self._stories.buried(attempt, f"{fact.subscription}.dead")

    def _held_back(self, fact: facts.Held) -> None:
        attempt = self._attempt_of(fact.id)
        if attempt is not None:
            self._held[fact.subscription, fact.id] = attempt.span
            self._stories.waits("hold", attempt, fact.subscription, fact.pause or 0.0)

    def _released(self, fact: facts.Released) -> None:
        self._held.pop((fact.subscription, fact.id), None)

    def _duplicate(self, fact: facts.Duplicate) -> None:
        get_current_span().set_attribute("rabbitevents.duplicate", True)

    def _returned(self, fact: facts.Returned) -> None:
        get_current_span().set_attribute("rabbitevents.unroutable", True)

    def _attempt_of(self, event: str) -> Attempt | None:
        """Return the attempt of the current task, if it was recorded here, and is this event's."""
        attempt = _ATTEMPT.get()
        if attempt is None or attempt.owner is not self or attempt.event != event:
            return None
        return attempt if attempt.span.trace_flags.sampled else None


def _headers(delivery: Delivery) -> Headers:
    try:
        return delivery.headers
    except DecodeError:
        return {}  # reading it further in says so
