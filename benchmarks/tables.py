"""A run's figures as tables: rows of text, which the terminal and the page show alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.cases import CASES
from benchmarks.field import BY_NAME, OURS, REFERENCE
from benchmarks.figures import Figures

Show = Callable[[float], str]


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, and rows; ``ours`` are the rows of this library."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ours: frozenset[int] = frozenset()


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


COLUMNS: Mapping[str, tuple[str, Show]] = {
    "rate": ("events/s", _whole),
    "cpu_us": ("CPU us an event", _short),
    "p50_ms": ("p50 ms", _short),
    "p99_ms": ("p99 ms", _short),
    "p999_ms": ("p99.9 ms", _short),
    "seconds": ("seconds", _short),
    "cpu_seconds": ("CPU s", _short),
    "cpu_ms": ("CPU ms", _short),
    "peak_mb": ("peak MB", _whole),
    "idle_mb": ("peak MB with few", _whole),
}
ROLES: Mapping[str, str] = {
    "publish_one": "published",
    "publish_in_flight": "published",
    "publish_batches": "published",
    "consume": "consumed",
    "consume_slow": "consumed",
    "latency": "latency",
}
PUBLISHED = ("publish_one", "publish_in_flight", "publish_batches")


def tables(figures: Figures) -> Iterator[Table]:
    """Yield a table for each case, and role of contenders."""
    titles = {case.name: case.title for case in CASES}
    for case in figures.cases():
        roles = figures.roles(case)
        if roles[0] in ROLES:
            for role in roles:
                yield _of_contenders(figures, case, role, f"{titles[case]}: {ROLES[role]}")
        else:
            yield _of_ours(figures, case, titles[case])


def _shown(figures: Figures, case: str, roles: list[str], who: list[str]) -> list[str]:
    """Return the figures that somebody has. A publisher's memory is that of the orders that it has prepared."""
    without = {"cpu_seconds"} if case != "start" else {"cpu_us"}
    if roles[0] in PUBLISHED:
        without.add("peak_mb")
    if roles[0] in ROLES or case in ("types", "subscriptions"):
        without |= {"seconds"}
    return [
        what
        for what in COLUMNS
        if what not in without and any(figures.spread(case, role, name, what) for role in roles for name in who)
    ]


def _cells(figures: Figures, case: str, role: str, name: str, columns: list[str]) -> Iterator[str]:
    for what in columns:
        found = figures.spread(case, role, name, what)
        yield "" if found is None else found.shown(COLUMNS[what][1])


def _of_contenders(figures: Figures, case: str, role: str, title: str) -> Table:
    who = figures.contenders(case, role)
    first = "p99_ms" if role == "latency" else "rate"
    middle = {name: found.median for name in who if (found := figures.spread(case, role, name, first))}
    who.sort(key=lambda name: middle.get(name, 0), reverse=first == "rate")
    columns = _shown(figures, case, [role], who)
    rows: list[tuple[str, ...]] = []
    for name in who:
        ratio = figures.ratio(first, (case, role, name), (case, role, REFERENCE))
        compared = "" if ratio is None else f"{ratio.median:.2f}" if ratio.median >= 0.1 else f"{ratio.median:.1g}"
        rows.append((BY_NAME[name].title, *_cells(figures, case, role, name, columns), compared))
    heads = ("", *(COLUMNS[what][0] for what in columns), "x FastStream")
    ours = frozenset(number for number, name in enumerate(who) if name.startswith(OURS))
    return Table(title, heads, tuple(rows), ours)


def _of_ours(figures: Figures, case: str, title: str) -> Table:
    roles = figures.roles(case)
    columns = _shown(figures, case, roles, [OURS])
    rows = tuple((role, *_cells(figures, case, role, OURS, columns)) for role in roles)
    return Table(title, ("", *(COLUMNS[what][0] for what in columns)), rows)
