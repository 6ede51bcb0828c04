"""The plugin: claim an event, have it handled, mark it as done, and only then acknowledge it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import ClassVar, Final, Literal, cast

from rabbitevents import (
    ACK,
    REQUEUE,
    Check,
    ConfigurationError,
    Consume,
    Delivery,
    Host,
    LineFilter,
    Outcome,
    Plugin,
    RabbitEventsError,
    Settlement,
    event_fields,
    facts,
    forward,
)
from rabbitevents.arguments import Seconds, one_of, span, whole, wrong
from rabbitevents_idempotency.claims import Claims
from rabbitevents_idempotency.facts import Fenced, Unclaimed
from rabbitevents_idempotency.leases import Lease
from rabbitevents_idempotency.store import Acquired, Busy, Store

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")
log.addFilter(LineFilter())

SUSPECT: Final = 3
"""From so many abandoned claims on, an event may be what crashes the process: of such events one runs at a time."""

SHORTEST_WAIT: Final = timedelta(seconds=0.5)
LONGEST_WAIT: Final = timedelta(minutes=5)
"""How long an event waits at the broker: at least, so that nothing spins; and at most, once the store has been away for
so long that it cannot wait here."""


WhenUnavailable = Literal["wait", "proceed"]
"""What events do while the store is away."""


class AbandonedError(RabbitEventsError):
    """An event whose handling ended too often without a word: with its process, or standing still past its lease."""


class Idempotency(Plugin):
    """Let each handler handle each event once, however often it is delivered.

    ::

        Idempotency(RedisStore(client), lease=30, keep=timedelta(days=7))

    An event is claimed for its handler (its queue and its id are the key), handled under a ``lease`` that is renewed
    as long as the handler runs, and marked as done for as long as ``keep``, before it is acknowledged. One that was
    done is acknowledged at once; one that another worker has under way comes back later, which is no attempt.
    ``delivery.fence`` is a number that grows with each claim of the same event, for resources that refuse a lower one
    than they saw.

    :param store: A `RedisStore`, a `MemoryStore` or any `Store`.
    :param lease: For how long a claim stands that nobody renews, 0.1 s at least: seconds, or a timedelta; 30 s by default.
    :param keep: How long it is known that an event was done, no shorter than ``lease``: 7 days by default.
    :param when_unavailable: What events do while the store is away: "wait" (the default), or "proceed" and are handled
        unclaimed.
    :param abandoned: How often processes may crash over an event, or stand still, before it goes to its dead letter
        queue: 10.

    Raises `ConfigurationError`.
    """

    role: ClassVar[str] = "once"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter", "retry", "trace", "metrics"})

    def __init__(
        self,
        store: Store,
        *,
        lease: Seconds = timedelta(seconds=30),
        keep: Seconds = timedelta(days=7),
        when_unavailable: WhenUnavailable = "wait",
        abandoned: int = 10,
    ) -> None:
        if isinstance(store, type) or not isinstance(cast("object", store), Store):
            raise wrong("Idempotency: store", store, "give a store, RedisStore(client) or MemoryStore()")
        self._lease: timedelta = span("Idempotency: lease", lease, least=0.1)
        self._keep: timedelta = span("Idempotency: keep", keep)
        if self._keep < self._lease:
            raise ConfigurationError(
                f"Idempotency: keep={keep}: a mark must outlive a lease ({self._lease.total_seconds():g} s); say days"
            )
        self.unclaimed: int = 0
        """How many events were handled without a claim, because the store was away."""
        self._store = store
        self._insists = one_of("Idempotency: when_unavailable", when_unavailable, WhenUnavailable) == "wait"
        self._abandoned = whole("Idempotency: abandoned", abandoned)
        self._without_id: set[str] = set()
        self._has_suspect = False
        self._bus: tuple[Host, Claims] | None = None

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the store, and renew leases as long as the bus runs."""
        claims = Claims(self._store, host, lease=self._lease, keep=self._keep, insists=self._insists)
        self._bus = host, claims
        self._has_suspect = False
        async with claims.running():
            yield

    def health(self) -> Iterable[Check]:
        """Say whether the store answers."""
        return self._bus[1].checks() if self._bus is not None else ()

    @property
    def _host(self) -> Host:
        return self._running[0]

    @property
    def _claims(self) -> Claims:
        return self._running[1]

    @property
    def _running(self) -> tuple[Host, Claims]:
        if self._bus is None:
            raise ConfigurationError("Idempotency() has no bus: put it into Bus(plugins=[...])")
        return self._bus

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Claim, handle, mark. Raises what the handling raises, and `DecodeError` for what has unreadable properties."""
        if delivery.oversize:
            return await proceed(delivery)  # it cannot be handled, nor copied
        if delivery.properties.message_id is None:
            self._say_no_id(delivery)
            return await proceed(delivery)
        claims = self._claims
        lease = claims.new(delivery)
        if not self._insists and claims.is_hopeless():
            return await self._unclaimed(proceed, lease)
        claim = await claims.claim(lease)
        if isinstance(claim, Acquired):
            return await self._acquired(proceed, lease, claim)
        if isinstance(claim, Busy):
            return _back(delivery, max(claim.left, SHORTEST_WAIT))
        if claim is None:
            return self._later(delivery) if self._insists else await self._unclaimed(proceed, lease)
        self._host.report(facts.Duplicate(*lease.names))
        return ACK

    async def _acquired(self, proceed: Consume, lease: Lease, claim: Acquired) -> Settlement:
        """Handle; but of events that may be what crashes the process one at a time, and none for ever."""
        if claim.abandoned >= self._abandoned:
            return await self._give_up(lease, claim.abandoned)
        if claim.abandoned < SUSPECT:
            return await self._handle(proceed, lease, claim.fence)
        if self._has_suspect:
            await self._claims.release(lease)
            return _back(lease.delivery, self._lease)
        self._has_suspect = True
        try:
            return await self._handle(proceed, lease, claim.fence)
        finally:
            self._has_suspect = False

    async def _handle(self, proceed: Consume, lease: Lease, fence: int) -> Settlement:
        claims = self._claims
        claims.leases.add(lease)
        try:
            settlement = await proceed(lease.delivery.marked(fence=fence))
            if settlement.outcome is Outcome.ACK:
                return await self._complete(lease, settlement)
            await claims.release(lease)
            return settlement
        except (Exception, asyncio.CancelledError):
            # Whatever it is goes on, but first the next attempt may begin.
            if not lease.ending:
                await claims.release(lease)
            raise
        finally:
            claims.leases.discard(lease)

    async def _complete(self, lease: Lease, settlement: Settlement) -> Settlement:
        """Mark what was handled. What cannot be marked is acknowledged none the less: to handle it again is no better."""
        completed = await self._claims.complete(lease)
        if completed is None:
            _say(lease.delivery, "was handled, and could not be marked: a copy of it would be handled again")
        if completed is not False:
            return settlement
        _say(lease.delivery, "was handled after its claim had passed to another, and comes back to see what came of it")
        self._host.report(Fenced(*lease.names))
        return _back(lease.delivery, self._lease)

    async def _give_up(self, lease: Lease, abandoned: int) -> Settlement:
        """Hand an event over to the broker's dead-lettering. Replayed from there, it may be tried anew."""
        error = AbandonedError(f"its handling was abandoned {abandoned} times, by a crash or a standstill")
        _say(lease.delivery, f"goes to its dead letter queue: {error}")
        await self._claims.release(lease, forget=True)
        self._host.report(facts.DeadLettered(*lease.names, lease.delivery.attempt, type(error).__name__))
        return Settlement(Outcome.REJECT, error=error)

    async def _unclaimed(self, proceed: Consume, lease: Lease) -> Settlement:
        self.unclaimed += 1
        self._host.report(Unclaimed(*lease.names))
        return await proceed(lease.delivery)

    def _later(self, delivery: Delivery) -> Settlement:
        """Let go of an event that waited here for as long as the broker lets it, or until the bus stops."""
        if self._host.stopping:
            return REQUEUE
        after = timedelta(seconds=(self._claims.outage.lasts or 0.0) / 4)
        return _back(delivery, min(max(after, self._lease), LONGEST_WAIT))

    def _say_no_id(self, delivery: Delivery) -> None:
        """Say once for each queue that events without an id cannot be told apart."""
        if delivery.queue not in self._without_id:
            self._without_id.add(delivery.queue)
            log.warning(
                "%s is handled as often as it comes, as is everything without an id in this queue (said once); "
                "its publisher has to give each event a message_id",
                delivery.describe(),
                extra=event_fields(delivery),
            )


def _say(delivery: Delivery, what: str) -> None:
    log.error("%s %s", delivery.describe(), what, extra=event_fields(delivery))


def _back(delivery: Delivery, after: timedelta) -> Settlement:
    """Let a delivery come back as it is: no failure, and no attempt."""
    return forward(delivery.replace(attempt=delivery.attempt, after=after))
