"""What AMQP says of a broker: that it is there, what stands, how much is in it, and what the user may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.broker import RabbitMQ
from rabbitevents.brokers.rabbitmq.visiting import Visit, Visitor
from rabbitevents.errors import BrokerError
from rabbitevents.operations.scene import Scene, unseen
from rabbitevents.topology import DELAY_LOST, Topology

ASKING: Final = 3.0
"""Seconds for all questions of one kind."""


@asynccontextmanager
async def visiting(
    broker: RabbitMQ, *, name: str = "rabbitevents doctor"
) -> AsyncGenerator[tuple[tuple[Visit, ...], Visitor | None]]:
    """Visit every URL; yield what each led to, and the first visitor that stands at a broker."""
    visitors = [Visitor(address, broker.context, name=name) for address in dict.fromkeys(broker.addresses)]
    try:
        visits = await asyncio.gather(*(each.arrive() for each in visitors))
        inside = (visitor for visitor, visit in zip(visitors, visits, strict=True) if not visit.problem)
        yield tuple(visits), next(inside, None)
    finally:
        await asyncio.gather(*(each.leave() for each in visitors))


async def seen_by_amqp(scene: Scene, visitor: Visitor | None, *, declares: bool) -> Scene:
    """Add what AMQP says: what is there, how much is in it, and what the user may do."""
    if visitor is None:
        return unseen(scene, "there is no connection to the broker", "broker", "rights")
    own = [name for each in scene.subscriptions for name in (each.queue, each.dead_queue)]
    try:
        async with asyncio.timeout(ASKING):
            looked = await visitor.look(scene.needed, [*own, DELAY_LOST])
    except (BrokerError, TimeoutError) as error:
        return unseen(scene, str(error) or f"no answer within {ASKING:g} s", "broker", "rights")
    scene = msgspec.structs.replace(scene, depths=looked.depths, missing=looked.missing)
    queues = [each.queue for each in scene.subscriptions]
    try:
        async with asyncio.timeout(ASKING):
            lacks = await visitor.lacks(
                scene.needed if declares else Topology(), set(looked.missing), queues or [""], scene.exchange
            )
    except (BrokerError, TimeoutError) as error:
        return unseen(scene, str(error) or f"more than {ASKING:g} s of questions", "rights")
    return msgspec.structs.replace(scene, lacks=(*looked.lacks, *lacks))
