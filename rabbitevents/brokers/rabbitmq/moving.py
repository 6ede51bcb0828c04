"""Queues that are being made anew: what stands in for one meanwhile, and what whoever consumes it does.

While ``q`` is made anew, ``q.moving`` stands. Nobody declares or binds ``q`` then but who makes it anew. Its events come
out of ``q`` until that is empty, and out of ``q.moving`` once the exchange ``q.moving.first`` says so: the broker cancels
the consumers of the one, and they look again. An exchange that stands as long as any queue is being made anew saves
everybody else the looking.

A queue that is given another name goes the same way, but that its events come out of the queue of that name then, and for
good. ``q.moving`` only says meanwhile that it is under way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.control import ControlChannel
from rabbitevents.errors import BrokerError
from rabbitevents.topology import DELAY_DUE, MOVING, Binding, Topology

NOTICE: Final = "rabbitevents.moving"
"""The exchange that stands while any queue of the virtual host is being made anew; nothing is published to it."""

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
        if await _stands(connection, _queue(name), name):
            found.add(queue)
    return frozenset(found)


def _queue(name: str) -> Callable[[ControlChannel], Awaitable[Any]]:
    return lambda channel: channel.queue_declare(name, passive=True)


class Elsewhere:
    """Which queues are left alone, as we saw them last: those that are being made anew, and those that go by another name.

    ``renames`` are the names that queues are to have, by those that they have.
    """

    def __init__(self, renames: Mapping[str, str]) -> None:
        self._renames = renames
        self._moving: frozenset[str] = frozenset()
        self._renamed: frozenset[str] = frozenset()
        """What has gone over to its other name: it never comes back."""

    @property
    def queues(self) -> frozenset[str]:
        """The queues that nobody declares or binds here."""
        return self._moving | self._renamed

    def becomes(self, queue: str) -> str:
        """Return the name that a queue is to have; nothing, where it keeps its own."""
        return self._renames.get(queue, "")

    async def look(self, connection: Connection, queues: Iterable[str]) -> None:
        """Look how it is with ``queues``. Raises `BrokerError`."""
        asked = frozenset(queues)
        if not asked:
            return
        found = await moving(connection, sorted(asked))
        self._moving = self._moving - asked | found
        for queue in sorted(asked & self._renames.keys() - found):
            if await _stands(connection, _queue(self._renames[queue]), self._renames[queue]):
                self._renamed |= {queue}

    async def source(self, connection: Connection, queue: str) -> str | None:
        """Return what to consume in the place of a queue that is left alone: the older events first. Raises `BrokerError`."""
        if queue in self._moving:
            marker = f"{queue}{FIRST}"
            first = await _stands(connection, lambda channel: channel.exchange_declare(marker, passive=True), marker)
            return self._renames.get(queue, f"{queue}{MOVING}") if first else queue
        return self._renames[queue] if queue in self._renamed else None


def handled(topology: Topology) -> tuple[str, ...]:
    """Return the queues of handlers: those that what has waited comes back to."""
    due = [item.queue for item in topology.items if isinstance(item, Binding) and item.exchange == DELAY_DUE]
    return tuple(dict.fromkeys(due))


def without(topology: Topology, queues: frozenset[str]) -> Topology:
    """Return a topology without ``queues`` and what leads to them; their dead letters' place stays."""
    if not queues:
        return topology
    return Topology(
        tuple(item for item in topology.items if (item.queue if isinstance(item, Binding) else item.name) not in queues)
    )


async def _stands(connection: Connection, question: Callable[[ControlChannel], Awaitable[Any]], name: str) -> bool:
    """Say whether something is there. Whoever may not look at it is told it is: the looking that follows says more."""
    try:
        await connection.ask(question, f"looking at {name!r}")
    except BrokerError as error:
        if error.code not in (_NOT_THERE, _MAY_NOT_LOOK):
            raise
        return error.code == _MAY_NOT_LOOK and name == NOTICE
    return True
