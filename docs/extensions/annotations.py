"""What autodoc cannot know of annotations by itself."""

from __future__ import annotations

import builtins
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from rabbitevents import Plugin, routing


def leave_builtins(app: Sphinx, document: nodes.document) -> None:
    """Make ``type`` in a signature Python's own, and not a link to an attribute of that name."""
    for reference in list(document.findall(addnodes.pending_xref)):
        if reference.get("refdomain") == "py" and hasattr(builtins, reference["reftarget"]):
            reference.replace_self(nodes.Text(_shown(reference)))


def _shown(reference: nodes.Element) -> str:
    for each in reference.findall(addnodes.pending_xref_condition):
        if each.get("condition") == "resolved":
            return each.astext()
    return reference.astext()


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect it."""
    routing.__dict__["Plugin"] = Plugin  # imported there for type checkers alone
    app.connect("doctree-read", leave_builtins)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
