"""A table by hand, as many articles show it: rows are taken by FOR UPDATE SKIP LOCKED, sent by aio-pika, and deleted.

500 at a time, their confirms awaited together, in one transaction. Who finds nothing looks again after 0.1 s.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from typing import Any
from uuid import UUID, uuid4

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from sqlalchemy import BigInteger, Column, DateTime, Identity, MetaData, Table, Text, Uuid, func, insert
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.outboxes.workload import (
    EXCHANGE,
    PREFETCH,
    QUEUE,
    TYPE,
    WORKERS,
    Contender,
    Document,
    Handle,
    compete,
    thing,
)

asyncpg: Any = import_module("asyncpg")  # by name: it says no types

BATCH = 500
POLL = 0.1

metadata = MetaData()
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("event_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("entity_id", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
inbox = Table(
    "inbox",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("handled_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
TAKE = "SELECT id, event_id, type, entity_id, payload FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED"
DONE = "DELETE FROM outbox WHERE id = ANY($1::bigint[])"


def message(body: bytes, event_id: UUID, type: str, entity: str) -> aio_pika.Message:
    return aio_pika.Message(
        body,
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=str(event_id),
        timestamp=datetime.now(UTC),
        type=type,
        headers={"entity-id": entity},
    )


def row(order: Document) -> dict[str, Any]:
    return {"event_id": uuid4(), "type": TYPE, "entity_id": order["order_id"], "payload": order}


class ByHand(Contender):
    packages = ("SQLAlchemy", "asyncpg", "aio-pika", "aiormq")
    order = "kept as long as one relay runs and nothing is refused"
    woken = "by looking each 0.1 s"
    table = "outbox"
    inboxes = ("session by hand", "INSERT ... ON CONFLICT by hand")

    async def create(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        yield

    async def write(self, session: AsyncSession, order: Document) -> None:
        await session.execute(insert(outbox), row(order))

    async def fill(self, session: AsyncSession, orders: Sequence[Document]) -> None:
        await session.execute(insert(outbox), [row(order) for order in orders])

    @asynccontextmanager
    async def relaying(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._relay())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _relay(self) -> None:
        database = await asyncpg.connect(self.postgres.replace("+asyncpg", ""))
        async with await aio_pika.connect(self.amqp) as connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange(EXCHANGE, ensure=False)
            while True:
                if await self._batch(database, exchange) < BATCH:
                    await asyncio.sleep(POLL)

    async def _batch(self, database: Any, exchange: AbstractExchange) -> int:
        async with database.transaction():
            rows = await database.fetch(TAKE, BATCH)
            if rows:
                await asyncio.gather(*(self._send(exchange, each) for each in rows))
                await database.execute(DONE, [each["id"] for each in rows])
        return len(rows)

    async def _send(self, exchange: AbstractExchange, row: Any) -> None:
        made = message(row["payload"].encode(), row["event_id"], row["type"], row["entity_id"])
        await exchange.publish(made, row["type"], mandatory=True)

    @asynccontextmanager
    async def serving(self, handle: Handle, *, writes: bool) -> AsyncIterator[None]:
        async with self.relaying(), await aio_pika.connect(self.amqp) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(QUEUE, ensure=False)

            async def take(message: AbstractIncomingMessage) -> None:
                handle(json.loads(message.body)["number"])
                await message.ack()

            tag = await queue.consume(take)
            yield
            await queue.cancel(tag)

    async def feed(self, orders: Sequence[Document]) -> None:
        async with await aio_pika.connect(self.amqp) as connection:
            exchange = await (await connection.channel()).get_exchange(EXCHANGE, ensure=False)
            for first in range(0, len(orders), BATCH):
                made = [
                    message(json.dumps(order).encode(), uuid4(), TYPE, order["order_id"])
                    for order in orders[first : first + BATCH]
                ]
                await asyncio.gather(*(exchange.publish(each, TYPE, mandatory=True) for each in made))

    @asynccontextmanager
    async def handling(self, way: str, handle: Handle) -> AsyncIterator[None]:
        marks = way != self.inboxes[0]
        workers = asyncio.Semaphore(WORKERS)

        async def take(message: AbstractIncomingMessage) -> None:
            order = json.loads(message.body)
            async with workers:
                async with self.sessions.begin() as session:
                    if not marks or await self._is_new(session, message):
                        session.add(thing(order["number"]))
                handle(order["number"])
                await message.ack()

        async with await aio_pika.connect(self.amqp) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(QUEUE, ensure=False)
            tag = await queue.consume(take)
            yield
            await queue.cancel(tag)

    async def _is_new(self, session: AsyncSession, message: AbstractIncomingMessage) -> bool:
        mark = insert_postgresql(inbox).on_conflict_do_nothing().returning(inbox.c.event_id)
        return (await session.execute(mark, {"event_id": UUID(message.message_id)})).first() is not None


if __name__ == "__main__":
    compete("benchmarks.outboxes.by_hand", ByHand)
