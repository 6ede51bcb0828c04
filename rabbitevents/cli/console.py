"""What commands write on, and how: one line for one thing, whole, and without a password."""

from __future__ import annotations

import os
import re
import select
import sys
import traceback
from typing import Final

from rich.console import Console

DEBUG: Final = "rabbitevents.debug"
"""Where `click.Context.meta` has whether tracebacks are asked for."""

_PASSWORD: Final = re.compile(r"(://(?!user:password@host)[^\s:/@]*:)\S*@")
"""What stands between a URL's user and its host, in any text. Rather too much is hidden than too little: a password may
have any sign in it, so everything counts up to the last ``@`` before a space. What to write, with
``user:password@host``, is shown."""

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


def redacted(text: str) -> str:
    """Return ``text`` with three dots for each password in a URL."""
    return _PASSWORD.sub(r"\1...@", text) if "://" in text else text


def one_line(text: object, limit: int = 1000) -> str:
    """Return ``text`` as a single line without passwords, cut after ``limit`` characters."""
    line = " ".join(redacted(str(text)).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def story(error: BaseException) -> str:
    """Return the whole traceback, without passwords: the lines of source that it quotes may have some."""
    return redacted("".join(traceback.format_exception(error)))


def reader_is_gone() -> bool:
    """Say whether nobody reads our stdout any more, as after ``| head``. A broken pipe may also be some connection's."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # stdout is no file: in a test, or closed
        return False
    return bool(watch.poll(0))
