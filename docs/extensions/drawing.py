"""Draw a diagram as SVG: who says what to whom, one below the other; or boxes in rows, with arrows between them.

Lengths are in units of which a picture is 360 wide. Text is 12 units high, its width is estimated, and a line is broken
where it would be wider than its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360.0
LINE = 15.0
"""From one line of text to the next."""
BOLD = 1.1
"""How much wider bold text is."""

_NARROW = set("iljtfr.,:;'|!()[] -")
_WIDE = set("mwMW@")


@dataclass(frozen=True, slots=True)
class Message:
    """An arrow from one to another; a dashed one is an answer."""

    source: str
    target: str
    text: str
    dashed: bool


@dataclass(frozen=True, slots=True)
class Note:
    """What is the case at one, or from one to another."""

    first: str
    last: str
    text: str


@dataclass(frozen=True, slots=True)
class NodeBox:
    """A box of a flow: ``box``, ``round``, or ``store`` for what keeps things."""

    text: str
    shape: str


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow of a flow; a dashed one leads back, or is seldom taken."""

    source: str
    target: str
    text: str
    dashed: bool


def wide(text: str) -> float:
    """Return about how wide a text is."""
    return sum(3.8 if letter in _NARROW else 10.2 if letter in _WIDE else 7.4 for letter in text)


def broken(text: str, room: float) -> list[str]:
    """Return a text as lines of which none is wider than ``room``, if its words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and wide(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _text(x: float, y: float, lines: Sequence[str], kind: str = "") -> str:
    """Return centred lines, the first of which stands on ``y``."""
    kind = f' class="{kind}"' if kind else ""
    return "".join(
        f'<text x="{x:.1f}" y="{y + number * LINE:.1f}"{kind}>{escape(line)}</text>'
        for number, line in enumerate(lines)
    )


def _box(x: float, y: float, width: float, height: float, kind: str, round_by: float = 4) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{round_by:g}" class="{kind}"/>'


def _line(points: Iterable[tuple[float, float]], kind: str) -> str:
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="{kind}"/>'


def _head(x: float, y: float, dx: float, dy: float) -> str:
    """Return an arrow's head at a point, coming from the direction (dx, dy), of which one is 0 and the other 1 or -1."""
    back = (x - 7 * dx, y - 7 * dy)
    points = [(x, y), (back[0] + 3.5 * dy, back[1] + 3.5 * dx), (back[0] - 3.5 * dy, back[1] - 3.5 * dx)]
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


# --- who says what to whom ---


def sequence(title: str, names: Mapping[str, str], steps: Iterable[Message | Note]) -> str:
    """Return a picture of lines of life, one for each name, and of what passes between them, in time."""
    gap = WIDTH / len(names)
    places = {name: (number + 0.5) * gap for number, name in enumerate(names)}
    heads = {name: broken(text, (gap - 14) / BOLD) for name, text in names.items()}
    top = max(map(len, heads.values())) * LINE + 12
    parts: list[str] = []
    y = top + 8
    for step in steps:
        drawn, y = _message(step, places, y) if isinstance(step, Message) else _note(step, places, gap, y)
        parts.append(drawn)
    lives = [_line([(x, top), (x, y + 4)], "life") for x in places.values()]
    boxes = [
        _box(places[name] - gap / 2 + 4, 1, gap - 8, top - 1, "box") + _text(places[name], 19, lines, "name")
        for name, lines in heads.items()
    ]
    return _svg(title, y + 5, [*lives, *boxes, *parts])


def _message(step: Message, places: Mapping[str, float], y: float) -> tuple[str, float]:
    source, target = places[step.source], places[step.target]
    way = 1.0 if target > source else -1.0
    lines = broken(step.text, abs(target - source) - 10)
    below = y + len(lines) * LINE + 5
    drawn = _text((source + target) / 2, y + 12, lines, "said")
    drawn += _line([(source, below), (target - 2 * way, below)], "arrow dashed" if step.dashed else "arrow")
    return drawn + _head(target, below, way, 0), below + 7


def _note(step: Note, places: Mapping[str, float], gap: float, y: float) -> tuple[str, float]:
    left, right = places[step.first] - gap / 2 + 4, places[step.last] + gap / 2 - 4
    lines = broken(step.text, right - left - 8)
    height = len(lines) * LINE + 8
    drawn = _box(left, y + 4, right - left, height, "note") + _text((left + right) / 2, y + 19, lines)
    return drawn, y + height + 8


# --- boxes in rows ---


def flow(title: str, boxes: Mapping[str, NodeBox], edges: Sequence[Edge]) -> str:
    """Return a picture of boxes, each below all that lead to it by a line that is not dashed."""
    rows = _rows(boxes, edges)
    count = max(map(len, rows))
    room = WIDTH / count - 14
    between = _between(rows, edges, room)
    places: dict[str, tuple[float, float, float, float]] = {}
    y = 2.0
    for number, row in enumerate(rows):
        height = max(len(broken(boxes[name].text, room - 12)) for name in row) * LINE + 12
        for column, name in enumerate(row):
            width = max(60.0, *(wide(line) + 18 for line in broken(boxes[name].text, room - 12)))
            places[name] = ((column + 0.5) * WIDTH / len(row), y, min(width, WIDTH - 4), height)
        y += height + between[number]
    drawn = [_arrow(edge, places) for edge in edges]
    return _svg(title, y - between[-1] + 3, [*drawn, *(_node(boxes[name], at) for name, at in places.items())])


def _rows(boxes: Mapping[str, NodeBox], edges: Sequence[Edge]) -> list[list[str]]:
    rank = dict.fromkeys(boxes, 0)
    for _ in boxes:  # as often as the longest way can be long
        for edge in edges:
            if not edge.dashed:
                rank[edge.target] = max(rank[edge.target], rank[edge.source] + 1)
    if max(rank.values()) >= len(boxes):
        raise ValueError("these arrows lead round in a circle: make the one that leads back a dashed one, -.->")
    return [[name for name in boxes if rank[name] == number] for number in range(max(rank.values()) + 1)]


def _between(rows: Sequence[Sequence[str]], edges: Sequence[Edge], room: float) -> list[float]:
    """Return how much room is below each row: as much as the words on its arrows need."""
    found: list[float] = []
    for row in rows:
        lines = [len(broken(edge.text, room)) for edge in edges if edge.source in row and edge.text]
        found.append(24 + LINE * max(lines, default=0))
    return found


def _arrow(edge: Edge, places: Mapping[str, tuple[float, float, float, float]]) -> str:
    x, y, _, height = places[edge.source]
    to_x, to_y, to_width, _ = places[edge.target]
    kind = "arrow dashed" if edge.dashed else "arrow"
    if to_y > y:
        start, middle = y + height, to_y - 13
        lines = broken(edge.text, 110)
        at = (start + middle - LINE * (len(lines) - 1)) / 2 + 4
        words = _text(to_x if x != to_x else x, at, lines, "said") if edge.text else ""
        return _line([(x, start), (to_x, middle), (to_x, to_y - 2)], kind) + _head(to_x, to_y, 0, 1) + words
    side = WIDTH - 6  # upwards: round the right side
    edge_of = to_x + to_width / 2
    points = [(x + places[edge.source][2] / 2, y + height / 2), (side, y + height / 2), (side, to_y + 12)]
    words = _text((edge_of + side) / 2, to_y + 7, [edge.text], "said") if edge.text else ""
    return _line([*points, (edge_of + 2, to_y + 12)], kind) + _head(edge_of, to_y + 12, -1, 0) + words


def _node(box: NodeBox, at: tuple[float, float, float, float]) -> str:
    x, y, width, height = at
    lines = broken(box.text, width - 12)
    drawn = _box(x - width / 2, y, width, height, box.shape, height / 2 if box.shape == "round" else 4)
    return drawn + _text(x, y + (height - len(lines) * LINE) / 2 + 12, lines)
