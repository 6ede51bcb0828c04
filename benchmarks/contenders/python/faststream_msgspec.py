"""FastStream with msgspec in pydantic's place, set up as in FastStream's own benchmarks."""

from typing import Any, ClassVar

import msgspec
from fast_depends.msgspec import MsgSpecSerializer

from benchmarks.contenders.python.faststream_pydantic import FastStreamPydantic
from benchmarks.roles import compete
from benchmarks.workload import Document


class Item(msgspec.Struct):
    product_id: str
    title: str
    quantity: int
    price: float


class OrderPlaced(msgspec.Struct):
    order_id: str
    customer_id: str
    currency: str
    total: float
    items: list[Item]
    note: str


class FastStreamMsgspec(FastStreamPydantic):
    packages = ("faststream", "fast-depends", "msgspec", "orjson", "aio-pika", "aiormq")
    order_class: ClassVar[type] = OrderPlaced

    def order(self, document: Document) -> Any:
        return msgspec.convert(document, OrderPlaced)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"serializer": MsgSpecSerializer(use_fastdepends_errors=False)}


if __name__ == "__main__":
    compete(FastStreamMsgspec, FastStreamMsgspec.packages)
