"""What must exist at the broker: exchanges, queues and bindings, as values.

Two rules make it safe to live with (`docs/decisions/`): a queue's arguments never depend on which plugins are
installed, since RabbitMQ refuses to redeclare a queue with others; and targets stand before sources, so that nothing
is ever dead-lettered into nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from rabbitevents.routing import Subscription

DEAD_LETTER_LIMIT: Final = 1_000_000
"""The delivery limit of queues that hold dead letters. On 4.3 the count travels with a dead letter, and a default
limit would lose it at the first look; -1 drops at the first requeue on 3.10 (both measured)."""

DELAY_DUE: Final = "delay.due"
"""The direct exchange that leads a copy whose wait is over back to the one queue that it is for."""

DELAY_LOST: Final = "delay.lost"
"""Where a copy goes whose queue was deleted in the meantime: without it, 32 such copies wedge a waiting queue."""

Argument = str | int | bool
Arguments = Mapping[str, Argument]


class Exchange(msgspec.Struct, frozen=True):
    """A durable exchange."""

    name: str
    kind: Literal["topic", "direct", "fanout"]
    arguments: Arguments = {}


class Queue(msgspec.Struct, frozen=True):
    """A durable queue."""

    name: str
    arguments: Arguments = {}


class Binding(msgspec.Struct, frozen=True):
    """What leads from an exchange to a queue."""

    exchange: str
    queue: str
    routing_key: str


class Topology(msgspec.Struct, frozen=True):
    """Things to declare, in this order, each once."""

    items: tuple[Exchange | Queue | Binding, ...] = ()

    def __add__(self, other: Topology | Iterable[Exchange | Queue | Binding]) -> Topology:
        items = list(self.items)
        items.extend(item for item in (other.items if isinstance(other, Topology) else other) if item not in items)
        return Topology(tuple(items))

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues."""
        return tuple(item.name for item in self.items if isinstance(item, Queue))


def dead_exchange(exchange: str) -> str:
    """Return the name of the direct exchange that dead letters go to."""
    return f"{exchange}.dead"


def due_exchange(exchange: str) -> str:
    """Return the name of the topic exchange that delayed events come out of.

    Every handler's queue is bound to it as it is to the events exchange; its alternate exchange leads to `DELAY_LOST`.
    """
    return f"{exchange}.due"


def quorum(**arguments: Argument) -> dict[str, Argument]:
    """Return the arguments of a quorum queue; underscores in names stand for dashes, and ``x-`` is put before."""
    return {"x-queue-type": "quorum", **{f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}}


def events(exchange: str) -> Topology:
    """Return what a bus needs that only publishes: the events exchange."""
    return Topology((Exchange(exchange, "topic"),))


def base(exchange: str) -> Topology:
    """Return what every consuming bus needs: the events exchange, and a place for what goes astray."""
    lost = Queue(DELAY_LOST, quorum(delivery_limit=DEAD_LETTER_LIMIT))
    return Topology(
        (
            Exchange(exchange, "topic"),
            Exchange(dead_exchange(exchange), "direct"),
            Exchange(DELAY_LOST, "fanout"),
            lost,
            Binding(DELAY_LOST, lost.name, ""),
            Exchange(DELAY_DUE, "direct", {"alternate-exchange": DELAY_LOST}),
            Exchange(due_exchange(exchange), "topic", {"alternate-exchange": DELAY_LOST}),
        )
    )


def needed(subscription: Subscription, exchange: str, delivery_limit: int) -> Topology:
    """Return what a subscription needs: the place of its dead letters first, then its queue and the bindings."""
    queue, dead = subscription.queue, subscription.dead_queue
    arguments = quorum(
        dead_letter_exchange=dead_exchange(exchange),
        dead_letter_routing_key=queue,
        dead_letter_strategy="at-least-once",
        overflow="reject-publish",
        delivery_limit=delivery_limit,
    )
    sources = (exchange, due_exchange(exchange))
    return Topology(
        (
            Queue(dead, quorum(delivery_limit=DEAD_LETTER_LIMIT)),
            Binding(dead_exchange(exchange), dead, queue),
            Queue(queue, arguments),
            Binding(DELAY_DUE, queue, queue),
            *(Binding(source, queue, key) for source in sources for key in subscription.routing_keys),
        )
    )
