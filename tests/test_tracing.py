"""Tracing, in one process: which spans there are, how they hang together, and what they say."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta

import pytest
from attrs import frozen
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rabbitevents import (
    ACK,
    Bus,
    ConfigurationError,
    Delivery,
    Event,
    Message,
    Plugin,
    Properties,
    Publish,
    Router,
    Settlement,
    UnroutableError,
    event,
)
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from rabbitevents_tracing import Tracing


@event("order.placed", entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str


@event("stock.reserved", entity="order", key="order_id")
@frozen
class StockReserved:
    order_id: str


class Traces:
    """A provider that samples everything, and what its spans were."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = provider or TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def spans(self) -> list[ReadableSpan]:
        """All spans, by their beginning."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        found = self.all(name)
        assert len(found) == 1, f"{len(found)} spans {name!r} among {self.names}"
        return found[0]


@pytest.fixture
def traces() -> Traces:
    return Traces()


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def trace_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def says(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


def linked(span: ReadableSpan, what: str) -> list[int]:
    return [link.context.span_id for link in span.links if (link.attributes or {}).get("rabbitevents.link") == what]


PUBLISH = "publish events:order.placed"
PROCESS = "process events:order.placed:inventory.reserve"


def inventory(*, fail: int = 0, error: type[Exception] = LookupError) -> Router:
    """A service with one handler, which fails a number of times."""
    router, tries = Router("inventory"), list[str]()

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> StockReserved:
        tries.append(order.order_id)
        if len(tries) <= fail:
            raise error("no such shelf")
        return StockReserved(order.order_id)

    return router


def story_of(traces: Traces, queue: str = "inventory.reserve") -> list[str]:
    """The names of what happened to an event in one queue, without the destination."""
    return [span.name.split()[0] for span in traces.spans if queue in span.name]


async def replay(bus: Bus, queue: str) -> None:
    """Bring back what is in a dead letter queue, as ``rabbitevents dlq replay`` does."""
    from rabbitevents_deadletter.letters import DeadLetterMessage

    async with bus.browse(f"{queue}.dead") as look:
        async for delivery in look:
            await bus.send(DeadLetterMessage.of(delivery).replay())
            look.acknowledge(delivery)


# --- one event -------------------------------------------------------------------------------------------------------


async def test_an_event_is_a_producer_span_whose_child_is_the_consumer_s_whose_child_is_what_the_handler_publishes(
    traces: Traces,
) -> None:
    async with running(Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=traces.provider)])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    published, processed = traces.one(PUBLISH), traces.one(PROCESS)
    answered = traces.one("publish events:stock.reserved")
    assert traces.names == [PUBLISH, PROCESS, "publish events:stock.reserved"]
    assert (published.kind, processed.kind, answered.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.PRODUCER)
    assert (parent_of(published), parent_of(processed), parent_of(answered)) == (
        None,
        id_of(published),
        id_of(processed),
    )
    assert not processed.links


async def test_spans_say_which_event_it_is_and_where_it_goes(traces: Traces) -> None:
    async with running(Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=traces.provider)])) as probe:
        told = await probe.bus.publish(OrderPlaced("o-1"), correlation_id="c-1")
        await probe.settled()
        size = len(probe.messages[0].body)

    assert traces.one(PUBLISH).attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "events:order.placed",
        "messaging.rabbitmq.destination.routing_key": "order.placed",
        "messaging.message.id": str(told.id),
        "messaging.message.conversation_id": "c-1",
        "messaging.message.body.size": size,
        "rabbitevents.event.type": "order.placed",
        "rabbitevents.entity.type": "order",
        "rabbitevents.entity.id": "o-1",
    }
    processed = dict(traces.one(PROCESS).attributes or {})
    wait = processed.pop("rabbitevents.wait")
    assert isinstance(wait, float)
    assert 0 <= wait < 5
    assert processed == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "events:order.placed:inventory.reserve",
        "messaging.rabbitmq.destination.routing_key": "order.placed",
        "messaging.rabbitmq.message.delivery_tag": 1,
        "messaging.message.id": str(told.id),
        "messaging.message.conversation_id": "c-1",
        "rabbitevents.event.type": "order.placed",
        "rabbitevents.entity.type": "order",
        "rabbitevents.entity.id": "o-1",
        "rabbitevents.queue": "inventory.reserve",
        "rabbitevents.attempt": 1,
        "rabbitevents.outcome": "ack",
    }
    assert says(traces.one("publish events:stock.reserved"), "rabbitevents.causation.id") == str(told.id)


async def test_with_link_an_attempt_is_a_root_that_is_linked_to_its_producer(traces: Traces) -> None:
    tracing = Tracing(tracer_provider=traces.provider, link=True)
    async with running(Bus("memory://", inventory(), plugins=[tracing])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    published, processed = traces.one(PUBLISH), traces.one(PROCESS)
    assert processed.parent is None
    assert trace_of(processed) != trace_of(published)
    assert linked(processed, "producer") == [id_of(published)]
    assert parent_of(traces.one("publish events:stock.reserved")) == id_of(processed)


async def test_a_publish_is_the_child_of_whatever_is_current(traces: Traces) -> None:
    tracer = traces.provider.get_tracer("web")
    async with Bus("memory://", plugins=[Tracing(tracer_provider=traces.provider)]) as bus:
        with tracer.start_as_current_span("POST /orders"):
            await bus.publish(OrderPlaced("o-1"))
            after = trace.get_current_span()
            assert after.is_recording()

    assert parent_of(traces.one(PUBLISH)) == id_of(traces.one("POST /orders"))


async def test_attempts_are_not_children_of_what_was_current_when_the_bus_started(traces: Traces) -> None:
    bus = Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=traces.provider)])
    with traces.provider.get_tracer("main").start_as_current_span("main"):
        async with running(bus) as probe:
            foreign = Message(
                exchange="events",
                routing_key="order.placed",
                body=b'{"order_id":"o-1"}',
                properties=Properties(type="order.placed", content_type="application/json"),
            )
            await probe.bus.send(foreign)
            await probe.settled()

    assert traces.one(PROCESS).parent is None


async def test_what_a_plain_function_publishes_is_the_attempt_s_child_too(traces: Traces) -> None:
    router = Router("inventory")
    current = list[trace.Span]()

    @router.on(OrderPlaced)
    def reserve(order: OrderPlaced) -> StockReserved:
        current.append(trace.get_current_span())
        return StockReserved(order.order_id)

    async with running(Bus("memory://", router, plugins=[Tracing(tracer_provider=traces.provider)])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert current[0].get_span_context().span_id == id_of(traces.one(PROCESS))
    assert parent_of(traces.one("publish events:stock.reserved")) == id_of(traces.one(PROCESS))


async def test_a_span_is_named_after_the_pattern_where_routing_keys_may_be_many(traces: Traces) -> None:
    router = Router("audit")

    @router.on("payment.*", "order.#")
    async def record(told: Event) -> None: ...

    async with running(Bus("memory://", router, plugins=[Tracing(tracer_provider=traces.provider)])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    processed = traces.one("process events:order.#:audit.record")
    assert says(processed, "messaging.destination.template") == "events:order.#:audit.record"
    assert says(processed, "messaging.destination.name") == "events:order.placed:audit.record"


async def test_a_delayed_event_says_how_long_it_was_to_wait_and_did(traces: Traces) -> None:
    async with running(Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=traces.provider)])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"), delay=timedelta(minutes=1))
        await probe.advance(timedelta(minutes=2))

    assert says(traces.one(PUBLISH), "rabbitevents.delay") == 60.0
    assert parent_of(traces.one(PROCESS)) == id_of(traces.one(PUBLISH))


async def test_an_event_that_nobody_is_bound_for_says_so(traces: Traces) -> None:
    async with Bus("memory://", plugins=[Tracing(tracer_provider=traces.provider)]) as bus:
        await bus.publish(OrderPlaced("o-1"))

    assert says(traces.one(PUBLISH), "rabbitevents.unroutable") is True


async def test_a_publish_that_failed_says_with_what(traces: Traces) -> None:
    bus = Bus("memory://", plugins=[Tracing(tracer_provider=traces.provider)], unroutable="raise")
    async with bus:
        with pytest.raises(UnroutableError):
            await bus.publish(OrderPlaced("o-1"))

    span = traces.one(PUBLISH)
    assert span.status.status_code is StatusCode.ERROR
    assert says(span, "error.type") == "rabbitevents.UnroutableError"
    assert "order.placed" in (span.status.description or "")


# --- what failed -----------------------------------------------------------------------------------------------------


async def test_a_failed_attempt_says_with_which_error_and_where_but_not_its_text(traces: Traces) -> None:
    plugins = [DeadLetter(), Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    span = traces.one(PROCESS)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert says(span, "error.type") == "LookupError"
    where = says(span, "rabbitevents.error.location")
    assert isinstance(where, str)
    assert where.startswith("test_tracing.py:")
    assert where.endswith("in inventory.<locals>.reserve")
    assert says(span, "rabbitevents.outcome") == "failed"
    (told,) = span.events
    said = dict(told.attributes or {})
    stack = str(said.pop("exception.stacktrace")).split("\n")
    assert (told.name, said) == ("exception", {"exception.type": "LookupError"})
    assert stack[-1].startswith('File "')
    assert stack[-1].endswith("in inventory.<locals>.reserve")
    assert "no such shelf" not in str(told.attributes)


async def test_an_error_s_text_is_shown_if_it_is_asked_for(traces: Traces) -> None:
    plugins = [DeadLetter(), Tracing(tracer_provider=traces.provider, error_text=True)]
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    span = traces.one(PROCESS)
    assert span.status.description == "LookupError: no such shelf"
    assert (span.events[0].attributes or {})["exception.message"] == "no such shelf"


async def test_what_an_attempt_s_publish_says_is_said_again_only_where_no_publish_was_traced(traces: Traces) -> None:
    foreign = Message(
        exchange="events",
        routing_key="order.placed",
        body=b'{"order_id":"o-1"}',
        properties=Properties(
            type="order.placed", content_type="application/json", app_id="elsewhere", headers={"causation-id": "c-0"}
        ),
    )
    async with running(Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=traces.provider)])) as probe:
        await probe.bus.send(foreign)
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    names = ("messaging.message.body.size", "rabbitevents.source", "rabbitevents.causation.id")
    said = [[says(span, name) for name in names] for span in traces.all(PROCESS)]
    assert said == [[18, "elsewhere", "c-0"], [None, None, None]]


async def test_what_cannot_be_decoded_is_an_attempt_that_failed(traces: Traces) -> None:
    plugins = [DeadLetter(), Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", inventory(), plugins=plugins)) as probe:
        broken = Message(
            exchange="events",
            routing_key="order.placed",
            body=b'{"order_id":',
            properties=Properties(type="order.placed", content_type="application/json"),
        )
        await probe.bus.send(broken)
        await probe.settled()

    span = traces.one(PROCESS)
    assert says(span, "error.type") == "rabbitevents.DecodeError"
    assert traces.names == [PROCESS, "dead-letter inventory.reserve.dead"]


async def test_a_cancelled_attempt_ends_its_span_and_leaves_no_context_behind(traces: Traces) -> None:
    router, begun = Router("inventory"), asyncio.Event()

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> None:
        begun.set()
        await asyncio.sleep(60)

    bus = Bus("memory://", router, plugins=[Tracing(tracer_provider=traces.provider)], grace=0.01)
    async with running(bus) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        async with asyncio.timeout(5):
            await begun.wait()

    assert says(traces.one(PROCESS), "error.type") == "asyncio.exceptions.CancelledError"
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize("how", ["returns", "raises", "is cancelled"])
async def test_the_context_is_detached_however_it_ends(traces: Traces, how: str) -> None:
    tracing = Tracing(tracer_provider=traces.provider)
    message = Message(exchange="events", routing_key="k", body=b"", properties=Properties(message_id="1"))
    delivery = Delivery("q", 1, 1, False, "events", "k", b"", message.properties)
    inside = list[trace.Span]()

    async def end(_: object) -> Settlement:
        inside.append(trace.get_current_span())
        if how == "raises":
            raise LookupError
        if how == "is cancelled":
            raise asyncio.CancelledError
        return ACK

    async def sent(_: Message) -> None:
        await end(_)

    before = context.get_current()
    for hook in (tracing.consume(end, delivery), tracing.publish(sent, message)):
        try:
            await hook
        except (LookupError, asyncio.CancelledError):
            assert how != "returns"
        assert context.get_current() == before

    assert len(traces.spans) == 2
    assert all(span.is_recording() is False for span in inside)
    assert len({span.get_span_context().span_id for span in inside}) == 2


# --- where it stands -------------------------------------------------------------------------------------------------


def test_tracing_stands_inside_retry_and_dead_letters() -> None:
    with pytest.raises(ConfigurationError, match=r"write plugins=\[DeadLetter\(\), Retry\(\), Tracing\(\)\]"):
        Bus("memory://", plugins=[Tracing(), DeadLetter(), Retry()])


async def test_a_message_passes_the_plugins_further_in_with_its_trace(traces: Traces) -> None:
    seen = list[str]()

    class Outbox(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            seen.append(str(message.headers["traceparent"]))

    plugins = [Tracing(tracer_provider=traces.provider), Outbox()]
    async with Bus("memory://", plugins=plugins) as bus:
        await bus.publish(OrderPlaced("o-1"))

    assert f"{id_of(traces.one(PUBLISH)):016x}" in seen[0]


@pytest.mark.parametrize("package", ["rabbitevents_tracing", "rabbitevents_metrics"])
def test_without_opentelemetry_the_import_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules['opentelemetry'] = None; import {package}"
    paths = os.pathsep.join(sys.path)

    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )

    said = ended.stderr.splitlines()[-1]
    assert said == f"ModuleNotFoundError: {package} needs OpenTelemetry: pip install 'rabbitevents[otel]'"


@pytest.mark.parametrize("package", ["rabbitevents_tracing", "rabbitevents_metrics"])
def test_the_api_is_all_that_is_imported(package: str) -> None:
    code = f"import sys, {package}; print([n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    paths = os.pathsep.join(sys.path)

    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ended.stdout.strip() == "[]"
