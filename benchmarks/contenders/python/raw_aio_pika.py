"""aio-pika by hand: what a careful user writes without a framework."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.contenders.python.orders import decode
from benchmarks.roles import compete
from benchmarks.workload import Contender, Document, Handle, Publish, headers, type_name


class RawAioPika(Contender):
    packages = ("aio-pika", "aiormq")

    def order(self, document: Document) -> Document:
        return document

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Publish]:
        async with await aio_pika.connect(self.told.url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange(self.told.exchange, ensure=False)

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
    async def consumer(self, handle: Handle) -> AsyncIterator[None]:
        pause = self.told.pause
        async with await aio_pika.connect(self.told.url) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=self.told.at_a_time)
            queue = await channel.get_queue(self.told.queue, ensure=False)

            async def on_message(message: AbstractIncomingMessage) -> None:
                order = decode(message.body)
                if pause:
                    await asyncio.sleep(pause)
                handle(order.order_id)
                await message.ack()

            tag = await queue.consume(on_message)
            yield
            await queue.cancel(tag)


if __name__ == "__main__":
    compete(RawAioPika, RawAioPika.packages)
