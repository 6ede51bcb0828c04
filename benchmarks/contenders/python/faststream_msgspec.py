"""FastStream with msgspec in pydantic's place, set up as in FastStream's own benchmarks."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fast_depends.msgspec import MsgSpecSerializer

from benchmarks.contenders.python.faststream_pydantic import FastStreamPydantic
from benchmarks.roles import compete
from benchmarks.workload import Document, Handle


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

    def order(self, document: Document) -> Any:
        return msgspec.convert(document, OrderPlaced)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"serializer": MsgSpecSerializer(use_fastdepends_errors=False)}

    def handler(self, handle: Handle) -> Callable[[Any], Awaitable[None]]:
        pause = self.told.pause

        async def on_order(order: OrderPlaced) -> None:
            if pause:
                await asyncio.sleep(pause)
            handle(order.order_id)

        return on_order


if __name__ == "__main__":
    compete(FastStreamMsgspec, FastStreamMsgspec.packages)
