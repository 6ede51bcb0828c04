"""Declaring at RabbitMQ, on channels that are thrown away: a refusal closes the channel, and says why."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from typing import Any

from aiormq.abc import AbstractChannel

from rabbitevents.brokers.rabbitmq.connection import RPC_DEADLINE, Wire, within
from rabbitevents.errors import BrokerError, TopologyError
from rabbitevents.states import Depth
from rabbitevents.topology import Binding, Exchange, Queue, Topology

_REFUSALS = (403, 404, 405, 406)
"""Codes that concern the one thing that was asked for; with any other the connection is in doubt."""

_BOTH_SIDES = re.compile(
    r"inequivalent arg '(?P<what>[^']+)' for .*: received (?P<ours>.*) but current is (?P<theirs>.*)$", re.DOTALL
)


async def declare(wire: Wire, topology: Topology, *, passive: bool) -> dict[str, TopologyError]:
    """Declare in order, or with ``passive`` only look; return what the broker refused, by name. Raises `BrokerError`.

    What depends on something refused is still tried: a queue that is otherwise there stops only itself.
    """
    refused: dict[str, TopologyError] = {}
    channel = await wire.channel()
    try:
        for item in topology.items:
            if passive and isinstance(item, Binding):
                continue
            try:
                await within(RPC_DEADLINE, _ask(channel, item, passive=passive), f"declaring {_name(item)}")
            except BrokerError as error:
                if error.code not in _REFUSALS:
                    raise
                key = item.queue if isinstance(item, Binding) else item.name
                refused.setdefault(key, _explained(item, error))
                await wire.close_channel(channel)
                channel = await wire.channel()
    finally:
        await wire.close_channel(channel)
    return refused


async def depth(wire: Wire, queue: str) -> Depth | None:
    """Return what the broker says of ``queue``; None if there is none of that name. Raises `BrokerError`."""
    channel = await wire.channel()
    try:
        asked = channel.queue_declare(queue, passive=True)
        answer = await within(RPC_DEADLINE, asked, f"looking at queue {queue!r}")
    except BrokerError as error:
        if error.code != 404:
            raise
        return None
    finally:
        await wire.close_channel(channel)
    return Depth(answer.message_count or 0, answer.consumer_count or 0)


def _ask(channel: AbstractChannel, item: Exchange | Queue | Binding, *, passive: bool) -> Coroutine[Any, Any, object]:
    match item:
        case Exchange():
            return channel.exchange_declare(
                item.name, exchange_type=item.kind, durable=True, passive=passive, arguments=dict(item.arguments)
            )
        case Queue():
            return channel.queue_declare(item.name, durable=True, passive=passive, arguments=dict(item.arguments))
        case Binding():
            return channel.queue_bind(item.queue, item.exchange, routing_key=item.routing_key)


def _name(item: Exchange | Queue | Binding) -> str:
    match item:
        case Exchange():
            return f"exchange {item.name!r}"
        case Queue():
            return f"queue {item.name!r}"
        case Binding():
            return f"the binding of queue {item.queue!r} to {item.routing_key!r} on exchange {item.exchange!r}"


def _explained(item: Exchange | Queue | Binding, error: BrokerError) -> TopologyError:
    """Say what the broker has, what we want, and the way out."""
    name = item.queue if isinstance(item, Binding) else item.name
    sides = _BOTH_SIDES.search(str(error))
    if sides is not None:
        text = (
            f"{_name(item)} exists with other arguments: {sides['what']} is {sides['theirs']}, and this bus wants {sides['ours']}. "
            "Bring the bus into line with it, or empty and delete it, so that it is declared anew"
        )
    elif error.code == 404:
        text = f"{_name(item)} does not exist: have it declared by somebody who may, or let this bus declare (declare='active')"
    elif error.code == 403:
        text = f"{_name(item)}: this user may not do that; grant it, or declare it elsewhere and say declare='passive' here"
    else:
        text = f"{_name(item)}: {error}"
    return TopologyError(text, name=name, code=error.code)
