"""Claims and marks in the memory of this process: for tests, and for a service that is one process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Literal, cast

import msgspec

from rabbitevents.arguments import whole, wrong
from rabbitevents_idempotency.store import UNFINISHED, Acquired, Busy, Claim, Conflict, Done

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")


class _Record(msgspec.Struct, frozen=True):
    """What is known of a key. ``till`` ends the lease, ``expires`` all memory of it, both on the store's clock."""

    state: Literal["claimed", "free", "done"]
    fence: int
    abandoned: int
    till: float
    owner: str
    expires: float
    digest: str = ""


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
        there = self._find(key, now)
        fence, abandoned = self._milliseconds(now), 0
        if there is not None:
            if digest and there.digest and there.digest != digest:
                return Conflict()
            if there.state == "done":
                return Done()
            is_repeated = there.state == "claimed" and there.owner == owner
            if there.state == "claimed" and not is_repeated and (now < there.till or not takeover):
                return Busy(timedelta(seconds=max(0.0, there.till - now)))
            fence = there.fence if is_repeated else max(there.fence + 1, fence)
            abandoned = there.abandoned + (there.state == "claimed" and not is_repeated)
        self._write(key, _Record("claimed", fence, abandoned, *_ends(now, lease, owner), digest), now)
        return Acquired(fence, abandoned)

    async def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        """Let the owner's lease begin anew; see `Store.renew`."""
        now = self._clock()
        there = self._find(key, now)
        if there is not None and (there.state != "claimed" or there.owner != owner):
            return False
        known = there or _Record("free", self._milliseconds(now), 0, 0.0, "", 0.0)
        ends = _ends(now, lease, owner)
        self._write(key, _Record("claimed", known.fence, known.abandoned, *ends, known.digest), now)
        return True

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        """Mark ``key`` as done for as long as ``keep``; see `Store.complete`."""
        now = self._clock()
        there = self._find(key, now)
        if there is not None and (there.state == "free" or there.owner != owner):
            return False
        fence, digest = (there.fence, there.digest) if there is not None else (self._milliseconds(now), "")
        self._records.pop(key, None)  # so that what is done stands in the order in which it expires
        self._write(key, _Record("done", fence, 0, 0.0, owner, now + keep.total_seconds(), digest), now)
        return True

    async def release(self, key: str, owner: str, *, forget: bool = False) -> bool:
        """Give ``key`` back; see `Store.release`."""
        now = self._clock()
        there = self._find(key, now)
        if there is None or there.state != "claimed" or there.owner != owner:
            return False
        abandoned = 0 if forget else there.abandoned
        self._write(key, _Record("free", there.fence, abandoned, 0.0, "", now + UNFINISHED.total_seconds()), now)
        return True

    async def look(self) -> Sequence[str]:
        """Return nothing: that it ends with the process is what it is for."""
        return ()

    def _find(self, key: str, now: float) -> _Record | None:
        there = self._records.get(key)
        return there if there is not None and now < there.expires else None

    def _milliseconds(self, now: float) -> int:
        """Return the milliseconds since 1970 on a clock that does not jump when the machine's is set."""
        if self._epoch is None:
            self._epoch = time.time() - now
        return int((self._epoch + now) * 1000)

    def _write(self, key: str, record: _Record, now: float) -> None:
        """Note what is known of a key now, and forget what has expired: at the front stands what was done first."""
        records = self._records
        records[key] = record
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


def _ends(now: float, lease: timedelta, owner: str) -> tuple[float, str, float]:
    """Return when a lease ends, its owner, and when it is forgotten."""
    length = lease.total_seconds()
    return now + length, owner, now + max(2 * length, UNFINISHED.total_seconds())
