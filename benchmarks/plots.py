"""Draw bars as SVG, in plain text: one picture with its own colours for light and dark, which a telephone can show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.figures import Spread

WIDTH = 480
EDGE = 14
VALUES = 80
"""The room for a value, to the right of the longest bar."""
TOP = 36
ROW = 36
BAR = 12
NAMESPACE = "http://www.w3.org/2000/svg"
"""The name by which browsers know a picture in a file of its own."""

STYLE = """\
.b{fill:#fff}.t{font:600 14px sans-serif;fill:#1c2127}.l{font:13px sans-serif;fill:#1c2127}.o{fill:#2f6feb}\
.x{fill:#a9b3bf}.r{stroke:#1c2127;stroke-width:1.5}
@media(prefers-color-scheme:dark){.b{fill:#131416}.t,.l{fill:#e3e6ea}.o{fill:#6c9cff}.x{fill:#5b6470}.r{stroke:#e3e6ea}}"""


@dataclass(frozen=True)
class Bar:
    """One row: its name, its value over the rounds, and whether it is this library's."""

    name: str
    value: Spread
    ours: bool


def bars(title: str, rows: Sequence[Bar], show: Callable[[float], str]) -> str:
    """Return horizontal bars, in the order of ``rows``; a thin line goes from the least to the greatest round."""
    scale = (WIDTH - 2 * EDGE - VALUES) / max(bar.value.most for bar in rows)
    height = TOP + ROW * len(rows) + 8
    drawn = "\n".join(_row(bar, TOP + ROW * number, scale, show) for number, bar in enumerate(rows))
    return (
        f'<svg xmlns="{NAMESPACE}" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="b" width="{WIDTH}" height="{height}" rx="6"/>\n'
        f'<text class="t" x="{EDGE}" y="24">{escape(title)}</text>\n{drawn}\n</svg>\n'
    )


def _row(bar: Bar, y: int, scale: float, show: Callable[[float], str]) -> str:
    """Return a row: the name, below it the bar, beside that the value."""
    left, middle, right = (EDGE + value * scale for value in (bar.value.least, bar.value.median, bar.value.most))
    top = y + 18
    kind = "o" if bar.ours else "x"
    parts = [
        f'<text class="l" x="{EDGE}" y="{y + 13}">{escape(bar.name)}</text>',
        f'<rect class="{kind}" x="{EDGE}" y="{top}" width="{max(1.0, middle - EDGE):.1f}" height="{BAR}"/>',
    ]
    if left < right:
        half = top + BAR / 2
        parts.append(f'<line class="r" x1="{left:.1f}" x2="{right:.1f}" y1="{half}" y2="{half}"/>')
    parts.append(f'<text class="l" x="{right + 6:.1f}" y="{top + BAR - 1}">{escape(show(bar.value.median))}</text>')
    return "".join(parts)
