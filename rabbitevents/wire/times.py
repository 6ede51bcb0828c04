"""When an event happened, in all the ways in which strangers say it."""

from __future__ import annotations

from datetime import UTC, datetime

from rabbitevents.events import now


def read_time(stated: object, seconds: int | None) -> datetime:
    """Read an event's time: RFC 3339 text with up to nanoseconds, or a number of seconds (or ms, us, ns) since 1970.

    AMQP's own timestamp stands in for a missing or unreadable one, and this moment for both.
    """
    return _time(stated) or _time(seconds) or now()


def _time(stated: object) -> datetime | None:
    """Read a time; None for one that is missing, or that no datetime can be."""
    try:
        if isinstance(stated, str):
            time = datetime.fromisoformat(stated)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        if isinstance(stated, (int, float)) and stated >= 0:
            scale = next(s for s in (1, 1_000, 1_000_000, 1_000_000_000) if stated / s < _LATEST)
            return datetime.fromtimestamp(stated / scale, UTC)
    except (ValueError, OverflowError, StopIteration):
        return None
    return None


_LATEST = 100_000_000_000
"""Seconds since 1970 (the year 5138): from there on a number of seconds is one of milliseconds, and so forth."""
