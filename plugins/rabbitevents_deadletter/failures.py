"""What an exception says of itself, as texts that a header can hold."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from traceback import FrameSummary, StackSummary, walk_tb
from types import FrameType
from typing import Final, cast

from rabbitevents_deadletter.labels import cut

MESSAGE_LIMIT: Final = 2_048
TRACEBACK_LIMIT: Final = 8_192
"""The longest texts, in bytes of UTF-8. Of a traceback the end is kept, which is where it happened."""

_FRAMES = 12
_CHAIN = 4


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
    text = "\ncaused by\n".join(_section(each) for each in _causes(error))
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > TRACEBACK_LIMIT:
        data = b"..." + data[3 - TRACEBACK_LIMIT :]
    return data.decode("utf-8", "ignore")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, what caused it, what caused that, and so on: a few, each once."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(seen) < _CHAIN and not any(current is each for each in seen):
        yield current
        seen.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _section(error: BaseException) -> str:
    lines: list[str] = []
    for frame in _frames(error):
        lines.append(f'  File "{_short(frame.filename)}", line {frame.lineno}, in {frame.name}')
        if frame.line:
            lines.append(f"    {frame.line}")
    return "\n".join([*lines, _named(error)])


def _named(error: BaseException) -> str:
    """Name an exception; a group with what is in it."""
    name = name_of(error)
    if not isinstance(error, BaseExceptionGroup):
        return name
    inner = [name_of(each) for each in cast("BaseExceptionGroup[BaseException]", error).exceptions]
    return f"{name} of {', '.join(inner[:5])}{', ...' if len(inner) > 5 else ''}"


def _frames(error: BaseException) -> list[FrameSummary]:
    """Return the innermost frames, without the library's at the outside; the last two where there are no others."""
    frames = list(walk_tb(error.__traceback__))
    theirs = next((i for i, (frame, _) in enumerate(frames) if not _is_library(frame)), len(frames) - 2)
    kept = StackSummary.extract(iter(frames[max(theirs, 0) :][-4 * _FRAMES :]))
    folded = [a for a, b in pairwise(kept) if (a.filename, a.lineno) != (b.filename, b.lineno)]  # a recursion's
    return [*folded, *kept[-1:]][-_FRAMES:]


def _is_library(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module.startswith(("rabbitevents.", "rabbitevents_")) and not module.startswith("rabbitevents.demo.")


def _short(filename: str) -> str:
    """Return a file's name below the folder that it was imported from."""
    roots = [root for root in sys.path if root and filename.startswith(root.rstrip(os.sep) + os.sep)]
    return os.path.relpath(filename, max(roots, key=len)) if roots else filename
