"""What came of looking through a dead letter queue, as values."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import msgspec

from rabbitevents_deadletter.letters import DeadLetterMessage

Ended = Literal["", "limit", "full", "gone"]
"""Why a look ended before it had seen everything: as many were found as asked for; as many were held as may be; or
others have taken, or hold, what was counted at its start."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How far a look came, and what it did."""

    queue: str
    """The dead letter queue."""
    there: int
    """How many messages were ready when it began; what comes later is not looked at."""
    looked_at: int = 0
    meant: int = 0
    """How many of those the selection takes."""
    done: int = 0
    """How many of those were replayed, discarded or exported."""
    refused: tuple[tuple[str, str], ...] = ()
    """Those that could not be, by id, and why; they stay where they are."""
    ended: Ended = ""

    @property
    def unseen(self) -> int:
        """How many were there and were not looked at."""
        return max(0, self.there - self.looked_at)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of one queue that died of the same and are of the same type."""

    error: str
    """The exception's class, or the broker's reason."""
    type: str
    count: int
    oldest: datetime | None
    newest: datetime | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a dead letter queue, the most frequent first."""

    queue: str
    there: int
    looked_at: int
    groups: tuple[Group, ...]


def grouped(letters: Iterable[DeadLetterMessage]) -> tuple[Group, ...]:
    """Count letters by error and type, the most frequent first."""
    found: dict[tuple[str, str], Group] = {}
    for letter in letters:
        key, time = (letter.cause, letter.type), letter.failed_at
        there = found.get(key) or Group(error=letter.cause, type=letter.type, count=0, oldest=time, newest=time)
        times = [each for each in (there.oldest, there.newest, time) if each is not None]
        found[key] = msgspec.structs.replace(
            there, count=there.count + 1, oldest=min(times, default=None), newest=max(times, default=None)
        )
    return tuple(sorted(found.values(), key=lambda group: (-group.count, group.error, group.type)))
