"""The claims of a bus that runs: made, renewed together, ended, in a store that may be away."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from datetime import timedelta
from itertools import count
from typing import Final, TypeVar

import msgspec

from rabbitevents import Check, ConfigurationError, Delivery, Host, event_fields
from rabbitevents_idempotency.facts import LeaseLost, StoreBack, StoreLost
from rabbitevents_idempotency.store import (
    Claim,
    KeyRefusedError,
    Store,
    StoreForbiddenError,
    StoreUnavailableError,
)

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

T = TypeVar("T")

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
"""Seconds before a store that is away is looked at again: doubled each time."""

SETTLING: Final = 5.0
"""Seconds after an outage in which no lease that ended meanwhile is taken over: its owner could not renew it, and will
be heard within a pause and a round trip."""

LEAVING: Final = 1.0
"""Seconds that releases on their way have when the bus has stopped."""


class Lease(msgspec.Struct, eq=False):
    """A claim of ours, for as long as its handler runs."""

    key: str
    owner: str
    digest: str
    delivery: Delivery
    ending: bool = False
    """Whether its end is on the way, so that a renewal may be refused without anything being lost."""

    @property
    def names(self) -> tuple[str, str, str]:
        """What facts call it by: the subscription, and the event's type and id."""
        return self.delivery.queue, self.delivery.type, str(self.delivery.id)

    def say(self, what: str) -> None:
        """Log what is the matter with its event."""
        log.error("%s %s", self.delivery.describe(), what, extra=event_fields(self.delivery))


class Claims:
    """Claims events, renews their leases, completes and releases them.

    An outage begins when the store cannot do a step, and ends when `Store.look` could write: whatever single steps come
    to meanwhile. With ``waits``, the store is waited for; else it is asked once.
    """

    def __init__(self, store: Store, host: Host, *, lease: timedelta, keep: timedelta, waits: bool) -> None:
        self._store = store
        self._name = type(store).__name__
        self.host: Host = host
        self._lease = lease
        self._keep = keep
        self._waits = waits
        self._consequence = "events wait" if waits else "events are handled without a claim"
        self._identities = {each.queue: each.identity for each in host.subscriptions}
        self._patience = host.consumer_timeout.total_seconds() / 2
        self._owners = secrets.token_urlsafe(6)
        self._numbers = count(1)
        self.leases: set[Lease] = set()
        """Those whose handlers run: they are renewed."""
        self._releasing: set[asyncio.Task[None]] = set()
        self._now = asyncio.get_running_loop().time
        self._since: float | None = None
        self._is_back = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._settled_at = -math.inf
        self._trouble = StoreUnavailableError("")
        self._waiting = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Look at the store, and renew leases meanwhile; at the end wait a moment for releases that are on their way.

        Raises `ConfigurationError` for a store that does not let us in.
        """
        try:
            for warning in await self._store.look():
                log.warning("%s", warning)
        except StoreForbiddenError as error:
            raise ConfigurationError(f"Idempotency({self._name}): {error}") from error
        except StoreUnavailableError as error:
            self._lost(error)
        # A context of its own: it belongs to no event.
        renewing = asyncio.create_task(self._keep_renewing(), name="renewing leases", context=Context())
        try:
            yield
        finally:
            ending = {renewing} if self._looking is None else {renewing, self._looking}
            for task in ending:
                task.cancel()
            await asyncio.wait({*ending, *self._releasing}, timeout=LEAVING)

    # --- steps: each is None where the store is away ---

    def new(self, delivery: Delivery, name: str, digest: str) -> Lease:
        """Return what to claim: the event ``name`` for its handler, by an owner that no claim ever had, in any process."""
        whose = self._identities.get(delivery.queue, delivery.queue)
        return Lease(f"{whose}:{name}", f"{self._owners}{next(self._numbers)}", digest, delivery)

    async def claim(self, lease: Lease) -> Claim | None:
        """Claim. Raises `KeyRefusedError`. Where only some keys cannot be asked for, nobody stands and waits for them."""

        def step() -> Awaitable[Claim]:
            is_settled = self._since is None and self._now() > self._settled_at
            return self._store.claim(lease.key, lease.owner, self._lease, takeover=is_settled, digest=lease.digest)

        try:
            return await self._insist(step, leaves=True)
        except asyncio.CancelledError:
            self._release(lease)  # the claim may have been on its way
            raise

    async def complete(self, lease: Lease) -> bool | None:
        """Mark as done; False if the claim is another's by now.

        What cannot be marked is said, and no more: to handle it again would be no better.
        """
        lease.ending = True
        try:
            completed = await self._insist(lambda: self._store.complete(lease.key, lease.owner, self._keep))
        except KeyRefusedError:
            completed = None
        if completed is None:
            lease.say("was handled, and could not be marked: a copy of it would be handled again")
        return completed

    async def release(self, lease: Lease, *, forget: bool = False) -> None:
        """Let another attempt begin at once; a store that is away is waited for as long as the lease lasts anyway.

        It is done even if the caller is cancelled meanwhile. Raises nothing.
        """
        lease.ending = True
        await asyncio.wait({self._release(lease, forget=forget)})

    def _release(self, lease: Lease, *, forget: bool = False) -> asyncio.Task[None]:
        async def release() -> None:
            try:
                step = self._store.release
                await self._insist(lambda: step(lease.key, lease.owner, forget=forget), self._lease.total_seconds())
            except KeyRefusedError as error:
                log.debug("%s", error)  # what led here is what is to be seen

        task = asyncio.create_task(release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        return task

    # --- leases ---

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            await self._renew()

    async def _renew(self) -> None:
        try:
            await asyncio.gather(*map(self._renew_one, list(self.leases)))
        except Exception:
            # The one who renews must not end with a store's defect: every lease would.
            log.exception("renewing leases failed, which is a defect of the store; it is tried again before they pass")

    async def _renew_one(self, lease: Lease) -> None:
        try:
            is_ours = await self._insist(lambda: self._store.renew(lease.key, lease.owner, self._lease), 0.0)
        except KeyRefusedError:
            is_ours = False
        if is_ours is False and lease in self.leases and not lease.ending:
            self.leases.discard(lease)
            lease.say(
                "is handled, and its claim passed to another, as it was not renewed in time (Idempotency(lease=...)): the event "
                "may have two effects, unless what it writes to refuses the older fence"
            )
            self.host.report(LeaseLost(*lease.names))

    # --- an outage ---

    async def _insist(
        self, step: Callable[[], Awaitable[T]], patience: float = math.inf, *, leaves: bool = False
    ) -> T | None:
        """Do ``step`` until the store answers, and return that; None where patience ended, or the bus stops."""
        pause, end = FIRST_PAUSE, self._now() + min(patience, self._patience)
        while True:
            try:
                return await step()
            except StoreUnavailableError as error:
                self._lost(error)
                is_over = self._now() >= end or self.lasts > self._patience or (leaves and error.partial)
            if is_over or not self._waits or self.host.stopping:
                return None
            self._waiting += 1
            try:
                # Soon again, and not all at once: a trip fails as a whole, and a full Redis answers what only asks.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_back.wait(), pause * random.uniform(0.5, 1.0))
            finally:
                self._waiting -= 1
            pause = min(2 * pause, LONGEST_PAUSE)

    def _lost(self, error: StoreUnavailableError) -> None:
        """Begin an outage, if there is none. What failed again soon is given time at once, so that nothing flaps."""
        self._trouble = error
        if self._since is None:
            self._since = self._now()
            self._is_back.clear()
            if not self.host.stopping:
                pause = FIRST_PAUSE if self._since > self._settled_at else LONGEST_PAUSE
                self._looking = asyncio.create_task(self._look(pause), name="looking for the store", context=Context())
            log.error("the %s is out of reach, %s: %s", self._name, self._consequence, error)
            self.host.report(StoreLost(str(error)))

    async def _look(self, pause: float) -> None:
        """End the outage when the store can be written to again, and renew at once what could not be renewed."""
        while not await self._answers(after=pause):
            pause = min(2 * pause, LONGEST_PAUSE)
        downtime, self._since = self.lasts, None
        self._settled_at = self._now() + SETTLING
        self._is_back.set()
        log.warning("the %s answers again, after %.1f s", self._name, downtime)
        self.host.report(StoreBack(downtime))
        await self._renew()

    async def _answers(self, *, after: float) -> bool:
        await asyncio.sleep(after)
        try:
            await self._store.look()
        except StoreUnavailableError as error:
            self._trouble = error
            return False
        except Exception:
            log.exception("looking for the %s failed, which is a defect of it; it is tried again", self._name)
            return False
        return True

    @property
    def lasts(self) -> float:
        """For how many seconds the store has been away; 0 while it answers."""
        return self._now() - self._since if self._since is not None else 0.0

    def checks(self) -> Iterable[Check]:
        """Say how the store is, as it was when it was last asked."""
        if self._since is None:
            yield Check("idempotency", True)
            return
        what = f"{'part of ' if self._trouble.partial else ''}the {self._name} is out of reach for {self.lasts:.0f} s"
        detail = f"{what}, {self._consequence}: {self._trouble}; {self._waiting} wait now"
        yield Check("idempotency", False, detail, degraded=not self._waits)
