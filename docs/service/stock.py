"""A worker: `rabbitevents run stock:bus`. It reserves what was ordered, in PostgreSQL."""

import os
from collections.abc import AsyncIterator

import telemetry
from events import OrderPlaced, OutOfStock, StockReserved
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from tables import Reservation, Shelf, engine

from rabbitevents import Bus, Delivery, Event, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_metrics import Metrics
from rabbitevents_retry import Retry
from rabbitevents_tracing import Tracing

stock = Router("stock")


@stock.on(OrderPlaced)
async def reserve(order: Event[OrderPlaced], session: AsyncSession) -> StockReserved | OutOfStock:
    """Take the goods from the shelf, once for each event: one that comes again finds what came of it."""
    found = await session.get(Reservation, order.id) or await take(order, session)
    return StockReserved(found.order_id) if found.reserved else OutOfStock(found.order_id)


async def take(order: Event[OrderPlaced], session: AsyncSession) -> Reservation:
    """Try to take what was ordered, and note under the event's id whether it was there.

    Where another worker does the same at this moment, the second note is an IntegrityError: all is rolled back, and
    the next attempt finds the first one's.
    """
    wanted = order.payload
    left = update(Shelf).where(Shelf.article == wanted.article, Shelf.left >= wanted.quantity)
    taken = await session.scalar(left.values(left=Shelf.left - wanted.quantity).returning(Shelf.left))
    outcome = {"event_id": order.id, "order_id": wanted.order_id, "reserved": taken is not None}
    await session.execute(insert(Reservation).values(outcome))
    return Reservation(**outcome)


def bus() -> Bus:
    """Make the bus: called by `rabbitevents run`, in each worker process."""
    telemetry.set_up()
    database = engine()

    async def transaction(delivery: Delivery) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(database) as session, session.begin():
            yield session  # committed when the handler has returned, and before what it returned is published

    made = Bus(os.environ["AMQP_URL"], stock, plugins=[DeadLetter(), Retry(), Tracing(), Metrics()])
    made.provide(AsyncSession, factory=transaction)
    return made
