"""The events: all that the five services have in common."""

from __future__ import annotations

from decimal import Decimal

from attrs import frozen

from rabbitevents import event

# --- from the order service ----------------------------------------------------------------------------------------


@event("order.placed", version=1, entity="order", key="order_id")
@frozen
class OrderPlaced:
    """Somebody has ordered something; ``price`` is that of one piece."""

    order_id: str
    customer: str
    sku: str
    quantity: int
    price: Decimal

    @property
    def total(self) -> Decimal:
        """What the order comes to."""
        return self.price * self.quantity


@event("order.confirmed", version=1, entity="order", key="order_id")
@frozen
class OrderConfirmed:
    """What was ordered is reserved and paid."""

    order_id: str
    customer: str
    total: Decimal


@event("order.cancelled", version=1, entity="order", key="order_id")
@frozen
class OrderCancelled:
    """Nothing comes of the order."""

    order_id: str
    customer: str
    reason: str


@event("order.refund-due", version=1, entity="order", key="order_id")
@frozen
class RefundDue:
    """The order was paid when it was cancelled already: the money goes back."""

    order_id: str
    customer: str
    total: Decimal


# --- from the inventory service ------------------------------------------------------------------------------------


@event("inventory.reserved", version=1, entity="order", key="order_id")
@frozen
class InventoryReserved:
    """What was ordered is set aside, and can be paid."""

    order_id: str
    customer: str
    total: Decimal


@event("inventory.exhausted", version=1, entity="order", key="order_id")
@frozen
class OutOfStock:
    """There is too little of what was ordered."""

    order_id: str
    customer: str
    sku: str
    left: int


@event("inventory.updated", version=1, entity="article", key="sku")
@frozen
class InventoryUpdated:
    """There is more, or less, of an article than before."""

    sku: str
    left: int


# --- from the payment service --------------------------------------------------------------------------------------


@event("payment.processed", version=1, entity="order", key="order_id")
@frozen
class PaymentProcessed:
    """The order is paid."""

    order_id: str
    customer: str
    total: Decimal


@event("payment.declined", version=1, entity="order", key="order_id")
@frozen
class PaymentDeclined:
    """The customer's card does not pay for the order."""

    order_id: str
    customer: str
    total: Decimal


@event("payment.overdue", version=1, entity="order", key="order_id")
@frozen
class PaymentOverdue:
    """Nobody has said in time whether the order is paid, and nobody waits for it any more."""

    order_id: str
    customer: str
    total: Decimal


# --- from the notification and the analytics service ---------------------------------------------------------------


@event("notification.sent", version=1, entity="order", key="order_id")
@frozen
class NotificationSent:
    """The customer knows what became of the order."""

    order_id: str
    customer: str
    text: str


@event("analytics.updated", version=1)
@frozen
class OrderAnalyticsUpdated:
    """How the shop is doing."""

    placed: int
    confirmed: int
    cancelled: int
    revenue: Decimal
