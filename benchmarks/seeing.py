"""What `Tracing` and `Metrics` add to an event, in us of CPU time, without a broker: ``python -m benchmarks.seeing``.

Each is measured alone around a chain that does nothing, and the least of the rounds stands: other load only adds to it.
Spans go to a batch processor whose exporter discards them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from rabbitevents import ACK, Delivery, Message, Plugin, Properties, Settlement, encode_properties
from rabbitevents_metrics import Metrics
from rabbitevents_tracing import Tracing

ID = "0193a1b2-7c1a-7e3b-9f00-0123456789ab"


class Discarding(SpanExporter):
    """What is exported goes nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to close."""


def tracing(share: float) -> Tracing:
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Discarding(), max_queue_size=100_000))
    return Tracing(tracer_provider=provider)


def metrics() -> Metrics:
    return Metrics(meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False))


def order() -> Message:
    headers: dict[str, Any] = {
        "event-version": 1,
        "entity-type": "order",
        "entity-id": "o-1",
        "event-time": datetime.now(UTC).isoformat(),
    }
    properties = Properties(
        content_type="application/json", message_id=ID, type="order.placed", correlation_id=ID, app_id="shop",
        timestamp=int(time.time()), delivery_mode=2, headers=headers,
    )  # fmt: skip
    return Message(exchange="events", routing_key="order.placed", body=b"x" * 400, properties=properties)


async def least(once: Callable[[int], Awaitable[object]], events: int, rounds: int) -> float:
    """Return the CPU time of one call in us, of the best round."""
    best = float("inf")
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        for number in range(events):
            await once(number)
        best = min(best, (time.process_time() - began) / events * 1e6)
    return best


async def measure(plugin: Plugin, events: int, rounds: int) -> tuple[float, float]:
    """Return what publishing and handling an event costs with a plugin around nothing."""
    sent: list[Message] = []

    async def out(message: Message) -> None:
        sent[:] = [message]

    async def handled(_: Delivery) -> Settlement:
        return ACK

    message = order()
    await plugin.publish(out, message)
    raw = encode_properties(sent[0].properties)

    async def consume(number: int) -> None:
        delivery = Delivery("inventory.reserve", number, 1, False, "events", "order.placed", b"x" * 400, raw)
        await plugin.consume(handled, delivery)

    async def publish(_: int) -> None:
        await plugin.publish(out, message)

    return await least(publish, events, rounds), await least(consume, events, rounds)


async def table(events: int, rounds: int) -> None:
    nothing = await measure(Plugin(), events, rounds)
    print(f"{'':24s}{'publish':>10s}{'handle':>10s}")
    contenders = {"tracing, all sampled": tracing(1.0), "tracing, none sampled": tracing(0.0), "metrics": metrics()}
    for name, plugin in contenders.items():
        found = await measure(plugin, events, rounds)
        print(f"{name:24s}{found[0] - nothing[0]:>7.1f} us{found[1] - nothing[1]:>7.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(prog="seeing.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=15)
    told = parser.parse_args()
    asyncio.run(table(told.events, told.rounds))


if __name__ == "__main__":
    main()
