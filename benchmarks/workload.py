"""What Python's contenders have in common: the orders, what they are told, and the clock.

A contender is a small module in ``contenders/python/`` that says how its library publishes and consumes; `roles.py` has
it do so. Nothing here knows a library under test.
"""

import asyncio
import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
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


def handler(handle: Handle, pause: float, order_class: type) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """Return the handler of a framework that decodes as the handler's annotation says: into ``order_class``."""

    async def on_order(order: Any) -> None:
        if pause:
            await asyncio.sleep(pause)
        handle(order.order_id)

    on_order.__annotations__["order"] = order_class  # as it would be written beside that class
    return on_order


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


async def at_a_rate(rate: int, events: int, one: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Begin with so many numbers a second, from 0.3 s on, each in a task of its own; return when all are done."""
    async with asyncio.TaskGroup() as tasks:
        start = time.perf_counter() + 0.3
        for number in range(events):
            if (early := start + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            tasks.create_task(one(number))


QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}


def quantiles(delays: Sequence[float], names: Sequence[str] = tuple(QUANTILES)) -> Reading:
    """Return the median, and what 99 and 99.9 of a hundred are below, in milliseconds."""
    ordered = sorted(delays)
    return {name: ordered[int(QUANTILES[name] * (len(ordered) - 1))] * 1e3 for name in names}


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
