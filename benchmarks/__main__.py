"""Run the benchmark: ``make bench ARGS="--quick --json"``, or ``python -m benchmarks``. `README.md` says what is measured."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import page
from benchmarks.cases import CASES, Case
from benchmarks.field import BY_NAME, HERE, OURS, REFERENCE, ROOT
from benchmarks.figures import Figures
from benchmarks.running import Plan, measured
from benchmarks.tables import Table, tables
from benchmarks.targets import judged

LAST = HERE / "last.json"
QUICK: Mapping[str, Sequence[str]] = {
    "flow": (OURS, REFERENCE, "librabbitmq", "aio-pika", "watermill", "spring"),
    "publish": (OURS, "aio-pika", REFERENCE),
    "latency-1000": (OURS, "aio-pika"),
    "import": (OURS,),
    "chain": (REFERENCE, "rabbitevents-memory", "rabbitevents-redis", "rabbitevents-card", "faststream-seeing"),
}
"""The cases of a quick run, and who is in each."""
QUICK_SECONDS = 54.0
"""With the node's end and the tables, it is a minute at most."""


def plan(told: argparse.Namespace) -> Plan:
    """Return what is to be run."""
    named = told.only or (list(QUICK) if told.quick else [case.name for case in CASES])
    cases = [_of(case, told) for name in named for case in CASES if case.name == name]
    running = {name for case in cases for name, _ in case.trials}
    left_out = {name: "not in --quick" for name in BY_NAME if name not in running} if told.quick else {}
    left_out |= {f"the case {case.name}": "not in --quick" for case in CASES if told.quick and case.name not in named}
    return Plan(
        cases=cases,
        rounds=told.rounds or (9 if told.quick else 3),
        seconds=told.seconds or (0.5 if told.quick else 3.0),
        limit=QUICK_SECONDS if told.quick else math.inf,
        left_out=left_out,
    )


def _of(case: Case, told: argparse.Namespace) -> Case:
    """Return a case with those that are to be in it; ours always is."""
    everybody = [name for name, _ in case.trials]
    names = told.with_ or (QUICK.get(case.name, everybody) if told.quick else everybody)
    return replace(case, trials=[(name, trial) for name, trial in case.trials if name in (OURS, *names)])


def shown(console: Console, report: dict[str, Any]) -> None:
    """Print the tables, the targets, and what was left out."""
    console.print(f"{report['machine']['text']}; {report['broker']}; load average {report['load']}", highlight=False)
    for table in tables(Figures(report["figures"])):
        console.print(_rich(table))
    targets = RichTable(title="targets", title_justify="left")
    for head in ("", "bound", "found", ""):
        targets.add_column(head)
    colours = {"met": "green", "missed": "red", "not measured": "dim"}
    for each in report["targets"]:
        verdict = f"[{colours[each['verdict']]}]{each['verdict']}[/]"
        targets.add_row(each["name"], each["bound"], each["figure"], verdict)
    console.print(targets)
    for why in dict.fromkeys(report["left_out"].values()):
        names = ", ".join(name for name, other in report["left_out"].items() if other == why)
        console.print(f"left out, {why}: {names}", highlight=False, markup=False)
    for each in report["failed"]:
        console.print(f"failed: {each}", style="red", highlight=False, markup=False)


def _rich(table: Table) -> RichTable:
    drawn = RichTable(title=table.title, title_justify="left")
    for number, head in enumerate(table.columns):
        drawn.add_column(head, justify="right" if number else "left")
    for number, row in enumerate(table.rows):
        drawn.add_row(*row, style="bold" if number in table.ours else "")
    return drawn


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="make bench", description="Run this library beside others, and judge its targets."
    )
    made.add_argument("--quick", action="store_true", help="a part of it, within a minute once all is built")
    made.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    made.add_argument(
        "--only", nargs="+", metavar="CASE", choices=[case.name for case in CASES], help="some of the cases"
    )
    made.add_argument(
        "--with", nargs="+", metavar="NAME", choices=list(BY_NAME), dest="with_", help="these contenders beside ours"
    )
    made.add_argument("--list", action="store_true", help="say which cases and contenders there are")
    made.add_argument("--rounds", type=int, metavar="N", help="how often (3; with --quick as often as a minute allows)")
    made.add_argument("--seconds", type=float, metavar="S", help="about how long each role lasts (3; 0.5 with --quick)")
    made.add_argument(
        "--page",
        nargs="?",
        const=str(LAST),
        metavar="FILE",
        help="write docs/performance.md from the last run, or FILE",
    )
    return made


def main() -> int:
    """Do what the command line says."""
    told = parser().parse_args()
    if told.list:
        named = {each.name: each.title for each in CASES} | {each.name: each.title for each in BY_NAME.values()}
        print("\n".join(f"{name:22s} {title}" for name, title in named.items()))
        return 0
    if told.page:
        page.write(json.loads(Path(told.page).read_text()), ROOT / "docs")
        return 0
    began = time.monotonic()
    report = measured(plan(told), Console(stderr=True))
    report["targets"] = [each.plain() for each in judged(Figures(report["figures"]))]
    report |= {"at": datetime.now(UTC).date().isoformat(), "quick": told.quick, "seconds": time.monotonic() - began}
    LAST.write_text(json.dumps(report))
    shown(Console(width=None if sys.stdout.isatty() else 150), report)
    if told.json:
        print(json.dumps(report), flush=True)
    return 1 if any(each.startswith(OURS) for each in report["failed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
