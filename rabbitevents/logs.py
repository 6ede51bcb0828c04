"""What logging knows of the event that is being handled, and how a service's log is written.

Every area of the library has a logger of its own below ``rabbitevents``, and its records about an event carry
``event_id``, ``event_type``, ``subscription``, ``attempt`` and ``correlation_id``. A handler's own records carry them
too, once an `EventContextFilter` stands on the logging handler, or `add_event_context` among structlog's processors::

    handler.addFilter(EventContextFilter())
    structlog.configure(processors=[add_event_context, ...])

Neither bodies nor the values of headers are ever among them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Generator, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_UN, lockf
from typing import Any, Final, Literal, TextIO, TypeAlias

from rabbitevents.consuming.current import CURRENT
from rabbitevents.errors import ConfigurationError
from rabbitevents.fields import Fields, event_fields
from rabbitevents.lines import STRUCTURE
from rabbitevents.texts import printable

Form: TypeAlias = Literal["text", "json"]
"""How a log is written: a line for people, or a JSON object a line for programs."""

NAMES: Final = ("event_id", "event_type", "subscription", "attempt", "correlation_id")
"""The fields, in the order in which they are written."""

_ORDINARY: Final = frozenset(
    (*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName", *NAMES)
)
"""What every record has, or gets from us; the rest is what somebody gave in ``extra``."""


def event_context() -> Fields:
    """Return the fields of the event that is being handled here, also in a handler's thread; elsewhere nothing."""
    handling = CURRENT.get()
    if handling is None or handling.ended:
        return {}
    return {**event_fields(handling.delivery), "correlation_id": handling.correlation_id}


class EventContextFilter(logging.Filter):
    """Gives each record that passes the fields of the event that is being handled.

    A record that names an event already keeps it. On a logging handler it sees the records of every logger; on a logger
    only those that are logged to that very one.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; let every record pass."""
        if not hasattr(record, "event_id"):
            for name, value in event_context().items():
                if not hasattr(record, name):
                    setattr(record, name, value)
        return True


def add_event_context(logger: Any, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Give a structlog entry the fields of the event that is being handled (a structlog processor)."""
    if "event_id" not in event_dict:
        for name, value in event_context().items():
            event_dict.setdefault(name, value)
    return event_dict


class TextFormatter(logging.Formatter):
    """Writes a record as text: when, how bad, what, and in brackets which event.

    ``worker`` is the process's number among several. Passwords in URLs are taken out, and what a terminal or a reader
    of lines could take for something else is escaped, in the message and in what is below it: a type, a queue's name or
    an exception's text is anybody's. Below, only Python's own words and the exceptions' names begin a line.
    """

    def __init__(self, worker: int = 0) -> None:
        super().__init__()
        self._who = f"worker {worker}: " if worker else ""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line, and the traceback below it."""
        fields = " ".join(f"{name}={value}" for name, value in _fields_of(record).items())
        line = f"{self.formatTime(record)} {record.levelname} {self._who}{record.getMessage()}"
        lines = [printable(f"{line} [{fields}]" if fields else line)]
        if record.exc_info:
            text = record.exc_text or self.formatException(record.exc_info)
            lines += _below(text, record.exc_info[1])
        if record.stack_info:
            lines += _below(self.formatStack(record.stack_info), None)
        return without_passwords("\n".join(lines))


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object a line.

    Its keys are ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, the event's fields, ``worker``,
    ``exception`` and ``stack``, each where there is one, and whatever else was given in ``extra``. Passwords in URLs are
    taken out. A value that JSON does not know is written as its text.
    """

    def __init__(self, worker: int = 0) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Write the object; pure ASCII, whatever is in it."""
        written: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_passwords(record.getMessage()),
            **_fields_of(record),
        }
        if self._worker:
            written["worker"] = self._worker
        if record.exc_info:
            written["exception"] = without_passwords(record.exc_text or self.formatException(record.exc_info))
        if record.stack_info:
            written["stack"] = record.stack_info
        for name, value in vars(record).items():
            if name not in _ORDINARY:
                written.setdefault(name, without_passwords(value) if isinstance(value, str) else value)
        return json.dumps(written, default=str, skipkeys=True)


class _SharedHandler(logging.StreamHandler[TextIO]):
    """Writes to a file that other processes write to as well, one record at a time, however long.

    A pipe takes 4,096 bytes at once; a record with a traceback has more. The lock ends with the process, whatever ends it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        with _locked(self.stream):
            super().emit(record)


@contextmanager
def _locked(stream: TextIO) -> Generator[None]:
    try:
        file = stream.fileno()
        lockf(file, LOCK_EX)
    except (OSError, ValueError):  # no file, as in a test, or closed: nobody shares it
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            lockf(file, LOCK_UN)


def log_handler(form: Form = "text", *, worker: int = 0) -> logging.StreamHandler[TextIO]:
    """Return a handler that writes to stderr in ``form``, with the fields of the event that is being handled.

    Raises `ConfigurationError` for another form than "text" and "json".
    """
    if form not in ("text", "json"):
        raise ConfigurationError(
            f'a log has no form {form!r}: say "text", a line for people, or "json", one for programs'
        )
    handler = _SharedHandler(sys.stderr) if worker else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if form == "json" else TextFormatter(worker))
    handler.addFilter(EventContextFilter())
    return handler


def configure(form: Form | None = None, level: int = logging.INFO, *, worker: int = 0) -> None:
    """Have everything that is logged written to stderr: for applications, such as ``rabbitevents run``.

    Where the root logger has handlers already, their word stands, unless a ``form`` is asked for by name.
    """
    logging.basicConfig(level=level, handlers=[log_handler(form or "text", worker=worker)], force=form is not None)


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    known = vars(record)
    return {name: known[name] for name in NAMES if name in known}


def _below(text: str, error: BaseException | None) -> list[str]:
    """Return a traceback's lines, so that none of an exception's text or notes can pass for a record's line."""
    names = frozenset(_names_of(error, set()))
    lines = map(printable, text.split("\n"))
    return [
        line if line[:1] == " " or line in STRUCTURE or line.partition(":")[0] in names else f"    {line}"
        for line in lines
    ]


def _names_of(error: BaseException | None, seen: set[int]) -> Iterator[str]:
    """Yield how a traceback names an exception and those that led to it."""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kind = type(error)
        hidden = kind.__module__ in ("builtins", "__main__")
        yield kind.__qualname__ if hidden else f"{kind.__module__}.{kind.__qualname__}"
        yield from _names_of(error.__context__, seen)
        error = error.__cause__


def without_passwords(text: str) -> str:
    """Return ``text`` with three dots for each password in a URL.

    A password may have any sign in it, so everything counts up to the last ``@`` before a space. What to write, with
    ``user:password@host``, is shown. It takes as long as the text is (a regular expression took the square: 7 s).
    """
    return re.sub(r"\S+", _without_password, text) if "://" in text else text


def _without_password(found: re.Match[str]) -> str:
    word = found[0]
    last = word.rfind("@")
    begin = word.find("://")
    while 0 <= begin < last:
        sign = _AFTER_USER.search(word, begin + 3, last + 1)
        if sign is not None and sign[0] == ":" and not word.startswith(_SHOWN, begin + 3):
            return f"{word[: sign.end()]}...{word[last:]}"
        begin = word.find("://", begin + 3)
    return word


_AFTER_USER: Final = re.compile("[:/@]")
_SHOWN: Final = "user:password@host"
