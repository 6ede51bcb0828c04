"""The order service: places orders, and confirms or cancels them as the other services answer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rabbitevents import Bus, Router
from rabbitevents.demo.journal import Journal
from rabbitevents.demo.orders import Order
from rabbitevents.demo.shop.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OutOfStock,
    PaymentDeclined,
    PaymentProcessed,
)

router: Router = Router("shop.order")


class OrderBook:
    """What became of each order. The first word counts."""

    def __init__(self, folder: Path) -> None:
        self.outcomes: Journal[str] = Journal(folder / "outcomes.jsonl", str)

    def close(self, order_id: str, outcome: str) -> str:
        """Note what became of an order, and return what is noted."""
        return self.outcomes.keep(order_id, outcome)


async def place(bus: Bus, batch: Iterable[Order]) -> None:
    """Place orders; return once the broker has taken responsibility for every one.

    Raises an ExceptionGroup of `PublishError` for those that it has not.
    """
    await bus.publish_many(OrderPlaced(o.order_id, o.customer, o.sku, o.quantity, o.price) for o in batch)


@router.on(PaymentProcessed)
async def confirm(payment: PaymentProcessed, book: OrderBook) -> OrderConfirmed:
    """Confirm an order that is paid."""
    book.close(payment.order_id, "confirmed")
    return OrderConfirmed(payment.order_id, payment.customer, payment.total)


@router.on(OutOfStock, PaymentDeclined)
async def cancel(refusal: OutOfStock | PaymentDeclined, book: OrderBook) -> OrderCancelled:
    """Cancel an order that cannot be delivered, or is not paid."""
    reason = "out of stock" if isinstance(refusal, OutOfStock) else "payment declined"
    book.close(refusal.order_id, reason)
    return OrderCancelled(refusal.order_id, refusal.customer, reason)
