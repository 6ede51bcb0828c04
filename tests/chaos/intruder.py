"""Who comes in from outside, past the publishers: what is slipped into a queue, and bindings that are removed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel, HeadersType

from tests.chaos.events import JUNK, Struck
from tests.chaos.ledger import Ledger
from tests.chaos.world import World

QUEUE, TYPE = "chaos.take", "chaos.struck"

FORGED: HeadersType = {
    "attempt": -5,
    "retry-since": -1,
    "retry-waited": "long",
    "x-death": [{"count": 999, "reason": "expired"}],
}

UNREADABLE: Sequence[tuple[bytes, str, HeadersType]] = (
    (b"{", TYPE, {}),
    (b"", TYPE, {}),
    (b"[" * 5_000, TYPE, {}),
    (b'{"lane": 5, "number": "x"}', TYPE, FORGED),
    (b'{"lane": "' + b"a" * 300_000 + b'"}', TYPE, {}),
    (b'{"lane": "a", "number": 1}', "chaos.unheard-of", {}),
    (b'{"lane": "a"}', TYPE, {"event-version": 99}),
)
"""Bodies, types and headers that no handler can be called with."""


async def slip_in(world: World, struck: Struck, headers: HeadersType | None = None) -> None:
    """Put an event into the queue, and note that it is there."""
    await _put(world, [(struck.id, msgspec.json.encode(struck), TYPE, headers or {})])


async def slip_in_junk(world: World) -> int:
    """Put in what cannot be read, and an event whose headers are forged; return how many must be among the dead."""
    lane = f"{JUNK}-{world.random.getrandbits(40)}"
    await _put(world, [(f"{lane}/{n}", *each) for n, each in enumerate(UNREADABLE)])
    await slip_in(world, Struck(lane.replace(JUNK, "forged"), 0), FORGED)
    return len(UNREADABLE)


async def _put(world: World, messages: Sequence[tuple[str, bytes, str, HeadersType]]) -> None:
    ledger = Ledger(world.folder / "ledger")
    async with _channel(world) as channel:
        for id, body, type, headers in messages:
            ledger.write("attempt", [id])
            message = aio_pika.Message(
                body,
                type=type,
                message_id=id,
                headers=headers,
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await channel.default_exchange.publish(message, QUEUE)
            ledger.write("confirmed", [id])


class Bound(NamedTuple):
    """A binding of the queue."""

    exchange: str
    key: str


async def bindings(world: World) -> list[Bound]:
    """Look where the queue's events come from; where what has waited comes from is left out."""
    printed = await world.node.aeval(f"""
        [{{X, K}} || {{binding, {{resource, _, _, X}}, K, _, _}} <- rabbit_binding:list_for_destination(
            rabbit_misc:r(<<"{world.vhost}">>, queue, <<"{QUEUE}">>))]""")
    found = [Bound(*each) for each in re.findall(r'\{<<"([^"]*)">>,<<"([^"]*)">>\}', printed)]
    return [each for each in found if each.exchange and not each.exchange.endswith(".due")]


async def bind(world: World, bound: Sequence[Bound], *, there: bool) -> None:
    """Make bindings of the queue, or remove them."""
    async with _channel(world) as channel:
        queue = await channel.get_queue(QUEUE, ensure=False)
        for each in bound:
            await (queue.bind if there else queue.unbind)(each.exchange, each.key)


@asynccontextmanager
async def _channel(world: World) -> AsyncGenerator[AbstractChannel]:
    async with asyncio.timeout(20):
        connection = await aio_pika.connect(world.url)
    async with connection, connection.channel() as channel:
        yield channel
