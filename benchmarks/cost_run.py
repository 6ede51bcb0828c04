"""One measurement of `core_cost.py`, in a process of its own: of the library that the path leads to, by public names only."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from attrs import frozen

import rabbitevents
from rabbitevents import Bus, Router, event

WARM_UP = 1_000
IN_FLIGHT = 100
AT_A_TIME = 500
PREFETCH = 200


@event("order.placed", entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    customer_id: str
    total: float
    quantity: int
    note: str


class Meter:
    """Measures from the warm-up's end to the last event: the process's CPU time, or Python's calls."""

    def __init__(self, events: int, *, counting: bool) -> None:
        self.events = events
        self.done = asyncio.Event()
        self._counting = counting
        self._seen = 0
        self._started = 0.0
        self._calls = dict.fromkeys(("calls", "ours", "handed_over"), 0)

    def saw(self, number: int = 1) -> None:
        """Take note of events that are through."""
        before, self._seen = self._seen, self._seen + number
        if before < WARM_UP <= self._seen:
            self._begin()
        if self._seen >= self.events:
            self.done.set()

    def _begin(self) -> None:
        self._skipped = self._seen
        gc.collect()
        self._started = time.process_time()
        if self._counting:
            sys.setprofile(self._count)

    def end(self) -> dict[str, float]:
        """Return what was measured, an event."""
        spent = time.process_time() - self._started
        sys.setprofile(None)
        events = self._seen - self._skipped
        if self._counting:
            return {name: number / events for name, number in self._calls.items()}
        return {"cpu_us": spent / events * 1e6}

    def _count(self, frame: Any, what: str, _: object) -> None:
        if what != "call":
            return
        code = frame.f_code
        self._calls["calls"] += 1
        self._calls["ours"] += "/rabbitevents" in code.co_filename
        self._calls["handed_over"] += code.co_qualname == "Handle._run"


async def measure(what: str, url: str, events: int, *, counting: bool, fill: bool) -> dict[str, float]:
    """Measure one thing against the broker at ``url``; ``fill`` where it has a queue that must be there and be full."""
    meter = Meter(events, counting=counting)
    router = Router("cost")
    order = OrderPlaced("order-00000001", "customer-00001", 87.25, 3, "Please leave it")

    @router.on(OrderPlaced, prefetch=PREFETCH)
    async def take(order: OrderPlaced) -> None:
        meter.saw()

    async def nobody(count: int) -> None:
        async with Bus(url, name="filler") as bus:
            for _ in range(0, count, AT_A_TIME):
                await bus.publish_many([order] * AT_A_TIME)

    if fill:
        async with Bus(url, router):
            pass
        if what == "consume":
            await nobody(events + AT_A_TIME)
    if what == "consume":
        return await _consumed(Bus(url, router), meter)
    return await _published(Bus(url, name="publisher"), order, what, meter)


async def _consumed(bus: Bus, meter: Meter) -> dict[str, float]:
    async with bus:
        await meter.done.wait()
        await _turns()
        return meter.end()


async def _published(bus: Bus, order: object, what: str, meter: Meter) -> dict[str, float]:
    async def one_after_the_other(count: int) -> None:
        for _ in range(count):
            await bus.publish(order)
            meter.saw()

    async with bus:
        if what == "publish":
            await asyncio.gather(*(one_after_the_other(meter.events // IN_FLIGHT) for _ in range(IN_FLIGHT)))
        else:
            while not meter.done.is_set():
                await bus.publish_many([order] * AT_A_TIME)
                meter.saw(AT_A_TIME)
        await _turns()
        return meter.end()


async def _turns() -> None:
    """Let the loop write what is due."""
    for _ in range(10):
        await asyncio.sleep(0)


def main() -> None:
    """Measure, and print the figures as a line of JSON. The library must be that of the checkout that is meant."""
    parser = argparse.ArgumentParser(prog="cost_run.py")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("what", choices=("consume", "publish", "publish_many"))
    parser.add_argument("url")
    parser.add_argument("events", type=int)
    parser.add_argument("--count", action="store_true", help="count calls instead of measuring time")
    parser.add_argument("--fill", action="store_true", help="the broker has queues: declare one, and fill it")
    told = parser.parse_args()
    found = Path(rabbitevents.__file__).resolve()
    if not found.is_relative_to(told.checkout.resolve()):
        sys.exit(f"rabbitevents is taken from {found}, not from {told.checkout}")
    logging.disable(logging.CRITICAL)
    figures = asyncio.run(measure(told.what, told.url, told.events, counting=told.count, fill=told.fill))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
