"""A service: events, handlers that keep their types, and a bus."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, assert_type

from attrs import frozen

from rabbitevents import Bus, Delivery, Event, Limits, Router, event, upcast


@event("order.placed", version=2, entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    total: Decimal


@event("order.cancelled")
@dataclass(frozen=True)
class OrderCancelled:
    order_id: str


@event("stock.reserved")
@frozen
class StockReserved:
    order_id: str


class Database: ...


class Session: ...


@upcast(OrderPlaced, from_version=1)
def total_as_text(document: dict[str, Any]) -> dict[str, Any]:
    document["total"] = str(document["total"])
    return document


inventory = Router("inventory")


@inventory.on(OrderPlaced)
async def reserve(order: OrderPlaced) -> StockReserved:
    return StockReserved(order.order_id)


@inventory.on(
    OrderPlaced, OrderCancelled, name="both", concurrency=5, prefetch=50, timeout=timedelta(seconds=30), plugins=[]
)
async def either(order: OrderPlaced | OrderCancelled, db: Database, *, session: Session) -> None: ...


@inventory.on("payment.*")
async def audit(payment: Event) -> None:
    assert_type(payment.payload, Any)
    assert_type(payment.id.hex, str)


@inventory.on(OrderPlaced, queue="orders")
async def enveloped(order: Event[OrderPlaced], delivery: Delivery, bus: Bus) -> list[StockReserved]:
    assert_type(order.payload, OrderPlaced)
    assert_type(order.payload.total, Decimal)
    assert_type(order.metadata.correlation_id, str | None)
    assert_type(delivery.attempt, int)
    return [StockReserved(order.payload.order_id)]


@inventory.on("order.#", timeout=5)
async def typed(order: Event[OrderPlaced | OrderCancelled]) -> None:
    if isinstance(order.payload, OrderPlaced):
        assert_type(order.payload, OrderPlaced)
    else:
        assert_type(order.payload, OrderCancelled)


@inventory.on(OrderCancelled)
def in_a_thread(order: OrderCancelled) -> Iterable[StockReserved]:
    yield StockReserved(order.order_id)


# `on` returns the function unchanged: a test can call it.
on_order: Callable[[OrderPlaced], Awaitable[StockReserved]] = reserve
in_thread: Callable[[OrderCancelled], Iterable[StockReserved]] = in_a_thread


async def a_test_may_call_handlers() -> None:
    assert_type(await reserve(OrderPlaced("o-1", Decimal(1))), StockReserved)
    assert_type(in_a_thread(OrderCancelled("o-1")), Iterable[StockReserved])
    await reserve(5)  # type: ignore[arg-type]


# `@event` returns the class unchanged.
assert_type(OrderPlaced("o-1", Decimal(1)).total, Decimal)
OrderPlaced("o-1")  # type: ignore[call-arg]

inventory.on(5)  # type: ignore[arg-type]
inventory.on(OrderPlaced, concurrency="many")  # type: ignore[arg-type]
event(5)  # type: ignore[arg-type]


@asynccontextmanager
async def session(delivery: Delivery) -> AsyncGenerator[Session]:
    yield Session()


bus = Bus("amqp://localhost", inventory, plugins=[], name="inventory", limits=Limits(body=1024))
several = Bus(["amqps://a", "amqps://b"], inventory, unroutable="raise", form="cloudevents", declare="passive")
bus.provide(Database, Database())
bus.provide(Session, factory=session)
Bus("memory://", unroutable="never")  # type: ignore[arg-type]


async def producer() -> None:
    async with Bus("memory://", name="till") as till:
        assert_type(till, Bus)
        placed = await till.publish(OrderPlaced("o-1", Decimal(1)))
        assert_type(placed, Event[OrderPlaced])
        assert_type(placed.payload.total, Decimal)
        assert_type(await till.publish(placed), Event[OrderPlaced])
        later = await till.publish(
            OrderCancelled("o-1"), delay=timedelta(hours=1), timeout=5, metadata={"tenant": "t"}, correlation_id="c"
        )
        assert_type(later.payload.order_id, str)
        assert_type(await till.publish_many([OrderPlaced("o-1", Decimal(1)), placed]), list[Event[Any]])
        await till.publish(OrderCancelled("o-1"), delay="5")  # type: ignore[call-overload]
        assert_type(till.health().ok, bool)


if __name__ == "__main__":
    bus.run()
