"""What must be so before a queue is made anew, and is asked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from rabbitevents.brokers.rabbitmq.tags import GENERATION, mark
from rabbitevents.errors import BrokerError, ConfigurationError
from rabbitevents.operations.applying import Consumer, all_consumers_of
from rabbitevents.operations.checks.topology import overridden
from rabbitevents.operations.differences import is_moving, is_unfinished, of_queue, said
from rabbitevents.operations.moving.acting import Wanted
from rabbitevents.operations.moving.emptiness import Waiting, look
from rabbitevents.operations.moving.renaming import Renaming
from rabbitevents.operations.moving.resizing import Resizing
from rabbitevents.operations.planning import Worksite, seen
from rabbitevents.operations.scene import Scene
from rabbitevents.operations.standing import StandingQueue
from rabbitevents.partitions import division, ended
from rabbitevents.routing import Subscription
from rabbitevents.topology import MOVING, Queue


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What making a queue anew, or giving it another name, would come to."""

    queue: str
    """The queue that is to be changed."""
    wanted: Wanted
    differs: str
    """In what it differs from what is wanted; empty where it does not, or is changed already."""
    going_on: bool
    """Whether somebody began, and did not end it."""
    depth: Waiting | None
    otherwise: tuple[str, ...]
    """Where consumers run whose code wants the queue otherwise: those would not consume it afterwards."""


async def outlook(site: Worksite, queue: str) -> Outlook:
    """Look what is to be done about a queue. Raises `ConfigurationError` where it must not be, and `BrokerError`."""
    named = next((each for each in site.bus.subscriptions if queue in (each.name, each.queue, each.whole)), None)
    wanted = None if named is None else site.wanted.queue(named.queue)
    if named is None or wanted is None:
        names = ", ".join(dict.fromkeys(each.whole or each.name for each in site.bus.subscriptions))
        raise ConfigurationError(f"{queue!r} is no handler's queue here; there are {names or 'none'}")
    scene = await seen(site)
    if why := scene.unseen.get("objects"):
        raise BrokerError(f"this has to see what stands, and nothing was changed: {why}")
    if resizing := _resizing(site, scene, named):
        return await _resized(site, scene, resizing)
    if named.was and (named.queue == named.was or is_unfinished(scene, named)):
        return await _renamed(site, scene, named)
    return await _anew(site, scene, named.queue, wanted)


async def _anew(site: Worksite, scene: Scene, queue: str, wanted: Queue) -> Outlook:
    consumers, hidden = await all_consumers_of(site, queue) if queue in scene.standing.queues else ([], [])
    if problems := [*_strangers(consumers), *hidden, *_missing(scene, queue), *_policies(scene, wanted)]:
        raise ConfigurationError(f"nothing was changed: {'; '.join(problems)}")
    ours = mark(site.wanted.part(queue), queue)
    there = scene.standing.queues.get(queue)
    return Outlook(
        queue=queue,
        wanted=wanted,
        differs="" if there is None else said(of_queue(wanted, there)),
        going_on=is_moving(scene, queue),
        depth=None if there is None else await look(site, queue),
        otherwise=tuple(sorted({each.where for each in consumers if each.mark != ours})),
    )


def _resizing(site: Worksite, scene: Scene, named: Subscription) -> Resizing | None:
    """Return what it is to give a subscription its partitions; None for one that nothing divides, nor ever did."""
    name = named.whole or named.name
    if named.whole or any(each.whole == name for each in scene.divisions):
        return Resizing(name, named.options.partitions or 1, site.wanted)
    return None


async def _resized(site: Worksite, scene: Scene, resizing: Resizing) -> Outlook:
    """Look at a subscription that is to have another number of partitions, or to be one queue."""
    whole, total = resizing.whole, resizing.total
    other = next((each for each in scene.divisions if each.whole == whole), None)
    one = other is not None and other.stands == 1
    if one:
        await _emptied_by_ours(site, scene, whole)
    exchanges = scene.standing.exchanges
    begun = other is not None and ended(division(whole, other.stands)) in exchanges
    unguarded = total > 1 and resizing.guard not in exchanges and ended(whole) in exchanges
    return Outlook(
        queue=whole,
        wanted=resizing,
        differs="" if other is None else str(other).removeprefix("it "),
        going_on=begun or unguarded,
        depth=await look(site, whole) if one else None,
        otherwise=(),
    )


async def _emptied_by_ours(site: Worksite, scene: Scene, queue: str) -> None:
    """See that the one queue is emptied by code that makes nothing of it again. Raises `ConfigurationError`."""
    consumers, hidden = await all_consumers_of(site, queue)
    problems = [*_strangers(consumers), *hidden]
    if is_moving(scene, queue):
        problems.append(f"{queue!r} is being made anew: end that first, with the code that it is of")
    if problems:
        raise ConfigurationError(f"nothing was changed: {'; '.join(problems)}")


def renaming_of(site: Worksite, named: Subscription) -> Renaming:
    """Return what a subscription's queue was called, and all that the code wants for its name of now."""
    return Renaming(named.was, named.name, site.bus.sibling().topology.part(named.name))


async def _renamed(site: Worksite, scene: Scene, named: Subscription) -> Outlook:
    """Look at a queue that is to be given another name: nobody may consume it who does not know that."""
    renaming = renaming_of(site, named)
    is_there = named.was in scene.standing.queues
    consumers, hidden = await all_consumers_of(site, named.was) if is_there else ([], [])
    strangers = [*_strangers(consumers), *_unknowing(site, named, consumers)]
    if problems := [*strangers, *hidden, *_policies(scene, renaming.wanted)]:
        raise ConfigurationError(f"nothing was changed: {'; '.join(problems)}")
    return Outlook(
        queue=named.was,
        wanted=renaming,
        differs=f"is to be called {named.name}",
        going_on=is_unfinished(scene, named),
        depth=await look(site, named.was) if is_there else None,
        otherwise=(),
    )


def _unknowing(site: Worksite, named: Subscription, consumers: list[Consumer]) -> Iterator[str]:
    ours = mark(site.wanted.part(named.was), named.was, named.name)
    for where in sorted({each.where for each in consumers if each.ours and each.mark != ours}):
        yield (
            f"it is consumed at {where} by other code than this, which may not know its new name, and would make "
            f"{named.was!r} anew: let the deploy end first"
        )


def _strangers(consumers: list[Consumer]) -> Iterator[str]:
    for each in sorted({each.where for each in consumers if not each.ours or each.generation < GENERATION}):
        yield f"it is consumed at {each} by another client, or an older version of this library, which would not take part: stop it"


def _missing(scene: Scene, queue: str) -> Iterator[str]:
    part = scene.needed.part(queue)
    for name in part.names:
        if name in scene.missing and name != queue:
            yield f"{name!r} is not there: rabbitevents topology apply declares it"


def _policies(scene: Scene, wanted: Queue) -> Iterator[str]:
    """Say which policies would take something from the queue, or from the one that stands in for it."""
    for name in (wanted.name, f"{wanted.name}{MOVING}"):
        queue = StandingQueue(name=name, arguments=wanted.arguments)
        for grade, what in overridden(queue, scene.standing.holds(queue, scene.version)):
            if grade == "wrong" or what.startswith("max-length"):
                yield f"a policy would have {name!r} with {what}: exclude it"
