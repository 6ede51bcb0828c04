"""The analytics service: knows at any moment how the shop is doing."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final

from attrs import frozen

from rabbitevents import Event, Router
from rabbitevents.demo.books import Shelf
from rabbitevents.demo.shop.events import (
    InventoryUpdated,
    OrderAnalyticsUpdated,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
)

router: Router = Router("shop.analytics")

ONE: Final = Decimal(1)


@frozen
class Level:
    """How much there was of an article, and when."""

    left: int
    at: datetime


class Figures:
    """How the shop is doing. An order counts once, however often it is counted."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._placed = shelf.book("placed", Decimal, lambda _: {"placed": ONE})
        self._confirmed = shelf.book("confirmed", Decimal, lambda total: {"confirmed": ONE, "revenue": total})
        self._cancelled = shelf.book("cancelled", str, lambda _: {"cancelled": ONE})
        self._levels = shelf.book("levels", Level)

    async def place(self, order_id: str, total: Decimal) -> None:
        """Count an order."""
        await self._placed.keep(order_id, total)

    async def confirm(self, order_id: str, total: Decimal) -> None:
        """Count an order that is paid."""
        await self._confirmed.keep(order_id, total)

    async def cancel(self, order_id: str, reason: str) -> None:
        """Count an order that nothing comes of."""
        await self._cancelled.keep(order_id, reason)

    async def note_level(self, sku: str, level: Level) -> None:
        """Note how much there is of an article, unless something newer is known: events may overtake each other."""
        await self._shelf.hold(f"level of {sku}")
        known = await self._levels.get(sku)
        if known is None or known.at < level.at:
            await self._levels.put(sku, level)

    async def summary(self) -> OrderAnalyticsUpdated:
        """Sum it up."""
        placed, confirmed, cancelled = [int(await self._shelf.sum(n)) for n in ("placed", "confirmed", "cancelled")]
        return OrderAnalyticsUpdated(placed, confirmed, cancelled, await self._shelf.sum("revenue"))


@router.on(OrderPlaced, OrderConfirmed, OrderCancelled)
async def count(order: OrderPlaced | OrderConfirmed | OrderCancelled, figures: Figures) -> OrderAnalyticsUpdated:
    """Count an order."""
    match order:
        case OrderPlaced():
            await figures.place(order.order_id, order.total)
        case OrderConfirmed():
            await figures.confirm(order.order_id, order.total)
        case OrderCancelled():
            await figures.cancel(order.order_id, order.reason)
    return await figures.summary()


@router.on(InventoryUpdated)
async def watch(updated: Event[InventoryUpdated], figures: Figures) -> None:
    """Note how much there is of an article."""
    await figures.note_level(updated.payload.sku, Level(updated.payload.left, updated.timestamp))
