"""The doctor: one look at a bus's broker, and at what its plugins need; nothing is written, published or consumed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.broker import RabbitMQ
from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.brokers.rabbitmq.site import Site, read_url
from rabbitevents.brokers.rabbitmq.visiting import Visit, Visitor
from rabbitevents.bus import Bus
from rabbitevents.errors import BrokerError, ConfigurationError, RabbitEventsError
from rabbitevents.operations.by_amqp import seen_by_amqp, visiting
from rabbitevents.operations.checks import CHECKS
from rabbitevents.operations.differences import settled
from rabbitevents.operations.over_http import INTERVAL, seen_over_http
from rabbitevents.operations.scene import GRADES, Found, Result, Scene, Unseen, examined, found_by, unseen
from rabbitevents.operations.standing import an_object, objects, text
from rabbitevents.operations.wiring import wiring
from rabbitevents.plugin import Plugin, overrides
from rabbitevents.renaming import old_names
from rabbitevents.routing import Subscription
from rabbitevents.states import Depth, Finding
from rabbitevents.texts import name_of, printable
from rabbitevents.topology import Topology

WITHIN: Final = 9.5
"""Seconds for all that is seen over HTTP, as of the beginning."""

PLUGINS: Final = 3.0
"""Seconds that all plugins have together to look after what they need."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What ``rabbitevents doctor`` says. ``schema`` is the number of this form of it."""

    schema: int = 1
    bus: str
    broker: str
    """Product, version, platform and cluster, as the broker says them; empty where there is none."""
    address: str
    vhost: str
    http: str
    """The management API's URL and its user; empty where it said nothing."""
    found: tuple[Found, ...]
    unseen: tuple[Unseen, ...]
    checks: int
    seconds: float

    def count(self, grade: str) -> int:
        """Return how many findings are of a grade."""
        return sum(each.grade == grade for each in self.found)


async def examine(
    bus: Bus,
    *,
    http: str | None = None,
    replicas: int | None = None,
    health: Sequence[str] = (),
    interval: float = INTERVAL,
) -> Report:
    """Look at everything once. Raises `ConfigurationError` for what cannot be looked at, or was written wrong.

    ``http`` is the URL of the management API, ``replicas`` how many consumers each queue should have, ``health`` are
    URLs of what the service's processes say of themselves; ``interval`` is between two looks at what may be over soon.
    """
    began = monotonic()
    broker = rabbitmq_of(bus)
    sites = processes(health)
    async with visiting(broker) as (visits, visitor):
        if visitor is not None:
            with suppress(BrokerError):  # who may not look there is told so by the checks
                bus.old_names = await old_names(bus.subscriptions, visitor.depth)
        management = Management(address_of(broker, visits), http, context=broker.context)
        bus_alone = bare(bus) if sites else unseen(bare(bus), "", "processes")
        scene = msgspec.structs.replace(bus_alone, visits=visits, replicas=replicas)
        left = began + WITHIN - monotonic()
        scene, asked = await _seen(bus, scene, visitor, management, sites=sites, interval=interval, http_within=left)
    result = _with_plugins(examined(scene, CHECKS), asked)
    here = next((visit for visit in visits if not visit.problem), visits[0])
    return Report(
        bus=bus.name,
        broker=named(here),
        address=here.address,
        vhost=here.vhost,
        http=f"{management} as {management.user}" if "objects" not in scene.unseen else "",
        found=result.found,
        unseen=result.unseen,
        checks=result.checks,
        seconds=round(monotonic() - began, 1),
    )


async def _seen(
    bus: Bus,
    scene: Scene,
    visitor: Visitor | None,
    management: Management,
    *,
    sites: Sequence[Site],
    interval: float,
    http_within: float,
) -> tuple[Scene, list[Asked]]:
    """Look at everything at once: by AMQP, over HTTP, through the plugins, and at the service's processes."""
    by_amqp, over_http, asked, processes = await asyncio.gather(
        seen_by_amqp(scene, visitor, declares=bus.configuration.declare == "active"),
        seen_over_http(scene, management, interval=interval, within=http_within),
        _plugins(bus, visitor),
        asyncio.gather(*map(_process, sites)),
    )
    seen = msgspec.structs.replace(
        by_amqp,
        standing=over_http.standing,
        before=over_http.before,
        overview=over_http.overview,
        processes=tuple(each for found in processes for each in found),
        unseen={**by_amqp.unseen, **over_http.unseen},
    )
    return settled(seen), asked


def rabbitmq_of(bus: Bus) -> RabbitMQ:
    """Return a bus's broker. Raises `ConfigurationError` where there is nothing to look at."""
    if not isinstance(bus.broker, RabbitMQ):
        raise ConfigurationError(f"this looks at RabbitMQ, and the bus is on {bus.address}, which nobody else can see")
    return bus.broker


def bare(bus: Bus) -> Scene:
    """Return the scene of which nothing was seen yet."""
    published = dict.fromkeys(event.type for each in wiring(bus).subscriptions for event in each.published)
    return Scene(
        exchange=bus.exchange,
        routers=tuple(router.name for router in bus.routers),
        subscriptions=bus.subscriptions,
        needed=bus.topology if bus.configuration.declare != "none" else Topology(),
        published=tuple(published),
    )


def address_of(broker: RabbitMQ, visits: Sequence[Visit]) -> Address:
    """Return the first of the URLs that leads to a broker; where none does, the first."""
    good = {visit.address for visit in visits if not visit.problem}
    return next((each for each in broker.addresses if str(each) in good), broker.addresses[0])


def named(visit: Visit) -> str:
    """Return what a broker says it is: product, version, platform and cluster."""
    said = visit.server
    words = [said.get("product", ""), said.get("version", ""), f"({said['platform']})" if "platform" in said else ""]
    return printable(" ".join([*filter(None, words), said.get("cluster_name", "")]).strip())


# --- the plugins -----------------------------------------------------------------------------------------------------


class _Looking:
    """What a plugin may use: `rabbitevents.plugin.Look`."""

    def __init__(self, bus: Bus, visitor: Visitor | None) -> None:
        self._bus = bus
        self._visitor = visitor

    @property
    def subscriptions(self) -> Sequence[Subscription]:
        return self._bus.subscriptions

    def subscriptions_of(self, plugin: Plugin, /) -> Sequence[Subscription]:
        return self._bus.subscriptions_of(plugin)

    async def depth(self, queue: str, /) -> Depth | None:
        if self._visitor is None:
            raise BrokerError(f"looking at queue {queue!r}: there is no connection to the broker")
        return await self._visitor.depth(queue)


Asked = tuple[str, tuple[Finding, ...], str]
"""A plugin's name, what it found, and why it could not look."""


async def _plugins(bus: Bus, visitor: Visitor | None) -> list[Asked]:
    """Ask every plugin that looks after what it needs."""
    look = _Looking(bus, visitor)
    own = [plugin for each in bus.subscriptions for plugin in each.plugins]
    asked = [plugin for plugin in dict.fromkeys((*bus.plugins, *own)) if overrides(plugin, "diagnose")]
    return await asyncio.gather(*(_asked(type(plugin).__name__, plugin.diagnose(look)) for plugin in asked))


async def _asked(name: str, diagnosing: Awaitable[Iterable[Finding]]) -> Asked:
    try:
        async with asyncio.timeout(PLUGINS):
            return name, tuple(await diagnosing), ""
    except TimeoutError:
        return name, (), f"{name} did not say within {PLUGINS:g} s"
    except Exception as error:
        # Anybody's plugin: its defect is a line, and takes no other line away. Texts of strangers may hold passwords.
        why = printable(str(error)) if isinstance(error, RabbitEventsError) else name_of(error)
        return name, (), f"{name} failed with {why}"


def _with_plugins(result: Result, asked: Sequence[Asked]) -> Result:
    found = [*result.found, *(each for name, findings, _ in asked for each in found_by(name, findings))]
    not_asked = [Unseen((f"what {name} needs",), why) for name, _, why in asked if why]
    found.sort(key=lambda each: GRADES.index(each.grade))
    made = result.checks + sum(not why for _, _, why in asked)
    return Result(tuple(found), (*result.unseen, *not_asked), made)


# --- the processes ---------------------------------------------------------------------------------------------------


def processes(health: Iterable[str]) -> list[Site]:
    """Return where the service's processes are asked. Raises `ConfigurationError` for what is no URL."""
    return [Site(read_url(url, "the URL of a process's health", "http://host:8080")) for url in health]


async def _process(site: Site) -> list[Finding]:
    """Return what a process says of itself at ``/health``."""
    try:
        answer = await site.get("" if site.ends_with("/health") else "/health")
    except BrokerError as error:
        return [Finding("wrong", str(site), f"its health cannot be read: {error}", "does it run with --health PORT?")]
    return [
        Finding(
            "risk" if each.get("degraded") is True else "wrong",
            f"{site} {printable(text(each.get('name')))}",
            printable(text(each.get("detail"))) or "is not as it should be",
        )
        for each in objects(an_object(answer.document).get("checks"))
        if each.get("ok") is False
    ]
