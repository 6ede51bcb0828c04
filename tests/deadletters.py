"""What the tests of dead letters share: services that fail, and looks at what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from rabbitevents import Bus, Message, Plugin, Properties, Router
from rabbitevents.brokers import Broker
from rabbitevents.testing import EmbeddedBroker
from rabbitevents_deadletter import DeadLetter, DeadLetterMessage, DeadLetters
from tests.shop import OrderPlaced

QUEUE = "shop.record"
DEAD = "shop.record.dead"

Handle = Callable[[OrderPlaced], Awaitable[None]]


class PaymentError(Exception):
    """What a handler raises."""


def shop(handle: Handle) -> Router:
    """A router with one handler, ``shop.record``."""
    router = Router("shop")
    router.on(OrderPlaced, name="record")(handle)
    return router


def failing(error: BaseException | None = None) -> Router:
    """A router whose handler raises ``error``."""

    async def record(order: OrderPlaced) -> None:
        raise error or PaymentError(f"no money for {order.order_id}")

    return shop(record)


Place = EmbeddedBroker | str
"""An embedded broker, or the URL of another."""


def of(place: Place) -> str | Broker:
    """What a bus takes to be at ``place``."""
    return place if isinstance(place, str) else place.client()


def service(place: Place, router: Router, *inside: Plugin) -> Bus:
    """A bus with dead letters, and with other plugins inside of them."""
    return Bus(of(place), router, plugins=[DeadLetter(), *inside])


async def until(bus: Bus, number: int, queue: str = DEAD, seconds: float = 30) -> None:
    """Wait until a queue has so many messages ready."""
    end = asyncio.get_running_loop().time() + seconds
    while (depth := await bus.depth(queue)) is None or depth.ready != number:
        assert asyncio.get_running_loop().time() < end, f"{queue}: {depth}, not {number} within {seconds:g} s"
        await asyncio.sleep(0.01)


async def fill(place: Place, number: int) -> None:
    """Have a service fail with events ``id-0``, ``id-1``, and so on, and stop."""
    async with service(place, failing()) as bus:
        for i in range(number):
            properties = Properties(type="order.placed", message_id=f"id-{i}", content_type="application/json")
            await bus.send(raw(b'{"order_id": "o-%d"}' % i, properties=properties))
        await until(bus, number)


async def ready(place: Place, queue: str = DEAD) -> int:
    """How many messages a queue has ready."""
    async with Bus(of(place), declare="none") as bus:
        depth = await bus.depth(queue)
    assert depth is not None
    return depth.ready


@asynccontextmanager
async def tools(place: Place, *, hold: int = 999) -> AsyncGenerator[DeadLetters]:
    """The dead letters of ``shop.record``, by way of a bus of their own."""
    async with Bus(of(place), declare="none") as bus:
        yield DeadLetters(bus, QUEUE, hold=hold)


async def letters(place: Place) -> list[DeadLetterMessage]:
    """What lies in ``shop.record.dead``."""
    async with tools(place) as dead:
        return await dead.find(limit=1000)


async def put(place: Place, *messages: Message) -> None:
    """Publish messages as they are, past everything."""
    async with Bus(of(place), declare="none") as bus:
        for message in messages:
            await bus.send(message)


def raw(body: bytes, *, queue: str = QUEUE, properties: Properties | None = None) -> Message:
    """A message for one queue."""
    return Message(exchange="", routing_key=queue, body=body, properties=properties or Properties(type="order.placed"))


def ids(found: Sequence[DeadLetterMessage]) -> list[str]:
    """The ids of letters."""
    return [each.id for each in found]
