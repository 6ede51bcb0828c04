"""Pictures from text: a ``mermaid`` block becomes an SVG in the page, when the site is built.

The words are a few of Mermaid's, so that the same text is a picture where Markdown is shown with Mermaid. Here nothing
is fetched and no browser draws it: `drawing.sequence` and `drawing.flow` do, 360 units wide, which is a telephone's
width; what is wider shows it larger. Its colours are the theme's, and so follow light and dark.

What is not among these words is a warning, with which ``make docs`` fails::

    sequenceDiagram                     flowchart TD
      accTitle: One event's way           accTitle: A service
      participant s as shop               web[FastAPI]
      s->>b: order.placed                 web -->|publishes| events([exchange])
      b-->>s: confirmed                   events -.-> worker[worker]
      Note over s: now it is safe
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.nodes import Element
from drawing import Edge, Message, NodeBox, Note, flow, sequence
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_PARTICIPANT = re.compile(r"participant (\w+) as (.+)")
_MESSAGE = re.compile(r"(\w+)(-?->>)(\w+): (.+)")
_NOTE = re.compile(r"Note over (\w+)(?:,(\w+))?: (.+)")
_END = r"(\w+)(?:\[([^\](][^\]]*)\]|\(\[([^\]]+)\]\)|\[\(([^)]+)\)\])?"
_NODE = re.compile(_END)
_EDGE = re.compile(rf"{_END} (-->|-\.->)(?:\|([^|]+)\|)? {_END}")


class picture(nodes.General, nodes.Element):  # noqa: N801 - docutils names a node's class as its element
    """An SVG that is in the page, and the text that it was made from."""


class Mermaid(SphinxDirective):
    """Draw a block."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the picture; where its text has no such words, what is wrong with it."""
        lines = [line.strip() for line in self.content if line.strip()]
        try:
            svg = draw(lines)
        except ValueError as error:
            raise self.warning(str(error)) from None
        return [picture(svg=svg, text="\n".join(self.content))]


def draw(lines: list[str]) -> str:
    """Return the SVG of a diagram's lines. Raises ValueError, with the line, for what is not understood."""
    kind, *rest = lines
    title = next((line.partition(": ")[2] for line in rest if line.startswith("accTitle: ")), "")
    if not title:
        raise ValueError("a picture needs a line 'accTitle: what it shows', for those who cannot see it")
    rest = [line for line in rest if not line.startswith("accTitle: ")]
    if kind == "sequenceDiagram":
        return _sequence(title, rest)
    if kind == "flowchart TD":
        return _flow(title, rest)
    raise ValueError(f"no picture begins with {kind!r}: sequenceDiagram, or flowchart TD")


def _sequence(title: str, lines: list[str]) -> str:
    names: dict[str, str] = {}
    steps: list[Message | Note] = []
    for line in lines:
        if found := _PARTICIPANT.fullmatch(line):
            names[found[1]] = found[2]
        elif found := _MESSAGE.fullmatch(line):
            steps.append(Message(_known(found[1], names), _known(found[3], names), found[4], found[2] == "-->>"))
        elif found := _NOTE.fullmatch(line):
            steps.append(Note(_known(found[1], names), _known(found[2] or found[1], names), found[3]))
        else:
            raise ValueError(f"not understood: {line!r}")
    return sequence(title, names, steps)


def _known(name: str, names: dict[str, str]) -> str:
    if name not in names:
        raise ValueError(f"there is no participant {name!r}")
    return name


def _flow(title: str, lines: list[str]) -> str:
    boxes: dict[str, NodeBox] = {}
    edges: list[Edge] = []
    for line in lines:
        if found := _EDGE.fullmatch(line):
            _add(boxes, found.groups()[:4])
            _add(boxes, found.groups()[6:])
            edges.append(Edge(found[1], found[7], found[6] or "", found[5] == "-.->"))
        elif found := _NODE.fullmatch(line):
            _add(boxes, found.groups())
        else:
            raise ValueError(f"not understood: {line!r}")
    return flow(title, boxes, edges)


def _add(boxes: dict[str, NodeBox], words: tuple[str | None, ...]) -> None:
    name, plain, rounded, stored = words
    text = plain or rounded or stored
    if name is not None and (text or name not in boxes):
        boxes[name] = NodeBox(text or name, "round" if rounded else "store" if stored else "box")


def visit(translator: Any, node: Element) -> None:
    """Write the SVG."""
    translator.body.append(f'<div class="picture">{node["svg"]}</div>\n')
    raise nodes.SkipNode


def visit_text(translator: Any, node: Element) -> None:
    """Write the text, for what is no web page."""
    translator.add_text(node["text"])
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect it."""
    app.add_node(picture, html=(visit, None), text=(visit_text, None))
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
