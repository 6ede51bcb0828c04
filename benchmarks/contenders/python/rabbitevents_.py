"""rabbitevents as its documentation shows it, with nothing in its chain or with what the first word says.

Its queue is its own: a router's name and a handler's. A queue of another kind than it declares is used as it is there.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from attrs import frozen
from cattrs.preconf.json import make_converter

from benchmarks.roles import compete
from benchmarks.workload import PREFETCH, WORKERS, Contender, Document, Handle, Publish, Told, handler
from rabbitevents import Bus, Plugin, Router, event

REDIS = "RABBITEVENTS_BENCHMARK_REDIS"
"""The variable that says where Redis is."""


@frozen
class Item:
    product_id: str
    title: str
    quantity: int
    price: float


@event("order.placed", version=1, entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    customer_id: str
    currency: str
    total: float
    items: list[Item]
    note: str


class RabbitEvents(Contender):
    packages = ("rabbitevents", "aio-pika", "aiormq", "msgspec", "attrs", "cattrs")
    concurrency = 16

    def __init__(self, told: Told, plugins: Sequence[Plugin] = ()) -> None:
        super().__init__(told)
        self._structure = make_converter().structure
        self._plugins = plugins

    def order(self, document: Document) -> OrderPlaced:
        return self._structure(document, OrderPlaced)

    def bus(self, *routers: Router) -> Bus:
        """Return a bus; where the queue is there and is none of its own kind, it is left as it is."""
        as_it_is = "classic" in self.told.queue
        declare: Any = "none" if as_it_is else "active"
        return Bus(
            self.told.url, *routers, name="bench", exchange=self.told.exchange, plugins=self._plugins, declare=declare
        )

    def router(self, handle: Handle) -> Router:
        pause = self.told.pause
        router = Router(self.told.queue.rpartition(".")[0])
        subscribe = router.on(OrderPlaced, prefetch=PREFETCH, concurrency=WORKERS if pause else self.concurrency)
        subscribe(handler(handle, pause, OrderPlaced))
        return router

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Publish]:
        async with self.bus() as self._bus:
            yield self._bus.publish

    async def publish_all(self, publish: Publish, orders: Sequence[Any]) -> None:
        await self._bus.publish_many(orders)

    @asynccontextmanager
    async def consumer(self, handle: Handle) -> AsyncIterator[None]:
        async with self.bus(self.router(handle)):
            yield


class Chained(RabbitEvents):
    """With plugins in its chain, and as many workers as one gives to handlers that wait for a store."""

    concurrency = WORKERS


def on_memory() -> list[Plugin]:
    from rabbitevents_deadletter import DeadLetter
    from rabbitevents_idempotency import Idempotency, MemoryStore
    from rabbitevents_retry import Retry

    return [DeadLetter(), Retry(), Idempotency(MemoryStore(), keep=timedelta(minutes=10))]


def on_redis() -> list[Plugin]:
    from redis.asyncio import Redis

    from rabbitevents_deadletter import DeadLetter
    from rabbitevents_idempotency import Idempotency, RedisStore
    from rabbitevents_retry import Retry

    store = RedisStore(Redis.from_url(os.environ[REDIS]), prefix="bench:")
    return [DeadLetter(), Retry(), Idempotency(store, keep=timedelta(minutes=10))]


def traced() -> list[Plugin]:
    from benchmarks.observed import plugins

    return plugins("tracing 1 in 100", 0)


def whole_card() -> list[Plugin]:
    from benchmarks.observed import plugins

    dead_letters, retry, idempotency = on_redis()
    return [dead_letters, retry, *plugins("tracing 1 in 100, metrics", 0), idempotency]


CHAINS: Mapping[str, Callable[[], list[Plugin]]] = {
    "memory": on_memory,
    "redis": on_redis,
    "traced": traced,
    "card": whole_card,
}


async def declare(contender: RabbitEvents) -> dict[str, Any]:
    """Declare exchange and queue: with them, every plugin that has something to declare."""
    async with contender.consumer(lambda _: None):
        return {}


def made(told: Told) -> RabbitEvents:
    """Return the contender whose chain the first word names."""
    if sys.argv[1] in CHAINS:
        return Chained(told, CHAINS[sys.argv[1]]())
    return Chained(told) if sys.argv[1] == "bare" else RabbitEvents(told)


if __name__ == "__main__":
    if "declare" in sys.argv:
        print(json.dumps(asyncio.run(declare(made(Told.of(sys.argv[-10:]))))), flush=True)
    else:
        compete(made, RabbitEvents.packages)
