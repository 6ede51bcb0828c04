"""What is kept of one process between two events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import attrs
import msgspec

from rabbitevents import event

LONGEST: Final = timedelta(days=30)
"""How long an event can wait at the broker."""


class Pending(msgspec.Struct, frozen=True):
    """A timeout that is set: by which event, and for when, by the clock of whoever set it."""

    set_by: UUID
    due: datetime


class Life(msgspec.Struct, frozen=True):
    """One process: its state as a document of a version, what it waits for, and whether it has ended."""

    body: bytes
    version: int
    timeouts: Mapping[str, Pending]
    ended: bool = False

    def waits_for(self, timed_out: TimedOut) -> bool:
        """Say whether a timeout that came is the one that was set last under its name, and has not been cleared."""
        pending = self.timeouts.get(timed_out.name)
        return pending is not None and pending.set_by == timed_out.set_by


@attrs.frozen
class TimedOut:
    """A timeout that has come.

    ``set_by`` is the id of the event that set it. No two that were ever set have the same name and the same id of one
    process, so a number that would have to be kept to tell them apart is not needed. ``left`` is how much longer it is to
    wait: an event waits 30 days at the broker, at most.
    """

    key: str
    name: str
    set_by: UUID
    left: timedelta = timedelta()

    def waiting(self, after: timedelta) -> tuple[TimedOut, timedelta]:
        """Return it as one that comes in so long, with how long it waits first: all of that, or as long as one can."""
        first = min(after, LONGEST)
        return attrs.evolve(self, left=after - first), first


def timed_out(process: str) -> type[TimedOut]:
    """Return the event class of a process's timeouts, to whose type its queue alone is bound."""
    made = attrs.frozen(type("TimedOut", (TimedOut,), {"__module__": __name__}))
    return event(f"{process}.timed-out", entity=process, key="key")(made)
