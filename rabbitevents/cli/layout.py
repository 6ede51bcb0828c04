"""Labels and texts in two columns, within the width that there is; where there is little, one below the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Final

from rich.console import Console
from rich.text import Text

INDENT: Final = "  "
GAP: Final = 2
WIDEST: Final = 100
"""Columns beyond which lines are not read any more."""

LEAST: Final = 24
"""Columns that a text needs beside its label; below, it stands on lines of its own."""


def width_of(console: Console) -> int:
    """Return how wide lines may be: as wide as the terminal. What no terminal reads, a program does: nothing is wrapped."""
    return console.width if not console.is_terminal else min(console.width, WIDEST)


def rows(pairs: Iterable[tuple[str, str]], width: int, *, indent: str = INDENT) -> Iterator[Text]:
    """Yield lines: labels, dim, and beside them their texts. A label that repeats is said once."""
    pairs = list(pairs)
    left = max((len(label) for label, _ in pairs), default=0) + GAP
    narrow = width - len(indent) - left < LEAST
    before = ""
    for label, text in pairs:
        head = "" if label == before else label
        before = label
        if narrow:
            yield from [Text(indent + head, style="dim")] if head else []
            yield from (Text(indent * 2 + line) for line in _wrapped(text, width - 2 * len(indent)))
            continue
        for line in _wrapped(text, width - len(indent) - left):
            yield Text.assemble(indent, (f"{head:<{left}}", "dim"), line)
            head = ""


def hanging(first: Text, text: str, width: int, *, indent: int) -> Iterator[Text]:
    """Yield ``text`` behind ``first``, wrapped, with what follows indented."""
    lines = _wrapped(text, width - max(indent, first.cell_len)) if indent < width - LEAST else _wrapped(text, width)
    yield Text.assemble(first, lines[0])
    for line in lines[1:]:
        yield Text(" " * indent + line)


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(text, max(width, 10), break_on_hyphens=False) or [""]
