"""What stands at the broker of a bus that is explained: numbers of its queues, and what is otherwise there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.bus import Bus
from rabbitevents.errors import BrokerError
from rabbitevents.operations.checks import CHECKS
from rabbitevents.operations.differences import settled
from rabbitevents.operations.doctor import bare, rabbitmq_of
from rabbitevents.operations.over_http import standing_of, way_in
from rabbitevents.operations.scene import Found, examined
from rabbitevents.operations.standing import StandingQueue
from rabbitevents.renaming import old_names

_ASKED: Final = ("objects",)


class LiveQueue(msgspec.Struct, frozen=True, kw_only=True):
    """What the management API says of a queue; None is what it does not say."""

    ready: int | None
    unacked: int | None
    consumers: int | None


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at the broker; or the problem, why that could not be seen."""

    http: str
    problem: str = ""
    queues: Mapping[str, LiveQueue] = {}
    found: tuple[Found, ...] = ()

    def said(self, queue: str, dead_queue: str) -> str:
        """Return in words how a subscription's queue is, and how many dead letters there are."""
        there, dead = self.queues.get(queue), self.queues.get(dead_queue)
        if there is None:
            return "not there"
        counts = [("ready", there.ready), ("unacknowledged", there.unacked), ("consumers", there.consumers)]
        counts += [] if dead is None else [("dead letters", dead.ready)]
        return ", ".join(f"{name} {'?' if count is None else f'{count:,}'}" for name, count in counts)


async def live(bus: Bus, told: str | None) -> Live:
    """Ask over HTTP what stands. Raises `ConfigurationError` for a bus that is on no RabbitMQ."""
    broker = rabbitmq_of(bus)
    http = Management(broker.addresses[0], told, context=broker.context)
    try:
        standing = await standing_of(http)
    except BrokerError as error:
        return Live(http=str(http), problem=f"{error}; {way_in(error, http)}")

    async def look(queue: str) -> StandingQueue | None:
        return standing.queues.get(queue)

    bus.old_names = await old_names(bus.subscriptions, look)
    scene = settled(msgspec.structs.replace(bare(bus), standing=standing))
    names = {name for each in bus.subscriptions for name in (each.queue, each.dead_queue)}
    return Live(
        http=str(http),
        queues={name: _live(queue) for name, queue in sorted(standing.queues.items()) if name in names},
        found=examined(scene, [check for check in CHECKS if check.needs == _ASKED and check.id != "D7"]).found,
    )


def _live(queue: StandingQueue) -> LiveQueue:
    return LiveQueue(ready=queue.ready, unacked=queue.unacked, consumers=queue.consumers)
