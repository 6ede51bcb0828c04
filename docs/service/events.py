"""What happens in the shop: all that its services have in common."""

from attrs import frozen

from rabbitevents import event


@event("order.placed", version=1, entity="order", key="order_id")
@frozen
class OrderPlaced:
    """Somebody wants something."""

    order_id: str
    article: str
    quantity: int


@event("stock.reserved", version=1, entity="order", key="order_id")
@frozen
class StockReserved:
    """It is there, and put aside."""

    order_id: str


@event("stock.exhausted", version=1, entity="order", key="order_id")
@frozen
class OutOfStock:
    """It is not there."""

    order_id: str


@event("order.paid", version=1, entity="order", key="order_id")
@frozen
class OrderPaid:
    """The bank has confirmed."""

    order_id: str
    receipt: str
