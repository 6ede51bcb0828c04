"""Moving what is in a queue into another one: each message is confirmed there before it is taken out here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final

from rabbitevents.browsing import Browsing
from rabbitevents.bus import Bus
from rabbitevents.configuration import Told
from rabbitevents.errors import BrokerError, ConfigurationError, RabbitEventsError
from rabbitevents.message import Delivery, Message
from rabbitevents.operations.planning import NAME
from rabbitevents.wire import Limits

BATCH: Final = 200
"""How many are published together."""

PATIENCE: Final = 10.0
"""Seconds that a broker which is away is looked for."""

WINDOW: Final = 400
"""How many messages are under way at most; so many may be in both queues when this process is killed."""

EVERYTHING: Final = Limits(body=512 * 1024 * 1024, headers=131_000)
"""What a broker may hold: the largest ``max_message_size`` that RabbitMQ can be told, and headers that fill a frame."""


async def move(bus: Bus, source: str, target: str) -> AsyncGenerator[int]:
    """Move all that is ready in a queue into another, in its order; yield how many have been moved so far.

    ``bus`` says the broker. Properties and body stay, but for what only a first journey meant, and for an expiration.
    Raises `ConfigurationError` where either queue is not there or the first is consumed, and `BrokerError` where a message
    is refused or cannot be read: it stays where it is, and so does the rest.
    """
    moved = 0
    told: Told = {"name": NAME, "declare": "none", "limits": EVERYTHING, "start_timeout": PATIENCE}
    async with bus.sibling(routers=(), plugins=(), **told) as there:
        for queue in (source, target):
            if await there.depth(queue) is None:
                raise ConfigurationError(f"there is no queue {queue!r} at {there.address}")
        while True:
            async with there.browse(source, hold=WINDOW) as look:
                if look.others:
                    raise ConfigurationError(f"queue {source!r} is consumed: what is in it goes to who consumes it")
                if not look.depth:
                    return
                async for batch in _batches(look):
                    await _moved(there, look, batch, target)
                    moved += len(batch)
                    yield moved


async def _batches(look: Browsing) -> AsyncGenerator[list[Delivery]]:
    """Yield what a look holds, several at a time."""
    batch: list[Delivery] = []
    async for delivery in look:
        batch.append(delivery)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _moved(bus: Bus, look: Browsing, batch: Sequence[Delivery], target: str) -> None:
    """Publish messages, and take out those that are confirmed. Raises `BrokerError` for the first that is not."""
    messages = [_copy(each, target) for each in batch]
    results = await bus.send_many(messages)
    for delivery, result in zip(batch, results, strict=True):
        if result is None:
            look.acknowledge(delivery)
    refused = next((each for each in results if each is not None), None)
    if refused is not None:
        raise BrokerError(f"{refused}; it stays in queue {look.queue!r}, with what is behind it") from refused


def _copy(delivery: Delivery, target: str) -> Message:
    try:
        return Message.copy_of(delivery, queue=target)
    except RabbitEventsError as error:
        raise BrokerError(f"{error}; it stays in queue {delivery.queue!r}, with what is behind it") from error
