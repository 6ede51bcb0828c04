"""What every contender does: the same orders, the same phases, the same clock.

A contender is a small module in ``contenders/`` that says how its library declares, publishes and consumes.
``compete`` runs one phase of it in this process and prints what came out as one line of JSON, which ``end_to_end.py``
reads. Nothing here knows a library under test.
"""

import argparse
import asyncio
import gc
import json
import resource
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

IN_FLIGHT = 500
PREFETCH = 200
WARM_UP = 1_000
"""Events that go before the clock starts: the interpreter specialises its bytecode, the window opens."""
LATENCY_RATE = 1_000
QUIET = 0.3
"""Seconds a consumer stays open after the last event, so that one too many would be seen."""

type_name = "order.placed"
headers: dict[str, Any] = {"event-version": 1, "entity-type": "order"}
"""What a contender without headers of its own sends with each event."""

Document = dict[str, Any]
Publish = Callable[[Any], Awaitable[object]]
Handle = Callable[[str], None]


def document(number: int) -> Document:
    """Return the order of that number: about 400 bytes as JSON, with a list of objects inside."""
    return {
        "order_id": f"order-{number:08d}",
        "customer_id": f"customer-{number % 997:05d}",
        "currency": "EUR",
        "total": 87.25,
        "items": [
            {"product_id": "product-1001", "title": "Kettle, 1.7 litres", "quantity": 2, "price": 21.5},
            {"product_id": "product-1002", "title": "Teapot, stoneware", "quantity": 1, "price": 39.75},
            {"product_id": "product-1003", "title": "Tea, Assam", "quantity": 1, "price": 4.5},
        ],
        "note": "Please leave it with the neighbours.",
    }


class Contender(ABC):
    """A client library, as far as the benchmark needs it."""

    queue: str
    exchange: str
    leftovers: tuple[str, ...] = ()
    """Further exchanges and queues that ``declare`` makes for this contender alone, to be deleted at the end."""
    packages: tuple[str, ...]
    """The distributions whose versions belong beside the figures."""

    @abstractmethod
    def order(self, document: Document) -> Any:
        """Return what ``publish`` takes for this document."""

    @abstractmethod
    async def declare(self, url: str) -> None:
        """Declare a durable topic exchange and a durable quorum queue bound to it by ``order.placed``."""

    @abstractmethod
    def publisher(self, url: str) -> AbstractAsyncContextManager[Publish]:
        """Enter with a function that publishes one order, persistent and mandatory, and returns at its confirm."""

    @abstractmethod
    def consumer(self, url: str, handle: Handle) -> AbstractAsyncContextManager[None]:
        """Consume while entered: decode each order into a class, call ``handle`` with its id, acknowledge it."""


class Clock:
    """Wall time and this process's CPU time, over a number of events."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()

    def reading(self, events: int) -> dict[str, float]:
        """Return events a second and microseconds of CPU an event since the clock was made."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"rate": events / wall, "cpu_us": cpu / events * 1e6}


@dataclass
class Tally:
    """The handler's part: counts what arrives, starts the clock after the warm-up, tells when all are there."""

    expected: int
    warm_up: int
    seen: list[str] = field(default_factory=list)
    clock: Clock | None = None
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, order_id: str) -> None:
        self.seen.append(order_id)
        arrived = len(self.seen)
        if arrived == self.warm_up:
            self.clock = Clock()
        elif arrived == self.expected:
            self.complete.set()

    def verify(self) -> None:
        """Raise unless every order came exactly once."""
        distinct = len(set(self.seen))
        if not len(self.seen) == distinct == self.expected:
            raise RuntimeError(f"{len(self.seen)} events handled, {distinct} distinct, {self.expected} expected")


def settle_the_collector() -> None:
    """Keep what was prepared out of the garbage collector's way, for every contender alike."""
    gc.collect()
    gc.freeze()


def version_of(package: str) -> str:
    """Return a distribution's version, or that it runs from the working tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(working tree)"


async def declare(contender: Contender, url: str, _events: int) -> dict[str, Any]:
    await contender.declare(url)
    return {
        "queue": contender.queue,
        "exchange": contender.exchange,
        "leftovers": contender.leftovers,
        "versions": {package: version_of(package) for package in contender.packages},
    }


async def publish_one(contender: Contender, url: str, events: int) -> dict[str, Any]:
    """Publish one after the other, each awaited."""
    warm_up = min(WARM_UP, events // 10)
    orders = [contender.order(document(number)) for number in range(events + warm_up)]
    settle_the_collector()
    async with contender.publisher(url) as publish:
        for order in orders[:warm_up]:
            await publish(order)
        clock = Clock()
        for order in orders[warm_up:]:
            await publish(order)
        return {**clock.reading(events), "left": len(orders)}


async def publish_many(contender: Contender, url: str, events: int) -> dict[str, Any]:
    """Publish from 500 tasks, each of which awaits its confirm before it goes on: 500 are in flight at any time."""
    orders = [contender.order(document(number)) for number in range(events + WARM_UP)]
    settle_the_collector()

    async def publish_all(publish: Publish, orders: list[Any]) -> None:
        remaining = iter(orders)

        async def publish_the_next() -> None:
            for order in remaining:
                await publish(order)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(publish_the_next())

    async with contender.publisher(url) as publish:
        await publish_all(publish, orders[:WARM_UP])
        clock = Clock()
        await publish_all(publish, orders[WARM_UP:])
        return {**clock.reading(events), "left": len(orders)}


async def consume(contender: Contender, url: str, events: int) -> dict[str, Any]:
    """Consume what ``publish_many`` left in the queue."""
    tally = Tally(events + WARM_UP, WARM_UP)
    settle_the_collector()
    async with contender.consumer(url, tally):
        await tally.complete.wait()
        for _ in range(10):  # whoever is about to acknowledge gets a turn of the loop to do it
            await asyncio.sleep(0)
        assert tally.clock is not None
        reading = tally.clock.reading(events)
        await asyncio.sleep(QUIET)
    tally.verify()
    return {**reading, "left": 0}


async def latency(contender: Contender, url: str, events: int) -> dict[str, Any]:
    """Publish 1,000 orders a second and time each from before ``publish`` until its handler runs, in one process."""
    total = events + WARM_UP
    orders = [contender.order(document(number)) for number in range(total)]
    published: dict[str, float] = {}
    delays: list[float] = []
    complete = asyncio.Event()

    def handle(order_id: str) -> None:
        delays.append(time.perf_counter() - published[order_id])
        if len(delays) == total:
            complete.set()

    async def publish_at(due: float, publish: Publish, number: int) -> None:
        await asyncio.sleep(due - time.perf_counter())
        published[document(number)["order_id"]] = time.perf_counter()
        await publish(orders[number])

    settle_the_collector()
    async with contender.consumer(url, handle), contender.publisher(url) as publish, asyncio.TaskGroup() as tasks:
        start = time.perf_counter() + 0.5
        for number in range(total):
            due = start + number / LATENCY_RATE
            if (early := due - time.perf_counter()) > 0.05:
                await asyncio.sleep(early - 0.02)
            tasks.create_task(publish_at(due, publish, number))
        await complete.wait()
    measured = delays[WARM_UP:]
    hundredths = statistics.quantiles(measured, n=100, method="inclusive")
    return {"p50_ms": hundredths[49] * 1e3, "p99_ms": hundredths[98] * 1e3, "left": 0}


PHASES: dict[str, Callable[[Contender, str, int], Coroutine[None, None, dict[str, Any]]]] = {
    "declare": declare,
    "publish_one": publish_one,
    "publish_many": publish_many,
    "consume": consume,
    "latency": latency,
}


def compete(contender: Contender) -> None:
    """Run the phase that the command line names and print its result as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--phase", choices=PHASES, required=True)
    parser.add_argument("--events", type=int, default=20_000)
    arguments = parser.parse_args()
    result = asyncio.run(PHASES[arguments.phase](contender, arguments.url, arguments.events))
    result["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result), flush=True)
