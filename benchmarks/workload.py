"""What every Python contender does: the same orders, the same roles, the same clock. `README.md` has the words.

A contender is a small module in ``contenders/python/`` that says how its library publishes and consumes. `compete` runs
one role of it in this process and prints what came out as one line of JSON. Nothing here knows a library under test.
"""

import asyncio
import gc
import json
import platform
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

IN_FLIGHT = 500
PREFETCH = 200
WORKERS = 100
"""How many handlers that take 5 ms may run at a time."""
PAUSE = 0.005
QUIET = 0.3
"""Seconds a consumer stays open after the last event: one too many would be seen, and acknowledgements are."""

type_name = "order.placed"
headers: dict[str, Any] = {"event-version": 1, "entity-type": "order"}
"""What a contender without headers of its own sends with each event."""

Document = dict[str, Any]
Publish = Callable[[Any], Awaitable[object]]
Handle = Callable[[str], None]
Reading = dict[str, Any]

_CATALOGUE = (
    {"product_id": "product-1001", "title": "Kettle, 1.7 litres", "quantity": 2, "price": 21.5},
    {"product_id": "product-1002", "title": "Teapot, stoneware", "quantity": 1, "price": 39.75},
    {"product_id": "product-1003", "title": "Tea, Assam", "quantity": 1, "price": 4.5},
)


@dataclass(frozen=True)
class Told:
    """What the command line says: the ten words that contenders in every language are started with."""

    role: str
    url: str
    exchange: str
    queue: str
    events: int
    warm_up: int
    """Events that go before the clock starts: code is compiled, windows open."""
    first: int
    """The first order's number."""
    items: int
    note: int
    """How long the order's note is: the body's size follows from these two."""
    rate: int
    """Events a second, where the role is latency."""

    @classmethod
    def of(cls, words: Sequence[str]) -> "Told":
        return cls(words[0], words[1], words[2], words[3], *(int(word) for word in words[4:]))

    @property
    def total(self) -> int:
        return self.events + self.warm_up

    @property
    def pause(self) -> float:
        """Seconds that a handler takes."""
        return PAUSE if self.role == "consume_slow" else 0.0

    @property
    def at_a_time(self) -> int:
        """How many events the broker may let out to a client whose concurrency that is."""
        return WORKERS if self.pause else PREFETCH

    def documents(self) -> Iterator[Document]:
        for number in range(self.first, self.first + self.total):
            yield document(number, self.items, self.note)


def document(number: int, items: int = 3, note: int = 37) -> Document:
    """Return the order of that number: about 400 bytes as JSON, with a list of objects inside."""
    return {
        "order_id": f"order-{number:08d}",
        "customer_id": f"customer-{number % 997:05d}",
        "currency": "EUR",
        "total": 87.25,
        "items": list(_CATALOGUE[:items]),
        "note": _note(note),
    }


@cache
def _note(length: int) -> str:
    return "x" * length


class Contender(ABC):
    """An asynchronous client library, as far as the benchmark needs it. Exchange and queue are there already."""

    packages: tuple[str, ...]
    """The distributions whose versions belong beside the figures."""

    def __init__(self, told: Told) -> None:
        self.told = told

    @abstractmethod
    def order(self, document: Document) -> Any:
        """Return what ``publish`` takes for this document."""

    @abstractmethod
    def publisher(self) -> AbstractAsyncContextManager[Publish]:
        """Enter with a function that publishes one order, persistent and mandatory, and returns at its confirm."""

    @abstractmethod
    def consumer(self, handle: Handle) -> AbstractAsyncContextManager[None]:
        """Consume while entered: decode each order into a class, wait ``told.pause``, call ``handle``, acknowledge."""

    async def publish_all(self, publish: Publish, orders: Sequence[Any]) -> None:
        """Publish several at once, and return when all are confirmed."""
        await asyncio.gather(*map(publish, orders))


class SynchronousContender(ABC):
    """A client library that blocks."""

    packages: tuple[str, ...]

    def __init__(self, told: Told) -> None:
        self.told = told

    @abstractmethod
    def publisher(self) -> AbstractContextManager[Callable[[Document], object]]:
        """Enter with a function that publishes one order, and returns at its confirm."""

    @abstractmethod
    def consume(self, handle: Handle, complete: Callable[[], bool]) -> None:
        """Consume until it is complete."""


# --- the clock -----------------------------------------------------------------------------------------------------


class Clock:
    """Wall time and this process's CPU time, over a number of events."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()

    def reading(self, events: int) -> dict[str, float]:
        """Return what was measured since the clock was made."""
        seconds, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        each = {"rate": events / seconds, "cpu_us": cpu / events * 1e6}
        return {"events": events, "seconds": seconds, "cpu_seconds": cpu, **each}


@dataclass
class Tally:
    """The handler's part: counts what arrives, starts the clock after the warm-up, tells when all are there."""

    expected: int
    warm_up: int
    first: int = 0
    handled: int = 0
    clock: Clock | None = None
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.seen = bytearray(self.expected)

    def __call__(self, order_id: str) -> None:
        self.seen[int(order_id[6:]) - self.first] = 1
        self.count()

    def mark(self, number: int) -> None:
        """Take note of an order's number."""
        self.seen[number - self.first] = 1
        self.count()

    def count(self) -> None:
        """Count one more."""
        self.handled += 1
        if self.handled == self.warm_up:
            self.clock = Clock()
        elif self.handled == self.expected:
            self.complete.set()

    def reading(self) -> Reading:
        """Return what the clock shows, and how many were handled, of which how many differ."""
        assert self.clock is not None
        return self.clock.reading(self.expected - self.warm_up)

    def verify(self) -> None:
        """Raise unless every order came exactly once."""
        counts = self.counts()
        if not counts["handled"] == counts["distinct"] == self.expected:
            raise RuntimeError(f"{counts}, {self.expected} expected")

    def counts(self) -> Reading:
        """Return how many were handled, and how many of them differ."""
        return {"handled": self.handled, "distinct": sum(self.seen)}


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


# --- roles ---------------------------------------------------------------------------------------------------------

PublishAll = Callable[[Publish, Sequence[Any]], Coroutine[None, None, None]]


async def _published(contender: Contender, publish_all: PublishAll) -> Reading:
    told = contender.told
    orders = [contender.order(document) for document in told.documents()]
    settle_the_collector()
    async with contender.publisher() as publish:
        await publish_all(publish, orders[: told.warm_up])
        clock = Clock()
        await publish_all(publish, orders[told.warm_up :])
        return clock.reading(told.events)


async def publish_one(contender: Contender) -> Reading:
    """Publish one after the other, each awaited."""

    async def publish_all(publish: Publish, orders: Sequence[Any]) -> None:
        for order in orders:
            await publish(order)

    return await _published(contender, publish_all)


async def publish_in_flight(contender: Contender) -> Reading:
    """Publish from 500 tasks, each of which awaits its confirm before it goes on: 500 are in flight at any time."""

    async def publish_all(publish: Publish, orders: Sequence[Any]) -> None:
        remaining = iter(orders)

        async def publish_the_next() -> None:
            for order in remaining:
                await publish(order)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(publish_the_next())

    return await _published(contender, publish_all)


async def publish_batches(contender: Contender) -> Reading:
    """Publish 500 at once, and the next when all are confirmed."""

    async def publish_all(publish: Publish, orders: Sequence[Any]) -> None:
        for start in range(0, len(orders), IN_FLIGHT):
            await contender.publish_all(publish, orders[start : start + IN_FLIGHT])

    return await _published(contender, publish_all)


async def consume(contender: Contender) -> Reading:
    """Consume what is in the queue."""
    told = contender.told
    tally = Tally(told.total, told.warm_up, told.first)
    settle_the_collector()
    async with contender.consumer(tally):
        await tally.complete.wait()
        for _ in range(10):  # whoever is about to acknowledge gets a turn of the loop to do it
            await asyncio.sleep(0)
        reading = tally.reading()
        await asyncio.sleep(QUIET)
    return reading | tally.counts()


async def latency(contender: Contender) -> Reading:
    """Publish so many orders a second and time each from before ``publish`` until its handler runs, in one process."""
    told = contender.told
    orders = [contender.order(document) for document in told.documents()]
    published = [0.0] * told.total
    delays: list[float] = []
    complete = asyncio.Event()

    def handle(order_id: str) -> None:
        delays.append(time.perf_counter() - published[int(order_id[6:]) - told.first])
        if len(delays) == told.total:
            complete.set()

    async def publish_it(publish: Publish, number: int) -> None:
        published[number] = time.perf_counter()
        await publish(orders[number])

    settle_the_collector()
    async with contender.consumer(handle), contender.publisher() as publish, asyncio.TaskGroup() as tasks:
        start = time.perf_counter() + 0.3
        for number in range(told.total):
            if (early := start + number / told.rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            tasks.create_task(publish_it(publish, number))
        await complete.wait()
        await asyncio.sleep(QUIET)
    return quantiles(delays[told.warm_up :])


def quantiles(delays: list[float]) -> Reading:
    """Return the median and what 99 and 99.9 of a hundred are below, in milliseconds."""
    ordered = sorted(delays)
    named = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    found = {name: ordered[int(share * (len(ordered) - 1))] * 1e3 for name, share in named.items()}
    return {"events": len(ordered), **found}


def publish_one_synchronously(contender: SynchronousContender) -> Reading:
    told = contender.told
    orders = list(told.documents())
    settle_the_collector()
    with contender.publisher() as publish:
        for order in orders[: told.warm_up]:
            publish(order)
        clock = Clock()
        for order in orders[told.warm_up :]:
            publish(order)
        return clock.reading(told.events)


def consume_synchronously(contender: SynchronousContender) -> Reading:
    told = contender.told
    tally = Tally(told.total, told.warm_up, told.first)
    found: Reading = {}

    def complete() -> bool:
        if tally.handled == told.total and not found:
            found.update(tally.reading())
        return bool(found)

    settle_the_collector()
    contender.consume(tally, complete)
    return found | tally.counts()


ROLES: Mapping[str, Callable[[Contender], Coroutine[None, None, Reading]]] = {
    "publish_one": publish_one,
    "publish_in_flight": publish_in_flight,
    "publish_batches": publish_batches,
    "consume": consume,
    "consume_slow": consume,
    "latency": latency,
}
SYNCHRONOUS_ROLES: Mapping[str, Callable[[SynchronousContender], Reading]] = {
    "publish_one": publish_one_synchronously,
    "consume": consume_synchronously,
}


def run(contender: Contender | SynchronousContender) -> Reading:
    """Run the role that the contender was told."""
    if isinstance(contender, SynchronousContender):
        return SYNCHRONOUS_ROLES[contender.told.role](contender)
    return asyncio.run(ROLES[contender.told.role](contender))


def compete(made: Callable[[Told], Contender | SynchronousContender], packages: Sequence[str]) -> None:
    """Run the role that the command line names, print its result as one line of JSON, and wait for the input's end."""
    if sys.argv[-1] == "versions":
        versions = {"python": platform.python_version(), **{package: version_of(package) for package in packages}}
        print(json.dumps(versions), flush=True)
        return
    print(json.dumps(run(made(Told.of(sys.argv[-10:])))), flush=True)
    sys.stdin.read()
