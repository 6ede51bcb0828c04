"""A shop whose broker is looked at: its bus, and the ways to make trouble there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel
from attrs import frozen

from rabbitevents import Bus, Event, Router, event
from rabbitevents.operations.doctor import Report, examine
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from tests.bed.rabbitmq import RabbitNode


@event("order.placed", version=2, oldest=2, aliases=("OrderPlaced",))
@frozen
class OrderPlaced:
    order_id: str


@event("stock.reserved", version=1)
@frozen
class StockReserved:
    order_id: str


Handle = Callable[[OrderPlaced], Awaitable[None]]


async def nothing(order: OrderPlaced) -> None:
    """Do nothing with an order."""


def shop(url: str | list[str], handle: Handle = nothing, **settings: Any) -> Bus:
    """A bus with two handlers: ``inventory.reserve``, which publishes, and ``inventory.note``, which gets that."""
    router = Router("inventory")

    @router.on(OrderPlaced, concurrency=1, prefetch=1)
    async def reserve(order: OrderPlaced) -> StockReserved:
        await handle(order)
        return StockReserved(order.order_id)

    @router.on(StockReserved, "payment.#", timeout=30)
    async def note(reserved: Event) -> None: ...

    told: dict[str, Any] = {"grace": 1, "publish_timeout": 5, **settings}
    return Bus(url, router, plugins=[DeadLetter(), Retry()], **told)


class Place:
    """A virtual host of a node with a management API, in which the shop has run once."""

    def __init__(self, node: RabbitNode, url: str) -> None:
        self.node = node
        self.url = url
        self.vhost = url.rpartition("/")[2]

    def at(self, node: RabbitNode) -> str:
        """The URL of the same virtual host at another node of the cluster."""
        return self.url.replace(f":{self.node.port}/", f":{node.port}/")

    async def looked_at(self, bus: Bus | None = None, **how: Any) -> Report:
        """What the doctor says, with a short interval: this node's statistics are half a second old at most."""
        told: dict[str, Any] = {"http": self.node.http_url, "interval": 1.2, **how}
        return await examine(bus or shop(self.url), **told)

    @asynccontextmanager
    async def channel(self) -> AsyncGenerator[AbstractChannel]:
        """Another client's channel."""
        async with await aio_pika.connect(self.url) as connection:
            yield await connection.channel()

    async def declared(self, *names: str, quorum: bool = True, arguments: Mapping[str, Any] | None = None) -> None:
        """Declare durable queues."""
        kind = {"x-queue-type": "quorum"} if quorum else {}
        async with self.channel() as channel:
            for name in names:
                await channel.declare_queue(name, durable=True, arguments={**kind, **(arguments or {})})

    async def put(self, queue: str, number: int = 1) -> None:
        """Publish messages straight into a queue."""
        async with self.channel() as channel:
            for _ in range(number):
                await channel.default_exchange.publish(aio_pika.Message(b"{}", delivery_mode=2), queue)

    async def policy(self, definition: str, pattern: str = "^inventory", *, operator: bool = False) -> None:
        """Set the one policy that there is, or the one operator policy."""
        command = "set_operator_policy" if operator else "set_policy"
        await self.node.actl(command, "-p", self.vhost, "theirs", pattern, definition, "--apply-to", "queues")


def lines(report: Report) -> list[str]:
    """What was found, a line each; but for what is said of this broker's version."""
    return [f"{each.check} {each.grade} {each.where}: {each.what}" for each in report.found if each.check != "D2"]


def about(report: Report, check: str) -> list[str]:
    """What one check found."""
    return [line for line in lines(report) if line.startswith(f"{check} ")]
