"""What only this library is asked: how long it takes to start, and what an event costs where much is subscribed.

``own.py start URL HANDLERS`` prints the seconds until a bus with so many handlers runs; ``own.py cost URL TYPES
SUBSCRIPTIONS`` the CPU time of an event that is published and handled in one process. Each is one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import attrs

from benchmarks.workload import Clock, Reading, settle_the_collector
from rabbitevents import Bus, Event, Router, event

EVENTS = 4_000
WARM_UP = 1_000
AT_A_TIME = 100


def event_class(number: int) -> type:
    """Return an event class of its own."""
    made = attrs.make_class(
        f"Thing{number}", {"thing_id": attrs.field(type=str), "size": attrs.field(type=int)}, frozen=True
    )
    return event(f"thing.kind{number}", version=1, entity="thing", key="thing_id")(made)


async def start(url: str, handlers: int) -> Reading:
    """Start a bus with handlers that have a queue each."""
    router = Router("bench")
    for number in range(handlers):

        async def handle(event: Event[Any]) -> None: ...

        router.on(event_class(number), name=f"handler{number}")(handle)
    clock = Clock()
    async with Bus(url, router):
        reading = clock.reading(1)
    return {"seconds": reading["seconds"], "cpu_seconds": reading["cpu_seconds"]}


async def cost(url: str, types: int, subscriptions: int) -> Reading:
    """Publish events of all types in turn, each of which one of the subscriptions handles."""
    classes = [event_class(number) for number in range(types)]
    router = Router("bench")
    handled = 0
    caught_up = asyncio.Event()

    async def handle(event: Event[Any]) -> None:
        nonlocal handled
        handled += 1
        if handled % AT_A_TIME == 0:
            caught_up.set()

    for number in range(subscriptions):
        router.on(*classes[number::subscriptions], name=f"handler{number}", prefetch=200)(handle)
    events = [
        classes[number % types](thing_id=f"thing-{number:08d}", size=number) for number in range(WARM_UP + EVENTS)
    ]
    async with Bus(url, router) as bus:
        settle_the_collector()
        clock = Clock()
        for begin in range(0, len(events), AT_A_TIME):
            if begin == WARM_UP:
                clock = Clock()
            caught_up.clear()
            await bus.publish_many(events[begin : begin + AT_A_TIME])
            await caught_up.wait()
        return clock.reading(EVENTS)


MEASURES: Mapping[str, Any] = {"start": start, "cost": cost}


def main() -> None:
    """Measure what the words say."""
    logging.disable(logging.CRITICAL)
    what, url, *numbers = sys.argv[1:]
    began = time.perf_counter()
    found = asyncio.run(MEASURES[what](url, *map(int, numbers)))
    print(json.dumps(found | {"whole_seconds": time.perf_counter() - began}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
