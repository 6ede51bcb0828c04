"""Applying a plan: declare what is missing, and unbind what is stale where that is asked for. Nothing is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from typing import Final
from urllib.parse import quote

import msgspec

from rabbitevents.brokers.rabbitmq.altering import Altering, Link
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.declaring import declare
from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.brokers.rabbitmq.moving import handled, moving, without
from rabbitevents.brokers.rabbitmq.tags import mark, who
from rabbitevents.errors import BrokerError, TopologyError
from rabbitevents.operations.plan import Change
from rabbitevents.operations.planning import Worksite
from rabbitevents.operations.standing import an_object, objects, text

_SHOWN_WITHIN: Final = 15.0
_PAUSE: Final = 0.5
"""Seconds within which the management API shows a consumer, and between two looks: its figures are 5 s old, by default, and
older where the node has much to do."""

_MISMATCH: Final = 406
"""What stands with other arguments is the plan's to say, and no failure of apply."""


async def add(site: Worksite) -> None:
    """Declare what is wanted, targets before sources; what is there stays as it is. Adds nothing, or all that it can.

    A queue that is being made anew is left alone. Raises `TopologyError` for what could not be made, and `BrokerError`.
    """
    kept = await moving(site.connection, handled(site.wanted))
    wanted = without(site.wanted, kept)
    declared = await declare(site.connection, wanted, passive=False, service=site.wanted, said=set())
    refused = [each for each in declared.refused.values() if not each.stands and each.code != _MISMATCH]
    if refused:
        rest = f" ({len(refused) - 1} more could not be made)" if len(refused) > 1 else ""
        raise TopologyError(f"{refused[0]}{rest}", name=refused[0].name, code=refused[0].code)
    if declared.warning:
        raise BrokerError(declared.warning, code=403)


class Consumer(msgspec.Struct, frozen=True):
    """Who consumes a queue, as the management API shows it."""

    tag: str
    where: str
    """Its own words, "host:pid"; of another client the address that it connects from."""
    ours: bool
    """Whether it is of this version of the library or a later one."""
    mark: str = ""
    generation: int = 0


async def consumers_of(http: Management, queue: str) -> list[Consumer]:
    """Return who consumes a queue. Raises `BrokerError`."""
    answer = await http.get(f"queues/{{vhost}}/{quote(queue, safe='')}")
    found: list[Consumer] = []
    for each in objects(an_object(answer.document).get("consumer_details")):
        tag, channel = text(each.get("consumer_tag")), an_object(each.get("channel_details"))
        told = who(tag)
        peer = f"{text(channel.get('peer_host')) or '?'}:{channel.get('peer_port') or '?'}"
        found.append(
            Consumer(tag, peer, False) if told is None else Consumer(tag, told.where, True, told.mark, told.generation)
        )
    return found


async def others(site: Worksite, stale: Iterable[Change]) -> list[str]:
    """Return why stale bindings may not be removed yet: consumers whose code has them, or may have them.

    Each start of theirs, and each reconnection, would bind the queue again. Raises `BrokerError`.
    """
    found: list[str] = []
    for queue in dict.fromkeys(each.name for each in stale):
        ours = mark(site.wanted.part(queue), queue)
        consumers, hidden = await all_consumers_of(site, queue)
        found += _said(queue, [each for each in consumers if each.mark != ours])
        found += hidden
    return found


async def all_consumers_of(site: Worksite, queue: str) -> tuple[list[Consumer], list[str]]:
    """Return who consumes a queue, and what is to be said where it has more consumers than the management API shows.

    That is some seconds behind, so one that has just come is waited for. Raises `BrokerError`.
    """
    end = monotonic() + _SHOWN_WITHIN
    while True:
        consumers = await consumers_of(site.management, queue)
        depth = await site.visitor.depth(queue)
        if depth is None or depth.consumers <= len(consumers):
            return consumers, []
        if monotonic() >= end:
            return consumers, [
                f"{queue} has a consumer that the management API does not show yet: try again in some seconds"
            ]
        await asyncio.sleep(_PAUSE)


def _said(queue: str, consumers: Sequence[Consumer]) -> Iterator[str]:
    for each in consumers:
        kind = "other code than this" if each.ours else "an older version of this library, or another client"
        yield f"{queue} is consumed by {kind}, at {each.where}"


async def prune(connection: Connection, stale: Iterable[Change]) -> None:
    """Remove bindings. Raises `BrokerError`."""
    altering = Altering(connection)
    for each in stale:
        await altering.unbind(Link(each.exchange, each.name, each.routing_key))
