"""Making a plan: one look at a broker, by AMQP and over HTTP. Nothing is changed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.declaring import probe
from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.brokers.rabbitmq.visiting import Visit, Visitor
from rabbitevents.bus import Bus
from rabbitevents.errors import BrokerError, BrokerUnavailableError
from rabbitevents.operations.by_amqp import visiting
from rabbitevents.operations.differences import Differs, settled
from rabbitevents.operations.doctor import address_of, bare, rabbitmq_of
from rabbitevents.operations.over_http import standing_of, way_in
from rabbitevents.operations.plan import Change, Plan, blind, changes, migrated, otherwise_exchange, overriding
from rabbitevents.operations.scene import Scene, unseen
from rabbitevents.operations.standing import Standing
from rabbitevents.publishing.delay import room_name, tiers, waiting_room
from rabbitevents.renaming import old_names
from rabbitevents.topology import DELAY_DUE, Exchange, Queue, Topology, due_exchange

NAME: Final = "rabbitevents topology"
"""What the connections are called."""

_MAY_NOT: Final = 403

_MAYBE_MORE: Final = "that at least, as AMQP says one of several"

Waits = Sequence[tuple[float, float]]
"""Waiting times for which there are to be queues: from so many seconds to so many."""


class Worksite(msgspec.Struct, frozen=True):
    """A broker that is worked on: what is wanted, whom to ask, and what was seen."""

    bus: Bus
    wanted: Topology
    visit: Visit
    connection: Connection
    management: Management
    visitor: Visitor


@asynccontextmanager
async def at_work(bus: Bus, http: str | None, waits: Waits = ()) -> AsyncGenerator[Worksite]:
    """Connect to a bus's broker. Raises `BrokerUnavailableError`, and `ConfigurationError` where it is no RabbitMQ."""
    broker = rabbitmq_of(bus)
    async with visiting(broker, name=NAME) as (visits, visitor):
        if visitor is None:
            problem = next(visit for visit in visits if visit.problem)
            raise BrokerUnavailableError(problem.problem, code=problem.code)
        visit = next(visit for visit in visits if not visit.problem)
        bus.old_names = await old_names(bus.subscriptions, visitor.depth)
        management = Management(address_of(broker, visits), http, context=broker.context)
        wanted = wanted_of(bus, waits)
        yield Worksite(bus, wanted, visit, visitor.connection, management, visitor)


def wanted_of(bus: Bus, waits: Waits) -> Topology:
    """Return what a bus wants at its broker, with the queues for waiting times."""
    wanted = bus.topology
    for each in _rooms(bus, waits):
        wanted += each
    return wanted


def _rooms(bus: Bus, waits: Waits) -> Iterator[Topology]:
    """Yield what is declared for waiting times: of handlers' retries, and of what is published with a delay.

    A bus that only looks has nobody else who makes those that its plugins say that they need.
    """
    told = {ms for least, most in waits for ms in tiers(timedelta(seconds=least), timedelta(seconds=most))}
    own = set(bus.waits) if bus.configuration.declare == "passive" else set[int]()
    for ms in sorted(told | own):
        yield waiting_room(room_name(ms), DELAY_DUE, ms)
        if ms in told:
            yield waiting_room(f"{bus.exchange}.delay.{ms}", due_exchange(bus.exchange), ms)


async def planned(bus: Bus, *, http: str | None = None, ask_anew: bool = False, waits: Waits = ()) -> Plan:
    """Look, and say what is not as it is wanted. Raises `BrokerError` where nothing can be seen.

    ``ask_anew`` has AMQP declare what stands once more, where HTTP says nothing: that says of each thing in what it
    differs, in one respect at least. ``waits`` are waiting times whose queues are wanted too.
    """
    async with at_work(bus, http, waits) as site:
        return await plan_of(site, ask_anew=ask_anew)


async def plan_of(site: Worksite, *, ask_anew: bool = False) -> Plan:
    """Look at a broker that we are connected to. Raises `BrokerError`."""
    scene = await seen(site)
    probing = ask_anew and "objects" in scene.unseen
    probed = [each async for each in _probed(site, scene)] if probing else []
    return Plan(
        bus=site.bus.name,
        address=site.visit.address,
        vhost=site.visit.vhost,
        http=f"{site.management} as {site.management.user}" if "objects" not in scene.unseen else "",
        changes=changes(scene, probed),
        found=overriding(scene),
        unseen=blind(scene, probed=probing),
    )


async def seen(site: Worksite) -> Scene:
    """Return what is there. Raises `BrokerError`."""
    scene = msgspec.structs.replace(bare(site.bus), needed=site.wanted, visits=(site.visit,))
    looked = await site.visitor.look(site.wanted, [])
    scene = msgspec.structs.replace(scene, depths=looked.depths, missing=looked.missing)
    try:
        standing = await standing_of(site.management)
    except BrokerError as error:
        if looked.lacks:
            scene = unseen(scene, f"{looked.lacks[0].what}; {looked.lacks[0].way_out}", "broker")
        return unseen(scene, f"{error}; {way_in(error, site.management)}", "objects")
    missing = _not_shown(site.wanted, standing) if looked.lacks else {}
    return settled(msgspec.structs.replace(scene, standing=standing, missing={**missing, **looked.missing}))


def _not_shown(wanted: Topology, standing: Standing) -> dict[str, str]:
    """Return what the management API does not show: for users who may not look by AMQP, which takes a right since 4.3."""
    queues = {item.name for item in wanted.items if isinstance(item, Queue)} - standing.queues.keys()
    exchanges = {item.name for item in wanted.items if isinstance(item, Exchange)} - standing.exchanges.keys()
    return dict.fromkeys(sorted(queues | exchanges), "the management API shows none")


async def _probed(site: Worksite, scene: Scene) -> AsyncGenerator[Change]:
    """Declare what stands once more, one thing at a time."""
    for item in site.wanted.items:
        if not isinstance(item, Queue | Exchange) or item.name in scene.missing:
            continue
        try:
            sides = await probe(site.connection, item)
        except BrokerError as error:
            if error.code != _MAY_NOT:
                raise
            continue
        if sides is not None and isinstance(item, Exchange):
            yield otherwise_exchange(item.name, (Differs(*sides),))
        elif sides is not None:
            found = migrated(scene, item.name, (Differs(*sides),))
            yield msgspec.structs.replace(found, what=f"{found.what}{'; ' * bool(found.what)}{_MAYBE_MORE}")
