"""The analytics service: knows at any moment how the shop is doing."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path

from attrs import frozen

from rabbitevents import Event, Router
from rabbitevents.demo.journal import Journal
from rabbitevents.demo.shop.events import (
    InventoryUpdated,
    OrderAnalyticsUpdated,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
)

router: Router = Router("shop.analytics")


@frozen
class Level:
    """How much there was of an article, and when."""

    left: int
    at: datetime


class Figures:
    """How the shop is doing. An order counts once, however often it is counted."""

    def __init__(self, folder: Path) -> None:
        self.placed: Journal[Decimal] = Journal(folder / "placed.jsonl", Decimal)
        self.confirmed: Journal[Decimal] = Journal(folder / "confirmed.jsonl", Decimal)
        self.cancelled: Journal[str] = Journal(folder / "cancelled.jsonl", str)
        self.levels: Journal[Level] = Journal(folder / "levels.jsonl", Level)
        self._revenue = sum(self.confirmed.values(), Decimal(0))

    def confirm(self, order_id: str, total: Decimal) -> None:
        """Count an order that is paid."""
        if order_id not in self.confirmed:
            self.confirmed[order_id] = total
            self._revenue += total

    def note_level(self, sku: str, level: Level) -> None:
        """Note how much there is of an article, unless something newer is known: events may overtake each other."""
        if sku not in self.levels or self.levels[sku].at < level.at:
            self.levels[sku] = level

    def summary(self) -> OrderAnalyticsUpdated:
        """Sum it up."""
        return OrderAnalyticsUpdated(len(self.placed), len(self.confirmed), len(self.cancelled), self._revenue)


@router.on(OrderPlaced, OrderConfirmed, OrderCancelled)
async def count(order: OrderPlaced | OrderConfirmed | OrderCancelled, figures: Figures) -> OrderAnalyticsUpdated:
    """Count an order."""
    match order:
        case OrderPlaced():
            figures.placed.keep(order.order_id, order.total)
        case OrderConfirmed():
            figures.confirm(order.order_id, order.total)
        case OrderCancelled():
            figures.cancelled.keep(order.order_id, order.reason)
    return figures.summary()


@router.on(InventoryUpdated)
async def watch(updated: Event[InventoryUpdated], figures: Figures) -> None:
    """Note how much there is of an article."""
    figures.note_level(updated.payload.sku, Level(updated.payload.left, updated.timestamp))
