"""Queues that are being made anew: what stands in for one meanwhile, and what whoever consumes it does.

While ``q`` is made anew, ``q.moving`` stands. Nobody declares or binds ``q`` then but who makes it anew. Its events come
out of ``q`` until that is empty, and out of ``q.moving`` once the exchange ``q.moving.first`` says so: the broker cancels
the consumers of the one, and they look again. An exchange that stands as long as any queue is being made anew saves
everybody else the looking.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from aiormq.abc import AbstractChannel

from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.errors import BrokerError
from rabbitevents.topology import DELAY_DUE, Binding, Topology

NOTICE: Final = "rabbitevents.moving"
"""The exchange that stands while any queue of the virtual host is being made anew; nothing is published to it."""

MOVING: Final = ".moving"
"""How a queue is called that stands in for another one, and the exchange that leads to either."""

REST: Final = ".moving.rest"
"""The exchange that leads to the queue that stands in, for what finds no other way."""

FIRST: Final = ".moving.first"
"""The exchange that stands once the queue that stands in is to be consumed."""

_NOT_THERE: Final = 404
_MAY_NOT_LOOK: Final = 403


async def moving(connection: Connection, queues: Iterable[str]) -> frozenset[str]:
    """Return those of ``queues`` that are being made anew. Raises `BrokerError`."""
    if not await _stands(connection, lambda channel: channel.exchange_declare(NOTICE, passive=True), NOTICE):
        return frozenset()
    found: set[str] = set()
    for queue in queues:
        name = f"{queue}{MOVING}"

        def look(channel: AbstractChannel, name: str = name) -> Awaitable[Any]:
            return channel.queue_declare(name, passive=True)

        if await _stands(connection, look, name):
            found.add(queue)
    return frozenset(found)


async def stand_in(connection: Connection, queue: str) -> str:
    """Return what to consume of a queue that is being made anew: the older events first. Raises `BrokerError`."""
    marker = f"{queue}{FIRST}"
    first = await _stands(connection, lambda channel: channel.exchange_declare(marker, passive=True), marker)
    return f"{queue}{MOVING}" if first else queue


def handled(topology: Topology) -> tuple[str, ...]:
    """Return the queues of handlers: those that what has waited comes back to."""
    return tuple(item.queue for item in topology.items if isinstance(item, Binding) and item.exchange == DELAY_DUE)


def without(topology: Topology, queues: frozenset[str]) -> Topology:
    """Return a topology without ``queues`` and what leads to them; their dead letters' place stays."""
    if not queues:
        return topology
    return Topology(
        tuple(item for item in topology.items if (item.queue if isinstance(item, Binding) else item.name) not in queues)
    )


async def _stands(connection: Connection, question: Callable[[AbstractChannel], Awaitable[Any]], name: str) -> bool:
    """Say whether something is there. Whoever may not look at it is told it is: the looking that follows says more."""
    try:
        await connection.ask(question, f"looking at {name!r}")
    except BrokerError as error:
        if error.code not in (_NOT_THERE, _MAY_NOT_LOOK):
            raise
        return error.code == _MAY_NOT_LOOK and name == NOTICE
    return True
