"""The course of giving a subscription another number of partitions: the next act, as it follows from what stands. A pure function.

The order of an entity holds: its events are in another partition from one moment on, and nobody consumes the new partitions
before the old ones are empty. Those stand and are bound; what leads to the old ones leads to the new ones, too (what comes
between the two is in both, under the same ids: twice rather than never), and then to them alone; the consumers of the old
ones empty them, and only then the guard says that the new ones are to be consumed. An exchange says from the beginning that
the old ones have ended: older code that starts or reconnects meanwhile, or later, makes nothing of them again.

One partition is the queue of a subscription that is not divided: from there, and back, it is the same course. It has no
guard: that none stands, and that it has not ended, says that it is consumed.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from rabbitevents.brokers.rabbitmq.altering import Link
from rabbitevents.errors import ConfigurationError
from rabbitevents.operations.moving.course import (
    Bind,
    DeclareExchange,
    DeclareQueue,
    DeleteExchange,
    Empty,
    Step,
    Unbind,
)
from rabbitevents.operations.standing import Standing, StandingBinding
from rabbitevents.partitions import DIVIDED, GUARD, counted, division, ended, names, total_of
from rabbitevents.partitions import guard_of as guard_of_name
from rabbitevents.topology import DELAY_DUE, HASH, Binding, Exchange, Queue, Topology, guard_of


class Resizing(msgspec.Struct, frozen=True):
    """A subscription, how many partitions it is to have, and all that a bus wants at its broker."""

    whole: str
    total: int
    """One is the queue itself, undivided."""
    wanted: Topology

    @property
    def name(self) -> str:
        """What leads to the partitions that are wanted: an exchange, or the one queue itself."""
        return division(self.whole, self.total)

    @property
    def guard(self) -> str:
        """The exchange that says which partitions are consumed."""
        return f"{self.whole}{GUARD}"

    @property
    def place(self) -> Iterator[Exchange | Queue | Binding]:
        """Yield the partitions and what they need, in their order; what leads to them comes last."""
        if self.total == 1:
            yield from (item for item in self.wanted.items if self.whole in _about(item))
        yield from (item for item in self.wanted.items if guard_of(item) == self.guard)

    @property
    def leading(self) -> Iterator[Link]:
        """Yield what leads to the partitions."""
        for item in self.place:
            if isinstance(item, Binding) and item.queue == self.name:
                yield _link(item)

    def former(self, standing: Standing) -> tuple[int, ...]:
        """Return how many partitions there were, as far as those, or what leads to them, still stand."""
        there = (name for name in (*standing.exchanges, *standing.queues) if guard_of_name(name) == self.guard)
        one = {1} if self.whole in standing.queues else set[int]()
        return tuple(sorted(({total_of(name) for name in there} | one) - {self.total}))

    def says(self, standing: Standing) -> str:
        """Return what the guard says; nothing, where there is none."""
        there = standing.exchanges.get(self.guard)
        return "" if there is None else str(there.arguments.get("alternate-exchange", ""))


def next_resizing_step(resizing: Resizing, standing: Standing) -> Step | None:
    """Return what is to be done next to have other partitions, without losing a message; None where all is done.

    Raises `ConfigurationError` where there is no way on.
    """
    olds = resizing.former(standing)
    if not olds:
        return _last(resizing, standing)
    if len(olds) > 1:
        raise ConfigurationError(
            f"{resizing.whole!r} stands as {' and as '.join(map(counted, olds))} besides the {resizing.total} that are "
            "wanted: somebody began to lead over to another number. Run this with that code first"
        )
    old = max(olds)
    return (
        _told(resizing, standing, old)
        or _made(resizing, standing)
        or _led_over(resizing, standing, old)
        or _emptied(resizing, standing, old)
    )


def _last(resizing: Resizing, standing: Standing) -> Step | None:
    """Have the guard say that the new partitions are to be consumed; without one, the queue is."""
    if resizing.name not in (standing.queues if resizing.total == 1 else standing.exchanges):
        what = "queue" if resizing.total == 1 else "partitions"
        raise ConfigurationError(f"{resizing.whole!r} has no {what} yet: rabbitevents topology apply declares that")
    if resizing.total == 1:
        gone = resizing.guard not in standing.exchanges
        return None if gone else Step(DeleteExchange(resizing.guard, if_unused=False), "the one queue is consumed")
    if resizing.says(standing) == resizing.name:
        return None
    return Step(DeclareExchange(resizing.guard, resizing.name, anew=True), "the new partitions are consumed")


def _told(resizing: Resizing, standing: Standing, old: int) -> Step | None:
    """Have it said that the old partitions have ended, and that the new ones have not, though they may have before."""
    if ended(resizing.name) in standing.exchanges:
        return Step(DeleteExchange(ended(resizing.name), if_unused=False), "there are so many partitions again")
    if DIVIDED not in standing.exchanges:
        return Step(DeclareExchange(DIVIDED), "whoever starts now looks whether its queue is divided")
    former = ended(division(resizing.whole, old))
    if former not in standing.exchanges:
        what = "the old partitions are used as they stand" if old > 1 else "the old queue is used as it stands"
        return Step(DeclareExchange(former), what)
    return None


def _made(resizing: Resizing, standing: Standing) -> Step | None:
    """Have the new partitions stand, and bound in their order."""
    for item in resizing.place:
        if isinstance(item, Queue) and item.name not in standing.queues:
            return Step(DeclareQueue(item.name, item.arguments), f"declared: {item.name}")
        if isinstance(item, Exchange) and item.name not in standing.exchanges:
            return Step(DeclareExchange(item.name, kind=HASH, arguments=item.arguments), f"declared: {item.name}")
        if isinstance(item, Binding) and item.queue != resizing.name and not _stands(_link(item), standing):
            return Step(Bind(_link(item)), f"bound: {item.queue}")
    return None


def _led_over(resizing: Resizing, standing: Standing, old: int) -> Step | None:
    """Have all that leads to the old partitions lead to the new ones."""
    for each in resizing.leading:
        if not _stands(each, standing):
            return Step(Bind(each), "led to the new partitions, too")
    for each in _ways(resizing, standing, old):
        on = Link(each.source, resizing.name, each.key, to_queue=resizing.total == 1)
        if each.source == DELAY_DUE and not _stands(on, standing):
            return Step(Bind(on), "what waits for an old partition comes to a new one")
        return Step(Unbind(each), "led to the new partitions only")
    return None


def _ways(resizing: Resizing, standing: Standing, old: int) -> Iterator[Link]:
    """Yield what leads to the old partitions, and last what has waited: it may come to one of them straight.

    What is published comes first, as it goes to both until it is led to the new ones only.
    """
    targets = {division(resizing.whole, old): old == 1}
    straight = _partitions(resizing, standing, old) if old > 1 else []
    found = (
        each
        for each in standing.bindings
        if targets.get(each.target) is each.to_queue or (each.exchange == DELAY_DUE and each.target in straight)
    )
    links = (Link(each.exchange, each.target, each.routing_key, each.to_queue) for each in found)
    yield from sorted(links, key=lambda each: (each.source == DELAY_DUE, each))


def _emptied(resizing: Resizing, standing: Standing, old: int) -> Step:
    for queue in _partitions(resizing, standing, old):
        what = "an old partition is empty, and deleted" if old > 1 else "the old queue is empty, and deleted"
        return Step(Empty(queue, standing.queues[queue].kind), what)
    return Step(
        DeleteExchange(division(resizing.whole, old), if_unused=False), "nothing leads to old partitions any more"
    )


def _partitions(resizing: Resizing, standing: Standing, old: int) -> list[str]:
    return [name for name in names(resizing.whole, old) if name in standing.queues]


def _about(item: Exchange | Queue | Binding) -> tuple[str, ...]:
    return (item.queue, item.routing_key) if isinstance(item, Binding) else (item.name,)


def _link(item: Binding) -> Link:
    return Link(item.exchange, item.queue, item.routing_key, not item.to_exchange)


def _stands(link: Link, standing: Standing) -> bool:
    return StandingBinding(link.source, link.target, link.key, link.to_queue) in standing.bindings
