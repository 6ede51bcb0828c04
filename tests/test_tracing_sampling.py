"""What OpenTelemetry's SDK is promised: samplers, processors, limits and id generators of anybody's see all, and are obeyed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.span import TraceState

from rabbitevents import Bus
from rabbitevents.testing import running
from rabbitevents_tracing import Tracing
from rabbitevents_tracing.attributes import Said
from tests.test_tracing import OrderPlaced, Traces, inventory


class Choosing(Sampler):
    """Samples one order, and its attempts, by what their spans say."""

    def __init__(self, order: str, decision: Decision = Decision.RECORD_AND_SAMPLE) -> None:
        self.order = order
        self.decision = decision
        self.seen: list[dict[str, Any]] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.seen.append(dict(attributes or {}))
        is_it = (attributes or {}).get("rabbitevents.entity.id") == self.order
        return SamplingResult(self.decision if is_it else Decision.DROP, {**(attributes or {}), "chosen": True})

    def get_description(self) -> str:
        return "Choosing"


async def place_two(provider: TracerProvider) -> None:
    async with running(Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=provider)])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.bus.publish(OrderPlaced("o-2"))
        await probe.settled()


async def test_a_sampler_sees_all_that_a_span_says_at_its_beginning_and_may_add_to_it() -> None:
    sampler = Choosing("o-2")
    traces = Traces(TracerProvider(sampler=sampler, shutdown_on_exit=False))

    await place_two(traces.provider)

    published = next(each for each in sampler.seen if each["messaging.operation.name"] == "publish")
    handled = next(each for each in sampler.seen if each["messaging.operation.name"] == "process")
    assert {"messaging.message.id", "rabbitevents.event.type", "messaging.message.body.size"} <= set(published)
    assert {"messaging.message.id", "rabbitevents.attempt", "rabbitevents.wait", "rabbitevents.queue"} <= set(handled)
    found = [dict(span.attributes or {}) for span in traces.spans]
    assert {str(each["rabbitevents.entity.id"]) for each in found if "rabbitevents.entity.id" in each} == {"o-2"}
    assert all(each["chosen"] for each in found)


async def test_what_is_recorded_and_not_sampled_reaches_a_processor_with_all_that_it_says() -> None:
    begun: list[dict[str, Any]] = []

    class Noting(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            begun.append(dict(span.attributes or {}))

    traces = Traces(TracerProvider(sampler=Choosing("o-1", Decision.RECORD_ONLY), shutdown_on_exit=False))
    traces.provider.add_span_processor(Noting())

    await place_two(traces.provider)

    assert [each["messaging.operation.name"] for each in begun][:2] == ["publish", "process"]
    assert all(each["messaging.message.id"] for each in begun[:2])
    assert traces.spans == []


async def test_limits_of_the_provider_hold() -> None:
    limits = SpanLimits(max_span_attributes=6, max_span_attribute_length=8)
    traces = Traces(TracerProvider(span_limits=limits, shutdown_on_exit=False))

    await place_two(traces.provider)

    assert traces.spans
    for span in traces.spans:
        assert len(span.attributes or {}) <= 6
        assert all(len(str(value)) <= 8 for value in (span.attributes or {}).values())
        assert span.dropped_attributes > 0


async def test_ids_are_those_of_the_provider_s_generator() -> None:
    class Counting(IdGenerator):
        last = 0

        def generate_span_id(self) -> int:
            Counting.last += 1
            return Counting.last

        def generate_trace_id(self) -> int:
            return 0xFEED

    traces = Traces(TracerProvider(id_generator=Counting(), shutdown_on_exit=False))

    await place_two(traces.provider)

    contexts = [span.context for span in traces.spans if span.context is not None]
    assert {context.trace_id for context in contexts} == {0xFEED}
    assert sorted(context.span_id for context in contexts) == list(range(1, len(contexts) + 1))


def test_attributes_are_made_once_and_only_if_somebody_asks() -> None:
    made: list[int] = []

    def make() -> dict[str, str | int | float | bool]:
        made.append(1)
        return {"type": "order.placed", "size": 17}

    dropped, kept = Said(make), Said(make)
    for sampler in (ALWAYS_OFF, ALWAYS_OFF):
        TracerProvider(sampler=sampler, shutdown_on_exit=False).get_tracer("t").start_span("s", attributes=dropped)
    nobody_asked = list(made)

    span = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False).get_tracer("t").start_span("s", attributes=kept)

    assert nobody_asked == []
    assert made == [1]
    assert isinstance(span, Span)
    assert dict(span.attributes or {}) == dict(kept) == {"type": "order.placed", "size": 17}
    assert (kept["size"], len(kept), made) == (17, 2, [1])
