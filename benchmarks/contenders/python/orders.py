"""The order of those who write without a framework: dataclasses, and the standard library's JSON."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    product_id: str
    title: str
    quantity: int
    price: float


@dataclass(frozen=True, slots=True)
class OrderPlaced:
    order_id: str
    customer_id: str
    currency: str
    total: float
    items: list[Item]
    note: str


def structure(document: dict[str, Any]) -> OrderPlaced:
    document["items"] = [Item(**item) for item in document["items"]]
    return OrderPlaced(**document)


def decode(body: bytes) -> OrderPlaced:
    return structure(json.loads(body))
