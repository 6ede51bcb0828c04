"""The headers on a dead letter, which say why, where and when its event was given up on.

They are laid over the event's own headers, all of one family, and taken off again when it is replayed. The table in
`docs/howto/dead-letters.md` is the contract.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from traceback import StackSummary, walk_tb
from typing import Final, cast

from rabbitevents.partitions import undivided
from rabbitevents.texts import name_of, users_frames

ERROR: Final = "dead-letter-error"
MESSAGE: Final = "dead-letter-message"
TRACEBACK: Final = "dead-letter-traceback"
FAILED_AT: Final = "dead-letter-failed-at"
ATTEMPTS: Final = "dead-letter-attempts"
HANDLER: Final = "dead-letter-handler"
HOST: Final = "dead-letter-host"
REASON: Final = "dead-letter-reason"
QUEUE: Final = "dead-letter-queue"
"""The broker's word, and the queue it was for, on what the broker gave up on itself."""

LABELS: Final = (ERROR, MESSAGE, TRACEBACK, FAILED_AT, ATTEMPTS, HANDLER, HOST, REASON, QUEUE)
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

LOST: Final = "delay.lost"
"""The core's queue for copies that came back from their wait when their queue was gone: dead letters like others."""

MESSAGE_LIMIT: Final = 2_048
TRACEBACK_LIMIT: Final = 8_192
"""The longest texts, in bytes of UTF-8. Of a traceback the end is kept, which is where it happened."""

_FRAMES: Final = 12
_CHAIN: Final = 4


def dead_queue_of(queue: str) -> str:
    """Return where the dead letters of a queue are; those in `LOST` are its own. Partitions have one place together."""
    return queue if queue == LOST else undivided(queue) + DEAD


def moment(time: datetime) -> str:
    """Return a time as it stands in a header: RFC 3339, UTC, in microseconds: in a trace, a replay must not begin before its event died."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def traceback_of(error: BaseException) -> str:
    """Return where an exception came from, and what led to it: the innermost frames of the user's, without any text.

    The text may hold personal data, and has a header of its own, which can be left out.
    """
    said: list[str] = []
    known: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in known and len(said) < _CHAIN:
        frames = users_frames(each) or list(walk_tb(each.__traceback__))[-2:]
        stack = StackSummary.extract(iter(frames[-_FRAMES:]))
        for frame in stack:
            frame.filename = _short(frame.filename)
        said.append(f"{''.join(stack.format())}{_named(each)}")
        known.add(id(each))
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    data = "\ncaused by\n".join(said).encode("utf-8", "backslashreplace")
    return (data if len(data) <= TRACEBACK_LIMIT else b"..." + data[3 - TRACEBACK_LIMIT :]).decode("utf-8", "ignore")


def _named(error: BaseException) -> str:
    """Name an exception; a group with what is in it."""
    if not isinstance(error, BaseExceptionGroup):
        return name_of(error)
    group = cast("BaseExceptionGroup[BaseException]", error)
    inner = [name_of(each) for each in group.exceptions]
    return f"{name_of(group)} of {', '.join(inner[:5])}{', ...' if len(inner) > 5 else ''}"


def _short(filename: str) -> str:
    """Return a file's name below the folder that it was imported from."""
    roots = [root for root in sys.path if root and filename.startswith(root.rstrip(os.sep) + os.sep)]
    return os.path.relpath(filename, max(roots, key=len)) if roots else filename
