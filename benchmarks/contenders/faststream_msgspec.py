"""FastStream with msgspec in pydantic's place, set up as in FastStream's own benchmarks."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fast_depends.msgspec import MsgSpecSerializer
from faststream.rabbit import Channel, RabbitBroker

from benchmarks.contenders.faststream_pydantic import FastStreamPydantic
from benchmarks.workload import PREFETCH, Document, Handle, compete


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

    def __init__(self) -> None:
        super().__init__("bench.faststream_msgspec")

    def order(self, document: Document) -> Any:
        return msgspec.convert(document, OrderPlaced)

    def broker(self, url: str) -> RabbitBroker:
        return RabbitBroker(
            url,
            logger=None,
            default_channel=Channel(prefetch_count=PREFETCH),
            serializer=MsgSpecSerializer(use_fastdepends_errors=False),
        )

    def handler(self, handle: Handle) -> Callable[[Any], Awaitable[None]]:
        async def on_order(order: OrderPlaced) -> None:
            handle(order.order_id)

        return on_order


if __name__ == "__main__":
    compete(FastStreamMsgspec())
