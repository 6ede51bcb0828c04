"""The past: with a store, an order is what its events say, and the shop's table of customers is made of them."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final

from attrs import frozen
from sqlalchemy import Text, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from rabbitevents.demo.shop.events import OrderCancelled, OrderConfirmed, OrderPlaced, RefundDue
from rabbitevents.demo.shop.order import OrderBook, OrderState, Outcome, apply
from rabbitevents_eventstore import (
    NEW,
    EventStore,
    EventTables,
    ProjectionBehindError,
    Projections,
    RebuildError,
    projection,
)

EVENTS: Final = (OrderPlaced, OrderConfirmed, OrderCancelled, RefundDue)
"""What happens to an order, and is kept."""

TABLES: Final = EventTables("rabbitevents_demo_")
"""Tables of our own: each run begins with an empty shop, and nobody else's past is to go with it."""


class Base(MappedAsDataclass, DeclarativeBase):
    """The tables that are made of events."""


class Customer(Base):
    """How many orders somebody has placed, and what came of them. ``spent`` is a Decimal, of which SQLite knows nothing."""

    __tablename__ = "rabbitevents_demo_customers"
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    placed: Mapped[int] = mapped_column(default=0)
    confirmed: Mapped[int] = mapped_column(default=0)
    cancelled: Mapped[int] = mapped_column(default=0)
    spent: Mapped[str] = mapped_column(Text, default="0")


@projection("customers", tables=[Customer])
async def customers(events: list[OrderPlaced | OrderConfirmed | OrderCancelled], session: AsyncSession) -> None:
    """Add up what customers have ordered and paid."""
    known = await session.scalars(select(Customer).where(Customer.name.in_({each.customer for each in events})))
    rows = {row.name: row for row in known}
    for happened in events:
        row = rows.get(happened.customer)
        if row is None:
            row = rows[happened.customer] = Customer(happened.customer)
            session.add(row)
        match happened:
            case OrderPlaced():
                row.placed += 1
            case OrderConfirmed(total=total):
                row.confirmed += 1
                row.spent = str(Decimal(row.spent) + total)
            case OrderCancelled():
                row.cancelled += 1


class SourcedBook(OrderBook):
    """The order service's book, in an event store: what is noted of an order is an event, which is published by that."""

    def __init__(self, store: EventStore, session: Callable[[], AsyncSession | None]) -> None:
        self._store = store
        self._session = session

    async def open(self, placed: OrderPlaced) -> None:
        """Append what was ordered, in the transaction that is under way."""
        await self._store.append("order", placed.order_id, [placed], expected=NEW, session=self._session())

    async def close(self, outcome: Outcome) -> None:
        """Append what becomes of an order, if it is for that order to become it: handlers have nothing to publish then."""
        await self._store.decide(
            "order",
            outcome.order_id,
            lambda order: order.close(outcome),
            apply=apply,
            initial=OrderState(),
            session=self._session(),
        )


# --- the past, replayed --------------------------------------------------------------------------------------------


@frozen
class Replay:
    """How many events there are, and why what was made of them anew is not what was there; "" if it is."""

    events: int
    flaw: str

    @property
    def equal(self) -> bool:
        """Whether it is."""
        return not self.flaw


async def replay(engine: AsyncEngine, timeout: float) -> Replay:
    """Make the table of customers anew from all events, once the one that follows them has caught up, and compare both."""
    store = EventStore(engine, events=EVENTS, tables=TABLES)
    position = TABLES.events.c.position
    async with engine.connect() as connection:
        events, last = (await connection.execute(select(func.count(), func.coalesce(func.max(position), 0)))).one()
    try:
        await store.caught_up(customers.name, last, timeout=timeout)
        live = await _rows(engine)
        await Projections(store, [customers]).rebuild(customers.name)
    except (ProjectionBehindError, RebuildError) as error:
        return Replay(events, str(error))
    differing = live ^ await _rows(engine)
    return Replay(events, f"{len({row[0] for row in differing}):,} customers differ" if differing else "")


async def _rows(engine: AsyncEngine) -> set[tuple[object, ...]]:
    async with engine.connect() as connection:
        return {tuple(row) for row in await connection.execute(select(*Customer.__table__.columns))}
