"""rabbitevents as its documentation shows it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import frozen
from cattrs.preconf.json import make_converter

from benchmarks.workload import PREFETCH, Contender, Document, Handle, Publish, compete
from rabbitevents import Bus, Router, event


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
    queue = "bench.rabbitevents.on_order"
    exchange = "bench.rabbitevents"
    leftovers = ("bench.rabbitevents.dead", "bench.rabbitevents.due", "bench.rabbitevents.on_order.dead")
    packages = ("rabbitevents", "aio-pika", "aiormq", "msgspec", "attrs", "cattrs")

    def __init__(self) -> None:
        self._structure = make_converter().structure

    def order(self, document: Document) -> OrderPlaced:
        return self._structure(document, OrderPlaced)

    async def declare(self, url: str) -> None:
        async with self.consumer(url, lambda _: None):
            pass

    @asynccontextmanager
    async def publisher(self, url: str) -> AsyncIterator[Publish]:
        async with Bus(url, name="bench", exchange=self.exchange) as bus:
            yield bus.publish

    @asynccontextmanager
    async def consumer(self, url: str, handle: Handle) -> AsyncIterator[None]:
        router = Router("bench.rabbitevents")

        @router.on(OrderPlaced, prefetch=PREFETCH, concurrency=16)
        async def on_order(order: OrderPlaced) -> None:
            handle(order.order_id)

        async with Bus(url, router, exchange=self.exchange):
            yield


if __name__ == "__main__":
    compete(RabbitEvents())
