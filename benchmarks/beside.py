"""Plugins beside other libraries, on servers of the benchmark's own: what `outbox.py` and `event_store.py` both are.

Each of the two is a `Comparison`: who is compared, in which phases, and where. Every phase of every contender runs in a
process and a place of its own; in each round another contender begins. A contender's module prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

from benchmarks.field import ENVIRONMENT, OURS, ROOT, in_turn
from tests.bed.postgres import PostgresServer

Result = dict[str, Any]


class Figure(NamedTuple):
    """One column: its heading, the result's name, and how it is written."""

    heading: str
    name: str
    form: str = ",.0f"
    over: str = ""
    """Of which result it is what is above that of the contender's first way; empty where it is measured itself."""


class Phase(NamedTuple):
    """One row of the comparison: what is run, with how many events, and what is printed of it."""

    title: str
    words: tuple[str, ...]
    figures: tuple[Figure, ...]
    full: int
    quick: int
    ways: str = ""
    """Under which word a contender says in which ways it does this, each a row; empty where there is one."""


class Comparison(ABC):
    """Who is compared, in which phases; the servers, and the processes that are measured on them."""

    contenders: ClassVar[Mapping[str, str]]
    """Names, and the modules that are run."""
    phases: ClassVar[Sequence[Phase]]
    not_quick: ClassVar[frozenset[str]] = frozenset()
    """Who is left out where it has to be quick."""
    fewest: ClassVar[int] = 1
    """How many events a run has at least."""
    patience: ClassVar[float] = 900
    """Seconds that a run may take."""

    def __init__(self, peers: str, postgres: PostgresServer) -> None:
        self.postgres = postgres
        self._peers = peers

    @abstractmethod
    def place(self) -> AbstractContextManager[tuple[str, ...]]:
        """Enter with the words that say where one run has a place of its own."""

    def servers(self) -> Result:
        """Say what the servers are."""
        settings = {name: self.postgres.run(f"SHOW {name}") for name in ("fsync", "synchronous_commit")}
        return {"postgresql": self.postgres.run("SHOW server_version"), **settings}

    def notes(self, contenders: Mapping[str, Result]) -> list[str]:
        """Return lines that stand below the tables."""
        return []

    def run(self, contender: str, *words: str) -> Result:
        """Run one phase of a contender in a process and a place of its own."""
        with self.place() as place:
            try:
                return self.ask(contender, *words, *place)
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"{contender}, {' '.join(words)}:\n{error.stderr[-3000:]}") from None

    def ask(self, contender: str, *words: str) -> Result:
        """Run a contender's module, and return what it prints last. Raises `CalledProcessError`."""
        done = subprocess.run(
            [sys.executable if contender == OURS else self._peers, "-m", self.contenders[contender], *words],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=self.patience,
            check=True,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def present(self, names: Iterable[str]) -> tuple[dict[str, Result], list[str]]:
        """Return what the contenders say of themselves, and who is missing and why."""
        found: dict[str, Result] = {}
        missing: list[str] = []
        for name in names:
            try:
                found[name] = self.ask(name, "--phase", "describe")
            except subprocess.CalledProcessError as error:
                missing.append(f"{name}: {error.stderr.strip().splitlines()[-1]}")
        return found, missing

    def rows(self, phase: Phase, name: str, said: Result, events: int) -> Iterator[tuple[str, Result]]:
        """Run a phase of a contender, in each of its ways; yield what each row is called, and its results."""
        runs = {name: phase.words}
        if phase.ways:
            runs = {f"{name}: {way}": (*phase.words, "--way", way) for way in said[phase.ways]}
        first: Result = {}
        for label, words in runs.items():
            result = self.run(name, *words, "--events", str(events))
            first = first or result
            added = {each.name: result[each.over] - first[each.over] for each in phase.figures if each.over}
            yield label, result | added


def measure(comparison: Comparison, contenders: Mapping[str, Result], told: argparse.Namespace) -> Result:
    """Run all rounds; return each figure's values by row, contender and name."""
    values: Result = {}
    phases = [each for each in comparison.phases if not told.phases or any(word in each.title for word in told.phases)]
    for number in range(told.rounds):
        for phase in phases:
            events = max(comparison.fewest, round((phase.quick if told.quick else phase.full) * told.scale))
            for name in in_turn(list(contenders), number):
                for label, result in comparison.rows(phase, name, contenders[name], events):
                    said = ", ".join(f"{key} {value:,.4g}" for key, value in result.items())
                    where = f"round {number + 1}/{told.rounds}  {phase.title}: {label}"
                    print(f"{where}: {said}", file=sys.stderr, flush=True)
                    kept = values.setdefault(phase.title, {}).setdefault(label, {})
                    for key, value in result.items():
                        kept.setdefault(key, []).append(value)
    return values


def table(values: Result, phases: Sequence[Phase]) -> list[str]:
    """Render medians, and the spread from the least to the greatest, as lines of Markdown."""
    lines: list[str] = []
    for phase in (each for each in phases if each.title in values):
        lines += ["", f"| {phase.title} | " + " | ".join(figure.heading for figure in phase.figures) + " |"]
        lines.append("|---" * (len(phase.figures) + 1) + "|")
        for label, found in values[phase.title].items():
            cells = [_cell(found[each.name], each.form) for each in phase.figures]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _cell(values: Sequence[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def arguments(kind: type[Comparison], about: str | None) -> argparse.Namespace:
    """Return what the command line says; ``about`` is the program's docstring."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument(
        "--peers", default=sys.executable, metavar="PYTHON", help="the Python that has the peers' packages"
    )
    parser.add_argument("--only", nargs="+", choices=kind.contenders, metavar="NAME")
    parser.add_argument("--phases", nargs="+", metavar="WORD", help="only the rows whose title contains one of these")
    parser.add_argument("--rounds", type=int, help="5, or 1 with --quick")
    parser.add_argument("--scale", type=float, default=1.0, help="how many times the events of each row")
    parser.add_argument("--quick", action="store_true", help="few events, one round: less than a minute")
    told = parser.parse_args()
    told.rounds = told.rounds or (1 if told.quick else 5)
    told.only = told.only or [name for name in kind.contenders if not (told.quick and name in kind.not_quick)]
    return told


def postgres() -> PostgresServer:
    """Return a PostgreSQL that loses nothing that it has committed, to be entered."""
    return PostgresServer(fsync="on", synchronous_commit="on", max_connections="300")


def compare(comparison: Comparison, told: argparse.Namespace) -> None:
    """Run what is told, and print the machine, the versions, the tables, and all of it as JSON."""
    contenders, missing = comparison.present(told.only)
    for each in missing:
        print(f"left out: {each}", file=sys.stderr)
    report: Result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": [round(each, 1) for each in os.getloadavg()],
        **comparison.servers(),
    }
    values = measure(comparison, contenders, told)
    report |= {"load_after": os.getloadavg()[0], "rounds": told.rounds, "left_out": missing}
    versions = {package: number for said in contenders.values() for package, number in said["versions"].items()}
    print(", ".join(f"{key} {value}" for key, value in report.items()))
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    print("\n".join([*table(values, comparison.phases), *comparison.notes(contenders)]))
    print(json.dumps({**report, "versions": versions, "contenders": contenders, "values": values}))
