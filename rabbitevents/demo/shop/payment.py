"""The payment service: charges the customer for what is reserved, by way of a company that is not always there."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from rabbitevents import Router
from rabbitevents.demo.books import Shelf
from rabbitevents.demo.shop.events import InventoryReserved, PaymentDeclined, PaymentProcessed

CARD_LIMIT: Final = Decimal(150)
"""The most that a card pays at once."""

router: Router = Router("shop.payment")


class ProviderUnavailableError(Exception):
    """The payment provider has not answered."""


class PaymentProvider:
    """Who takes the money: this one answers every time, and pays as much as a card does."""

    async def charge(self, order_id: str, total: Decimal) -> bool:
        """Charge a card for an order, however often it is asked once; False if the card does not pay as much.

        Raises `ProviderUnavailableError`.
        """
        return total <= CARD_LIMIT

    async def refund(self, order_id: str) -> None:
        """Give back what was charged for an order, however often it is asked once."""


class Payments:
    """What was charged for each order; nothing where the card did not pay as much. The first word counts."""

    def __init__(self, shelf: Shelf) -> None:
        self._charged = shelf.book("charged", Decimal)
        self._refunded = shelf.book("refunded", Decimal)

    async def note(self, order_id: str, charged: Decimal) -> bool:
        """Note what was charged; False if it is noted that nothing was."""
        return await self._charged.keep(order_id, charged) > 0

    async def give_back(self, order_id: str) -> None:
        """Note that what was charged is given back."""
        await self._refunded.keep(order_id, await self._charged.get(order_id) or Decimal(0))


@router.on(InventoryReserved)
async def charge(
    reserved: InventoryReserved, payments: Payments, provider: PaymentProvider
) -> PaymentProcessed | PaymentDeclined:
    """Charge the customer, now that what was ordered is set aside. When the provider fails, so does this: it is tried again."""
    paid = await provider.charge(reserved.order_id, reserved.total)
    if await payments.note(reserved.order_id, reserved.total if paid else Decimal(0)):
        return PaymentProcessed(reserved.order_id, reserved.customer, reserved.total)
    return PaymentDeclined(reserved.order_id, reserved.customer, reserved.total)
