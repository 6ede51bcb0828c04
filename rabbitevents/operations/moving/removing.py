"""Removing a queue that nobody needs: unbind it, see that nothing comes and nothing is in it, and delete it.

Of a quorum queue RabbitMQ knows no "only if it is empty", and its answer to a deletion counts only what is ready: so what
is in the queue is looked at beforehand, and more than once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.altering import Altering, Link
from rabbitevents.errors import BrokerError, ConfigurationError
from rabbitevents.operations.applying import consumers_of
from rabbitevents.operations.moving.acting import lock
from rabbitevents.operations.moving.emptiness import NotEmptyError, Waiting, look, until_empty
from rabbitevents.operations.over_http import INTERVAL
from rabbitevents.operations.planning import Worksite, seen
from rabbitevents.operations.scene import Scene
from rabbitevents.operations.standing import StandingQueue
from rabbitevents.topology import MOVING

WITHIN: Final = 30.0
"""Seconds in which a queue that is unbound must turn out to be empty."""


class Removal(msgspec.Struct, frozen=True):
    """A queue that may be removed, and what leads to it."""

    queue: str
    kind: str
    links: tuple[Link, ...]


async def removal(site: Worksite, queue: str) -> Removal:
    """Look whether a queue may be removed. Raises `ConfigurationError` where it must not, and `BrokerError`."""
    scene = await seen(site)
    if why := scene.unseen.get("objects"):
        raise BrokerError(f"this has to see what stands, and nothing was changed: {why}")
    there = scene.standing.queues.get(queue)
    if there is None:
        raise ConfigurationError(f"there is no queue {queue!r}")
    if why := _is_needed(scene, queue):
        raise ConfigurationError(f"nothing was changed: {why}")
    if where := sorted({each.where for each in await consumers_of(site.management, queue)}):
        raise ConfigurationError(f"nothing was changed: queue {queue!r} is consumed, at {', '.join(where)}")
    if why := _holds(await look(site, queue), queue):
        raise ConfigurationError(f"nothing was changed: {why}")
    return Removal(queue, there.kind, _links(scene, there))


def _is_needed(scene: Scene, queue: str) -> str:
    if queue in scene.needed.queues or queue.removesuffix(MOVING) in scene.needed.queues:
        return f"{queue!r} is a queue that this bus needs"
    if not any(queue.startswith(f"{router}.") for router in scene.routers):
        routers = ", ".join(f"{router}." for router in scene.routers) or "nothing"
        return f"{queue!r} is not this bus's: the names of its queues begin with {routers}"
    return ""


def _holds(there: Waiting, queue: str) -> str:
    if there.ready or there.unacked or there.stuck:
        return (
            f"queue {queue!r} is not empty: {there}. rabbitevents topology move MODULE:BUS {queue} QUEUE puts what is ready "
            "into another one"
        )
    if there.consumers:  # RabbitMQ counts one, too, who has fetched something and holds it
        return f"queue {queue!r} is consumed, by somebody whom the management API does not show yet"
    return ""


def _links(scene: Scene, queue: StandingQueue) -> tuple[Link, ...]:
    return tuple(
        sorted(
            Link(each.exchange, each.target, each.routing_key)
            for each in scene.standing.bindings
            if each.to_queue and each.target == queue.name
        )
    )


async def remove(site: Worksite, what: Removal, *, interval: float = INTERVAL) -> AsyncGenerator[str]:
    """Unbind a queue, see that it is empty, and delete it; yield each thing that is done.

    Raises `ConfigurationError` where it turns out not to be empty: it is unbound then, and stands.
    """
    altering = Altering(site.connection)
    await lock(site, altering, what.queue)
    for link in what.links:
        await altering.unbind(link)
        yield f"unbound: {link}"
    try:
        async for there in until_empty(site, what.queue, within=WITHIN, interval=interval):
            if why := _holds(there, what.queue):
                raise ConfigurationError(f"it is unbound, and stands: {why}")
    except NotEmptyError as error:
        raise ConfigurationError(f"it is unbound, and stands: {error}") from error
    gone = await altering.delete_queue(what.queue, kind=what.kind)
    if gone:
        raise BrokerError(
            f"queue {what.queue!r} is deleted, and {gone} messages with it, which came at the last moment"
        )
    yield "deleted"
