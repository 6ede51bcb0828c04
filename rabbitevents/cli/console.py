"""What commands write on, and how: one line for one thing, whole, and without a password."""

from __future__ import annotations

import os
import select
import sys
from typing import Final

from rich.console import Console

from rabbitevents.lines import traceback_text
from rabbitevents.logs import without_passwords

DEBUG: Final = "rabbitevents.debug"
"""Where `click.Context.meta` has whether tracebacks are asked for."""

_UNCUT: Final = 2000
"""Columns of an output that is no terminal: what a program reads is not wrapped."""


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _UNCUT
    return Console(stderr=stderr, width=width, soft_wrap=True, markup=False, highlight=False, emoji=False)


out: Final[Console] = _console(stderr=False)
"""For results, on stdout. Markup is off, since brackets are text here; style with `rich.text.Text`, or ``markup=True``."""

say: Final[Console] = _console(stderr=True)
"""For everything else, on stderr: errors, progress, questions."""


def one_line(text: object, limit: int = 1000) -> str:
    """Return ``text`` as a single line without passwords, cut after ``limit`` characters."""
    words = " ".join(without_passwords(str(text)).split())
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)  # a terminal obeys the others
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def story(error: BaseException) -> str:
    """Return the whole traceback, without passwords (the source that it quotes may have some) and signs to a terminal."""
    return f"{without_passwords(traceback_text(error, whole=True))}\n"


def reader_is_gone() -> bool:
    """Say whether nobody reads our stdout any more, as after ``| head``. A broken pipe may also be some connection's."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # stdout is no file: in a test, or closed
        return False
    return bool(watch.poll(0))
