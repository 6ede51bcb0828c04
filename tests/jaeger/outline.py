"""Traces of Jaeger's as lines of text, and the lines of such text on the page that shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tests.documents import blocks
from tests.jaeger.server import Span

PAGE: Final = Path(__file__).parent.parent.parent / "docs" / "howto" / "jaeger.md"
TAGS: Final = ("attempt", "delay", "replays", "dead_for")
"""What an outline says of a span, in this order."""


def outline(trace: list[Span]) -> str:
    """Return lines: when a span began (s), how long it took (ms), a ! if it is red, whose it is, and what it was.

    What a span led to stands below it, as on Jaeger's page.
    """
    width = max(len(span.service) for span in trace)
    return "\n".join(
        f"{span.start - trace[0].start:8.3f} {span.duration * 1000:9.1f} {'!' if span.is_red else ' '} "
        f"{span.service:<{width}}  {'  ' * depth}{span.name}{_notes(span)}"
        for span, depth in _below(trace, "", 0)
    )


def _below(trace: list[Span], parent: str, depth: int) -> Iterator[tuple[Span, int]]:
    for span in trace:
        if span.parent == parent:
            yield span, depth
            yield from _below(trace, span.id, depth + 1)


def _notes(span: Span) -> str:
    said = {name: span.tags[f"rabbitevents.{name}"] for name in TAGS if f"rabbitevents.{name}" in span.tags}
    if said.get("attempt") == 1:
        del said["attempt"]
    return f"  ({', '.join(f'{name} {value}' for name, value in said.items())})" if said else ""


# --- the page ------------------------------------------------------------------------------------------------------


def on_the_page(first: str) -> set[str]:
    """Return the lines of the page's outlines in whose first line ``first`` is found, as `without_numbers` does."""
    texts = [block.text for block in blocks(PAGE, "text")]
    return without_numbers(text for text in texts if re.search(first, text.splitlines()[0]))


def without_numbers(texts: Iterable[str]) -> set[str]:
    """Return all lines of the texts without what differs from run to run: numbers, and how far it is indented."""
    lines = (line for text in texts for line in text.splitlines())
    return {" ".join(re.sub(r"\d+(\.\d+)?", "#", line).split()) for line in lines if line.strip()}
