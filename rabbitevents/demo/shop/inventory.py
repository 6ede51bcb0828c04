"""The inventory service: sets aside what was ordered, and takes back what is not bought."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from attrs import frozen

from rabbitevents import Router
from rabbitevents.demo.journal import Journal
from rabbitevents.demo.shop.events import InventoryReserved, InventoryUpdated, OrderCancelled, OrderPlaced, OutOfStock
from rabbitevents_retry import Fatal

router: Router = Router("shop.inventory")


@frozen
class Reservation:
    """What was decided for an order: the pieces set aside, none if there were too few, and how many were left then."""

    sku: str
    pieces: int
    left: int


class Stock:
    """What lies in the warehouse.

    What was decided for an order is decided: asked again, it says the same, and changes nothing.
    """

    def __init__(self, folder: Path, pieces_of_each: int = 500) -> None:
        self._pieces_of_each = pieces_of_each
        self.reserved: Journal[Reservation] = Journal(folder / "reserved.jsonl", Reservation)
        self.returned: Journal[Reservation] = Journal(folder / "returned.jsonl", Reservation)
        self._taken: Counter[str] = Counter()
        for reservation in self.reserved.values():
            self._taken[reservation.sku] += reservation.pieces
        for reservation in self.returned.values():
            self._taken[reservation.sku] -= reservation.pieces

    def left(self, sku: str) -> int:
        """Return how many pieces can still be had."""
        return self._pieces_of_each - self._taken[sku]

    def reserve(self, order_id: str, sku: str, pieces: int) -> Reservation:
        """Set pieces aside for an order; none if there are too few."""
        if order_id not in self.reserved:
            pieces = pieces if pieces <= self.left(sku) else 0
            self.reserved[order_id] = Reservation(sku, pieces, self.left(sku) - pieces)
            self._taken[sku] += pieces
        return self.reserved[order_id]

    def give_back(self, order_id: str) -> str | None:
        """Put back what was set aside for an order; return its article, or None if nothing was."""
        reservation = self.reserved.get(order_id)
        if reservation is None or not reservation.pieces:
            return None
        if order_id not in self.returned:
            self.returned[order_id] = reservation
            self._taken[reservation.sku] -= reservation.pieces
        return reservation.sku


@router.on(OrderPlaced)
async def reserve(order: OrderPlaced, stock: Stock) -> OutOfStock | list[InventoryReserved | InventoryUpdated]:
    """Set aside what was ordered, if there is enough."""
    if order.quantity < 1:
        raise Fatal(f"an order of {order.quantity} pieces")  # it says so tomorrow, too: no repetition mends it
    reservation = stock.reserve(order.order_id, order.sku, order.quantity)
    if not reservation.pieces:
        # As it was when that was decided: with what is left now, a repeated attempt would refuse it by another event.
        return OutOfStock(order.order_id, order.customer, order.sku, reservation.left)
    return [
        InventoryReserved(order.order_id, order.customer, order.total),
        InventoryUpdated(order.sku, stock.left(order.sku)),
    ]


@router.on(OrderCancelled)
async def give_back(cancelled: OrderCancelled, stock: Stock) -> InventoryUpdated | None:
    """Put back what was set aside for an order that is cancelled."""
    sku = stock.give_back(cancelled.order_id)
    return None if sku is None else InventoryUpdated(sku, stock.left(sku))
