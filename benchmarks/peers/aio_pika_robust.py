"""aio-pika with a robust connection, as its quick start has it."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import aio_pika

from benchmarks.peers.work import PREFETCH, QUEUE, publish, started, stopped, work


async def serve() -> None:
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.declare_queue(QUEUE, durable=True)

        async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            async with message.process():
                document = json.loads(message.body)
                await work(document["lane"], document["number"])

        await queue.consume(on_message)
        started()
        await stopped().wait()


async def send() -> None:
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    async with connection:
        channel = await connection.channel(publisher_confirms=True)

        async def put(lane: str, number: int) -> None:
            body = json.dumps({"lane": lane, "number": number}).encode()
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, routing_key=QUEUE)

        await publish(put)


if __name__ == "__main__":
    asyncio.run({"serve": serve, "publish": send}[sys.argv[1]]())
