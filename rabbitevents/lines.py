"""What our log records say: one line each, and of an exception the user's frames first.

A type, an id, a header, an exception's text is whatever somebody sent. A filter on the loggers has the word before any
formatter: it escapes what records are told, and writes ``record.exc_text``, which the standard library's formatters take
as it is. The exception itself stays untouched, in ``record.exc_info``, for whoever wants all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from traceback import TracebackException, walk_tb
from typing import Any, Final, cast

from rabbitevents.texts import printable, text_of, users_frames

STRUCTURE: Final = frozenset(
    {
        "",
        "Traceback (most recent call last):",
        "Stack (most recent call last):",
        "The above exception was the direct cause of the following exception:",
        "During handling of the above exception, another exception occurred:",
    }
)
"""The lines of a traceback that begin at the left, besides those that name an exception."""


class LineFilter(logging.Filter):
    """Keeps a logger's records on a line each, whatever text they are told; lets every record pass.

    In the texts and errors that a message is made of, ends of lines and control signs are escaped. Of a traceback, the
    frames that led from an event to its handler are left out, unless the logger is enabled for DEBUG, and no line of the
    exception's text stands at the left. For a plugin's logger: ``log.addFilter(LineFilter())``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Make the record plain; let it pass."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_plain, record.args))
        elif isinstance(record.args, Mapping):
            record.args = {name: _plain(value) for name, value in record.args.items()}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record.exc_text = traceback_text(error, whole=logging.getLogger(record.name).isEnabledFor(logging.DEBUG))
        return True


def _plain(said: object) -> object:
    said = text_of(said) if isinstance(said, BaseException) else said
    return printable(said) if isinstance(said, str) else said


def traceback_text(error: BaseException, *, whole: bool = False) -> str:
    """Return the traceback of ``error``, and of those that led to it; ``whole`` with the library's frames before it."""
    told = TracebackException(type(error), error, error.__traceback__, compact=True)
    _tidy(told, error, whole=whole)
    return "\n".join(line for part in told.format() for line in _lines(part))


def _tidy(told: TracebackException, error: BaseException, *, whole: bool) -> None:
    """Leave out of what is told what is not to be seen, there and in what led to it."""
    _indent_notes(told)
    if not whole:
        del told.stack[: _before_the_user(error, len(told.stack))]
    if told.__cause__ is not None and error.__cause__ is not None:
        _tidy(told.__cause__, error.__cause__, whole=whole)
    if told.__context__ is not None and error.__context__ is not None:
        _tidy(told.__context__, error.__context__, whole=whole)
    if told.exceptions and isinstance(error, BaseExceptionGroup):
        members = cast("BaseExceptionGroup[BaseException]", error).exceptions
        for inner, member in zip(told.exceptions, members, strict=True):
            _tidy(inner, member, whole=whole)


def _before_the_user(error: BaseException, told: int) -> int:
    """Count the frames before the first one of the user's; 0 where there is none: then ours are what matters."""
    theirs = len(users_frames(error))
    is_whole = told == sum(1 for _ in walk_tb(error.__traceback__))  # with sys.tracebacklimit it is not
    return told - theirs if theirs and is_whole else 0


def _indent_notes(told: TracebackException) -> None:
    """Indent an exception's notes, which Python writes at the left."""
    notes: Any = told.__notes__
    if isinstance(notes, (list, tuple)):
        texts = [note if isinstance(note, str) else type(note).__name__ for note in cast("list[object]", notes)]
        told.__notes__ = [f"    {line}" for text in texts for line in text.split("\n")]
    elif notes is not None:
        told.__notes__ = [f"    {type(notes).__name__}"]


def _lines(part: str) -> Iterator[str]:
    """Yield the lines of one part of a traceback; after its first one, none stands at the left but Python's own."""
    text = part.removesuffix("\n")
    if part.strip("\n") in STRUCTURE:
        yield from text.split("\n")
        return
    first, *rest = text.split("\n")
    yield printable(first)
    for line in rest:
        yield printable(line if line.startswith(" ") else f"    {line}")


AREAS: Final = ("broker", "bus", "cli", "codec", "consumer", "publish", "sync")
"""The library's loggers, below ``rabbitevents``; plugins look after their own."""

for _area in AREAS:
    logging.getLogger(f"rabbitevents.{_area}").addFilter(LineFilter())
