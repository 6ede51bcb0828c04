"""The order service: places orders, and confirms or cancels them as the other services answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rabbitevents import Bus, Router
from rabbitevents.demo.books import Shelf
from rabbitevents.demo.orders import Order
from rabbitevents.demo.shop.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OutOfStock,
    PaymentDeclined,
    PaymentProcessed,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from rabbitevents_outbox import Outbox

router: Router = Router("shop.order")


class OrderBook:
    """What was ordered, and what became of each order. The first word counts."""

    def __init__(self, shelf: Shelf) -> None:
        self._placed = shelf.book("placed", Order)
        self._outcomes = shelf.book("outcomes", str)

    async def open(self, order: Order) -> None:
        """Note what was ordered."""
        await self._placed.keep(order.order_id, order)

    async def close(self, order_id: str, outcome: str) -> str:
        """Note what became of an order, and return what is noted."""
        return await self._outcomes.keep(order_id, outcome)


async def place(bus: Bus, batch: Iterable[Order]) -> None:
    """Place orders; return once the broker has taken responsibility for every one.

    Raises an ExceptionGroup of `PublishError` for those that it has not.
    """
    await bus.publish_many(map(_placed, batch))


async def place_in(session: AsyncSession, outbox: Outbox, book: OrderBook, batch: Iterable[Order]) -> None:
    """Place orders in the transaction that is under way on ``session``: both what is noted of them, and their events."""
    orders = list(batch)
    for each in orders:
        await book.open(each)
    await outbox.publish(session, *map(_placed, orders))


def _placed(order: Order) -> OrderPlaced:
    return OrderPlaced(order.order_id, order.customer, order.sku, order.quantity, order.price)


@router.on(PaymentProcessed)
async def confirm(payment: PaymentProcessed, book: OrderBook) -> OrderConfirmed:
    """Confirm an order that is paid."""
    await book.close(payment.order_id, "confirmed")
    return OrderConfirmed(payment.order_id, payment.customer, payment.total)


@router.on(OutOfStock, PaymentDeclined)
async def cancel(refusal: OutOfStock | PaymentDeclined, book: OrderBook) -> OrderCancelled:
    """Cancel an order that cannot be delivered, or is not paid."""
    reason = "out of stock" if isinstance(refusal, OutOfStock) else "payment declined"
    await book.close(refusal.order_id, reason)
    return OrderCancelled(refusal.order_id, refusal.customer, reason)
