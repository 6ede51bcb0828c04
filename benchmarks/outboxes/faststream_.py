"""faststream-outbox as its documentation shows it: a RabbitMQ publisher stacked on a subscriber of the table.

By default one worker takes ten rows at a time. `Tuned` has what its page on performance recommends for a high rate: more
workers, larger fetches, and rows deleted together.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, ClassVar

from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.outboxes.workload import EXCHANGE, PREFETCH, QUEUE, TYPE, Contender, Document, Handle, compete

faststream_outbox: Any = import_module("faststream_outbox")  # by name: it need not be there to look at this file

TABLE_QUEUE = "orders_outbox"


class FastStreamOutbox(Contender):
    packages = ("faststream-outbox", "faststream", "pydantic", "orjson", "SQLAlchemy", "asyncpg", "aio-pika", "aiormq")
    order = "not kept: a row that fails is tried again later, and those after it go on"
    woken = "by NOTIFY in the transaction"
    table = "outbox"
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, postgres: str, amqp: str) -> None:
        super().__init__(postgres, amqp)
        self._metadata = MetaData()
        self._table = faststream_outbox.make_outbox_table(self._metadata, table_name=self.table)
        self._outbox: Any = faststream_outbox.OutboxBroker(self.engine, outbox_table=self._table, logger=None)
        self._exchange = RabbitExchange(EXCHANGE, type=ExchangeType.TOPIC, durable=True)

    async def create(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(self._metadata.create_all)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        yield

    async def write(self, session: AsyncSession, order: Document) -> None:
        await self._outbox.publish(order, queue=TABLE_QUEUE, session=session)

    async def fill(self, session: AsyncSession, orders: Sequence[Document]) -> None:
        await self._outbox.publish_batch(*orders, queue=TABLE_QUEUE, session=session)

    def _relay(self, rabbit: RabbitBroker) -> None:
        publisher = rabbit.publisher(exchange=self._exchange, routing_key=TYPE, persist=True, mandatory=True)

        async def relay(body: dict[str, Any]) -> dict[str, Any]:
            return body

        publisher(self._outbox.subscriber(TABLE_QUEUE, **self.settings)(relay))

    @asynccontextmanager
    async def relaying(self) -> AsyncIterator[None]:
        rabbit = RabbitBroker(self.amqp, logger=None)
        self._relay(rabbit)
        async with rabbit:
            await self._outbox.start()
            yield
            await self._outbox.stop()

    @asynccontextmanager
    async def serving(self, handle: Handle, *, writes: bool) -> AsyncIterator[None]:
        rabbit = RabbitBroker(self.amqp, logger=None, default_channel=Channel(prefetch_count=PREFETCH))
        queue = RabbitQueue(QUEUE, queue_type=QueueType.QUORUM, durable=True, routing_key=TYPE)

        @rabbit.subscriber(queue, self._exchange)
        async def take(body: dict[str, Any]) -> None:
            handle(body["number"])

        self._relay(rabbit)
        async with rabbit:
            await rabbit.start()
            await self._outbox.start()
            yield
            await self._outbox.stop()


class Tuned(FastStreamOutbox):
    settings: ClassVar[dict[str, Any]] = {
        "max_workers": 8,
        "fetch_batch_size": 500,
        "min_fetch_interval": 0.1,
        "terminal_flush_batch_size": 100,
    }


if __name__ == "__main__":
    compete("benchmarks.outboxes.faststream_", FastStreamOutbox)
