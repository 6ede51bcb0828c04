"""A store that is away: said once, shown in health, and waited for."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from rabbitevents import Check, Host
from rabbitevents_idempotency.facts import StoreBack, StoreLost
from rabbitevents_idempotency.store import StoreUnavailableError

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

T = TypeVar("T")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
"""Seconds before a store that was away is asked again: doubled each time. It shares its round trips, so that it makes
no difference to it how many ask."""

SETTLING = 5.0
"""Seconds after an outage in which no lease that ended meanwhile is taken over: its owner could not renew it, and will
be heard within a pause and a round trip."""


class Outage:
    """Knows whether a store answers, and has patience with one that does not.

    ``patience`` is how long an event may be kept waiting, in seconds.
    """

    def __init__(self, host: Host, store: str, *, waits: bool) -> None:
        self.patience: float = host.consumer_timeout.total_seconds() / 2
        self._host = host
        self._store = store
        self._waits = waits
        self._consequence = "events wait" if waits else "events are handled without a claim"
        self._since: float | None = None
        self._back_at = -math.inf
        self._reason = ""
        self._waiting = 0
        self._now = asyncio.get_running_loop().time

    @property
    def lasts(self) -> float | None:
        """For how many seconds the store has been away; None while it answers."""
        return self._now() - self._since if self._since is not None else None

    @property
    def is_settled(self) -> bool:
        """Whether everybody had time to renew and to complete since the store was last away."""
        return self._since is None and self._now() - self._back_at > SETTLING

    async def insist(self, step: Callable[[], Awaitable[T]], patience: float = math.inf) -> T | None:
        """Do ``step`` until the store answers, and return that; None where patience ended, or the bus stops."""
        pause = FIRST_PAUSE
        end = self._now() + min(patience, self.patience)
        while (answer := await self.ask(step)) is None:
            if self._now() > end or (self.lasts or 0.0) > self.patience or self._host.stopping:
                return None
            self._waiting += 1
            try:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            finally:
                self._waiting -= 1
            pause = min(2 * pause, LONGEST_PAUSE)
        return answer

    async def ask(self, step: Callable[[], Awaitable[T]]) -> T | None:
        """Do ``step`` once; None if the store is away."""
        try:
            answer = await step()
        except StoreUnavailableError as error:
            self._begin(str(error))
            return None
        if self._since is not None:
            self._end(self._since)
        return answer

    def _begin(self, reason: str) -> None:
        self._reason = reason
        if self._since is None:
            self._since = self._now()
            log.error("the %s is out of reach, %s: %s", self._store, self._consequence, reason)
            self._host.report(StoreLost(reason))

    def _end(self, since: float) -> None:
        self._back_at = self._now()
        downtime = self._back_at - since
        self._since = None
        log.warning("the %s answers again, after %.1f s", self._store, downtime)
        self._host.report(StoreBack(downtime))

    def checks(self) -> Iterable[Check]:
        """Say how the store is, as it was when it was last asked."""
        lasts = self.lasts
        if lasts is None:
            yield Check("idempotency", True)
        else:
            yield Check(
                "idempotency",
                False,
                f"the {self._store} is out of reach for {lasts:.0f} s, {self._consequence}: {self._reason}; "
                f"{self._waiting} wait now",
                degraded=not self._waits,
            )
