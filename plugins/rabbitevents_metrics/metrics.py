"""The plugin: measures both chains, counts what is reported, and has the rest looked at while the bus runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from importlib.metadata import version
from time import perf_counter
from typing import Any, ClassVar, Final, cast

from opentelemetry.metrics import MeterProvider

from rabbitevents import (
    Consume,
    DecodeError,
    Delivery,
    Fact,
    Host,
    Message,
    Outcome,
    Plugin,
    Publish,
    Settlement,
    facts,
)
from rabbitevents.arguments import Seconds, span, wrong
from rabbitevents_metrics.backlogs import Backlogs
from rabbitevents_metrics.flows import Flows, Names
from rabbitevents_metrics.instruments import instruments
from rabbitevents_metrics.looking import Looking

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions that the metrics follow."""

MOST_ATTEMPTS: Final = 20
"""The attempt by which all later ones are counted too."""

_POSTPONED: ContextVar[str] = ContextVar("rabbitevents_metrics_postponed", default="")
"""The event that the current task handles once more, without counting it as another attempt."""


class Metrics(Plugin):
    """Measure every event, and the bus itself.

    `docs/howto/metrics.md` names each metric.

    :param meter_provider: Stands in for the global one of OpenTelemetry.
    :param interval: The time between two looks at the queues' depth, 1 s at least: seconds, or a timedelta; 15 s by
        default. None looks at none.
    """

    role: ClassVar[str] = "metrics"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter", "retry"})

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        interval: Seconds | None = timedelta(seconds=15),
    ) -> None:
        if not isinstance(cast("object", meter_provider), MeterProvider | None):
            raise wrong("Metrics: meter_provider", meter_provider, "say a MeterProvider of OpenTelemetry")
        self._interval = None if interval is None else span("Metrics: interval", interval, least=1).total_seconds()
        self._instruments = instruments(meter_provider, version("rabbitevents"), SCHEMA)
        self._flows = Flows(self._instruments)
        self._reasons = Names()
        self._in_flight = 0
        self._lost: set[str] = set()
        self._blocked = 0
        self._backlogs = Backlogs()
        self._mine: frozenset[str] = frozenset()
        """Queues and subscriptions whose facts are counted here: every plugin hears of all, and a handler may have its own."""
        self._is_the_bus_s = True
        self._reactions: dict[type[Fact], Callable[[Any], None]] = {
            facts.Connected: self._connected,
            facts.ConnectionLost: self._disconnected,
            facts.Blocked: lambda _: self._block(1),
            facts.Unblocked: lambda _: self._block(0),
            facts.ConsumerLost: lambda fact: self._count("consumers.lost", queue=fact.queue),
            facts.Returned: lambda fact: self._count("unroutable", type=self._flows.types.learned(fact.type)),
            facts.Stale: lambda fact: self._count("stale", queue=fact.queue, started=fact.started),
            facts.Held: lambda fact: self._count("holds", subscription=fact.subscription),
            facts.Forwarded: lambda fact: self._settled(fact.subscription, "forward"),
            facts.Retried: self._retried,
            facts.Postponed: self._postponed,
            facts.Discarded: lambda fact: self._gave_up("discarded", fact.subscription, fact.error),
            facts.DeadLettered: lambda fact: self._gave_up("dead_letters", fact.subscription, fact.reason),
            facts.Tripped: lambda fact: self._count("kill_switch.trips", subscription=fact.subscription),
            facts.Backlog: lambda fact: self._backlogs.note("rabbitevents.outbox", fact.outbox, fact),
            facts.Projected: lambda fact: self._backlogs.note("rabbitevents.projection", fact.projection, fact),
            facts.Duplicate: lambda fact: self._count("duplicates", subscription=fact.subscription),
        }

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the bus as long as it runs."""
        self._flows.bind(host.exchange, host.subscriptions)
        mine = host.subscriptions_of(self)
        self._mine = frozenset(name for each in mine for name in (each.name, each.queue))
        self._is_the_bus_s = not any(self in each.plugins for each in host.subscriptions)
        bus_s = self._now if self._is_the_bus_s else None
        async with Looking(host, mine, self._instruments, bus_s, self._backlogs).at_work(self._interval):
            yield

    def _now(self) -> dict[str, int]:
        return {"publishes": self._in_flight, "down": len(self._lost), "blocked": self._blocked}

    # --- the chains ---

    async def publish(self, proceed: Publish, message: Message) -> None:
        """Count a publish, and how long it took."""
        flow = self._flows.out(message)
        self._in_flight += 1
        started = perf_counter()
        try:
            await proceed(message)
        except BaseException as error:
            flow.failed(perf_counter() - started, error)
            raise
        else:
            flow.took(perf_counter() - started)
        finally:
            self._in_flight -= 1

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Count a delivery, at its first attempt here, and how long each attempt took."""
        flow = self._flows.into(delivery)
        is_first = not delivery.counted and (not _POSTPONED.get() or not _again(delivery))
        started = perf_counter()
        try:
            settlement = await proceed(delivery)
        except BaseException as error:
            flow.failed(perf_counter() - started, error, is_message=is_first)
            raise
        flow.took(perf_counter() - started, is_message=is_first)
        if settlement.outcome is Outcome.ACK:
            flow.acknowledged.number += 1
        elif settlement.outcome is not Outcome.FORWARD:  # that one is counted once it is done
            self._settled(self._flows.names.get(delivery.queue, delivery.queue), settlement.outcome.value)
        return settlement

    # --- facts ---

    def observe(self, fact: Fact) -> None:
        """Count what happened."""
        reaction = self._reactions.get(type(fact))
        if reaction is not None and self._concerns(fact):
            reaction(fact)

    def _concerns(self, fact: Fact) -> bool:
        """Say whether a fact is counted here, and not by another instance."""
        where = getattr(fact, "subscription", None) or getattr(fact, "queue", None)
        return self._is_the_bus_s or isinstance(fact, facts.Connected) if where is None else where in self._mine

    def _count(self, name: str, **said: str | int | bool) -> None:
        labels = {f"rabbitevents.{label}": value for label, value in said.items()}
        self._instruments.count(f"rabbitevents.{name}", labels).number += 1

    def _settled(self, subscription: str, outcome: str) -> None:
        self._count("settled", subscription=subscription, outcome=outcome)

    def _connected(self, fact: facts.Connected) -> None:
        self._flows.connected(fact.connection, fact.server)
        labels = {"rabbitevents.connection": fact.connection}
        reconnects = self._instruments.count("rabbitevents.reconnects", labels)  # 0 at first: a rate begins with that
        if fact.connection in self._lost:
            self._lost.discard(fact.connection)
            reconnects.number += 1

    def _disconnected(self, fact: facts.ConnectionLost) -> None:
        self._lost.add(fact.connection)
        if fact.connection != "consume":  # what was blocked is gone, and nobody says so
            self._block(0)

    def _block(self, connections: int) -> None:
        self._blocked = connections

    def _retried(self, fact: facts.Retried) -> None:
        attempt = min(fact.attempt, MOST_ATTEMPTS)
        self._count("retries", subscription=fact.subscription, attempt=attempt, inline=fact.inline)

    def _postponed(self, fact: facts.Postponed) -> None:
        self._count("postponed", subscription=fact.subscription)
        if fact.inline:
            _POSTPONED.set(fact.id)

    def _gave_up(self, name: str, subscription: str, reason: str) -> None:
        self._count(name, subscription=subscription, reason=self._reasons.learned(reason))


def _again(delivery: Delivery) -> bool:
    """Say whether it is the delivery that was postponed in this task."""
    try:
        return _POSTPONED.get() == str(delivery.id)
    except DecodeError:
        return False
