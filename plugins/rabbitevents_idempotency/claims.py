"""The claims of a bus that runs: made, renewed together, ended, in a store that may be away."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

import msgspec

from rabbitevents import Check, ConfigurationError, Delivery, Host, event_fields
from rabbitevents_idempotency.facts import LeaseLost, StoreBack, StoreLost
from rabbitevents_idempotency.store import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Claim,
    KeyRefusedError,
    Store,
    StoreForbiddenError,
    StoreUnavailableError,
)

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

T = TypeVar("T")

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
        self._patience = host.consumer_timeout.total_seconds() / 2
        self._owners = secrets.token_urlsafe(6)
        self._numbers = count(1)
        self.leases: set[Lease] = set()
        """Those whose handlers run: they are renewed."""
        self._releasing: set[asyncio.Task[None]] = set()
        self._now = asyncio.get_running_loop().time
        self._since: float | None = None
        self._back_at = -math.inf
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
        third = self._lease.total_seconds() / 3
        steps = (self._renew, third), (self._look, min(third, LONGEST_PAUSE))
        # A context of their own: they belong to no event.
        tasks = [asyncio.create_task(_repeat(*each), name="renewing leases", context=Context()) for each in steps]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait({*tasks, *self._releasing}, timeout=LEAVING)

    # --- steps: each is None where the store is away ---

    def new(self, delivery: Delivery, name: str, digest: str) -> Lease:
        """Return what to claim: the event ``name`` for its handler, by an owner that no claim ever had, in any process."""
        return Lease(f"{delivery.queue}:{name}", f"{self._owners}{next(self._numbers)}", digest, delivery)

    async def claim(self, lease: Lease) -> Claim | None:
        """Claim. Raises `KeyRefusedError`. Where only some keys cannot be asked for, nobody stands and waits for them."""
        try:
            return await self._insist(partial(self._claim, lease), leaves=True)
        except asyncio.CancelledError:
            self._start(self._release(lease, forget=False))  # the claim may have been on its way
            raise

    async def _claim(self, lease: Lease) -> Claim:
        is_settled = self._since is None and self._now() - self._back_at > SETTLING
        return await self._store.claim(lease.key, lease.owner, self._lease, takeover=is_settled, digest=lease.digest)

    async def complete(self, lease: Lease) -> bool | None:
        """Mark as done; False if the claim is another's by now. Raises `KeyRefusedError`."""
        lease.ending = True
        return await self._insist(partial(self._store.complete, lease.key, lease.owner, self._keep))

    async def release(self, lease: Lease, *, forget: bool = False) -> None:
        """Let another attempt begin at once; a store that is away is waited for as long as the lease lasts anyway.

        It is done even if the caller is cancelled meanwhile. Raises nothing.
        """
        lease.ending = True
        await asyncio.wait({self._start(self._release(lease, forget=forget))})

    async def _release(self, lease: Lease, *, forget: bool) -> None:
        try:
            step = partial(self._store.release, lease.key, lease.owner, forget=forget)
            await self._insist(step, self._lease.total_seconds())
        except KeyRefusedError as error:
            log.debug("%s", error)  # what led here is what is to be seen

    def _start(self, releasing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(releasing)
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        return task

    # --- leases ---

    async def _renew(self) -> None:
        await asyncio.gather(*map(self._renew_one, list(self.leases)))

    async def _renew_one(self, lease: Lease) -> None:
        try:
            is_ours = await self._insist(partial(self._store.renew, lease.key, lease.owner, self._lease), 0.0)
        except KeyRefusedError:
            is_ours = False
        if is_ours is False and lease in self.leases and not lease.ending:
            self.leases.discard(lease)
            say(
                lease.delivery,
                "is handled, and its claim passed to another, as it was not renewed in time (Idempotency(lease=...)): the event "
                "may have two effects, unless what it writes to refuses the older fence",
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
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            finally:
                self._waiting -= 1
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _look(self) -> None:
        """End an outage that is over, and renew at once what could not be renewed."""
        if self._since is not None and await self._insist(self._store.look, 0.0) is not None:
            self._back_at = self._now()
            downtime, self._since = self._back_at - self._since, None
            log.warning("the %s answers again, after %.1f s", self._name, downtime)
            self.host.report(StoreBack(downtime))
            await self._renew()

    def _lost(self, error: StoreUnavailableError) -> None:
        self._trouble = error
        if self._since is None:
            self._since = self._now()
            log.error("the %s is out of reach, %s: %s", self._name, self._consequence, error)
            self.host.report(StoreLost(str(error)))

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


async def _repeat(step: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Do ``step`` again and again, after so many seconds each time."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await step()
        except Exception:
            # The one who renews must not end with a store's defect: every lease would.
            log.exception("renewing leases failed, which is a defect of the store; it is tried again before they pass")


def say(delivery: Delivery, what: str) -> None:
    """Log what is the matter with an event."""
    log.error("%s %s", delivery.describe(), what, extra=event_fields(delivery))
