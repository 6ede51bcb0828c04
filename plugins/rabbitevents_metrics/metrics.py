"""The plugin: measures both chains, counts what is reported, and has the rest looked at while the bus runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from time import perf_counter
from typing import Any, ClassVar, Final, cast

from opentelemetry import metrics
from opentelemetry.metrics import Counter, MeterProvider

from rabbitevents import (
    Consume,
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
from rabbitevents_metrics.flows import MOST_TYPES, Flows
from rabbitevents_metrics.instruments import Instruments
from rabbitevents_metrics.sampling import Sampling
from rabbitevents_metrics.tally import Names, Tally

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions that the metrics follow."""

MOST_ATTEMPTS: Final = 20
"""The attempt by which all later ones are counted too."""


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
        self._interval = None if interval is None else span("Metrics: interval", interval, least=1)
        meter = metrics.get_meter(
            "rabbitevents", version("rabbitevents"), meter_provider=meter_provider, schema_url=SCHEMA
        )
        self._instruments = Instruments(meter)
        self._tally = Tally()
        self._flows = Flows(self._instruments, self._tally)
        self._reasons = Names(MOST_TYPES)
        self._in_flight = 0
        self._lost: set[str] = set()
        self._mine: frozenset[str] = frozenset()
        """Queues and subscriptions whose facts are counted here: every plugin hears of all, and a handler may have its own."""
        self._is_the_bus_s = True
        self._reactions: dict[type[Fact], Callable[[Any], None]] = self._counting()

    def _counting(self) -> dict[type[Fact], Callable[[Any], None]]:
        """Return what is done about each kind of fact."""
        counts = self._instruments.counts
        return {
            facts.Connected: self._connected,
            facts.ConnectionLost: lambda fact: self._lost.add(fact.connection),
            facts.ConsumerLost: lambda fact: self._count(counts.consumers_lost, queue=fact.queue),
            facts.Returned: self._returned,
            facts.Stale: lambda fact: self._count(counts.stale, queue=fact.queue, started=fact.started),
            facts.Held: lambda fact: self._count(counts.holds, subscription=fact.subscription),
            facts.Forwarded: lambda fact: self._settled(fact.subscription, "forward"),
            facts.Retried: self._retried,
            facts.Postponed: lambda fact: self._count(counts.postponed, subscription=fact.subscription),
            facts.Discarded: self._discarded,
            facts.DeadLettered: self._dead_lettered,
            facts.Duplicate: lambda fact: self._count(counts.duplicates, subscription=fact.subscription),
        }

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the bus as long as it runs."""
        self._flows.bind(host.exchange, host.subscriptions)
        own = [each for each in host.subscriptions if self in each.plugins]
        mine = host.subscriptions_of(self)
        self._mine = frozenset(name for each in mine for name in (each.name, each.queue))
        self._is_the_bus_s = not own
        in_flight = None if own else lambda: self._in_flight
        sampling = Sampling(host, mine, self._instruments, self._tally, in_flight)
        tasks = [asyncio.create_task(sampling.sample(), name=f"{host.name} metrics")]
        if self._interval is not None:
            looking = sampling.look_into_queues(self._interval.total_seconds())
            tasks.append(asyncio.create_task(looking, name=f"{host.name} queue depths"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            sampling.leave()
        for error in ended:
            if isinstance(error, Exception):  # a defect: nothing that looking may meet ends it
                raise error

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
            flow.passed.number += 1
            self._in_flight -= 1

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Count an attempt, and how long it took."""
        flow = self._flows.into(delivery)
        flow.passed.number += 1
        started = perf_counter()
        try:
            settlement = await proceed(delivery)
        except BaseException as error:
            flow.failed(perf_counter() - started, error)
            raise
        flow.took(perf_counter() - started)
        if settlement.outcome is Outcome.ACK and flow.acknowledged is not None:
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

    def _count(self, counter: Counter, **said: str | int | bool) -> None:
        self._tally.of(counter, {f"rabbitevents.{name}": value for name, value in said.items()}).number += 1

    def _settled(self, subscription: str, outcome: str) -> None:
        self._count(self._instruments.counts.settled, subscription=subscription, outcome=outcome)

    def _connected(self, fact: facts.Connected) -> None:
        self._flows.connected(fact.connection, fact.address)
        if fact.connection in self._lost:
            self._lost.discard(fact.connection)
            self._count(self._instruments.counts.reconnects, connection=fact.connection)

    def _returned(self, fact: facts.Returned) -> None:
        self._count(self._instruments.counts.unroutable, type=self._flows.types.learned(fact.type))

    def _retried(self, fact: facts.Retried) -> None:
        attempt = min(fact.attempt, MOST_ATTEMPTS)
        self._count(
            self._instruments.counts.retries, subscription=fact.subscription, attempt=attempt, inline=fact.inline
        )

    def _discarded(self, fact: facts.Discarded) -> None:
        reason = self._reasons.learned(fact.error)
        self._count(self._instruments.counts.discarded, subscription=fact.subscription, reason=reason)

    def _dead_lettered(self, fact: facts.DeadLettered) -> None:
        reason = self._reasons.learned(fact.reason)
        self._count(self._instruments.counts.dead_letters, subscription=fact.subscription, reason=reason)
