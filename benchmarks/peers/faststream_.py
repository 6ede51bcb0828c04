"""FastStream, with a durable queue, persistent messages, and an acknowledgement after the work (its default)."""

from __future__ import annotations

import asyncio
import os
import sys

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from benchmarks.peers.work import PREFETCH, QUEUE, publish, started, work

broker = RabbitBroker(os.environ["AMQP_URL"], default_channel=Channel(prefetch_count=PREFETCH))
app = FastStream(broker)


async def serve() -> None:
    @broker.subscriber(RabbitQueue(QUEUE, durable=True))
    async def take(lane: str, number: int) -> None:
        await work(lane, number)

    app.after_startup(started)
    await app.run()


async def send() -> None:
    async with broker:

        async def put(lane: str, number: int) -> None:
            await broker.publish({"lane": lane, "number": number}, queue=QUEUE, persist=True)

        await publish(put)


if __name__ == "__main__":
    asyncio.run({"serve": serve, "publish": send}[sys.argv[1]]())
