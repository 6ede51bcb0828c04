"""The payment service: charges the customer for what is reserved."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Final

from rabbitevents import Router
from rabbitevents.demo.journal import Journal
from rabbitevents.demo.shop.events import InventoryReserved, PaymentDeclined, PaymentProcessed

CARD_LIMIT: Final = Decimal(150)
"""The most that a card pays at once."""

router = Router("shop.payment")


class Payments:
    """What was charged. An order is charged once, however often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.charged = Journal(folder / "charged.jsonl", Decimal)

    def charge(self, order_id: str, total: Decimal) -> bool:
        """Charge for an order; False if the card does not pay as much."""
        return self.charged.keep(order_id, total if total <= CARD_LIMIT else Decimal(0)) > 0


@router.on(InventoryReserved)
async def charge(reserved: InventoryReserved, payments: Payments) -> PaymentProcessed | PaymentDeclined:
    """Charge the customer, now that what was ordered is set aside."""
    if payments.charge(reserved.order_id, reserved.total):
        return PaymentProcessed(reserved.order_id, reserved.customer, reserved.total)
    return PaymentDeclined(reserved.order_id, reserved.customer, reserved.total)
