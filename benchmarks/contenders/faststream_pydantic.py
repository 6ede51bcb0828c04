"""FastStream as its documentation shows it: handlers typed by pydantic models.

Its logger is off, as in FastStream's own benchmarks: by default it writes two lines a message.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue
from pydantic import BaseModel

from benchmarks.workload import PREFETCH, Contender, Document, Handle, Publish, compete, headers, type_name


class Item(BaseModel):
    product_id: str
    title: str
    quantity: int
    price: float


class OrderPlaced(BaseModel):
    order_id: str
    customer_id: str
    currency: str
    total: float
    items: list[Item]
    note: str


class FastStreamPydantic(Contender):
    packages = ("faststream", "fast-depends", "pydantic", "orjson", "aio-pika", "aiormq")

    def __init__(self, name: str = "bench.faststream_pydantic") -> None:
        self.queue = self.exchange = name
        self._exchange = RabbitExchange(name, type=ExchangeType.TOPIC, durable=True)
        self._queue = RabbitQueue(name, queue_type=QueueType.QUORUM, durable=True, routing_key=type_name)

    def order(self, document: Document) -> Any:
        return OrderPlaced(**document)

    def broker(self, url: str) -> RabbitBroker:
        return RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=PREFETCH))

    def handler(self, handle: Handle) -> Callable[[Any], Awaitable[None]]:
        async def on_order(order: OrderPlaced) -> None:
            handle(order.order_id)

        return on_order

    async def declare(self, url: str) -> None:
        async with self.broker(url) as broker:
            exchange = await broker.declare_exchange(self._exchange)
            queue = await broker.declare_queue(self._queue)
            await queue.bind(exchange, type_name)

    @asynccontextmanager
    async def publisher(self, url: str) -> AsyncIterator[Publish]:
        async with self.broker(url) as broker:
            await broker.start()

            async def publish(order: Any) -> None:
                await broker.publish(
                    order,
                    exchange=self._exchange,
                    routing_key=type_name,
                    mandatory=True,
                    persist=True,
                    headers=headers,
                    message_type=type_name,
                )

            yield publish

    @asynccontextmanager
    async def consumer(self, url: str, handle: Handle) -> AsyncIterator[None]:
        broker = self.broker(url)
        broker.subscriber(self._queue, self._exchange)(self.handler(handle))
        async with broker:
            await broker.start()
            yield


if __name__ == "__main__":
    compete(FastStreamPydantic())
