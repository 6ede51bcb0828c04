"""taskiq over taskiq-aio-pika: an order is the argument of a task, with a pydantic model for its type.

It writes messages of its own: no content type, id, timestamp or type, but two headers. They are not mandatory.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from aio_pika import ExchangeType
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker
from taskiq_aio_pika.exchange import Exchange
from taskiq_aio_pika.queue import Queue

from benchmarks.contenders.python.faststream_pydantic import OrderPlaced
from benchmarks.roles import compete
from benchmarks.workload import PREFETCH, WORKERS, Contender, Document, Handle, Publish, handler, type_name


class Taskiq(Contender):
    packages = ("taskiq", "taskiq-aio-pika", "pydantic", "aio-pika", "aiormq")

    def order(self, document: Document) -> Any:
        return OrderPlaced(**document)

    def broker(self) -> AioPikaBroker:
        logging.disable(logging.WARNING)
        return AioPikaBroker(
            self.told.url,
            qos=PREFETCH,
            exchange=Exchange(name=self.told.exchange, type=ExchangeType.TOPIC, declare=False),
            task_queues=[Queue(name=self.told.queue, declare=False, routing_key=type_name)],
        )

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Publish]:
        broker = self.broker()

        @broker.task(task_name=type_name)
        async def on_order(order: OrderPlaced) -> None: ...

        await broker.startup()
        yield on_order.kiq
        await broker.shutdown()

    @asynccontextmanager
    async def consumer(self, handle: Handle) -> AsyncIterator[None]:
        broker = self.broker()
        broker.task(task_name=type_name)(handler(handle, self.told.pause, OrderPlaced))
        broker.is_worker_process = True
        await broker.startup()
        receiving = asyncio.create_task(run_receiver_task(broker, max_async_tasks=WORKERS, max_prefetch=PREFETCH))
        yield
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            await receiving
        await broker.shutdown()


if __name__ == "__main__":
    compete(Taskiq, Taskiq.packages)
