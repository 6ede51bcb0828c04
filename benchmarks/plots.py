"""Draw bars as SVG, in plain text: one function, whose picture has its own colours for light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.figures import Spread

WIDTH = 720
LABELS = 230
"""How wide the names' column is."""
VALUES = 90
"""How wide the column of the values is."""
ROW = 26
TOP = 40

STYLE = """\
.b{fill:#fff}.t{font:600 14px sans-serif;fill:#1c2127}.l{font:13px sans-serif;fill:#1c2127}.o{fill:#2f6feb}\
.x{fill:#a9b3bf}.r{stroke:#1c2127;stroke-width:1.5}\
@media(prefers-color-scheme:dark){.b{fill:#131416}.t,.l{fill:#e3e6ea}.o{fill:#6c9cff}.x{fill:#5b6470}.r{stroke:#e3e6ea}}"""


@dataclass(frozen=True)
class Bar:
    """One row: its name, its value over the rounds, and whether it is this library's."""

    name: str
    value: Spread
    ours: bool


def bars(title: str, rows: Sequence[Bar], show: Callable[[float], str]) -> str:
    """Return horizontal bars, in the order of ``rows``; a thin line goes from the least to the greatest round."""
    longest = max(bar.value.most for bar in rows)
    scale = (WIDTH - LABELS - VALUES) / longest
    height = TOP + ROW * len(rows) + 10
    drawn = "\n".join(_row(bar, TOP + ROW * number, scale, show) for number, bar in enumerate(rows))
    return (
        f'<svg xmlns="{NAMESPACE}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="b" width="{WIDTH}" height="{height}" rx="6"/>\n'
        f'<text class="t" x="14" y="25">{escape(title)}</text>\n{drawn}\n</svg>\n'
    )


NAMESPACE = "http://www.w3.org/2000/svg"
"""The name by which browsers know a picture in a file of its own."""


def _row(bar: Bar, y: int, scale: float, show: Callable[[float], str]) -> str:
    middle = y + ROW / 2
    end = LABELS + bar.value.median * scale
    parts = [
        f'<text class="l" x="{LABELS - 10}" y="{middle + 4:.0f}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect class="{"o" if bar.ours else "x"}" x="{LABELS}" y="{y + 4}" width="{max(1.0, end - LABELS):.1f}" height="18"/>',
    ]
    if bar.value.least < bar.value.most:
        left, right = (LABELS + value * scale for value in (bar.value.least, bar.value.most))
        parts.append(f'<line class="r" x1="{left:.1f}" x2="{right:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>')
    beside = max(end, LABELS + bar.value.most * scale) + 8
    parts.append(f'<text class="l" x="{beside:.1f}" y="{middle + 4:.0f}">{escape(show(bar.value.median))}</text>')
    return "".join(parts)
