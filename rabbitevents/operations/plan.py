"""The plan: what apply would add, what only a migration changes, what may be removed, and what somebody must decide on.

The values are what ``rabbitevents topology plan --json`` writes: a field that is there stays, and keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec

from rabbitevents.operations.checks.topology import policies
from rabbitevents.operations.differences import (
    Differs,
    is_moving,
    is_unfinished,
    left_behind,
    of_exchange,
    of_queue,
    orphan_queues,
    said,
    stale_bindings,
    to_be_renamed,
    wanted_bindings,
)
from rabbitevents.operations.scene import Division, Found, Scene, Sight, Unseen, found_by
from rabbitevents.operations.standing import StandingBinding, StandingQueue
from rabbitevents.partitions import GUARD, total_of
from rabbitevents.topology import MOVING, Exchange, Queue

Action = Literal["add", "migrate", "remove", "decide"]
"""What is to be done: by apply; by migrate; by ``apply --prune``; or by somebody who knows what it is for."""

Thing = Literal["exchange", "queue", "binding"]

ACTIONS: Final[tuple[Action, ...]] = ("add", "migrate", "remove", "decide")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it is wanted. Of a binding, ``name`` is its queue."""

    action: Action
    kind: Thing
    name: str
    exchange: str = ""
    """Of a binding: what it leads from, by ``routing_key``."""
    routing_key: str = ""
    differs: tuple[Differs, ...] = ()
    """In what it differs, where it stands; without HTTP, in this at least."""
    ready: int | None = None
    """How many messages are ready in a queue that stands; None where that was not seen, or is not told."""
    what: str = ""
    """What there is to know besides."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``rabbitevents topology plan`` says. ``schema`` is the number of this form of it."""

    schema: int = 1
    bus: str
    address: str
    vhost: str
    http: str
    """The management API's URL and its user; empty where it said nothing."""
    changes: tuple[Change, ...]
    found: tuple[Found, ...]
    """Policies that take a promise away, whatever is declared."""
    unseen: tuple[Unseen, ...]

    @property
    def equal(self) -> bool:
        """Whether all that was seen is as it is wanted."""
        return not self.changes and not self.found

    def of(self, action: Action) -> tuple[Change, ...]:
        """Return the changes that one action makes."""
        return tuple(each for each in self.changes if each.action == action)


def changes(scene: Scene, probed: Iterable[Change] = ()) -> tuple[Change, ...]:
    """Return what is not as it is wanted; ``probed`` is what is otherwise there, as AMQP says it."""
    found = [*_missing(scene), *probed]
    if "objects" not in scene.unseen:
        found += [*_otherwise(scene), *_unbound(scene), *_stale(scene), *_orphans(scene)]
    found = [*found, *_moving(scene), *_former(scene), *map(divided, scene.divisions)]
    return tuple(sorted(found, key=lambda each: ACTIONS.index(each.action)))


def overriding(scene: Scene) -> tuple[Found, ...]:
    """Return what policies take away; a plan cannot mend that."""
    if {"objects", "broker"} & scene.unseen.keys():
        return ()
    return tuple(each for each in found_by("D8", policies(scene)) if each.grade == "wrong")


_Blind = tuple[Sight, str]

_BLIND: Final[tuple[_Blind, ...]] = (
    ("broker", "what is missing"),
    ("objects", "bindings"),
    ("objects", "queues that are nobody's"),
    ("objects", "policies"),
)


def blind(scene: Scene, *, probed: bool) -> tuple[Unseen, ...]:
    """Return what could not be seen, and why."""
    found: dict[str, list[str]] = {}
    arguments: tuple[_Blind, ...] = () if probed else (("objects", "arguments"),)
    for sight, about in (*_BLIND, *arguments):
        if why := scene.unseen.get(sight):
            found.setdefault(why, []).append(about)
    return tuple(Unseen(tuple(about), why) for why, about in found.items())


def _missing(scene: Scene) -> Iterator[Change]:
    for item in scene.needed.items:
        if isinstance(item, Queue) and item.name in scene.missing and not is_moving(scene, item.name):
            yield Change(action="add", kind="queue", name=item.name)
        elif isinstance(item, Exchange) and item.name in scene.missing:
            foreign = item.kind is None
            what = "another team's, and not this bus's to declare" if foreign else ""
            yield Change(action="decide" if foreign else "add", kind="exchange", name=item.name, what=what)


def _otherwise(scene: Scene) -> Iterator[Change]:
    for item in scene.needed.items:
        if isinstance(item, Queue) and item.name in scene.standing.queues and not is_moving(scene, item.name):
            there = scene.standing.queues[item.name]
            if differs := of_queue(item, there):
                yield migrated(scene, item.name, differs)
        elif isinstance(item, Exchange) and item.name in scene.standing.exchanges:
            differs = of_exchange(item, scene.standing.exchanges[item.name])
            yield from [otherwise_exchange(item.name, differs)] if differs else []


def migrated(scene: Scene, name: str, differs: tuple[Differs, ...]) -> Change:
    """Return the change of a queue that stands with other arguments: of a handler's, only a migration makes it."""
    depth = scene.depths.get(name)
    ready = None if depth is None else depth.ready  # by AMQP, which is not seconds behind
    if any(each.queue == name for each in scene.subscriptions):
        return Change(action="migrate", kind="queue", name=name, differs=differs, ready=ready)
    what = "no handler's queue, which nothing here makes anew: empty and delete it, and apply declares it"
    return Change(action="decide", kind="queue", name=name, differs=differs, ready=ready, what=what)


def otherwise_exchange(name: str, differs: tuple[Differs, ...]) -> Change:
    """Return the change of an exchange that stands and is another: nobody but its owner knows who else needs it.

    Of the one that says how many partitions there are, a migration makes it.
    """
    if name.endswith(GUARD) and differs:
        stands, wanted = total_of(str(differs[0].stands)), total_of(str(differs[0].wanted))
        return divided(Division(name.removesuffix(GUARD), stands, wanted))
    what = "have it deleted, and apply declares it and binds to it anew"
    return Change(action="decide", kind="exchange", name=name, differs=differs, what=what)


def divided(division: Division) -> Change:
    """Return the change of a handler that has another number of partitions."""
    return Change(action="migrate", kind="queue", name=division.whole, what=str(division))


def _unbound(scene: Scene) -> Iterator[Change]:
    order = {name: place for place, name in enumerate(scene.needed.names)}
    missing = wanted_bindings(scene.needed) - scene.standing.bindings
    for each in sorted(missing, key=lambda each: (order.get(each.target, 0), each.exchange, each.routing_key)):
        if not is_moving(scene, each.target):
            yield _binding("add", each)


def _stale(scene: Scene) -> Iterator[Change]:
    for each in stale_bindings(scene):
        if not is_moving(scene, each.target):
            yield _binding("remove", each)


def _binding(action: Action, each: StandingBinding) -> Change:
    return Change(action=action, kind="binding", name=each.target, exchange=each.exchange, routing_key=each.routing_key)


def _orphans(scene: Scene) -> Iterator[Change]:
    for _, queue in orphan_queues(scene):
        if not queue.consumers:  # somebody's, then
            yield Change(action="decide", kind="queue", name=queue.name, ready=queue.ready, what="nobody's")


def _moving(scene: Scene) -> Iterator[Change]:
    for each in scene.subscriptions:
        if each.was and is_unfinished(scene, each):
            what = f"it is given another name, {each.name}, or was and nobody went on"
            yield Change(action="migrate", kind="queue", name=each.was, what=what)
        elif is_moving(scene, each.queue):
            there: StandingQueue = scene.standing.queues[f"{each.queue}{MOVING}"]
            what = "it is being made anew, or was and nobody went on"
            yield Change(action="migrate", kind="queue", name=each.queue, ready=there.ready, what=what)


def _former(scene: Scene) -> Iterator[Change]:
    """Say which queues have their former names, also without HTTP, and what of those names is left after that."""
    for each in to_be_renamed(scene):
        depth = scene.depths.get(each.was)
        ready = None if depth is None else depth.ready
        yield Change(action="migrate", kind="queue", name=each.was, ready=ready, what=f"it is to be called {each.name}")
    orphans = {queue.name for _, queue in orphan_queues(scene)}
    for each, queue in left_behind(scene):
        if queue.name not in orphans:
            kind = "events" if queue.name == each.was else "dead letters"
            what = f"{kind} of {each.queue} from before it had this name"
            yield Change(action="decide", kind="queue", name=queue.name, ready=queue.ready, what=what)


SIGNS: Final[dict[Action, str]] = {"add": "+", "migrate": "~", "remove": "-", "decide": "?"}


def grouped(changes: Iterable[Change]) -> Iterator[tuple[Change, tuple[str, ...]]]:
    """Yield changes with their routing keys: bindings that differ in nothing else, together."""
    keys: dict[Change, list[str]] = {}
    for each in changes:
        keys.setdefault(msgspec.structs.replace(each, routing_key=""), []).append(each.routing_key)
    for change, routing_keys in keys.items():
        yield change, tuple(routing_keys)


def line(change: Change, keys: Iterable[str]) -> str:
    """Return a change in words, behind its sign and what it is."""
    if change.kind == "binding":
        return f"{change.exchange} -> {change.name}: {', '.join(map(repr, keys))}"
    ready = "" if change.ready is None else f"{change.ready:,} ready"
    parts = [said(change.differs), change.what, ready]
    return f"{change.name}{': ' if any(parts) else ''}{'; '.join(filter(None, parts))}"


_TO_DO: Final[dict[Action, str]] = {
    "add": "to add",
    "migrate": "to migrate",
    "remove": "to remove with apply --prune",
    "decide": "to decide on",
}


def total(plan: Plan) -> str:
    """Return how much there is to do, in words."""
    parts = [f"{len(plan.of(action))} {_TO_DO[action]}" for action in ACTIONS if plan.of(action)]
    parts += [f"{len(plan.found)} overridden by policies"] if plan.found else []
    return ", ".join(parts) or "nothing to change"
