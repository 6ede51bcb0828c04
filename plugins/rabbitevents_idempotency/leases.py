"""The leases of the handlers that run: renewed together, by one task, as long as they run."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from functools import partial

import msgspec

from rabbitevents import Delivery, Host, event_fields
from rabbitevents_idempotency.facts import LeaseLost
from rabbitevents_idempotency.outage import LONGEST_PAUSE, Outage
from rabbitevents_idempotency.store import Store

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")


class Lease(msgspec.Struct, eq=False):
    """A claim of ours, for as long as its handler runs."""

    key: str
    owner: str
    delivery: Delivery
    ending: bool = False
    """Whether its completion is on the way, so that a renewal may be refused without anything being lost."""

    @property
    def names(self) -> tuple[str, str, str]:
        """What facts call it by: the subscription, and the event's type and id."""
        return self.delivery.queue, self.delivery.type, str(self.delivery.id)


class Leases:
    """The running leases of one bus, each as long as ``length`` after its last renewal."""

    def __init__(self, store: Store, length: timedelta, outage: Outage, host: Host) -> None:
        self._store = store
        self._length = length
        self._outage = outage
        self._host = host
        self._running: set[Lease] = set()

    def add(self, lease: Lease) -> None:
        """Renew ``lease`` from now on."""
        self._running.add(lease)

    def discard(self, lease: Lease) -> None:
        """Renew ``lease`` no longer."""
        self._running.discard(lease)

    async def run(self) -> None:
        """Renew what runs, three times per lease; while the store is away every second, so that health knows it too."""
        third = self._length.total_seconds() / 3
        now = asyncio.get_running_loop().time
        due = now() + third
        while True:
            await asyncio.sleep(min(third, LONGEST_PAUSE))
            if now() < due and self._outage.lasts is None:
                continue
            due = now() + third
            try:
                await self._renew_all()
            except Exception:
                # The one who renews must not end with a store's defect: every lease would.
                log.exception(
                    "renewing leases failed, which is a defect of the store; it is tried again before they pass"
                )

    async def _renew_all(self) -> None:
        """Renew all that run now; a store that is away is asked even if none does."""
        if self._outage.lasts is not None and not self._running:
            await self._outage.ask(self._store.look)
        leases = list(self._running)
        answers = await asyncio.gather(*(self._outage.ask(partial(self._renew, each)) for each in leases))
        for lease, is_ours in zip(leases, answers, strict=True):
            if is_ours is False and lease in self._running and not lease.ending:
                self._running.discard(lease)
                self._lost(lease)

    async def _renew(self, lease: Lease) -> bool:
        return await self._store.renew(lease.key, lease.owner, self._length)

    def _lost(self, lease: Lease) -> None:
        log.error(
            "%s: its claim passed to another while its handler runs, as it was not renewed in time (Idempotency(lease=...)): "
            "the event may have two effects, unless what it writes to refuses the older fence",
            lease.delivery.describe(),
            extra=event_fields(lease.delivery),
        )
        self._host.report(LeaseLost(*lease.names))
