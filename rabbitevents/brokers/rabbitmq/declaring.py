"""Declaring at RabbitMQ: in order, each thing once, and what is refused is that thing's trouble alone."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Final

from aiormq.abc import AbstractChannel

from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.errors import BrokerError, TopologyError
from rabbitevents.states import Depth
from rabbitevents.topology import Binding, Exchange, Queue, Topology, missing

_REFUSALS: Final = (403, 404, 405, 406)
"""Codes that concern the one thing that was asked for."""

_UNANSWERED: Final = 3
"""Questions in a row without an answer after which the connection is in doubt, and not what was asked for."""

_OR_ELSE: Final = {
    Queue: ", or empty and delete it, so that it is declared anew",
    Exchange: ": the bus's own is a durable topic exchange; of another team's say the kind that it has, or its name alone",
    Binding: "",
}

_BOTH_SIDES = re.compile(
    r"inequivalent arg '(?P<what>[^']+)' for [^:]*: received (?P<ours>.*) but current is (?P<theirs>.*)$", re.DOTALL
)


async def declare(connection: Connection, topology: Topology, *, passive: bool) -> dict[str, TopologyError]:
    """Declare in order, or with ``passive`` only look; return what could not be, by name. Raises `BrokerError`.

    What depends on something refused is still tried: a queue that is otherwise there stops only itself, and so does
    one that the broker gives no answer about.
    """
    refused: dict[str, TopologyError] = {}
    unanswered = 0
    for item in topology.items:
        if passive and isinstance(item, Binding):
            continue
        try:
            await connection.ask(partial(_ask, item=item, passive=passive), f"declaring {_name(item)}")
            unanswered = 0
        except BrokerError as error:
            unanswered += error.code == 0
            if connection.lost.done() or unanswered == _UNANSWERED or error.code not in (0, *_REFUSALS):
                raise
            refused.setdefault(_key(item), _explained(item, error, refused))
    return refused


async def depth(connection: Connection, queue: str) -> Depth | None:
    """Return what the broker says of ``queue``; None if there is none of that name. Raises `BrokerError`."""
    try:
        answer = await connection.ask(
            lambda channel: channel.queue_declare(queue, passive=True), f"looking at queue {queue!r}"
        )
    except BrokerError as error:
        if error.code != 404:
            raise
        return None
    return Depth(answer.message_count or 0, answer.consumer_count or 0)


def _ask(channel: AbstractChannel, item: Exchange | Queue | Binding, *, passive: bool) -> Awaitable[Any]:
    match item:
        case Exchange():
            return channel.exchange_declare(
                item.name,
                exchange_type=item.kind or "topic",
                durable=True,
                passive=passive or item.kind is None,
                arguments=dict(item.arguments),
            )
        case Queue():
            return channel.queue_declare(item.name, durable=True, passive=passive, arguments=dict(item.arguments))
        case Binding():
            return channel.queue_bind(item.queue, item.exchange, routing_key=item.routing_key)


def _key(item: Exchange | Queue | Binding) -> str:
    return item.queue if isinstance(item, Binding) else item.name


def _name(item: Exchange | Queue | Binding) -> str:
    match item:
        case Exchange():
            return f"exchange {item.name!r}"
        case Queue():
            return f"queue {item.name!r}"
        case Binding():
            return f"the binding of queue {item.queue!r} to {item.routing_key!r} on exchange {item.exchange!r}"


def _explained(
    item: Exchange | Queue | Binding, error: BrokerError, refused: Mapping[str, TopologyError]
) -> TopologyError:
    """Say what the broker has, what we want, and the way out."""
    if error.code == 404 and isinstance(item, Exchange) and item.kind is None:
        return TopologyError(missing(item.name), name=item.name, code=404)
    if isinstance(item, Binding) and item.exchange in refused:
        return TopologyError(
            f"{_name(item)} cannot be made: {refused[item.exchange]}", name=item.queue, code=error.code
        )
    sides = _BOTH_SIDES.search(str(error))
    if sides is not None:
        text = (
            f"{_name(item)} exists with other arguments: {sides['what']} is {sides['theirs']}, and this bus wants {sides['ours']}. "
            f"Bring the bus into line with it{_OR_ELSE[type(item)]}"
        )
    elif error.code == 404:
        text = f"{_name(item)} does not exist: have it declared by somebody who may, or let this bus declare (declare='active')"
    elif error.code == 403:
        text = f"{_name(item)}: this user may not do that; grant it, or declare it elsewhere and say declare='passive' here"
    else:
        text = f"{_name(item)}: {error}"
    return TopologyError(text, name=_key(item), code=error.code)
