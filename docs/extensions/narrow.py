"""What is wider than a telephone: lines that may be wrapped, and tables that are better read as cards.

Lines of a log, of JSON, and long commands say the same when they are wrapped, so they are, and nobody has to scroll for
their end. Where columns matter (a tree, a listing, a comment beside a command), the block scrolls by itself instead.

A table of four columns or more leaves each of them a word's width on a telephone. Its cells know their column's name,
and custom.css puts them below each other there.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.writers.html5 import HTML5Translator

WRAPPED = ("text", "console", "sh", "json")
"""Languages whose lines may be wrapped: there are none among them that are indented for a reason."""

_COLUMNS = re.compile(r"\S {2,}\S|[─-╿▏█]")
"""Two spaces within a line, or a line that is drawn."""

STACKED = 4
"""From this many columns on, a table is cards on a telephone."""


class Narrow(SphinxPostTransform):
    """Mark what may be wrapped and stacked."""

    default_priority = 500

    def run(self, **kwargs: Any) -> None:
        """Mark the blocks and tables of one document."""
        for block in self.document.findall(nodes.literal_block):
            if block.get("language") in WRAPPED and not _COLUMNS.search(block.astext()):
                block["classes"].append("wrapped")
        for table in self.document.findall(nodes.table):
            _stack(table)


def _stack(table: nodes.table) -> None:
    names = [entry.astext() for head in table.findall(nodes.thead) for entry in head.findall(nodes.entry)]
    if len(names) < STACKED:
        return
    table["classes"].append("stacked")
    for row in (row for body in table.findall(nodes.tbody) for row in body.findall(nodes.row)):
        for name, entry in zip(names, row.findall(nodes.entry), strict=False):
            entry["column"] = name if entry.astext() else ""


def visit_entry(translator: HTML5Translator, entry: nodes.entry) -> None:
    """Write a cell as Sphinx does, with its column's name where it has one."""
    HTML5Translator.visit_entry(translator, entry)
    if entry.get("column"):
        name = translator.attval(entry["column"])
        translator.body[-1] = translator.body[-1].replace("<td", f'<td data-column="{name}"', 1)


def depart_entry(translator: HTML5Translator, entry: nodes.entry) -> None:
    """End a cell as Sphinx does."""
    HTML5Translator.depart_entry(translator, entry)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect it."""
    app.add_post_transform(Narrow)
    app.add_node(nodes.entry, override=True, html=(visit_entry, depart_entry))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
