"""rabbitevents' own event store and projections, with the settings that they have by default."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from attrs import frozen
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.stores.workload import BLOCK, ENTITY, PAST, Contender, compete, document
from benchmarks.workload import at_a_rate
from rabbitevents import Bus, event
from rabbitevents_eventstore import NEW, EventStore, Projection, Projections, Snapshots, projection

T = TypeVar("T")


@event("order.paid", version=1)
@frozen
class OrderPaid:
    number: int
    customer_id: str
    total: int
    note: str


@frozen
class Order:
    paid: int = 0


def apply(order: Order, event: OrderPaid) -> Order:
    return Order(order.paid + event.total)


def pay(order: Order) -> OrderPaid:
    return OrderPaid(**document(order.paid))


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "bench_customers"
    id: Mapped[str] = mapped_column(primary_key=True)
    events: Mapped[int]
    total: Mapped[int]


projected: dict[int, float] | None = None
"""When each event was projected, where that is asked."""

one = insert(Customer)
UPSERT = one.on_conflict_do_update(
    index_elements=["id"],
    set_={"events": Customer.events + one.excluded.events, "total": Customer.total + one.excluded.total},
)


@projection("customers", tables=[Customer])
async def single(event: OrderPaid, session: AsyncSession) -> None:
    await session.execute(UPSERT, {"id": event.customer_id, "events": 1, "total": event.total})
    if projected is not None:
        projected[event.number] = time.perf_counter()


@projection("customers", tables=[Customer])
async def batch(events: list[OrderPaid], session: AsyncSession) -> None:
    numbers, totals = Counter[str](), Counter[str]()
    for each in events:
        numbers[each.customer_id] += 1
        totals[each.customer_id] += each.total
    rows = [{"id": id, "events": number, "total": totals[id]} for id, number in numbers.items()]
    await session.execute(UPSERT, rows)
    if projected is not None:
        projected.update(dict.fromkeys((each.number for each in events), time.perf_counter()))


class RabbitEvents(Contender):
    packages = ("rabbitevents", "SQLAlchemy", "asyncpg", "msgspec")
    ways = ("single", "batch")

    @asynccontextmanager
    async def store(self) -> AsyncGenerator[EventStore]:
        engine = create_async_engine(self.postgres.replace("postgresql:", "postgresql+asyncpg:"), pool_size=30)
        store = EventStore(engine, events=[OrderPaid])
        await store.tables.create(engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield store
        await engine.dispose()

    def append(self, writers: int, events: int) -> float:
        return _run(self._append(writers, events))

    async def _append(self, writers: int, events: int) -> float:
        async with self.store() as store:

            async def write(writer: int) -> None:
                id = f"{time.monotonic_ns()}-{writer}"
                for number in range(events // writers):
                    await store.append("order", id, [OrderPaid(**document(number))], expected=number or NEW)

            began = time.perf_counter()
            await asyncio.gather(*map(write, range(writers)))
            return time.perf_counter() - began

    def fill(self, events: int) -> None:
        _run(self._fill(events))

    async def _fill(self, events: int) -> None:
        async with self.store() as store:
            for first in range(0, events, BLOCK):
                async with AsyncSession(store.engine) as session, session.begin():
                    for start in range(first, min(first + BLOCK, events), ENTITY):
                        some = [OrderPaid(**document(n)) for n in range(start, min(start + ENTITY, events))]
                        await store.append("order", str(start), some, expected=NEW, session=session)

    def read(self) -> int:
        return _run(self._read())

    async def _read(self) -> int:
        async with self.store() as store:
            found = 0
            async for _ in store.read():
                found += 1
            return found

    def rebuild(self, way: str, events: int) -> None:
        _run(self._rebuild(_ways[way]))

    async def _rebuild(self, chosen: Projection) -> None:
        async with self.store() as store:
            await Projections(store, [chosen]).rebuild("customers")

    def latency(self, way: str, events: int, rate: int) -> list[float]:
        return _run(self._latency(_ways[way], events, rate))

    async def _latency(self, chosen: Projection, events: int, rate: int) -> list[float]:
        global projected
        appended, projected = dict[int, float](), dict[int, float]()
        async with self.store() as store, Bus("memory://", plugins=[store, Projections(store, [chosen])]):

            async def append(number: int) -> None:
                appended[number] = time.perf_counter()
                await store.append("order", str(number), [OrderPaid(**document(number))], expected=NEW)

            await at_a_rate(rate, events, append)
            while len(projected) < events:  # noqa: ASYNC110 - of the projection, no event tells
                await asyncio.sleep(0.01)
        return [projected[number] - appended[number] for number in range(events)]

    def decide(self, way: str, decisions: int) -> list[float]:
        return _run(self._decide(Snapshots(Order) if way == "snapshot" else None, decisions))

    async def _decide(self, snapshots: Snapshots | None, decisions: int) -> list[float]:
        async with self.store() as store:
            for first in range(0, PAST, BLOCK):
                some = [OrderPaid(**document(number)) for number in range(first, first + BLOCK)]
                await store.append("order", "long", some, expected=first or NEW)
            await store.rebuild("order", "long", apply, Order(), snapshots=snapshots)
            delays: list[float] = []
            for _ in range(decisions):
                began = time.perf_counter()
                await store.decide("order", "long", pay, apply=apply, initial=Order(), snapshots=snapshots)
                delays.append(time.perf_counter() - began)
            return delays

    def totals(self) -> tuple[int, int]:
        return _run(self._totals())

    async def _totals(self) -> tuple[int, int]:
        async with self.store() as store, store.engine.connect() as connection:
            row = (await connection.execute(select(func.sum(Customer.events), func.sum(Customer.total)))).one()
            return int(row[0]), int(row[1])


_ways = {"single": single, "batch": batch}


def _run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(main)


if __name__ == "__main__":
    compete(RabbitEvents)
