"""The ledger: one file, appended to by all processes, fsynced, outside of the system that it is about.

A line is ``WHAT ID PID SECONDS``, the last one on the machine's monotonic clock, which all processes share:

* ``attempt``, then ``confirmed``, ``failed`` (certainly not published) or ``unknown``: who publishes;
* ``start``, then ``effect``, and ``passed`` for what a later service saw of it: who handles; ``came`` where these two are
  rows, which are read at the end;
* ``dead``, ``left``: what lay in a dead letter queue, or in any other, when all had ended.

An id is ``LANE/NUMBER``: what was published in one lane was published in the order of its numbers.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

APART = 1.0
"""Seconds by which a line may be older than the one before it: who writes looks at the clock first.

One that is older by more, since its process was suspended in between, hides what is before it from who asks what is new.
"""


class Record(NamedTuple):
    """One line."""

    what: str
    id: str
    pid: int
    at: float


class Ledger:
    """The file, for those who write into it."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._syncing: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    def write(self, what: str, ids: Iterable[str]) -> None:
        """Write a line for each; it outlives this process at once, and the machine after `note` alone."""
        stamp = f"{os.getpid()} {time.monotonic():.6f}\n"
        os.write(self._file, "".join(f"{what} {id} {stamp}" for id in ids).encode())

    async def note(self, what: str, *ids: str) -> None:
        """Write a line for each, and return when the disk has them. Who comes together waits together."""
        self.write(what, ids)
        if self._next is None:
            self._next = asyncio.create_task(self._sync(self._syncing))
        await asyncio.shield(self._next)

    async def _sync(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        self._syncing, self._next = self._next, None  # what is written from here on is for the next one
        await asyncio.to_thread(os.fdatasync, self._file)


class Tail:
    """The file, for who reads it while it grows: what is under way, and all records so far."""

    def __init__(self, path: Path) -> None:
        self.records: list[Record] = []
        self.attempted: dict[str, float] = {}
        self.confirmed: dict[str, float] = {}
        self.done: dict[str, float] = {}
        """When each event had its first effect."""
        self.answered: set[str] = set()
        self.refused = 0
        """How many attempts were answered, and not confirmed."""
        self.begun: list[float] = []
        """When handlings began."""
        self._path = path
        self._at = 0

    def read(self) -> Tail:
        """Take what was written since; return self."""
        if not self._path.exists():
            return self
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.decode().splitlines():
            what, id, pid, at = line.split()
            self._take(Record(what, id, int(pid), float(at)))
        return self

    def _take(self, record: Record) -> None:
        self.records.append(record)
        if record.what == "attempt":
            self.attempted[record.id] = record.at
        elif record.what in ("confirmed", "failed", "unknown"):
            self.answered.add(record.id)
            if record.what == "confirmed":
                self.confirmed[record.id] = record.at
            else:
                self.refused += 1
        elif record.what == "start":
            self.begun.append(record.at)
        elif record.what in ("effect", "passed", "came", "dead"):
            self.done.setdefault(record.id, record.at)

    @property
    def under_way(self) -> int:
        """How many events of the last ten seconds are published and not answered, or confirmed and not handled."""
        since = time.monotonic() - 10
        unanswered = sum(id not in self.answered for id, _ in after(since, self.attempted))
        return unanswered + sum(id not in self.done for id, _ in after(since, self.confirmed))

    def flows(self, since: float) -> bool:
        """Say whether an event that was confirmed after ``since`` was handled, and another handling has begun."""
        return self.recovered(since) < math.inf and any(id in self.done for id, _ in after(since, self.confirmed))

    def recovered(self, since: float) -> float:
        """Return when, after ``since``, there was both a confirm and the beginning of a handling; infinite: not yet."""
        confirmed = min((at for _, at in after(since, self.confirmed)), default=math.inf)
        begun = itertools.takewhile(lambda at: at > since - APART, reversed(self.begun))
        return max(confirmed, min((at for at in begun if at > since), default=math.inf))


def after(since: float, times: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Return what is later than ``since``, the latest first; what is older is not looked at: the file may be an hour's."""
    late = itertools.takewhile(lambda id: times[id] > since - APART, reversed(times))
    return ((id, times[id]) for id in late if times[id] > since)
