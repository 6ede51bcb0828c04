"""The plugin: claim an event, have it handled, mark it as done, and only then acknowledge it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import blake2b
from inspect import iscoroutinefunction
from typing import ClassVar, Final, Literal, cast

from rabbitevents import (
    ACK,
    REQUEUE,
    Check,
    ConfigurationError,
    Consume,
    DecodeError,
    Delivery,
    Finding,
    Host,
    LineFilter,
    Look,
    Outcome,
    Plugin,
    RabbitEventsError,
    Settlement,
    Subscription,
    event_fields,
    facts,
    forward,
)
from rabbitevents.arguments import Seconds, one_of, span, whole, wrong
from rabbitevents_idempotency.claims import Claims, Lease, log
from rabbitevents_idempotency.facts import Fenced, Unclaimed
from rabbitevents_idempotency.memory import MemoryStore
from rabbitevents_idempotency.store import Acquired, Busy, Conflict, Done, Store, StoreUnavailableError

log.addFilter(LineFilter())

SUSPECT: Final = 3
"""From so many abandoned claims on, an event may be what crashes the process: of such events one runs at a time. The
broker's count of its deliveries cannot say it: what finds a crashed owner's claim comes back as a copy."""

CANONICAL: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
"""Says whether a text is an id as our own events have it, and so needs no reading: that saves 2 us an event."""

SHORTEST_WAIT: Final = timedelta(seconds=0.5)
LONGEST_WAIT: Final = timedelta(minutes=5)
"""How long an event waits at the broker: at least, so that nothing spins; and at most, once the store has been away for
so long that it cannot wait here."""


class AbandonedError(RabbitEventsError):
    """An event whose handling ended too often without a word: with its process, or standing still past its lease."""


WhenUnavailable = Literal["wait", "proceed"]
"""What events do while the store is away."""


class IdConflictError(DecodeError):
    """An event with the id of another one that is handled or done. No repetition mends it."""


class Idempotency(Plugin):
    """Let each handler handle each event once, however often it is delivered.

    ::

        Idempotency(RedisStore(client), lease=30, keep=timedelta(days=7))

    An event is claimed for its handler (its queue and its id are the key), handled under a ``lease`` that is renewed
    as long as the handler runs, and marked as done for as long as ``keep``, before it is acknowledged. One that was
    done is acknowledged at once; one that another worker has under way comes back later, which is no attempt; one with
    other content under the same id is an `IdConflictError`. ``delivery.fence`` is a number that grows with each claim of
    the same event, for resources that refuse a lower one than they saw.

    :param store: A `RedisStore`, a `MemoryStore` or any `Store`.
    :param lease: For how long a claim stands that nobody renews, 0.1 s at least: seconds, or a timedelta; 30 s by default.
    :param keep: How long it is known that an event was done, no shorter than ``lease``: 7 days by default.
    :param when_unavailable: What events do while the store is away: "wait" (the default), or "proceed" and are handled
        unclaimed.
    :param abandoned: How often processes may crash over an event, or stand still, before it goes to its dead letter
        queue: 10.
    :param key: What is the same event, where that is not its id: a function of the delivery that returns a text, or None
        for what is to be handled as often as it comes. The content is not compared then.

    Raises `ConfigurationError`; at start too, for a store that does not let us in.
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
        key: Callable[[Delivery], str | None] | None = None,
    ) -> None:
        if isinstance(store, type) or not isinstance(cast("object", store), Store):
            raise wrong("Idempotency: store", store, "give a store, RedisStore(client) or MemoryStore()")
        if key is not None and (not callable(cast("object", key)) or iscoroutinefunction(key)):
            raise wrong("Idempotency: key", key, "give a plain function of the delivery")
        self._lease: timedelta = span("Idempotency: lease", lease, least=0.1)
        self._keep: timedelta = span("Idempotency: keep", keep)
        if self._keep < self._lease:
            raise ConfigurationError(
                f"Idempotency: keep={keep}: a mark must outlive a lease ({self._lease.total_seconds():g} s); say days"
            )
        self.unclaimed: int = 0
        """How many events were handled without a claim, because the store was away."""
        self._store = store
        self._waits = one_of("Idempotency: when_unavailable", when_unavailable, WhenUnavailable) == "wait"
        self._abandoned = whole("Idempotency: abandoned", abandoned)
        self._key: Callable[[Delivery], object] | None = key
        self._without_id: set[str] = set()
        self._claims: Claims | None = None
        self._suspect = asyncio.Lock()
        self._suspect_from = min(SUSPECT, self._abandoned)

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the store, and renew leases as long as the bus runs."""
        self._claims = Claims(self._store, host, lease=self._lease, keep=self._keep, waits=self._waits)
        try:
            async with self._claims.running():
                yield
        finally:
            self._claims = None

    def health(self) -> Iterable[Check]:
        """Say whether the store answers."""
        return self._claims.checks() if self._claims is not None else ()

    def describe(self, subscription: Subscription) -> Iterable[tuple[str, str]]:
        """Say for how long it is known what was handled, and where."""
        days = f"{self._keep / timedelta(days=1):g} days"
        yield "handled once", f"known for {days}, in {type(self._store).__name__}"

    def waits(self, subscription: Subscription) -> Iterable[tuple[timedelta, timedelta]]:
        """Say how long an event may wait for a claim that another has, or for the store."""
        longest = max(self._lease, LONGEST_WAIT) if self._waits else self._lease
        yield min(SHORTEST_WAIT, longest), longest

    async def diagnose(self, look: Look) -> Iterable[Finding]:
        """Look at the store, as a start does: its one write, a probe, is gone after a millisecond."""
        where = type(self._store).__name__
        try:
            warnings = await self._store.look()
        except StoreUnavailableError as error:
            return [Finding("wrong", where, str(error), "is it running there? without it, events wait")]
        return [Finding("risk", where, warning) for warning in warnings]

    def alone(self) -> str:
        """Say that what a `MemoryStore` keeps is seen by one process."""
        if not isinstance(self._store, MemoryStore):
            return ""
        return "Idempotency(MemoryStore()) knows only what this process has handled; give it a RedisStore(client)"

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Claim, handle, mark. Raises what the handling raises, and `DecodeError` for what has unreadable properties."""
        claims = self._claims
        if claims is None:
            raise ConfigurationError("Idempotency() has no bus: put it into Bus(plugins=[...])")
        name = self._name(delivery) if not delivery.oversize else None  # which cannot be handled, nor copied
        if name is None:
            return await proceed(delivery)
        lease = claims.new(delivery, name, _digest(delivery) if self._key is None else "")
        claim = await claims.claim(lease)
        if isinstance(claim, Acquired):
            if claim.abandoned >= self._suspect_from:
                return await self._suspected(proceed, claims, lease, claim)
            return await self._handle(proceed, claims, lease, claim.fence)
        if isinstance(claim, Done):
            claims.host.report(facts.Duplicate(*lease.names))
            return ACK
        if isinstance(claim, Busy):
            return _back(delivery, max(claim.left, SHORTEST_WAIT))
        if isinstance(claim, Conflict):
            raise IdConflictError(
                f"{delivery.describe()} has the id of an event with other content that is handled, or was: "
                "give each event an id of its own, or say Idempotency(key=...)",
                type=delivery.type,
            )
        return await self._unclaimed(proceed, claims, lease)

    async def _suspected(self, proceed: Consume, claims: Claims, lease: Lease, claim: Acquired) -> Settlement:
        """Handle what may be what crashes the process: one such event at a time, and none for ever."""
        if claim.abandoned >= self._abandoned:
            # Handed over to the broker's dead-lettering. Replayed from there, it may be tried anew.
            error = AbandonedError(f"its handling was abandoned {claim.abandoned} times, by a crash or a standstill")
            lease.say(f"goes to its dead letter queue: {error}")
            await claims.release(lease, forget=True)
            claims.host.report(facts.DeadLettered(*lease.names, lease.delivery.attempt, type(error).__name__))
            return Settlement(Outcome.REJECT, error=error)
        if self._suspect.locked():
            await claims.release(lease)
            return _back(lease.delivery, self._lease)
        async with self._suspect:
            return await self._handle(proceed, claims, lease, claim.fence)

    async def _handle(self, proceed: Consume, claims: Claims, lease: Lease, fence: int) -> Settlement:
        claims.leases.add(lease)
        try:
            settlement = await proceed(lease.delivery.marked(fence=fence))
            if settlement.outcome is not Outcome.ACK:
                await claims.release(lease)
            elif await claims.complete(lease) is False:
                lease.say("was handled after its claim had passed to another, and comes back to see what came of it")
                claims.host.report(Fenced(*lease.names))
                return _back(lease.delivery, self._lease)
            return settlement
        except BaseException as error:
            # Whatever it is goes on, but first the next attempt may begin; unless nothing can be awaited any more.
            if not lease.ending and not isinstance(error, GeneratorExit):
                await claims.release(lease)
            raise
        finally:
            claims.leases.discard(lease)

    async def _unclaimed(self, proceed: Consume, claims: Claims, lease: Lease) -> Settlement:
        """Handle without a claim; or let go of an event that waited here as long as it may, or until the bus stops."""
        if not self._waits:
            self.unclaimed += 1
            claims.host.report(Unclaimed(*lease.names))
            return await proceed(lease.delivery)
        if claims.host.stopping:
            return REQUEUE
        return _back(lease.delivery, min(max(timedelta(seconds=claims.lasts / 4), self._lease), LONGEST_WAIT))

    def _name(self, delivery: Delivery) -> str | None:
        """Return what the event is told from others by; None if it cannot be, which is said once for each queue."""
        if self._key is not None:
            name = self._key(delivery)
            if name is None or (isinstance(name, str) and name):
                return name
            what = "an empty text" if name == "" else type(name).__name__
            raise TypeError(f"Idempotency(key=...) returned {what}: return a text, or None for what has no key")
        id = delivery.properties.message_id
        if id is not None:
            return id if CANONICAL(id) else str(delivery.id)
        if delivery.queue not in self._without_id:
            self._without_id.add(delivery.queue)
            log.warning(
                "%s is handled as often as it comes, as is everything without an id in this queue (said once)",
                delivery.describe(),
                extra=event_fields(delivery),
            )
        return None


def _digest(delivery: Delivery) -> str:
    """Say in a word what the event says: its type, version and payload, and nothing that differs between attempts."""
    found = delivery.found
    what = blake2b(getattr(found, "body", delivery.body), digest_size=12)
    what.update(f"{delivery.type} {getattr(found, 'version', 1)}".encode())
    return what.hexdigest()


def _back(delivery: Delivery, after: timedelta) -> Settlement:
    """Let a delivery come back as it is: no failure, and no attempt."""
    return forward(delivery.replace(attempt=delivery.attempt, after=after))
