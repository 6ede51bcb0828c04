"""How long an event may wait to be handled: AMQP's expiration, kept across copies that wait at the broker.

AMQP's property says how long a message may lie in a queue, and begins anew with each copy. What waits has none there, as
that would end its wait instead; a header says when its time is over.
"""

from __future__ import annotations

import time
from typing import Final

EXPIRES_AT: Final = "expires-at"
"""The header with the moment after which an event must not be handled any more, in milliseconds since 1970."""


def now() -> int:
    """Return the time of day in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def milliseconds(said: object) -> int | None:
    """Read a number of milliseconds, be it a header or an expiration; None for what is none."""
    if isinstance(said, str):
        said = int(said) if len(said) < 20 and said.isdecimal() else None
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 <= said < 2**53 else None


def ends(header: object, expiration: str | None, timestamp: int | None) -> int | None:
    """Return when an event's time is over, in milliseconds since 1970; None where it has no expiration.

    It is counted from AMQP's timestamp (seconds), up to the end of its second, or else from now: the broker says how long
    an event may wait, and not since when it has.
    """
    there = milliseconds(header)
    lasts = milliseconds(expiration)
    if there is not None or lasts is None:
        return there
    return (min(now(), timestamp * 1000 + 999) if timestamp else now()) + lasts
