"""rabbitevents' own outbox and inbox, with the settings that they have by default."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from attrs import frozen
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.outboxes.workload import (
    EXCHANGE,
    PREFETCH,
    WORKERS,
    Contender,
    Document,
    Handle,
    compete,
    thing,
)
from rabbitevents import Bus, Plugin, Router, event
from rabbitevents_idempotency import Idempotency, MemoryStore
from rabbitevents_outbox import Inbox, Outbox, Tables


@event("order.placed", version=1, entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    number: int
    customer_id: str
    total: float
    note: str


class RabbitEvents(Contender):
    packages = ("rabbitevents", "SQLAlchemy", "asyncpg", "msgspec", "attrs", "cattrs")
    order = "kept: each once the one before it is confirmed"
    woken = (
        "by the commit in its process; for others' it looks, each 10 ms while they write, each second after a silence"
    )
    table = "rabbitevents_outbox"
    inboxes = ("session by hand", "Idempotency, MemoryStore", "Inbox")

    def __init__(self, postgres: str, amqp: str) -> None:
        super().__init__(postgres, amqp)
        self.writer = Outbox(self.engine, relay=False)

    async def create(self) -> None:
        await Tables().create(self.engine)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async with Bus(self.amqp, name="bench", exchange=EXCHANGE, plugins=[self.writer]):
            yield

    async def write(self, session: AsyncSession, order: Document) -> None:
        await self.writer.publish(session, OrderPlaced(**order))

    async def fill(self, session: AsyncSession, orders: Sequence[Document]) -> None:
        await self.writer.publish(session, *(OrderPlaced(**order) for order in orders))

    @asynccontextmanager
    async def relaying(self) -> AsyncIterator[None]:
        async with Bus(self.amqp, name="bench", exchange=EXCHANGE, plugins=[Outbox(self.engine)]):
            yield

    @asynccontextmanager
    async def serving(self, handle: Handle, *, writes: bool) -> AsyncIterator[None]:
        router = Router("bench")

        @router.on(OrderPlaced, prefetch=PREFETCH)
        async def take(order: OrderPlaced) -> None:
            handle(order.number)

        outbox = Outbox(self.engine)
        if writes:
            self.writer = outbox
        async with Bus(self.amqp, router, exchange=EXCHANGE, plugins=[outbox]):
            yield

    async def feed(self, orders: Sequence[Document]) -> None:
        async with self.handling("session by hand", lambda _: None):  # which declares the queue
            pass
        async with Bus(self.amqp, name="bench", exchange=EXCHANGE) as bus:
            for first in range(0, len(orders), 500):
                await bus.publish_many([OrderPlaced(**order) for order in orders[first : first + 500]])

    @asynccontextmanager
    async def handling(self, way: str, handle: Handle) -> AsyncIterator[None]:
        router = Router("bench")
        plugins: dict[str, list[Plugin]] = {
            "session by hand": [],
            "Idempotency, MemoryStore": [Idempotency(MemoryStore())],
            "Inbox": [Inbox(self.sessions), Outbox(self.engine, relay=False)],
        }
        if way == "Inbox":

            @router.on(OrderPlaced, name="take", prefetch=PREFETCH, concurrency=WORKERS)
            async def marked(order: OrderPlaced, session: AsyncSession) -> None:
                session.add(thing(order.number))
                handle(order.number)
        else:

            @router.on(OrderPlaced, name="take", prefetch=PREFETCH, concurrency=WORKERS)
            async def by_hand(order: OrderPlaced) -> None:
                async with self.sessions.begin() as session:
                    session.add(thing(order.number))
                handle(order.number)

        async with Bus(self.amqp, router, exchange=EXCHANGE, plugins=plugins[way]):
            yield


if __name__ == "__main__":
    compete("benchmarks.outboxes.rabbitevents_", RabbitEvents)
