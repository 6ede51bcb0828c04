"""aio-pika by hand: what a careful user writes without a framework."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.workload import PREFETCH, Contender, Document, Handle, Publish, compete, headers, type_name


@dataclass(frozen=True, slots=True)
class Item:
    product_id: str
    title: str
    quantity: int
    price: float


@dataclass(frozen=True, slots=True)
class OrderPlaced:
    order_id: str
    customer_id: str
    currency: str
    total: float
    items: list[Item]
    note: str


def decode(body: bytes) -> OrderPlaced:
    document = json.loads(body)
    document["items"] = [Item(**item) for item in document["items"]]
    return OrderPlaced(**document)


class RawAioPika(Contender):
    queue = "bench.raw_aio_pika"
    exchange = "bench.raw_aio_pika"
    packages = ("aio-pika", "aiormq")

    def order(self, document: Document) -> Document:
        return document

    async def declare(self, url: str) -> None:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange(self.exchange, aio_pika.ExchangeType.TOPIC, durable=True)
            queue = await channel.declare_queue(self.queue, durable=True, arguments={"x-queue-type": "quorum"})
            await queue.bind(exchange, type_name)

    @asynccontextmanager
    async def publisher(self, url: str) -> AsyncIterator[Publish]:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange(self.exchange, ensure=False)

            async def publish(order: Document) -> None:
                message = aio_pika.Message(
                    json.dumps(order, separators=(",", ":")).encode(),
                    content_type="application/json",
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    message_id=str(uuid4()),
                    timestamp=datetime.now(UTC),
                    type=type_name,
                    headers=headers,
                )
                await exchange.publish(message, type_name, mandatory=True)

            yield publish

    @asynccontextmanager
    async def consumer(self, url: str, handle: Handle) -> AsyncIterator[None]:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(self.queue, ensure=False)

            async def on_message(message: AbstractIncomingMessage) -> None:
                handle(decode(message.body).order_id)
                await message.ack()

            tag = await queue.consume(on_message)
            yield
            await queue.cancel(tag)


if __name__ == "__main__":
    compete(RawAioPika())
