"""aiormq by hand: what is below aio-pika."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import aiormq
from aiormq.abc import DeliveredMessage

from benchmarks.contenders.python.orders import decode
from benchmarks.roles import compete
from benchmarks.workload import Contender, Document, Handle, Publish, headers, type_name


class RawAiormq(Contender):
    packages = ("aiormq", "pamqp")

    def order(self, document: Document) -> Document:
        return document

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Publish]:
        connection = await aiormq.connect(self.told.url)
        channel = await connection.channel(publisher_confirms=True)

        async def publish(order: Document) -> None:
            await channel.basic_publish(
                json.dumps(order, separators=(",", ":")).encode(),
                exchange=self.told.exchange,
                routing_key=type_name,
                mandatory=True,
                properties=aiormq.spec.Basic.Properties(
                    content_type="application/json",
                    delivery_mode=2,
                    message_id=str(uuid4()),
                    timestamp=datetime.now(UTC),
                    message_type=type_name,
                    headers=headers,
                ),
            )

        yield publish
        await connection.close()

    @asynccontextmanager
    async def consumer(self, handle: Handle) -> AsyncIterator[None]:
        pause = self.told.pause
        connection = await aiormq.connect(self.told.url)
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=self.told.at_a_time)

        async def on_message(message: DeliveredMessage) -> None:
            order = decode(message.body)
            if pause:
                await asyncio.sleep(pause)
            handle(order.order_id)
            await channel.basic_ack(message.delivery_tag or 0)

        await channel.basic_consume(self.told.queue, on_message)
        yield
        await connection.close()


if __name__ == "__main__":
    compete(RawAiormq, RawAiormq.packages)
