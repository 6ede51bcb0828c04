"""What is wanted and what stands, compared: pure functions, for the doctor's checks and for plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from rabbitevents import partitions
from rabbitevents.operations.scene import Division, Scene
from rabbitevents.operations.standing import Standing, StandingBinding, StandingExchange, StandingQueue
from rabbitevents.partitions import DIVIDED, GUARD
from rabbitevents.routing import Subscription
from rabbitevents.topology import MOVING, Argument, Arguments, Binding, Exchange, Queue, Topology, guard_of


class Differs(msgspec.Struct, frozen=True):
    """An argument, or the type or kind, that stands with one value and is wanted with another; None is not set."""

    argument: str
    stands: Argument | None
    wanted: Argument | None

    def __str__(self) -> str:
        stands = "not set" if self.stands is None else self.stands
        return f"{self.argument} is {stands}, wanted is {'none' if self.wanted is None else self.wanted}"


def said(differing: tuple[Differs, ...]) -> str:
    """Return differences in words."""
    return "; ".join(map(str, differing))


def of_queue(wanted: Queue, there: StandingQueue) -> tuple[Differs, ...]:
    """Return in what a queue that stands differs from the one that is wanted."""
    kind = str(wanted.arguments.get("x-queue-type", "classic"))
    # A type that the virtual host gave is among the arguments, or is not: what counts is the type itself.
    return (
        *([Differs("type", there.kind, kind)] if there.kind != kind else []),
        *([] if there.durable else [Differs("durable", False, True)]),
        *_differing(_without_type(wanted.arguments), _without_type(there.arguments)),
    )


def of_exchange(wanted: Exchange, there: StandingExchange) -> tuple[Differs, ...]:
    """Return in what an exchange that stands differs from the one that is wanted; nothing for another team's."""
    if wanted.kind is None:
        return ()
    kind = [Differs("kind", there.kind, wanted.kind)] if there.kind != wanted.kind else []
    return (*kind, *_differing(wanted.arguments, there.arguments))


def _without_type(arguments: Arguments) -> Arguments:
    return {name: value for name, value in arguments.items() if name != "x-queue-type"}


def _differing(wanted: Arguments, there: Arguments) -> Iterator[Differs]:
    for name in dict.fromkeys((*wanted, *there)):
        if there.get(name) != wanted.get(name):
            yield Differs(name, there.get(name), wanted.get(name))


def wanted_bindings(topology: Topology) -> frozenset[StandingBinding]:
    """Return the bindings of a topology, as they stand at a broker."""
    return frozenset(
        StandingBinding(item.exchange, item.queue, item.routing_key, not item.to_exchange)
        for item in topology.items
        if isinstance(item, Binding)
    )


def divided_otherwise(subscriptions: Iterable[Subscription], standing: Standing) -> Iterator[Division]:
    """Yield the handlers that only a migration gives the number of partitions that the code says."""
    wanted = {each.whole or each.name: each.options.partitions or 1 for each in subscriptions}
    for whole, total in wanted.items():
        there = _total_at(standing, whole, total)
        if there != total or partitions.ended(partitions.division(whole, total)) in standing.exchanges:
            yield Division(whole, there, total)


def _total_at(standing: Standing, whole: str, wanted: int) -> int:
    """Return how many partitions there are at the broker; as many as are wanted, where nothing says otherwise."""
    there = standing.exchanges.get(f"{whole}{GUARD}")
    if there is not None:
        return partitions.total_of(str(there.arguments.get("alternate-exchange", ""))) or wanted
    return 1 if whole in standing.queues else wanted


def settled(scene: Scene) -> Scene:
    """Return the scene without what is divided otherwise at the broker: that alone is to be spoken of."""
    others = tuple(divided_otherwise(scene.subscriptions, scene.standing))
    if not others:
        return scene
    guards, wholes = {each.guard for each in others}, {each.whole for each in others}
    needed = Topology(tuple(item for item in scene.needed.items if not _is_of(item, guards, wholes)))
    queues = {
        name: queue
        for name, queue in scene.standing.queues.items()
        if partitions.guard_of(name) not in guards and name not in wholes
    }
    standing = msgspec.structs.replace(scene.standing, queues=queues)
    dropped = set(scene.needed.names) - set(needed.names)
    missing = {name: why for name, why in scene.missing.items() if name not in dropped}
    return msgspec.structs.replace(scene, needed=needed, missing=missing, standing=standing, divisions=others)


def _is_of(item: Exchange | Queue | Binding, guards: set[str], wholes: set[str]) -> bool:
    """Say whether something is a partition, leads to one or away, or says how many there are; or is of the one queue."""
    names = {item.queue, item.routing_key} if isinstance(item, Binding) else {item.name}
    return guard_of(item) in guards or not names.isdisjoint({*guards, *wholes, DIVIDED})


def stale_bindings(scene: Scene) -> list[StandingBinding]:
    """Return the bindings of the handlers' queues that the code does not have, ordered by queue, key and exchange."""
    queues = {each.queue for each in scene.subscriptions if each.queue in scene.needed.queues}
    extra = {each for each in scene.standing.bindings if each.to_queue and each.target in queues}
    extra = {each for each in extra if not each.exchange.endswith((MOVING, f"{MOVING}.rest"))}
    # What waited for a partition comes to the one queue, once that stands in its place.
    extra = {each for each in extra if partitions.undivided(each.routing_key) != each.target}
    return sorted(
        extra - wanted_bindings(scene.needed), key=lambda each: (each.target, each.routing_key, each.exchange)
    )


def orphan_queues(scene: Scene) -> Iterator[tuple[str, StandingQueue]]:
    """Yield the queues under our routers' names that no code names, each with its router's name."""
    needed = {each.queue for each in scene.subscriptions} | {
        *scene.needed.queues,
        *(f"{name}{MOVING}" for name in scene.needed.queues),
    }
    for name, queue in sorted(scene.standing.queues.items()):
        router = next((each for each in scene.routers if name.startswith(f"{each}.")), None)
        if router is not None and name not in needed and not name.endswith((".dead", MOVING)):
            yield router, queue


def to_be_renamed(scene: Scene) -> Iterator[Subscription]:
    """Yield the subscriptions whose queues have their former names still, and nobody has begun to change that."""
    for each in scene.subscriptions:
        if each.was and each.queue == each.was and not is_unfinished(scene, each):
            yield each


def left_behind(scene: Scene) -> Iterator[tuple[Subscription, StandingQueue]]:
    """Yield queues under former names, whose subscriptions have new ones: the handler's own, or that of its dead letters."""
    for each in scene.subscriptions:
        for former in (each.former, f"{each.former}.dead") if each.former else ():
            if former in scene.standing.queues and not is_unfinished(scene, each):
                yield each, scene.standing.queues[former]


def is_moving(scene: Scene, queue: str) -> bool:
    """Say whether a queue is being made anew or renamed: nothing about it is to be changed by anybody else."""
    old = (each.was for each in scene.subscriptions if each.was and queue in (each.name, each.was))
    return any(f"{name}{MOVING}" in scene.standing.queues for name in (queue, *old))


def is_unfinished(scene: Scene, subscription: Subscription) -> bool:
    """Say whether a queue is being given its new name: somebody began, and did not end it."""
    marker = f"{subscription.was}{MOVING}"
    return marker in scene.standing.queues or f"{marker}.first" in scene.standing.exchanges
