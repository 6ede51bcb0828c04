"""Waiting until a queue is empty, and knowing that it is: no number that is missing is taken for 0, and no single one for true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final
from urllib.parse import quote

import msgspec

from rabbitevents.brokers.rabbitmq.altering import Altering
from rabbitevents.errors import BrokerError
from rabbitevents.operations.applying import consumers_of
from rabbitevents.operations.planning import Worksite
from rabbitevents.operations.standing import StandingQueue, queues_of

LOOKS: Final = 3
"""Looks in a row that see an empty queue, over two intervals of the broker's statistics."""


class NotEmptyError(BrokerError):
    """A queue was not empty in time; the text says what is in it, and who has it."""


class Waiting(msgspec.Struct, frozen=True):
    """How a queue is that is waited for; None is what is not known. Consumers are as AMQP says: HTTP shows some that are gone."""

    queue: str
    ready: int
    unacked: int | None
    stuck: int | None
    consumers: int

    @property
    def empty(self) -> bool:
        """Whether nothing is in it, as far as this look says."""
        return self.ready == 0 and self.unacked == 0 and not self.stuck

    def __str__(self) -> str:
        unacked = "?" if self.unacked is None else f"{self.unacked:,}"
        stuck = f", {self.stuck:,} dead letters that cannot leave" if self.stuck else ""
        return f"{self.ready:,} ready, {unacked} unacknowledged{stuck}, {self.consumers} consumers"


async def look(site: Worksite, queue: str) -> Waiting:
    """Look at a queue: fresh numbers by AMQP, and over HTTP what AMQP does not say. Raises `BrokerError`."""
    depth = await Altering(site.connection).depth(queue)
    if depth is None:
        raise BrokerError(f"there is no queue {queue!r} any more: somebody else has deleted it", code=404)
    there = await numbers(site, queue)
    return Waiting(queue, depth.ready, there.unacked, there.stuck, depth.consumers)


async def numbers(site: Worksite, queue: str) -> StandingQueue:
    """Return a queue as the management API shows it. Raises `BrokerError`."""
    answer = await site.management.get(f"queues/{{vhost}}/{quote(queue, safe='')}")
    return next(iter(queues_of([answer.document]).values()), StandingQueue(name=queue))


async def until_empty(site: Worksite, queue: str, *, within: float, interval: float) -> AsyncGenerator[Waiting]:
    """Yield how a queue is, until it has been empty in `LOOKS` looks in a row, ``interval`` seconds apart.

    Raises `NotEmptyError` after ``within`` seconds, which says what is in it still, and who has it.
    """
    now = asyncio.get_running_loop().time
    ends, in_a_row = now() + within, 0
    while True:
        seen = await look(site, queue)
        yield seen
        in_a_row = in_a_row + 1 if seen.empty else 0
        if in_a_row == LOOKS:
            return
        if now() > ends and not in_a_row:
            raise NotEmptyError(await _given_up(site, seen, within))
        await asyncio.sleep(interval)


async def _given_up(site: Worksite, seen: Waiting, within: float) -> str:
    who = ", ".join(sorted({each.where for each in await consumers_of(site.management, seen.queue)}))
    if seen.consumers or who:
        why = f"its consumers are at {who or 'places that the management API does not show yet'}"
    else:
        why = "nobody consumes it: start the service, which takes part in this"
    return (
        f"queue {seen.queue!r} is not empty after {within:g} s ({seen}); {why}. Nothing is lost, new events wait; run this "
        "again to go on"
    )
