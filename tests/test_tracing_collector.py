"""A service whose collector is away, or slow: it goes on, in bounded memory, and OpenTelemetry says so in its own way.

``python -m tests.test_tracing_collector ENDPOINT`` is such a service: loggers are shared by all of a process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from rabbitevents import Bus
from rabbitevents.testing import running
from rabbitevents_metrics import Metrics
from rabbitevents_tracing import Tracing
from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.otlp import Collector
from tests.test_tracing import OrderPlaced, inventory

ROOT = Path(__file__).parent.parent
SECONDS = 6.0
"""How long the service runs at least: a batch is tried several times in that."""
BOUND = 2048 + 512 + 200
"""Spans that may be alive: those that the batch processor keeps, those under way to the collector, and ours. So many events
are published at least, each with several spans, however long that takes on a busy machine: then the queue is full."""


# --- the service -----------------------------------------------------------------------------------------------------


class Written(logging.Handler):
    """Notes what is written to the log, from whatever thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry"):
            self.lines.append(record.getMessage())


async def serve(endpoint: str) -> dict[str, Any]:
    """Publish and handle as many events as there is time for; return what came of it."""
    written = Written()
    logging.getLogger().addHandler(written)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces"), schedule_delay_millis=200)
    )
    published = 0
    async with running(Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=provider)])) as probe:
        end = asyncio.get_running_loop().time() + SECONDS
        while asyncio.get_running_loop().time() < end or published < BOUND:
            await probe.bus.publish(OrderPlaced("o-1"))
            published += 1
            probe.messages.clear()
            if published % 100 == 0:
                await probe.settled()
        alive = sum(issubclass(type(each), ReadableSpan) for each in gc.get_objects())
    leaving = threading.Thread(target=provider.shutdown, daemon=True)
    leaving.start()
    leaving.join(3)
    return {"published": published, "alive": alive, "written": written.lines}


# --- the tests -------------------------------------------------------------------------------------------------------


async def outcome(endpoint: str) -> dict[str, Any]:
    """Run the service in a process of its own."""
    command = [sys.executable, "-m", "tests.test_tracing_collector", endpoint]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins")))}
    ended = await asyncio.to_thread(
        subprocess.run, command, env=environment, stdout=subprocess.PIPE, timeout=100, check=True
    )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


async def test_with_the_collector_away_spans_are_dropped_and_it_is_said() -> None:
    told = await outcome(f"http://{LOOPBACK}:{free_port()}")

    assert told["alive"] <= BOUND
    assert any("Queue full" in line for line in told["written"])
    assert any("retrying" in line for line in told["written"])
    assert len(told["written"]) < 50


async def test_with_a_slow_collector_spans_are_dropped_and_it_is_said(otlp: Collector) -> None:
    otlp.delay = 3.0

    told = await outcome(otlp.endpoint)

    assert told["alive"] <= BOUND
    assert any("Queue full" in line for line in told["written"])
    assert len(otlp.spans) < told["published"]


async def test_with_the_collector_there_nothing_is_said() -> None:
    with Collector() as collector:
        told = await outcome(collector.endpoint)

    assert [line for line in told["written"] if "Queue full" not in line] == []
    assert collector.spans


async def test_loggers_of_others_are_as_they_were() -> None:
    def as_it_is() -> dict[str, tuple[int, bool, list[object]]]:
        loggers = {name: logging.getLogger(name) for name in logging.root.manager.loggerDict}
        others = {name: each for name, each in loggers.items() if not name.startswith("rabbitevents")}
        return {name: (each.level, each.disabled, [*each.filters]) for name, each in others.items()}

    before = as_it_is()
    provider, meters = TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False)
    plugins = [Tracing(tracer_provider=provider), Metrics(meter_provider=meters)]
    async with running(Bus("memory://", inventory(), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert any(name.startswith("opentelemetry.exporter.") for name in before)
    assert {name: how for name, how in as_it_is().items() if name in before} == before


if __name__ == "__main__":
    print(json.dumps(asyncio.run(serve(sys.argv[1]))))
