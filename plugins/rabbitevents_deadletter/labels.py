"""The headers on a dead letter, which say why, where and when its event was given up on, and the texts in them.

They are laid over the event's own headers, all of one family, and taken off again when it is replayed. The table in
`docs/howto/dead-letters.md` is the contract.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from traceback import FrameSummary, StackSummary, walk_tb
from types import FrameType
from typing import Final, cast

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
    """Return where the dead letters of a queue are; those in `LOST` are its own."""
    return queue if queue == LOST else queue + DEAD


def moment(time: datetime) -> str:
    """Return a time as it stands in a header: RFC 3339, UTC, in microseconds: in a trace, a replay must not begin before its event died."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def cut(text: str, limit: int) -> str:
    """Return ``text`` as at most ``limit`` bytes of UTF-8; halves of surrogate pairs are written as escapes."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    return f"{data[: limit - 3].decode('utf-8', 'ignore')}..."


# --- what an exception says of itself --------------------------------------------------------------------------------


def name_of(error: BaseException) -> str:
    """Name an exception's class, with its module unless it is Python's own."""
    kind = type(error)
    return cut(kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}", 255)


def text_of(error: BaseException) -> str:
    """Return what an exception says, shortened. Raises nothing, whatever its ``__str__`` does."""
    try:
        return cut(str(error), MESSAGE_LIMIT)
    except Exception as failure:
        # An exception that cannot say its text must not keep its event from being dead-lettered.
        return f"({type(failure).__name__} in its __str__)"


def traceback_of(error: BaseException) -> str:
    """Return where an exception came from: the innermost frames, without the library's own, and without its text.

    The text may hold personal data, and has a header of its own, which can be left out.
    """
    text = "\ncaused by\n".join(f"{''.join(_stack(each).format())}{_named(each)}" for each in _causes(error))
    data = text.encode("utf-8", "backslashreplace")
    return (data if len(data) <= TRACEBACK_LIMIT else b"..." + data[3 - TRACEBACK_LIMIT :]).decode("utf-8", "ignore")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, what caused it, what caused that, and so on: a few, each once."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(seen) < _CHAIN and not any(current is each for each in seen):
        yield current
        seen.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _named(error: BaseException) -> str:
    """Name an exception; a group with what is in it."""
    name = name_of(error)
    if not isinstance(error, BaseExceptionGroup):
        return name
    inner = [name_of(each) for each in cast("BaseExceptionGroup[BaseException]", error).exceptions]
    return f"{name} of {', '.join(inner[:5])}{', ...' if len(inner) > 5 else ''}"


def _stack(error: BaseException) -> StackSummary:
    """Return the innermost frames, without the library's at the outside; the last two where there are no others."""
    frames = list(walk_tb(error.__traceback__))
    theirs = next((i for i, (frame, _) in enumerate(frames) if not _is_library(frame)), len(frames) - 2)
    kept = StackSummary.extract(iter(frames[max(theirs, 0) :][-_FRAMES:]))
    return StackSummary.from_list(FrameSummary(_short(f.filename), f.lineno, f.name, line=f.line) for f in kept)


def _is_library(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module.startswith(("rabbitevents.", "rabbitevents_")) and not module.startswith("rabbitevents.demo.")


def _short(filename: str) -> str:
    """Return a file's name below the folder that it was imported from."""
    roots = [root for root in sys.path if root and filename.startswith(root.rstrip(os.sep) + os.sep)]
    return os.path.relpath(filename, max(roots, key=len)) if roots else filename
