"""What lay for long, in Jaeger: linked traces, each of them short, found by the same id, and whole by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from rabbitevents_tracing import Tracing
from tests.jaeger.outline import on_the_page, outline, without_numbers
from tests.jaeger.server import Jaeger, Span
from tests.shop import eventually
from tests.test_tracing import OrderPlaced, inventory, replay
from tests.test_tracing_long_waits import HOUR, Aged

SHORT = timedelta(seconds=1)
"""What is a long wait here."""


def exporting(jaeger: Jaeger, service: str, **which: str) -> TracerProvider:
    """Return a provider whose spans are in Jaeger as soon as they have ended."""
    resource = Resource.create({"service.name": service, "host.name": "here", "ip": "here", **which})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{jaeger.otlp}/v1/traces")))
    return provider


def names(trace: list[Span]) -> list[str]:
    return [span.operation for span in trace]


async def test_an_order_that_waited_and_lay_dead_for_long_is_linked_traces(jaeger: Jaeger, rabbit_url: str) -> None:
    retry = Retry(stop=stop_after_attempt(2), wait=wait_fixed(2))
    tracing = Tracing(tracer_provider=exporting(jaeger, "inventory"), link=SHORT)

    def seen(name: str) -> bool:
        return name in jaeger.operations("inventory")

    async with Bus(rabbit_url, inventory(fail=2), plugins=[DeadLetter(), retry, tracing]) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: seen("dead-letter inventory.reserve.dead"), "the dead letter", 20)
        await asyncio.sleep(1.5)  # it lies dead for as long
        await replay(bus, "inventory.reserve")
        await eventually(lambda: seen("publish events:stock.reserved"), "the end of it", 20)

    traces = jaeger.find("inventory", tags={"rabbitevents.entity.id": "o-1"})
    traces.sort(key=lambda trace: trace[0].start)
    first, second, third = traces
    assert names(first) == ["publish", "process", "retry"]
    assert names(second) == ["process", "dead-letter"]
    assert names(third) == ["replay", "process", "publish"]
    assert [second[0].parent, third[0].parent, third[1].parent] == ["", "", third[0].id]
    assert set(second[0].links) == {first[0].id, first[1].id}
    assert second[0].id in third[0].links
    assert second[0].tags["rabbitevents.wait"] >= 1.9
    assert third[0].tags["rabbitevents.dead_for"] >= 1.4
    shown = on_the_page("events:order.placed|replay inventory.reserve")
    assert len(shown) == 8
    assert shown - without_numbers(map(outline, traces)) == set()
    for trace in traces:
        assert max(span.end for span in trace) - trace[0].start < 1
        assert [warning for span in trace for warning in span.warnings] == []
        assert jaeger.warnings_of_v3(trace[0].trace) == []


@pytest.mark.parametrize(("link", "warned"), [(None, False), (False, True)])
async def test_what_comes_late_is_whole_when_jaeger_has_forgotten_the_beginning(
    new_jaeger: Callable[[int], Jaeger], link: Any, warned: bool
) -> None:
    jaeger = new_jaeger(1)
    provider = exporting(jaeger, "forgotten")
    tracing = Tracing(tracer_provider=provider) if link is None else Tracing(tracer_provider=provider, link=link)
    retry = Retry(stop=stop_after_attempt(5), wait=wait_fixed(30))
    async with running(Bus("memory://", inventory(fail=1), plugins=[Aged(HOUR), retry, tracing])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await probe.bus.publish(OrderPlaced("o-2"))  # its trace takes the place of the first one
        await probe.settled()
        await probe.advance(timedelta(minutes=1))

    ((span, *rest),) = jaeger.find("forgotten", tags={"rabbitevents.entity.id": "o-1"})
    warnings = [warning for each in (span, *rest) for warning in each.warnings]
    assert any("invalid parent span IDs" in warning for warning in warnings) == warned
    assert bool(warnings) == warned
    assert names([span, *rest]) == (["wait", "process", "publish"] if warned else ["process", "publish"])
