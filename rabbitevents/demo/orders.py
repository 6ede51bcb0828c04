"""Orders to place: read from a JSON lines file, or made up."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

import attrs
import msgspec
from attrs import field, frozen

SAMPLE: Final = Path(__file__).with_name("orders.jsonl")
"""A file of orders to begin with."""

BULK: Final = 1_000
"""How many pieces somebody wants now and then: more than the shop has."""

NOTHING: Final = 0
"""How many pieces a poisoned order is about: no service of the shop can do anything with it."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]

_ARTICLES = {"mug": "8.50", "teapot": "24.00", "kettle": "39.90", "spoon": "1.75", "tray": "15.20", "tin": "6.40"}


def _is_a_price(order: object, attribute: object, price: Decimal) -> None:
    if not (price.is_finite() and Decimal("0.01") <= price <= 1_000_000):
        raise ValueError("a price goes from 0.01 to 1,000,000")


@frozen
class Order:
    """What somebody wants; ``price`` is that of one piece."""

    order_id: Name
    customer: Name
    sku: Name
    quantity: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    price: Decimal = field(validator=_is_a_price)


@frozen
class BadLine:
    """A line that is no order, and why."""

    number: int
    reason: str


_decode_order = msgspec.json.Decoder(Order).decode


def read_orders(lines: Iterable[bytes]) -> Iterator[Order | BadLine]:
    """Read one order a line; blank lines are passed over. An order id can be used once."""
    first_seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            order = _decode_order(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            yield BadLine(number, str(error) or type(error).__name__)
            continue
        first = first_seen.setdefault(order.order_id, number)
        yield order if first == number else BadLine(number, f"order {order.order_id!r} is on line {first} already")


def make_orders(count: int, seed: int) -> Iterator[Order]:
    """Make up ``count`` orders; the same seed makes the same ones."""
    chance = random.Random(seed)
    for number in range(1, count + 1):
        sku, price = chance.choice(list(_ARTICLES.items()))
        customer = f"customer-{chance.randint(1, 500)}"
        quantity = BULK if chance.random() < 0.02 else chance.randint(1, 4)
        yield Order(str(number), customer, sku, quantity, Decimal(price))


def poisoned(orders: Sequence[Order]) -> list[Order]:
    """Return the orders with the one in the middle poisoned: it is about no pieces at all."""
    middle = len(orders) // 2
    return [attrs.evolve(each, quantity=NOTHING) if place == middle else each for place, each in enumerate(orders)]
