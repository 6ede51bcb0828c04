"""What came of looking through a dead letter queue, as values."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec

from rabbitevents_deadletter.letters import DeadLetterMessage

Ended = Literal["", "limit", "gone"]
"""Why a look ended before it had seen everything: as many were found as asked for; or others have taken, or hold, what
was counted at its start."""

By = Literal["", "error", "type"]
"""What letters are counted by; empty: by both."""

MOST_GROUPS: Final = 1_000
"""How many groups are told apart: names come from strangers, and each may be another one."""

MOST_REFUSED: Final = 100
"""How many of those that could not be are told by name."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How far a look came, and what it did."""

    queue: str
    """The dead letter queue."""
    there: int = 0
    """How many messages were ready when it began; what comes later is not looked at."""
    others: int = 0
    """How many consumers others had there then, as the broker counts them: what those hold was not seen, and is not
    counted in ``there``."""
    looked_at: int = 0
    meant: int = 0
    """How many of those the selection takes."""
    done: int = 0
    """How many of those were replayed, discarded or exported."""
    failed: int = 0
    """How many of those could not be; they stay where they are."""
    refused: tuple[tuple[str, str], ...] = ()
    """The first of these, by id, and why."""
    ended: Ended = ""

    @property
    def unseen(self) -> int:
        """How many were there and were not looked at."""
        return max(0, self.there - self.looked_at)

    @property
    def partial(self) -> bool:
        """Whether letters may be there that were not looked at, though nobody asked for fewer."""
        return self.ended != "limit" and (self.others > 0 or self.unseen > 0)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of one queue that died of the same and are of the same type."""

    error: str
    """The exception's class, or the broker's reason; empty where letters are counted by type alone."""
    type: str
    count: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None


class Summary(Result, frozen=True, kw_only=True):
    """What is in a dead letter queue, the most frequent first."""

    groups: tuple[Group, ...]


def count(groups: dict[tuple[str, str], Group], letter: DeadLetterMessage, by: By) -> None:
    """Count a letter into its group."""
    key = ("" if by == "type" else letter.cause, "" if by == "error" else letter.type)
    if key not in groups and len(groups) >= MOST_GROUPS:
        key = ("(others)", "(others)")
    there = groups.get(key) or Group(error=key[0], type=key[1])
    times = [each for each in (there.oldest, there.newest, letter.failed_at) if each is not None]
    oldest, newest = min(times, default=None), max(times, default=None)
    groups[key] = msgspec.structs.replace(there, count=there.count + 1, oldest=oldest, newest=newest)
