"""What must exist at the broker: exchanges, queues and bindings, as values.

Two rules make it safe to live with (`docs/decisions/`): a queue's arguments never depend on which plugins are
installed, since RabbitMQ refuses to redeclare a queue with others; and targets stand before sources, so that nothing
is ever dead-lettered into nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Final, Literal

import msgspec

from rabbitevents import partitions

DEAD_LETTER_LIMIT: Final = 1_000_000
"""The delivery limit of queues that hold dead letters. On 4.3 the count travels with a dead letter, and a default
limit would lose it at the first look; -1 drops at the first requeue on 3.10 (both measured)."""

DUE: Final = ".due"
"""How the names of all exchanges end that something comes out of which has waited."""

DELAY_DUE: Final = f"delay{DUE}"
"""The direct exchange that leads a copy whose wait is over back to the one queue that it is for."""

DELAY_LOST: Final = "delay.lost"
"""Where a copy goes whose queue was deleted in the meantime: without it, 32 such copies wedge a waiting queue."""

MOVING: Final = ".moving"
"""How a queue is called that stands in for another one that is being made anew, or given another name."""

Argument = str | int | bool
Arguments = Mapping[str, Argument]


Kind = Literal["topic", "direct", "fanout"]
"""What an exchange of a service or of another team is. A partitioned subscription's are `HASH` besides."""

HASH: Final = "x-consistent-hash"
"""An exchange that leads each message to one of its queues, by a header; RabbitMQ has it as a plugin."""


class Exchange(msgspec.Struct, frozen=True):
    """A durable exchange. One without a kind is another team's: it must be there, and is never declared by us."""

    name: str
    kind: Kind | Literal["x-consistent-hash"] | None
    arguments: Arguments = {}


class Queue(msgspec.Struct, frozen=True):
    """A durable queue."""

    name: str
    arguments: Arguments = {}


class Binding(msgspec.Struct, frozen=True):
    """What leads from an exchange to a queue, or to another exchange, which has the queue's place then."""

    exchange: str
    queue: str
    routing_key: str
    to_exchange: bool = False


class Source(msgspec.Struct, frozen=True):
    """What a queue is bound to: an exchange (None: the bus's own), by each of the routing keys."""

    exchange: Exchange | None
    keys: tuple[str, ...]


class Topology(msgspec.Struct, frozen=True, dict=True):
    """Things to declare, in this order, each once."""

    items: tuple[Exchange | Queue | Binding, ...] = ()

    def __add__(self, other: Topology | Iterable[Exchange | Queue | Binding]) -> Topology:
        items = {_identity(item): item for item in self.items}
        for item in other.items if isinstance(other, Topology) else other:
            items.setdefault(_identity(item), item)
        return Topology(tuple(items.values()))

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues."""
        return tuple(item.name for item in self.items if isinstance(item, Queue))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the exchanges and the queues."""
        return tuple(item.name for item in self.items if not isinstance(item, Binding))

    @property
    def exchanges(self) -> Topology:
        """The exchanges alone."""
        return Topology(tuple(item for item in self.items if isinstance(item, Exchange)))

    @property
    def foreign(self) -> frozenset[str]:
        """The names of the exchanges that are other teams'."""
        return frozenset(item.name for item in self.items if isinstance(item, Exchange) and item.kind is None)

    def queue(self, name: str) -> Queue | None:
        """Return the queue of that name."""
        return next((item for _, item in self._by_name.get(name, ()) if isinstance(item, Queue)), None)

    def part(self, queue: str) -> Topology:
        """Return what one queue needs: itself, its dead letters' place, what they are bound to, and the bindings."""
        wanted = {queue, *self._by_key.get(queue, ())}
        there = [item for name in wanted for _, item in self._by_name.get(name, ())]
        wanted.update([item.exchange for item in there if isinstance(item, Binding)])
        wanted.update([name for name in map(partitions.guard_of, tuple(wanted)) if name is not None])
        found = {place: item for name in wanted for place, item in self._by_name.get(name, ())}
        return Topology(tuple(found[place] for place in sorted(found)))

    @cached_property
    def _by_name(self) -> Mapping[str, list[tuple[int, Exchange | Queue | Binding]]]:
        """The things of each name, and the bindings that lead there, with their places.

        A part is asked for each queue: a search through everything each time grows with the square of their number.
        """
        found: dict[str, list[tuple[int, Exchange | Queue | Binding]]] = {}
        for place, item in enumerate(self.items):
            found.setdefault(item.queue if isinstance(item, Binding) else item.name, []).append((place, item))
        return found

    @cached_property
    def _by_key(self) -> Mapping[str, set[str]]:
        """What the bindings of each routing key lead to."""
        found: dict[str, set[str]] = {}
        for item in self.items:
            if isinstance(item, Binding):
                found.setdefault(item.routing_key, set()).add(item.queue)
        return found

    @property
    def waves(self) -> tuple[tuple[Exchange | Queue | Binding, ...], ...]:
        """The same things in waves: those of one may be declared side by side, once all that are before it stand.

        Targets stand before sources there too: a binding comes after what it binds, and what hands messages on comes
        after the bindings that they take from there.
        """
        after: dict[_Known, int] = {}
        waves: dict[int, list[Exchange | Queue | Binding]] = {}
        in_turn = {item.name for item in self.items if isinstance(item, Exchange) and item.kind == HASH}
        for item in self.items:
            needs, known = _needs(item, in_turn), _known_by(item)
            wave = 1 + max((after.get(each, 0) for each in needs), default=0)
            waves.setdefault(wave, []).append(item)
            after.update({each: max(wave, after.get(each, 0)) for each in known})
        return tuple(tuple(waves[number]) for number in sorted(waves))


_Known = str | tuple[str, Argument | None]
"""A thing's name, or what leads out of an exchange: by one routing key, or (None) by any."""


def _known_by(item: Exchange | Queue | Binding) -> list[_Known]:
    """Return what stands once ``item`` does."""
    return [(item.exchange, item.routing_key), (item.exchange, None)] if isinstance(item, Binding) else [item.name]


def _needs(item: Exchange | Queue | Binding, in_turn: Collection[str]) -> list[_Known]:
    """Return what must stand before ``item`` does: what it binds, or where it hands messages on, and what that leads to.

    What leads out of the exchanges ``in_turn`` is bound one after another.
    """
    if isinstance(item, Binding):
        before: list[_Known] = [(item.queue, None)] if item.to_exchange else []
        return [item.queue, item.exchange, *before, *([(item.exchange, None)] if item.exchange in in_turn else [])]
    arguments = item.arguments
    exchange = str(arguments.get("x-dead-letter-exchange", arguments.get("alternate-exchange", "")))
    leads_on: list[_Known] = [exchange, (exchange, arguments.get("x-dead-letter-routing-key"))] if exchange else []
    agrees = partitions.guard_of(item.name)
    return leads_on if agrees is None else [*leads_on, agrees]


def _identity(item: Exchange | Queue | Binding) -> tuple[object, ...]:
    if isinstance(item, Binding):
        return (Binding, item.exchange, item.queue, item.routing_key, item.to_exchange)
    kind = item.kind or "" if isinstance(item, Exchange) else ""
    return (type(item), item.name, kind, *sorted((name, str(value)) for name, value in item.arguments.items()))


def dead_exchange(exchange: str) -> str:
    """Return the name of the direct exchange that dead letters go to."""
    return f"{exchange}.dead"


def due_exchange(exchange: str) -> str:
    """Return the name of the topic exchange that delayed events come out of.

    Every handler's queue is bound to it as it is to the events exchange; its alternate exchange leads to `DELAY_LOST`.
    """
    return f"{exchange}{DUE}"


def quorum(**arguments: Argument) -> dict[str, Argument]:
    """Return the arguments of a quorum queue; underscores in names stand for dashes, and ``x-`` is put before."""
    return {"x-queue-type": "quorum", **{f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}}


def events(exchange: str) -> Topology:
    """Return what a bus needs that only publishes: the events exchange."""
    return Topology((Exchange(exchange, "topic"),))


def base(exchange: str) -> Topology:
    """Return what every consuming bus needs: the events exchange, and a place for what goes astray."""
    here = Topology((Exchange(exchange, "topic"), Exchange(dead_exchange(exchange), "direct")))
    return here + way_out(DELAY_DUE) + way_out(due_exchange(exchange))


def way_out(exchange: str) -> Topology:
    """Return the exchange that what has waited comes out of, and the place of what nobody is there for any more."""
    lost = Queue(DELAY_LOST, quorum(delivery_limit=DEAD_LETTER_LIMIT))
    kind: Kind = "direct" if exchange == DELAY_DUE else "topic"
    return Topology(
        (
            Exchange(DELAY_LOST, "fanout"),
            lost,
            Binding(DELAY_LOST, lost.name, ""),
            Exchange(exchange, kind, {"alternate-exchange": DELAY_LOST}),
        )
    )


def needed(
    queue: str,
    dead: str,
    sources: Iterable[Source],
    exchange: str,
    delivery_limit: int,
    *,
    single_active_consumer: bool = False,
    was: str = "",
) -> Topology:
    """Return what a subscription needs: the place of its dead letters first, then its queue and the bindings.

    ``was`` is the queue's former name: what waits for it under that name comes back to it, too.
    """
    arguments = quorum(
        dead_letter_exchange=dead_exchange(exchange),
        dead_letter_routing_key=queue,
        dead_letter_strategy="at-least-once",
        overflow="reject-publish",
        delivery_limit=delivery_limit,
        **({"single_active_consumer": True} if single_active_consumer else {}),
    )
    here = Topology(
        (
            Queue(dead, quorum(delivery_limit=DEAD_LETTER_LIMIT)),
            Binding(dead_exchange(exchange), dead, queue),
            Queue(queue, arguments),
            Binding(DELAY_DUE, queue, queue),
        )
    )
    if was:
        here += (Binding(DELAY_DUE, queue, was),)
    for source in sources:
        here += _bound(queue, source, exchange)
    return here


def _bound(queue: str, source: Source, own: str) -> Topology:
    """Return what leads to a queue from one exchange. What is published there with a delay comes out of our own alone."""
    there = source.exchange
    if there is None or there.name == own:
        return Topology(tuple(Binding(each, queue, key) for each in (own, due_exchange(own)) for key in source.keys))
    return Topology((there, *(Binding(there.name, queue, key) for key in source.keys)))


def missing(exchange: str) -> str:
    """Say that another team's exchange is not there, and the way out."""
    return (
        f"exchange {exchange!r} does not exist, and it is not this bus's to declare: have it declared by those who own it, "
        f"or mend its name; to declare it here, say exchange=Exchange({exchange!r}, 'topic') (or 'direct', 'fanout')"
    )


def division(whole: str, total: int) -> Exchange:
    """Return the exchange that leads the events of each entity to one of so many partitions."""
    return Exchange(partitions.division(whole, total), HASH, {"hash-header": "entity-id"})


def guard(whole: str, total: int) -> tuple[Exchange, Exchange]:
    """Return the exchange that says how many partitions there are, and the one that says that there are any anywhere.

    What is published to the guard comes to one of them. AMQP tells no arguments, but refuses others than those that there
    are, and says them: so code that wants another number of partitions learns of it before it makes anything.
    """
    leads_to = partitions.division(whole, total)
    there_are_any = Exchange(partitions.DIVIDED, "fanout")
    return there_are_any, Exchange(f"{whole}{partitions.GUARD}", "fanout", {"alternate-exchange": leads_to})


def leading_to(division: Exchange, keys: Iterable[str], exchange: str) -> Topology:
    """Return what leads to the partitions: it is made last, so that nothing goes by a part of them."""
    both = (exchange, due_exchange(exchange))
    return Topology(tuple(Binding(each, division.name, key, to_exchange=True) for each in both for key in keys))


def guard_of(item: Exchange | Queue | Binding) -> str | None:
    """Return the exchange that must agree before ``item`` is made: of partitions, of what leads to them and away."""
    names = (item.queue, item.routing_key) if isinstance(item, Binding) else (item.name,)
    return next((guard for guard in map(partitions.guard_of, names) if guard is not None), None)


def keeps_rejected(topology: Topology, queue: str) -> bool:
    """Say whether a queue, as it is declared here, hands what is rejected on to a dead-letter exchange."""
    declared = topology.queue(queue)
    return declared is not None and "x-dead-letter-exchange" in declared.arguments
