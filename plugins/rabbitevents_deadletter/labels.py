"""The headers on a dead letter, which say why, where and when its event was given up on.

They are laid over the event's own headers, all of one family, and taken off again when it is replayed. The table in
`docs/howto/dead-letters.md` is the contract.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

ERROR: Final = "dead-letter-error"
MESSAGE: Final = "dead-letter-message"
TRACEBACK: Final = "dead-letter-traceback"
FAILED_AT: Final = "dead-letter-failed-at"
ATTEMPTS: Final = "dead-letter-attempts"
HANDLER: Final = "dead-letter-handler"
HOST: Final = "dead-letter-host"

LABELS: Final = (ERROR, MESSAGE, TRACEBACK, FAILED_AT, ATTEMPTS, HANDLER, HOST)
"""All of the family. Those that an event brings along (an earlier dead letter's, or a publisher's) are taken off."""

REPLAY_COUNT: Final = "replay-count"
REPLAYED_AT: Final = "replay-at"
REPLAY_EDITED: Final = "replay-edited"
"""What a replay leaves on an event: how often it was replayed, when last, and whether its body was edited for it."""

ATTEMPT: Final = "attempt"
ORIGIN_EXCHANGE: Final = "origin-exchange"
ORIGIN_ROUTING_KEY: Final = "origin-routing-key"
"""The core's own headers on copies (`docs/wire-contract.md`)."""

DEAD: Final = ".dead"
"""What the core ends the names of dead letter queues with (`Subscription.dead_queue`)."""


def moment(time: datetime) -> str:
    """Return a time as it stands in a header: RFC 3339, UTC, in microseconds: in a trace, a replay must not begin before its event died."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def cut(text: str, limit: int) -> str:
    """Return ``text`` as at most ``limit`` bytes of UTF-8; halves of surrogate pairs are written as escapes."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    return f"{data[: limit - 3].decode('utf-8', 'ignore')}..."
