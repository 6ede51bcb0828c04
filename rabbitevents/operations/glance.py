"""A glance at the queues of a bus: what comes, what goes, what is there, by one question; and again, a while later.

The values are what ``rabbitevents top --json`` writes: a field that is there stays, and keeps its meaning.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.brokers.rabbitmq.site import Site
from rabbitevents.brokers.rabbitmq.visiting import Visitor
from rabbitevents.bus import Bus
from rabbitevents.errors import BrokerError
from rabbitevents.operations.standing import Object, an_object, number, objects, text
from rabbitevents.states import SUBSCRIPTION
from rabbitevents.topology import DELAY_LOST

COLUMNS: Final = (
    "name,messages_ready,messages_unacknowledged,messages_dlx,consumers,message_stats.publish,message_stats.ack,"
    "message_stats.publish_details.rate,message_stats.ack_details.rate"
)

RATES: Final = 5.0
"""Seconds between two figures of RabbitMQ's (``collect_statistics_interval``); more often they only repeat."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A handler's queue. None is what is not known; rates are messages a second."""

    queue: str
    came: float | None = None
    handled: float | None = None
    """How many were acknowledged: handled, or put elsewhere, such as to wait for another try."""
    ready: int | None = None
    unacked: int | None = None
    dead: int | None = None
    """How many are ready in the queue of its dead letters."""
    consumers: int | None = None
    lag: float | None = None
    """How long it would take to handle what is ready, in seconds, as fast as now: an estimate."""
    grows: bool = False
    """Whether more comes than is handled, while something is ready."""
    held: int | None = None
    """How many the service's processes hold, after failures that no plugin took care of: as those that were asked say."""


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """What ``rabbitevents top --once --json`` says. ``schema`` is the number of this form of it."""

    schema: int = 1
    bus: str
    broker: str
    vhost: str
    rows: tuple[Row, ...]
    waiting: int | None = None
    """How many events wait for their time, of all services."""
    lost: int | None = None
    """How many fell due when no queue was there for them, of all services."""
    stuck: int | None = None
    """How many dead letters cannot leave the bus's queues."""
    problem: str = ""
    """Why not all of it is known."""


class Count(msgspec.Struct, frozen=True):
    """What a queue has taken and let go since it was made, and when that was seen (any clock, seconds)."""

    at: float
    came: int
    handled: int


class Watch:
    """Glances at a broker, again and again. ``visitor`` asks by AMQP where HTTP says nothing.

    ``health`` are the service's processes, that say themselves what they hold.
    """

    def __init__(
        self, bus: Bus, management: Management, visitor: Visitor, broker: str, health: Sequence[Site] = ()
    ) -> None:
        self._bus = bus
        self._management = management
        self._visitor = visitor
        self._broker = broker
        self._health = health
        self._before: Mapping[str, Count] = {}

    async def glance(self, now: float) -> Glance:
        """Ask once. Raises `BrokerError` where neither HTTP nor AMQP answers."""
        found, said = await asyncio.gather(self._at_the_broker(now), asyncio.gather(*map(held_of, self._health)))
        held: Counter[str] = Counter()
        for each, _ in said:
            held.update(each)
        names = {each.queue: each.name for each in self._bus.subscriptions}
        rows = (msgspec.structs.replace(each, held=held.get(names[each.queue])) for each in found.rows)
        problems = filter(None, (found.problem, *(problem for _, problem in said)))
        return msgspec.structs.replace(found, rows=tuple(rows), problem="; ".join(problems))

    async def _at_the_broker(self, now: float) -> Glance:
        try:
            said = await self._management.list(f"queues/{{vhost}}?columns={COLUMNS}")
        except BrokerError as error:
            return await self._by_amqp(str(error))
        queues = {text(each.get("name")): each for each in objects(said)}
        counts = {name: count for name, each in queues.items() if (count := _count(each, now)) is not None}
        rows = tuple(
            row(each.queue, queues, _rates(self._before.get(each.queue), counts.get(each.queue)))
            for each in self._bus.subscriptions
        )
        self._before = counts
        ours = {name for each in self._bus.subscriptions for name in (each.queue, each.dead_queue)}
        return Glance(
            bus=self._bus.name,
            broker=self._broker,
            vhost=self._management.vhost,
            rows=rows,
            waiting=_sum(each.get("messages_ready") for name, each in queues.items() if self._is_waiting(name)),
            lost=number(queues[DELAY_LOST].get("messages_ready")) if DELAY_LOST in queues else 0,
            stuck=_sum(queues[name].get("messages_dlx", 0) for name in ours & queues.keys()),
        )

    def _is_waiting(self, name: str) -> bool:
        return name.startswith(("delay.", f"{self._bus.exchange}.delay.")) and name.rpartition(".")[2].isdecimal()

    async def _by_amqp(self, problem: str) -> Glance:
        rows: list[Row] = []
        for each in self._bus.subscriptions:
            there, dead = await self._visitor.depth(each.queue), await self._visitor.depth(each.dead_queue)
            rows.append(
                Row(
                    queue=each.queue,
                    ready=None if there is None else there.ready,
                    consumers=None if there is None else there.consumers,
                    dead=None if dead is None else dead.ready,
                )
            )
        lost = await self._visitor.depth(DELAY_LOST)
        return Glance(
            bus=self._bus.name,
            broker=self._broker,
            vhost=self._management.vhost,
            rows=tuple(rows),
            lost=None if lost is None else lost.ready,
            problem=problem,
        )


async def held_of(site: Site) -> tuple[Mapping[str, int], str]:
    """Ask a process what its subscriptions hold, by their names; and what kept it from saying so. Does not raise."""
    try:
        answer = await site.get("" if site.ends_with("/health") else "/health")
    except BrokerError as error:
        return {}, str(error)
    found: Counter[str] = Counter()
    for each in objects(an_object(answer.document).get("checks")):
        _, of_one, name = text(each.get("name")).rpartition(SUBSCRIPTION)  # "worker 2: subscription shop.record"
        if of_one and (held := number(each.get("held"))) is not None:
            found[name] += held
    return found, ""


Rates = tuple[float | None, float | None]
"""What comes and what is handled, a second."""


def row(queue: str, queues: Mapping[str, Object], counted: Rates) -> Row:
    """Return a queue's row. Where RabbitMQ says no rates (``rates_mode = none``), ``counted`` has them."""
    said = queues.get(queue)
    if said is None:
        return Row(queue=queue)
    dead = queues.get(f"{queue}.dead")
    stats = an_object(said.get("message_stats"))
    told = [_rate(stats, name) for name in ("publish_details", "ack_details")]
    came, handled = (ours if theirs is None else theirs for theirs, ours in zip(told, counted, strict=True))
    ready = number(said.get("messages_ready"))
    return Row(
        queue=queue,
        came=came,
        handled=handled,
        ready=ready,
        unacked=number(said.get("messages_unacknowledged")),
        dead=None if dead is None else number(dead.get("messages_ready")),
        consumers=number(said.get("consumers")),
        lag=_lag(ready, handled),
        grows=bool(ready) and came is not None and came > (handled or 0),
    )


def _lag(ready: int | None, handled: float | None) -> float | None:
    if ready == 0:
        return 0.0
    return round(ready / handled, 1) if ready and handled else None


def _rate(stats: Object, name: str) -> float | None:
    rate = an_object(stats.get(name)).get("rate")
    return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) else None


def _count(said: Object, now: float) -> Count | None:
    stats = an_object(said.get("message_stats"))
    came, handled = number(stats.get("publish")), number(stats.get("ack"))
    return None if came is None and handled is None else Count(now, came or 0, handled or 0)


def _rates(before: Count | None, now: Count | None) -> Rates:
    if before is None or now is None or now.at <= before.at:
        return None, None
    seconds = now.at - before.at
    return max(0, now.came - before.came) / seconds, max(0, now.handled - before.handled) / seconds


def _sum(numbers: Iterable[object]) -> int | None:
    """Add numbers; None where one of them is not known."""
    found = [number(each) for each in numbers]
    return None if None in found else sum(each for each in found if each is not None)
