"""The inventory service: sets aside what was ordered, and takes back what is not bought."""

from __future__ import annotations

from decimal import Decimal

from attrs import frozen

from rabbitevents import Router
from rabbitevents.demo.books import Shelf
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

    def __init__(self, shelf: Shelf, pieces_of_each: int = 500) -> None:
        self._pieces_of_each = pieces_of_each
        self._shelf = shelf
        self._reserved = shelf.book("reserved", Reservation, lambda it: {it.sku: Decimal(it.pieces)})
        self._returned = shelf.book("returned", Reservation, lambda it: {it.sku: Decimal(-it.pieces)})

    async def left(self, sku: str) -> int:
        """Return how many pieces can still be had."""
        return self._pieces_of_each - int(await self._shelf.sum(sku))

    async def reserve(self, order_id: str, sku: str, pieces: int) -> Reservation:
        """Set pieces aside for an order; none if there are too few."""
        decided = await self._reserved.get(order_id)
        if decided is not None:
            return decided
        left = self._pieces_of_each - int(await self._shelf.hold(sku))  # two orders are not promised the same piece
        pieces = pieces if pieces <= left else 0
        return await self._reserved.keep(order_id, Reservation(sku, pieces, left - pieces))

    async def give_back(self, order_id: str) -> str | None:
        """Put back what was set aside for an order; return its article, or None if nothing was."""
        reservation = await self._reserved.get(order_id)
        if reservation is None or not reservation.pieces:
            return None
        await self._returned.keep(order_id, reservation)
        return reservation.sku


@router.on(OrderPlaced)
async def reserve(order: OrderPlaced, stock: Stock) -> OutOfStock | list[InventoryReserved | InventoryUpdated]:
    """Set aside what was ordered, if there is enough."""
    if order.quantity < 1:
        raise Fatal(f"an order of {order.quantity} pieces")  # it says so tomorrow, too: no repetition mends it
    reservation = await stock.reserve(order.order_id, order.sku, order.quantity)
    if not reservation.pieces:
        # As it was when that was decided: with what is left now, a repeated attempt would refuse it by another event.
        return OutOfStock(order.order_id, order.customer, order.sku, reservation.left)
    return [
        InventoryReserved(order.order_id, order.customer, order.total),
        InventoryUpdated(order.sku, await stock.left(order.sku)),
    ]


@router.on(OrderCancelled)
async def give_back(cancelled: OrderCancelled, stock: Stock) -> InventoryUpdated | None:
    """Put back what was set aside for an order that is cancelled."""
    sku = await stock.give_back(cancelled.order_id)
    return None if sku is None else InventoryUpdated(sku, await stock.left(sku))
