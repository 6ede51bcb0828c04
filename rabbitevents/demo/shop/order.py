"""The order service: places orders, and confirms or cancels them as the other services answer."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve, frozen

from rabbitevents import Bus, Router
from rabbitevents.demo.books import Shelf
from rabbitevents.demo.orders import Order
from rabbitevents.demo.shop.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OutOfStock,
    PaymentDeclined,
    PaymentOverdue,
    PaymentProcessed,
    RefundDue,
)
from rabbitevents_retry import Fatal

router: Router = Router("shop.order")

Outcome = OrderConfirmed | OrderCancelled
"""What becomes of an order."""


# --- an order as what happened to it: with a store ------------------------------------------------------------------


@frozen
class OrderState:
    """How an order stands, as far as that matters to what may become of it."""

    is_placed: bool = False
    is_confirmed: bool = False
    is_cancelled: bool = False

    def close(self, outcome: Outcome) -> Outcome | RefundDue | None:
        """Decide what becomes of it: the first word counts. What is paid for an order that is cancelled goes back."""
        if not self.is_placed:
            raise Fatal("nobody has placed this order")
        match outcome:
            case OrderConfirmed() if self.is_cancelled:
                return RefundDue(outcome.order_id, outcome.customer, outcome.total)
            case _:
                return None if self.is_confirmed or self.is_cancelled else outcome


def apply(order: OrderState, happened: OrderPlaced | Outcome | RefundDue) -> OrderState:
    """Return how an order stands once something has happened to it."""
    match happened:
        case OrderPlaced():
            return evolve(order, is_placed=True)
        case OrderConfirmed():
            return evolve(order, is_confirmed=True)
        case OrderCancelled():
            return evolve(order, is_cancelled=True)
        case RefundDue():
            return order


# --- the service ----------------------------------------------------------------------------------------------------


class OrderBook:
    """What became of each order. The first word counts."""

    def __init__(self, shelf: Shelf) -> None:
        self._outcomes = shelf.book("outcomes", str)

    async def close(self, outcome: Outcome) -> Outcome | None:
        """Note what becomes of an order, and return what is to be published of it."""
        await self._outcomes.keep(
            outcome.order_id, "confirmed" if isinstance(outcome, OrderConfirmed) else outcome.reason
        )
        return outcome


async def place(bus: Bus, batch: Iterable[Order]) -> None:
    """Place orders; return once the broker has taken responsibility for every one.

    Raises an ExceptionGroup of `PublishError` for those that it has not.
    """
    await bus.publish_many(map(placed, batch))


def placed(order: Order) -> OrderPlaced:
    """Return what has happened when somebody orders something."""
    return OrderPlaced(order.order_id, order.customer, order.sku, order.quantity, order.price)


@router.on(PaymentProcessed)
async def confirm(payment: PaymentProcessed, book: OrderBook) -> Outcome | None:
    """Confirm an order that is paid."""
    return await book.close(OrderConfirmed(payment.order_id, payment.customer, payment.total))


@router.on(OutOfStock, PaymentDeclined, PaymentOverdue)
async def cancel(refusal: OutOfStock | PaymentDeclined | PaymentOverdue, book: OrderBook) -> Outcome | None:
    """Cancel an order that cannot be delivered, or is not paid."""
    match refusal:
        case OutOfStock():
            reason = "out of stock"
        case PaymentDeclined():
            reason = "payment declined"
        case PaymentOverdue():
            reason = "not paid in time"
    return await book.close(OrderCancelled(refusal.order_id, refusal.customer, reason))
