"""What must be so before a queue is made anew, and is asked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from rabbitevents.brokers.rabbitmq.moving import MOVING
from rabbitevents.brokers.rabbitmq.tags import GENERATION, mark
from rabbitevents.errors import BrokerError, ConfigurationError
from rabbitevents.operations.applying import Consumer, consumers_of, not_shown
from rabbitevents.operations.checks.topology import overridden
from rabbitevents.operations.differences import is_moving, of_queue, said
from rabbitevents.operations.moving.emptiness import Waiting, look
from rabbitevents.operations.planning import Worksite, seen
from rabbitevents.operations.scene import Scene
from rabbitevents.operations.standing import StandingQueue
from rabbitevents.topology import Queue


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What making a queue anew would come to."""

    wanted: Queue
    differs: str
    """In what it differs from what is wanted; empty where it does not, or is made anew already."""
    going_on: bool
    """Whether somebody began, and did not end it."""
    depth: Waiting | None
    otherwise: tuple[str, ...]
    """Where consumers run whose code wants the queue otherwise: those would not consume it afterwards."""


async def outlook(site: Worksite, queue: str) -> Outlook:
    """Look what is to be done about a queue. Raises `ConfigurationError` where it must not be, and `BrokerError`."""
    wanted = site.wanted.queue(queue)
    names = [each.queue for each in site.bus.subscriptions]
    if wanted is None or queue not in names:
        raise ConfigurationError(f"{queue!r} is no handler's queue here; there are {', '.join(names) or 'none'}")
    scene = await seen(site)
    if why := scene.unseen.get("objects"):
        raise BrokerError(f"this has to see what stands, and nothing was changed: {why}")
    consumers = await consumers_of(site.management, queue) if queue in scene.standing.queues else []
    hidden = await not_shown(site, queue, consumers)
    if problems := [*_strangers(consumers), *hidden, *_missing(scene, queue), *_policies(scene, wanted)]:
        raise ConfigurationError(f"nothing was changed: {'; '.join(problems)}")
    ours = mark(site.wanted.part(queue), queue)
    there = scene.standing.queues.get(queue)
    return Outlook(
        wanted=wanted,
        differs="" if there is None else said(of_queue(wanted, there)),
        going_on=is_moving(scene, queue),
        depth=None if there is None else await look(site, queue),
        otherwise=tuple(sorted({each.where for each in consumers if each.mark != ours})),
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
