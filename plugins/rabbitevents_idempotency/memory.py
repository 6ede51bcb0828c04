"""Claims and marks in the memory of this process: for tests, and for a service that is one process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Literal, cast

import msgspec

from rabbitevents.arguments import whole, wrong
from rabbitevents_idempotency.store import Acquired, Busy, Claim, Conflict, Done, remembered

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")


class _Record(msgspec.Struct):
    """What is known of a key. ``till`` ends the lease, ``expires`` all memory of it, both on the store's clock."""

    owner: str
    fence: int
    state: Literal["unknown", "claimed", "free", "done"] = "unknown"
    digest: str = ""
    abandoned: int = 0
    till: float = 0.0
    expires: float = 0.0


class MemoryStore:
    """Keeps claims and marks in this process: they end with it, and other processes do not see them.

    :param limit: How many keys it holds at most, about 400 bytes each: 1,000,000. Beyond that the oldest that are done are
        forgotten early, which is said in the log.
    :param clock: Tells the time in seconds, by default the monotonic clock's. Give the embedded broker's
        (``broker.clock.time``) to test what takes days.
    """

    def __init__(self, *, limit: int = 1_000_000, clock: Callable[[], float] = time.monotonic) -> None:
        if not callable(cast("object", clock)):
            raise wrong("MemoryStore: clock", clock, "say a function that tells seconds, such as time.monotonic")
        self._limit = whole("MemoryStore: limit", limit)
        self._clock = clock
        self._epoch: float | None = None
        self._records: dict[str, _Record] = {}
        self._has_forgotten = False

    def __len__(self) -> int:
        return len(self._records)

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True, digest: str = "") -> Claim:
        """Make ``key`` the owner's for as long as ``lease``; see `Store.claim`."""
        now = self._clock()
        there = self._find(key, owner, now)
        if digest and there.digest and there.digest != digest:
            return Conflict()
        if there.state == "done":
            return Done()
        if there.state == "claimed" and there.owner != owner:
            if now < there.till or not takeover:
                return Busy(timedelta(seconds=max(0.0, there.till - now)))
            there.abandoned += 1
        if there.owner != owner:
            there.fence = max(there.fence + 1, self._milliseconds(now))
        there.owner, there.digest = owner, digest
        self._hold(key, there, now, lease)
        return Acquired(there.fence, there.abandoned)

    async def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        """Let the owner's lease begin anew; see `Store.renew`."""
        now = self._clock()
        there = self._find(key, owner, now)
        if there.owner != owner or there.state not in {"claimed", "unknown"}:
            return False
        self._hold(key, there, now, lease)
        return True

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        """Mark ``key`` as done for as long as ``keep``; see `Store.complete`."""
        now = self._clock()
        there = self._find(key, owner, now)
        if there.owner != owner or there.state == "free":
            return False
        there.state = "done"
        self._records.pop(key, None)  # so that what is done stands in the order in which it expires
        self._keep(key, there, now, keep)
        return True

    async def release(self, key: str, owner: str, *, forget: bool = False) -> bool:
        """Give ``key`` back; see `Store.release`."""
        now = self._clock()
        there = self._find(key, owner, now)
        if there.owner != owner or there.state != "claimed":
            return False
        there.state, there.owner, there.digest = "free", "", ""
        there.abandoned *= not forget
        self._keep(key, there, now, remembered())
        return True

    async def look(self) -> Sequence[str]:
        """Return nothing: that it ends with the process is what it is for."""
        return ()

    def _find(self, key: str, owner: str, now: float) -> _Record:
        """Return what is known of a key; if that is nothing, what it would be of a key that is the owner's."""
        there = self._records.get(key)
        return there if there is not None and now < there.expires else _Record(owner, self._milliseconds(now))

    def _milliseconds(self, now: float) -> int:
        """Return the milliseconds since 1970 on a clock that does not jump when the machine's is set."""
        if self._epoch is None:
            self._epoch = time.time() - now
        return int((self._epoch + now) * 1000)

    def _hold(self, key: str, record: _Record, now: float, lease: timedelta) -> None:
        record.state, record.till = "claimed", now + lease.total_seconds()
        self._keep(key, record, now, remembered(lease))

    def _keep(self, key: str, record: _Record, now: float, time: timedelta) -> None:
        """Keep what is known of a key now, and forget what has expired: at the front stands what was done first."""
        records = self._records
        records[key], record.expires = record, now + time.total_seconds()
        while records[(oldest := next(iter(records)))].expires <= now:
            del records[oldest]
        if len(records) > self._limit:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest = next((key for key, record in self._records.items() if record.state != "claimed"), None)
        if oldest is None:
            return
        del self._records[oldest]
        if not self._has_forgotten:
            self._has_forgotten = True
            log.warning(
                "the MemoryStore is full (limit=%d): what was done first is forgotten early, and would be done again; "
                "give it a larger limit, or keep marks in a RedisStore",
                self._limit,
            )
