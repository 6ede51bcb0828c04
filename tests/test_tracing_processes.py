"""Traces of several processes over RabbitMQ, by the real exporter, as a collector receives them.

``python -m tests.test_tracing_processes SERVICE URL MODE`` is one of the services.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import frozen
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Delivery, Depth, Plugin, Router, event
from rabbitevents_deadletter import DeadLetter
from rabbitevents_metrics import Metrics
from rabbitevents_retry import Retry
from rabbitevents_tracing import Tracing
from tests.bed.otlp import Collector, Span
from tests.bed.processes import spawn
from tests.bed.rabbitmq import RabbitNode
from tests.test_tracing_conventions import METRICS, unconventional

ROOT = Path(__file__).parent.parent
BODY = "marker-in-the-body"
HEADER = "marker-in-the-header"
PASSWORD = "marker-in-the-password"


@event("order.placed", entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    note: str


@event("stock.reserved", entity="order", key="order_id")
@frozen
class StockReserved:
    order_id: str


@event("payment.processed", entity="order", key="order_id")
@frozen
class PaymentProcessed:
    order_id: str


# --- the services ----------------------------------------------------------------------------------------------------


def inventory() -> Router:
    router = Router("inventory")

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced, delivery: Delivery) -> StockReserved:
        assert order.note == BODY
        assert delivery.headers["meta-note"] == HEADER
        return StockReserved(order.order_id)

    return router


def payment() -> Router:
    router, tries = Router("payment"), list[str]()

    @router.on(StockReserved)
    async def charge(stock: StockReserved) -> PaymentProcessed:
        tries.append(stock.order_id)
        if len(tries) <= 2:
            raise ConnectionError("the bank does not answer")
        return PaymentProcessed(stock.order_id)

    return router


def notification() -> Router:
    router = Router("notification")

    @router.on(PaymentProcessed)
    def send(payment: PaymentProcessed) -> None: ...

    return router


SERVICES = {"inventory": inventory, "payment": payment, "notification": notification}


def provider(service: str, endpoint: str) -> TracerProvider:
    """Return what an application sets up: the SDK, and the exporter to a collector."""
    made = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    made.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=2), schedule_delay_millis=200)
    )
    return made


def meters(service: str, endpoint: str) -> MeterProvider:
    exporter = OTLPMetricExporter(f"{endpoint}/v1/metrics", timeout=2)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1000)
    return MeterProvider([reader], resource=Resource.create({"service.name": service}), shutdown_on_exit=False)


def plugins(traced: TracerProvider, measured: MeterProvider, link: bool) -> Sequence[Plugin]:
    return [
        DeadLetter(),
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(timedelta(seconds=1)), inline_below=0),
        Tracing(tracer_provider=traced, link=link),
        Metrics(meter_provider=measured),
    ]


def serve(service: str, url: str, endpoint: str, mode: str) -> None:
    logging.basicConfig(level=logging.DEBUG, format="%(name)s %(levelname)s %(message)s %(args)s")
    traced, measured = provider(service, endpoint), meters(service, endpoint)
    try:
        Bus(url, SERVICES[service](), plugins=plugins(traced, measured, mode == "link")).run()
    finally:
        traced.shutdown()
        measured.shutdown()


# --- the tests -------------------------------------------------------------------------------------------------------


@contextmanager
def process(service: str, url: str, endpoint: str, mode: str, log: Path) -> Generator[None]:
    """Run a service in a process of its own; it ends in good order, and what it has to say is exported."""
    command = [sys.executable, "-m", "tests.test_tracing_processes", service, url, endpoint, mode]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "plugins")))
    running = spawn(command, {**os.environ, "PYTHONPATH": paths}, log)
    try:
        yield
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0, log.read_text()[-3000:]
    finally:
        running.kill()
        running.wait()


async def story(otlp: Collector, url: str, link: bool, folder: Path) -> None:
    """Let an order's payment fail twice, wait at the broker, be dead-lettered and replayed."""
    mode = "link" if link else "child"
    traced, measured = provider("shop", otlp.endpoint), meters("shop", otlp.endpoint)
    with ExitStack() as running:
        for service in SERVICES:
            running.enter_context(process(service, url, otlp.endpoint, mode, folder / f"{service}.log"))
        async with Bus(url, name="shop", plugins=plugins(traced, measured, link)) as bus:
            for queue in ("inventory.reserve", "payment.charge", "notification.send"):
                await until(bus, queue, lambda depth: depth.consumers > 0)
            with traced.get_tracer("web").start_as_current_span("POST /orders"):
                await bus.publish(OrderPlaced("o-1", BODY), metadata={"note": HEADER})
            await came(otlp, "dead-letter payment.charge.dead")
            await replayed(bus, "payment.charge")
            await came(otlp, "process events:payment.processed:notification.send")
        await asyncio.to_thread(traced.shutdown)
        await asyncio.to_thread(measured.shutdown)


async def until(bus: Bus, queue: str, condition: Callable[[Depth], bool]) -> None:
    """Wait until a queue is there, and as it should be."""
    async with asyncio.timeout(30):
        while True:
            depth = await bus.depth(queue)
            if depth is not None and condition(depth):
                return
            await asyncio.sleep(0.1)


async def came(otlp: Collector, name: str) -> None:
    await asyncio.to_thread(otlp.wait, lambda: bool(otlp.named(name)), name, 60)


async def replayed(bus: Bus, queue: str) -> None:
    from rabbitevents_deadletter.letters import DeadLetterMessage

    await until(bus, f"{queue}.dead", lambda depth: depth.ready > 0)
    async with bus.browse(f"{queue}.dead") as look:
        async for delivery in look:
            await bus.send(DeadLetterMessage.of(delivery).replay())
            look.acknowledge(delivery)


def only(otlp: Collector, name: str) -> Span:
    (span,) = otlp.named(name)
    return span


CHARGE = "process events:stock.reserved:payment.charge"


async def test_one_order_is_one_trace(otlp: Collector, rabbit_url: str, tmp_path: Path) -> None:
    await story(otlp, rabbit_url, link=False, folder=tmp_path)

    first, second, third = otlp.named(CHARGE)
    request, placed = only(otlp, "POST /orders"), only(otlp, "publish events:order.placed")
    reserve, reserved = (
        only(otlp, "process events:order.placed:inventory.reserve"),
        only(otlp, "publish events:stock.reserved"),
    )
    retry, dead = only(otlp, "retry payment.charge"), only(otlp, "dead-letter payment.charge.dead")
    wait = only(otlp, "wait payment.charge")
    replay, paid = only(otlp, "replay payment.charge"), only(otlp, "publish events:payment.processed")
    sent = only(otlp, "process events:payment.processed:notification.send")

    assert {span.trace for span in otlp.spans} == {request.trace}
    assert len(otlp.spans) == 13
    assert {span.service for span in otlp.spans} == {"shop", *SERVICES}
    spans = (placed, reserve, reserved, first, retry, wait, second, dead, replay, third, paid, sent)
    assert [(span.name, span.parent) for span in spans] == [
        (placed.name, request.id),
        (reserve.name, placed.id),
        (reserved.name, reserve.id),
        (CHARGE, reserved.id),
        (retry.name, first.id),
        (wait.name, reserved.id),
        (CHARGE, reserved.id),
        (dead.name, second.id),
        (replay.name, reserved.id),
        (CHARGE, reserved.id),
        (paid.name, third.id),
        (sent.name, paid.id),
    ]  # fmt: skip
    assert [[link.span for link in span.links] for span in (first, second, third)] == [[], [first.id], [second.id]]
    assert [link.span for link in replay.links] == [second.id]
    assert {span.kind for span in (placed, reserved, paid)} == {"PRODUCER"}
    assert {span.kind for span in (reserve, first, second, third, sent)} == {"CONSUMER"}
    assert {span.kind for span in (retry, wait, dead, replay)} == {"INTERNAL"}
    assert [span.failed for span in (first, second, third, dead, retry)] == [True, True, False, True, False]
    assert first.attributes["error.type"] == second.attributes["error.type"] == "ConnectionError"
    assert [span.attributes["rabbitevents.attempt"] for span in (first, second, third)] == [1, 2, 1]
    assert retry.attributes["rabbitevents.delay"] == 1.0
    assert first.end <= wait.start
    assert wait.end == second.start
    assert replay.end == third.start
    assert 1.0 <= second.attributes["rabbitevents.wait"] < 30
    assert second.start - first.end >= 1e9
    assert first.attributes["messaging.message.id"] == third.attributes["messaging.message.id"]
    assert first.attributes["server.port"] == int(rabbit_url.rsplit(":", 1)[1].split("/")[0])
    assert {span.schema for span in otlp.spans} == {"", "https://opentelemetry.io/schemas/1.44.0"}


async def test_spans_and_metrics_of_all_processes_keep_to_the_conventions(
    otlp: Collector, rabbit_url: str, tmp_path: Path
) -> None:
    await story(otlp, rabbit_url, link=False, folder=tmp_path)

    ours = [span for span in otlp.spans if span.scope == "rabbitevents"]
    said = [span.attributes for span in ours]
    said += [link.attributes for span in ours for link in span.links]
    said += [point.attributes for point in otlp.points]
    counted = {point.attributes.get("rabbitevents.reason") for point in otlp.points}
    assert len(ours) == len(otlp.spans) - 1
    assert unconventional(name for attributes in said for name in attributes) == []
    assert unconventional(name for span in ours for event in span.events.values() for name in event) == []
    assert {point.metric for point in otlp.points if not point.metric.startswith("rabbitevents.")} <= set(METRICS)
    assert {point.service for point in otlp.points} == {"shop", *SERVICES}
    assert "ConnectionError" in counted


async def test_with_link_one_order_is_linked_traces(otlp: Collector, rabbit_url: str, tmp_path: Path) -> None:
    await story(otlp, rabbit_url, link=True, folder=tmp_path)

    first, second, third = otlp.named(CHARGE)
    reserved, paid = only(otlp, "publish events:stock.reserved"), only(otlp, "publish events:payment.processed")
    attempts = [span for span in otlp.spans if span.kind == "CONSUMER"]
    links = {span.id: [(link.attributes["rabbitevents.link"], link.span) for link in span.links] for span in attempts}

    assert {span.parent for span in attempts} == {""}
    assert len({span.trace for span in attempts}) == len(attempts) == 5
    assert links[first.id] == [("producer", reserved.id)]
    assert links[second.id] == [("producer", reserved.id), ("previous attempt", first.id)]
    assert links[third.id] == [("producer", reserved.id), ("previous attempt", second.id)]
    assert paid.trace == third.trace
    assert only(otlp, "retry payment.charge").trace == first.trace
    assert only(otlp, "wait payment.charge").trace == first.trace
    assert only(otlp, "replay payment.charge").trace == second.trace


async def test_nothing_secret_is_in_what_is_exported_or_logged(
    otlp: Collector, rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = rabbit_node.add_user(rabbit_url, "tracing-keeper", PASSWORD)
    rabbit_node.set_permissions(rabbit_url, ".*", ".*", ".*", user="tracing-keeper")

    with caplog.at_level(logging.DEBUG):
        await story(otlp, url, link=False, folder=tmp_path)

    exported = b"".join(otlp.requests)
    logged = caplog.text + "".join((tmp_path / f"{service}.log").read_text() for service in SERVICES)
    assert b"payment.charge" in exported
    assert "payment.charge" in logged
    for marker in (BODY, HEADER, PASSWORD):
        assert marker.encode() not in exported
        assert marker not in logged


if __name__ == "__main__":
    serve(*sys.argv[1:])
