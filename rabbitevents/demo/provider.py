"""A payment provider that fails at a rate, as those of the real world do."""

from __future__ import annotations

from decimal import Decimal
from random import Random

from attrs import frozen

from rabbitevents.demo.shop.payment import PaymentProvider, ProviderUnavailableError


@frozen
class UnreliableProvider(PaymentProvider):
    """Fails before it charges anything: with the probability ``rate``, and the same each time for the same attempt."""

    rate: float
    seed: int
    attempt: int

    async def charge(self, order_id: str, total: Decimal) -> bool:
        """Charge a card for an order, or raise `ProviderUnavailableError`."""
        number = order_id.partition("-")[2]  # what stands before it is another in each run
        if Random(f"{self.seed}/{number}/{self.attempt}").random() < self.rate:
            raise ProviderUnavailableError("the payment provider has not answered")
        return await super().charge(order_id, total)
