"""Write `docs/performance.md` and its pictures from a run: all of it comes from the run's JSON, nothing is typed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.field import BY_NAME, CONTENDERS, OURS
from benchmarks.figures import Figures
from benchmarks.plots import Bar, bars
from benchmarks.tables import Table, tables


@dataclass(frozen=True)
class Plot:
    """A picture: one figure of one role of a case."""

    file: str
    title: str
    case: str
    role: str
    what: str
    show: Callable[[float], str]
    most_first: bool = True


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _us(value: float) -> str:
    return f"{value:.1f} us"


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


PLOTS: Sequence[Plot] = (
    Plot("consume", "Consumed: events a second, each acknowledged", "flow", "consume", "rate", _whole),
    Plot(
        "publish", "Published, 500 in flight, confirmed: events a second", "flow", "publish_in_flight", "rate", _whole
    ),
    Plot("cpu", "Consumed: the client's CPU time for an event", "flow", "consume", "cpu_us", _us, most_first=False),
    Plot("one", "Published one at a time, confirmed: events a second", "publish", "publish_one", "rate", _whole),
    Plot(
        "p99",
        "1,000 events a second: 99 of 100 arrive within",
        "latency-1000",
        "latency",
        "p99_ms",
        _ms,
        most_first=False,
    ),
    Plot("chain", "Consumed with plugins: events a second", "chain", "consume", "rate", _whole),
)

HEAD = """\
<!-- Written by `make bench ARGS=--page` from the last run. Do not edit. -->
# How fast, beside whom

What this library does beside others for RabbitMQ, in Python, Go, Java and JavaScript, and beside a C program as the limit: \
the same events, queue, prefetch, durability, confirms and acknowledgements, in one run, in turns. \
[The benchmarks](benchmarks.md) say what is measured, and how.

{when}: {broker}, {machine}; client and broker share it. Load average {load} over the run; about {seconds:g} s a role, \
{rounds}; medians, and in brackets from the least to the greatest round. In the pictures a thin line goes from the one to the other. \
{caution}

To repeat it (it needs root or sudo for Debian packages that are missing; contenders whose toolchain is missing are left out):

```sh
make bench                          # everything
make bench ARGS="--quick --json"    # a part of it, within a minute once all is built
make bench ARGS=--page              # writes this page from the last run
```
"""
QUICK = "This was a quick run, with which no more than an impression can be had."
BUSY = "The machine did much else meanwhile: look at the CPU times, and little at rates and delays."


def write(report: dict[str, Any], docs: Path) -> None:
    """Write the page and its pictures; pictures of an earlier run are removed."""
    figures = Figures(report["figures"])
    folder = docs / "performance"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    parts = [_head(report)]
    for plot in PLOTS:
        if drawn := _drawn(figures, plot):
            (folder / f"{plot.file}.svg").write_text(drawn)
            parts.append(f"![{plot.title}](performance/{plot.file}.svg)")
    parts += ["## What was set out to be reached", _targets(report["targets"])]
    parts += ["## All figures", *_tables(figures)]
    parts += ["## Who ran, and what differs", _contenders(report["versions"]), *_left_out(report)]
    (docs / "performance.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")


def _head(report: dict[str, Any]) -> str:
    rounds = 1 + max((each["round"] for each in report["figures"]), default=0)
    return HEAD.format(
        when=report["at"],
        broker=report["broker"],
        machine=report["machine"]["text"],
        load=report["load"],
        seconds=report["role_seconds"],
        rounds="one round" if rounds == 1 else f"{rounds} rounds",
        caution=" ".join(_cautions(report)),
    )


def _cautions(report: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps a run's figures from being trusted; by itself it keeps all processors busy, and a process more."""
    if report["quick"]:
        yield QUICK
    if max(map(float, report["load"].split(" to "))) > 2 * report["machine"]["processors"]:
        yield BUSY


def _drawn(figures: Figures, plot: Plot) -> str:
    """Return a picture, or nothing where nothing was measured."""
    found = {
        name: figures.spread(plot.case, plot.role, name, plot.what) for name in figures.contenders(plot.case, plot.role)
    }
    rows = [Bar(BY_NAME[name].title, spread, name.startswith(OURS)) for name, spread in found.items() if spread]
    rows.sort(key=lambda bar: bar.value.median, reverse=plot.most_first)
    return bars(plot.title, rows, plot.show) if rows else ""


def _row(cells: Sequence[str], *, bold: bool = False) -> str:
    shown = [f"**{cell}**" if bold and cell and not number else cell for number, cell in enumerate(cells)]
    return f"| {' | '.join(shown)} |"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], ours: frozenset[int] = frozenset()) -> str:
    lines = [_row(columns), "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(_row(row, bold=number in ours) for number, row in enumerate(rows))])


def _targets(targets: Sequence[dict[str, str]]) -> str:
    rows = [(each["name"], each["bound"], each["figure"], each["verdict"]) for each in targets]
    return _markdown(("", "bound", "found", ""), rows)


def _tables(figures: Figures) -> Iterator[str]:
    for table in tables(figures):
        yield _titled(table)


def _titled(table: Table) -> str:
    title = table.title[:1].upper() + table.title[1:]
    return f"**{title}**\n\n{_markdown(table.columns, table.rows, table.ours)}"


def _contenders(versions: dict[str, dict[str, str]]) -> str:
    rows = [
        (each.title, ", ".join(f"{name} {found}" for name, found in versions[each.name].items()), _differs(each.name))
        for each in CONTENDERS
        if each.name in versions
    ]
    return _markdown(("", "versions", "what is not as with the others"), rows)


def _differs(name: str) -> str:
    contender = BY_NAME[name]
    return contender.differs or (f"in its chain: {contender.chain}" if contender.chain else "")


def _left_out(report: dict[str, Any]) -> Iterator[str]:
    """Yield what was no part of the run, and what went wrong in it."""
    if report["left_out"]:
        lines = [f"* {name}: {why}" for name, why in report["left_out"].items()]
        yield "Left out:\n\n" + "\n".join(lines)
    if report["failed"]:
        yield "Failed:\n\n" + "\n".join(f"* {each}" for each in report["failed"])
