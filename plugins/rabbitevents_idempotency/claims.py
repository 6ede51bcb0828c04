"""The claims of a bus that runs: who owns which event, asked of a store that may be away."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from rabbitevents import Check, Delivery, Host
from rabbitevents_idempotency.leases import Lease, Leases
from rabbitevents_idempotency.outage import LONGEST_PAUSE, Outage
from rabbitevents_idempotency.store import Claim, Store

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

T = TypeVar("T")

LEAVING: Final = 1.0
"""Seconds that releases on their way have when the bus has stopped."""


class Claims:
    """Claims events, renews their leases, completes and releases them.

    With ``insists``, a store that is away is waited for; else it is asked once.
    """

    def __init__(self, store: Store, host: Host, *, lease: timedelta, keep: timedelta, insists: bool) -> None:
        self.outage: Outage = Outage(host, type(store).__name__, waits=insists)
        self.leases: Leases = Leases(store, lease, self.outage, host)
        self._store = store
        self._lease = lease
        self._keep = keep
        self._insists = insists
        self._owners = secrets.token_urlsafe(6)
        self._numbers = count(1)
        self._ask_again_at = 0.0
        self._releasing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Look at the store, and renew leases meanwhile; at the end wait a moment for releases that are on their way."""
        for warning in await self.outage.ask(self._store.look) or ():
            log.warning("%s", warning)
        renewing = asyncio.create_task(self.leases.run(), name="renewing leases", context=Context())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait({renewing, *self._releasing}, timeout=LEAVING)

    def new(self, delivery: Delivery) -> Lease:
        """Return what to claim: the event for its handler, by an owner's name that no claim ever had, in any process."""
        return Lease(f"{delivery.queue}:{delivery.id}", f"{self._owners}{next(self._numbers)}", delivery)

    async def claim(self, lease: Lease) -> Claim | None:
        """Claim; None where the store is away."""
        try:
            return await self._ask(partial(self._claim, lease))
        except asyncio.CancelledError:
            self._start(self._release(lease, forget=False))  # the claim may have been on its way
            raise

    async def complete(self, lease: Lease) -> bool | None:
        """Mark as done; False if the claim is another's by now, None where the store is away."""
        lease.ending = True
        return await self._ask(partial(self._store.complete, lease.key, lease.owner, self._keep))

    async def release(self, lease: Lease, *, forget: bool = False) -> None:
        """Let another attempt begin at once; a store that is away is waited for as long as the lease lasts anyway.

        It is done even if the caller is cancelled meanwhile.
        """
        await asyncio.wait({self._start(self._release(lease, forget=forget))})

    def is_hopeless(self) -> bool:
        """Say whether the store is away and was asked within this second; one of those who wonder may ask again."""
        now = asyncio.get_running_loop().time()
        if self.outage.lasts is None:
            return False
        if now < self._ask_again_at:
            return True
        self._ask_again_at = now + LONGEST_PAUSE
        return False

    def checks(self) -> Iterable[Check]:
        """Say whether the store answers."""
        return self.outage.checks()

    def _ask(self, step: Callable[[], Awaitable[T]]) -> Awaitable[T | None]:
        return self.outage.insist(step) if self._insists else self.outage.ask(step)

    async def _claim(self, lease: Lease) -> Claim:
        return await self._store.claim(lease.key, lease.owner, self._lease, takeover=self.outage.is_settled)

    async def _release(self, lease: Lease, *, forget: bool) -> None:
        step = partial(self._store.release, lease.key, lease.owner, forget=forget)
        await self.outage.insist(step, self._lease.total_seconds() if self._insists else 0.0)

    def _start(self, releasing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(releasing)
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        return task
