"""What the views and the command do: an order and its event, in one transaction."""

from django.db import transaction

from rabbitevents import Event
from rabbitevents_django import publish
from tests.django_project.shop.models import Order
from tests.shop import OrderPlaced


class OutOfStockError(Exception):
    """The order cannot be: what was written is rolled back."""


def place(order_id: str, *, fails: bool = False, using: str = "default") -> Event[OrderPlaced]:
    with transaction.atomic(using=using):
        Order.objects.using(using).create(order_id=order_id)
        placed = publish(OrderPlaced(order_id), using=using)
        if fails:
            raise OutOfStockError(order_id)
    return placed
