"""FastStream as its documentation shows it: handlers typed by pydantic models; or with its middlewares for seeing.

Its logger is off, as in FastStream's own benchmarks: by default it writes two lines a message.
"""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from pydantic import BaseModel

from benchmarks.roles import compete
from benchmarks.workload import Contender, Document, Handle, Publish, Told, handler, headers, type_name


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
    order_class: ClassVar[type] = OrderPlaced

    def __init__(self, told: Told, middlewares: Sequence[Any] = ()) -> None:
        super().__init__(told)
        self._middlewares = middlewares
        self._exchange = RabbitExchange(told.exchange, type=ExchangeType.TOPIC, durable=True, declare=False)
        self._queue = RabbitQueue(told.queue, declare=False)

    def order(self, document: Document) -> Any:
        return OrderPlaced(**document)

    def settings(self) -> dict[str, Any]:
        """Return what a broker is told."""
        channel = Channel(prefetch_count=self.told.at_a_time)
        return {"logger": None, "default_channel": channel, "middlewares": self._middlewares}

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Publish]:
        async with RabbitBroker(self.told.url, **self.settings()) as broker:
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
    async def consumer(self, handle: Handle) -> AsyncIterator[None]:
        broker = RabbitBroker(self.told.url, **self.settings())
        broker.subscriber(self._queue)(handler(handle, self.told.pause, self.order_class))
        async with broker:
            await broker.start()
            yield


def made(told: Told) -> Contender:
    if sys.argv[1] != "seeing":
        return FastStreamPydantic(told)
    from benchmarks.observed import middlewares

    return FastStreamPydantic(told, middlewares("tracing 1 in 100, metrics", 0))


if __name__ == "__main__":
    compete(made, FastStreamPydantic.packages)
