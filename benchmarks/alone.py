"""What `Tracing`, `Metrics` and exporters add to an event, in us of CPU time, without a broker.

Each is measured around a chain that does nothing, and the least of the rounds stands: other load only adds to it. With an
exporter, every span is sent before the clock stops. `seeing.py` prints the table.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from benchmarks.observed import EXPORTERS, SHARES, collector, meter, tracer
from rabbitevents import ACK, Delivery, Message, Plugin, Properties, Settlement, encode_properties
from rabbitevents_metrics import Metrics
from rabbitevents_tracing import Tracing

ID = "0193a1b2-7c1a-7e3b-9f00-0123456789ab"
ROOM = 100_000
"""Spans that the batch processor keeps: none is to be dropped."""

Once = Callable[[int], Awaitable[object]]


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


async def least(once: Once, provider: TracerProvider | None, events: int, rounds: int) -> float:
    """Return the CPU time of one call in us, of the best round."""
    best = float("inf")
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        for number in range(events):
            await once(number)
        if provider is not None:
            provider.force_flush()
        best = min(best, (time.process_time() - began) / events * 1e6)
    return best


async def measure(plugin: Plugin, provider: TracerProvider | None, events: int, rounds: int) -> tuple[float, float]:
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

    return await least(publish, provider, events, rounds), await least(consume, provider, events, rounds)


async def table(events: int, rounds: int, exporters: list[str]) -> str:
    """Measure all, and return it as a Markdown table."""
    nothing = await measure(Plugin(), None, events, rounds)
    lines = ["| adds, in us of CPU time | to a publish | to an attempt |", "|---|---|---|"]

    async def add(name: str, plugin: Plugin, provider: TracerProvider | None = None) -> None:
        found = await measure(plugin, provider, events, rounds)
        lines.append(f"| {name} | {found[0] - nothing[0]:.1f} | {found[1] - nothing[1]:.1f} |")

    for name in ("all", "none"):
        await add(f"`Tracing`, {name} sampled", Tracing(tracer_provider=tracer(SHARES[name], max_queue_size=ROOM)))
    await add("`Metrics`", Metrics(meter_provider=meter()))
    for name in exporters:
        with collector(f", to {name}") as port:
            provider = tracer(1.0, EXPORTERS[name](port), max_queue_size=ROOM)
            await add(f"`Tracing`, all sampled, and sent by {name}", Tracing(tracer_provider=provider), provider)
            provider.shutdown()
    return "\n".join(lines)
