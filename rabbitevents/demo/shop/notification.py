"""The notification service: tells customers what became of their orders."""

from __future__ import annotations

from rabbitevents import Router
from rabbitevents.demo.books import Shelf
from rabbitevents.demo.shop.events import NotificationSent, OrderCancelled, OrderConfirmed

router: Router = Router("shop.notification")


class Mail:
    """The letters that were sent, one for each order."""

    def __init__(self, shelf: Shelf) -> None:
        self._sent = shelf.book("sent", str)

    async def send(self, order_id: str, text: str) -> str:
        """Send the letter about an order, unless that has been done; return what was sent."""
        return await self._sent.keep(order_id, text)


@router.on(OrderConfirmed, OrderCancelled)
async def tell(closed: OrderConfirmed | OrderCancelled, mail: Mail) -> NotificationSent:
    """Tell the customer."""
    if isinstance(closed, OrderConfirmed):
        text = f"Thank you! You have paid {closed.total}, and your order is on its way."
    else:
        text = f"We are sorry: your order is cancelled ({closed.reason})."
    return NotificationSent(closed.order_id, closed.customer, await mail.send(closed.order_id, text))
