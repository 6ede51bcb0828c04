"""Two services that know nothing of each other but their events.

The order service publishes `OrderPlaced`. The inventory service reserves what was ordered and answers with
`StockReserved` or `OutOfStock`; the order service hears the answer and closes the order. Each has a router, a bus and
a state of its own, and would run as a process of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

from attrs import frozen

from rabbitevents import Bus, Event, Router, event
from rabbitevents.demo.ledger import Effect, Ledger
from rabbitevents.demo.orders import Order

CONCURRENCY = 100
"""How many events a service handles at a time: as many as may share one fsync of the ledger."""


# --- the events: all that the two have in common -------------------------------------------------------------------


@event("order.placed", version=1, entity="order", key="order_id")
@frozen
class OrderPlaced:
    """Somebody has ordered something."""

    order_id: str
    customer: str
    sku: str
    quantity: int
    price: Decimal


@event("stock.reserved", version=1, entity="order", key="order_id")
@frozen
class StockReserved:
    """What was ordered is set aside."""

    order_id: str


@event("stock.exhausted", version=1, entity="order", key="order_id")
@frozen
class OutOfStock:
    """There is too little of what was ordered."""

    order_id: str
    sku: str
    left: int


# --- the inventory service -----------------------------------------------------------------------------------------

inventory: Router = Router("demo.inventory")


class Stock:
    """What lies in the warehouse. Reserving a second time for the same order changes nothing."""

    def __init__(self, pieces_of_each: int) -> None:
        self._pieces_of_each = pieces_of_each
        self._taken: Counter[str] = Counter()
        self._reserved: set[str] = set()

    def left(self, sku: str) -> int:
        """Return how many pieces can still be had."""
        return self._pieces_of_each - self._taken[sku]

    def reserve(self, order_id: str, sku: str, quantity: int) -> bool:
        """Set pieces aside for an order; False if there are too few."""
        if order_id in self._reserved:
            return True
        if self.left(sku) < quantity:
            return False
        self._taken[sku] += quantity
        self._reserved.add(order_id)
        return True


@inventory.on(OrderPlaced, concurrency=CONCURRENCY)
async def reserve(placed: Event[OrderPlaced], stock: Stock, ledger: Ledger) -> StockReserved | OutOfStock:
    """Set aside what was ordered, and say so."""
    order = placed.payload
    reserved = stock.reserve(order.order_id, order.sku, order.quantity)
    await ledger.record(Effect("reserve", order.order_id, str(placed.id)))
    return StockReserved(order.order_id) if reserved else OutOfStock(order.order_id, order.sku, stock.left(order.sku))


# --- the order service ---------------------------------------------------------------------------------------------

orders: Router = Router("demo.orders")


class OrderBook:
    """What became of the orders."""

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.cancelled: set[str] = set()


@orders.on(StockReserved, OutOfStock, concurrency=CONCURRENCY)
async def close(answer: Event[StockReserved | OutOfStock], book: OrderBook, ledger: Ledger) -> None:
    """Confirm or cancel the order."""
    order_id = answer.payload.order_id
    (book.confirmed if isinstance(answer.payload, StockReserved) else book.cancelled).add(order_id)
    await ledger.record(Effect("close", order_id, str(answer.id)))


async def place(bus: Bus, batch: Iterable[Order]) -> None:
    """Place orders; return once the broker has taken responsibility for every one.

    Raises an ExceptionGroup of `PublishError` for those that it has not.
    """
    await bus.publish_many(OrderPlaced(o.order_id, o.customer, o.sku, o.quantity, o.price) for o in batch)
