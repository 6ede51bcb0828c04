"""The atomic switch, counted: ``python -m tests.switching --nodes 3 --seconds 60 [--root FOLDER]``.

A fanout exchange with one queue and an alternate exchange sends all to that queue, and once it is unbound all to the queue
behind the other. It is bound and unbound without a pause, while each publish is mandatory and confirmed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import aio_pika
import msgspec
from aio_pika.abc import AbstractExchange, AbstractQueue
from aio_pika.exceptions import DeliveryError

from rabbitevents.brokers.rabbitmq.altering import Altering, Link
from rabbitevents.operations.planning import at_work
from tests.bed.cluster import cluster
from tests.operating import Place, shop
from tests.scale import WHOLE

SWITCHES: Final = 300 if WHOLE else 60
PUBLISHES: Final = 1000 if WHOLE else 300
"""How often tests switch, and how much each of their publishers publishes meanwhile, at least and exactly."""

NEAR, FAR = "near", "far"
SWITCH: Final = Link("either", NEAR)

_MOST: Final = 1_000_000
"""Publishes of one publisher: what it publishes is told from what others do."""


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    flips: int
    published: int
    """Confirmed, and not returned."""
    returned: int
    lost: int
    doubled: int
    disordered: int
    """How often an event came to its queue after a later one of its publisher."""
    near: int
    far: int
    """How much came to each of the two queues."""

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:,}" for name, value in msgspec.structs.asdict(self).items())


class Publisher:
    """Publishes numbers one after the other."""

    def __init__(self, first: int) -> None:
        self.sent: list[int] = []
        self.returned = 0
        self._next = first

    async def go_on(self, exchange: AbstractExchange, wanted: Callable[[int], bool]) -> None:
        """Publish as long as more is wanted than so much."""
        while wanted(len(self.sent)):
            number, self._next = self._next, self._next + 1
            try:
                await exchange.publish(aio_pika.Message(str(number).encode()), "")
            except DeliveryError:
                self.returned += 1
            else:
                self.sent.append(number)


async def switched(
    place: Place, urls: Sequence[str], *, wanted: Callable[[int], bool], flips: int, http: str | None = None
) -> Counted:
    """Switch to and fro under one publisher at each of these URLs, ``flips`` times at least; count what comes of it."""
    publishers = [Publisher(place_of * _MOST) for place_of in range(len(urls))]
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(at_work(shop(place.url), http or place.node.http_url))
        altering = Altering(site.connection)
        await _declared(place, altering)
        publishing = [
            asyncio.create_task(publisher.go_on(await _exchange(stack, url), wanted))
            for publisher, url in zip(publishers, urls, strict=True)
        ]
        done = 0
        while done < flips or not all(task.done() for task in publishing):
            await altering.unbind(SWITCH)
            await altering.bind(SWITCH)
            done += 2
        await asyncio.gather(*publishing)
        came = {name: await _drained(place, name) for name in (NEAR, FAR)}
    return _counted(done, publishers, came)


async def _declared(place: Place, altering: Altering) -> None:
    """Declare it all, with both queues."""
    await place.declared(NEAR, FAR)
    await altering.declare_exchange("rest")
    await altering.declare_exchange(SWITCH.source, alternate="rest")
    await altering.bind(Link("rest", FAR))
    await altering.bind(SWITCH)


async def _exchange(stack: AsyncExitStack, url: str) -> AbstractExchange:
    connection = await stack.enter_async_context(await aio_pika.connect(url))
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    return await channel.get_exchange(SWITCH.source)


async def _drained(place: Place, name: str) -> list[int]:
    """Read a queue until it is empty."""
    async with place.channel() as channel:
        queue: AbstractQueue = await channel.declare_queue(name, passive=True)
        there = (await place.node.aqueue_counts(name, place.url)).ready
        async with queue.iterator(no_ack=True) as messages:
            return [int((await anext(messages)).body) for _ in range(there)]


def _counted(flips: int, publishers: Sequence[Publisher], came: dict[str, list[int]]) -> Counted:
    sent = {number for publisher in publishers for number in publisher.sent}
    counts = Counter(number for numbers in came.values() for number in numbers)
    return Counted(
        flips=flips,
        published=len(sent),
        returned=sum(publisher.returned for publisher in publishers),
        lost=len(sent - counts.keys()),
        doubled=sum(number > 1 for number in counts.values()),
        disordered=sum(_disordered(numbers) for numbers in came.values()),
        near=len(came[NEAR]),
        far=len(came[FAR]),
    )


def _disordered(numbers: Sequence[int]) -> int:
    last: dict[int, int] = {}
    found = 0
    for number in numbers:
        found += number < last.get(number // _MOST, 0)
        last[number // _MOST] = number
    return found


async def main(nodes: int, seconds: float, root: Path | None) -> bool:
    """Count for so long, on a cluster whose publishers are at all nodes but the first; say whether all is well."""
    with cluster(nodes, root, management=True) as members:
        place = Place(members[0], members[0].add_vhost())
        others = [place.at(member) for member in members[1:] or members]
        now = asyncio.get_running_loop().time
        ends = now() + seconds
        counted = await switched(place, others * 3, wanted=lambda _: now() < ends, flips=0)
        print(f"RabbitMQ {members[0].version}, {nodes} nodes, {len(others) * 3} publishers: {counted}", flush=True)
    return not (counted.lost or counted.doubled or counted.returned or counted.disordered)


if __name__ == "__main__":
    told = argparse.ArgumentParser()
    told.add_argument("--nodes", type=int, default=3)
    told.add_argument("--seconds", type=float, default=60)
    told.add_argument("--root", type=Path)
    words = told.parse_args()
    sys.exit(not asyncio.run(main(words.nodes, words.seconds, words.root)))
