"""Event stores side by side, on one PostgreSQL: ``python benchmarks/event_store.py``.

    python -m venv peers && peers/bin/pip install 'eventsourcing[postgres]' 'psycopg[binary]'
    python benchmarks/event_store.py --peers peers/bin/python

rabbitevents and eventsourcing, with their defaults. Who cannot be imported is left out, and it is said who. The server is
started here and belongs to nobody else, with ``fsync=on`` and ``synchronous_commit=on``. Every phase of every contender runs
in a process and a database of its own; in each round another contender begins. Printed are medians, and from which to which
round; the last line is all of it as JSON. ``--quick`` takes less than a minute on two free cores, and shows that it runs, not
who is fast. ``--scale 20`` rebuilds 1,000,000 events.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from tests.bed.postgres import PostgresServer  # noqa: E402

Result = dict[str, Any]

OURS = "rabbitevents"
CONTENDERS = {OURS: "benchmarks.stores.rabbitevents_", "eventsourcing": "benchmarks.stores.eventsourcing_"}
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'plugins'}"}


class Figure(NamedTuple):
    """One column: its heading, the result's name, and how it is written."""

    heading: str
    name: str
    form: str = ",.0f"


class Phase(NamedTuple):
    """One row of the comparison: what is run, with how many events, and what is printed of it."""

    title: str
    words: tuple[str, ...]
    figures: tuple[Figure, ...]
    full: int
    quick: int
    is_projection: bool = False


CPU = Figure("CPU us", "cpu_us", ",.1f")
RATES = (Figure("events/s", "rate"), CPU)
REBUILT = (*RATES, Figure("grown MB", "grown_mb", ".1f"))
DELAYS = (Figure("p50 ms", "p50_ms", ",.1f"), Figure("p99 ms", "p99_ms", ",.1f"), CPU)
PHASES = (
    Phase("appended by 1 writer", ("--phase", "append", "--writers", "1"), RATES, 2_000, 300),
    Phase("appended by 8 writers", ("--phase", "append", "--writers", "8"), RATES, 8_000, 800),
    Phase("appended by 20 writers", ("--phase", "append", "--writers", "20"), RATES, 8_000, 1_000),
    Phase("read", ("--phase", "read"), RATES, 50_000, 5_000),
    Phase("rebuilt by a projection", ("--phase", "rebuild"), REBUILT, 50_000, 1_000, is_projection=True),
    Phase("append to projection", ("--phase", "latency"), DELAYS, 1_000, 200, is_projection=True),
)


class Bench:
    """The server, and the processes that are measured on it."""

    def __init__(self, postgres: PostgresServer, peers: str) -> None:
        self.postgres = postgres
        self._peers = peers

    def run(self, contender: str, *words: str) -> Result:
        """Run one phase of a contender in a process and a database of its own."""
        database = self.postgres.url("", database=self.postgres.database())
        try:
            return self.ask(contender, *words, "--postgres", database)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{contender}, {' '.join(words)}:\n{error.stderr[-3000:]}") from None

    def ask(self, contender: str, *words: str) -> Result:
        """Run a contender's module, and return what it prints last. Raises `CalledProcessError`."""
        done = subprocess.run(
            [sys.executable if contender == OURS else self._peers, "-m", CONTENDERS[contender], *words],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=7200,
            check=True,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))


def present(bench: Bench, names: list[str]) -> tuple[dict[str, Result], list[str]]:
    """Return what the contenders say of themselves, and who is missing and why."""
    found: dict[str, Result] = {}
    missing: list[str] = []
    for name in names:
        try:
            found[name] = bench.ask(name, "--phase", "describe")
        except subprocess.CalledProcessError as error:
            missing.append(f"{name}: {error.stderr.strip().splitlines()[-1]}")
    return found, missing


def measure(bench: Bench, contenders: dict[str, Result], told: argparse.Namespace) -> Result:
    """Run all rounds; return each figure's values by row, contender and name."""
    values: Result = {}
    for number in range(told.rounds):
        for phase in (each for each in PHASES if not told.phases or any(word in each.title for word in told.phases)):
            names = list(contenders)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                for label, words in runs_of(phase, name, contenders[name]):
                    events = max(20, round((phase.quick if told.quick else phase.full) * told.scale))
                    result = bench.run(name, *words, "--events", str(events))
                    said = ", ".join(f"{key} {value:,.4g}" for key, value in result.items())
                    print(
                        f"round {number + 1}/{told.rounds}  {phase.title}: {label}: {said}", file=sys.stderr, flush=True
                    )
                    kept = values.setdefault(phase.title, {}).setdefault(label, {})
                    for key, value in result.items():
                        kept.setdefault(key, []).append(value)
    return values


def runs_of(phase: Phase, name: str, said: Result) -> list[tuple[str, tuple[str, ...]]]:
    """Return a contender's runs of a phase, each with what it is called."""
    if not phase.is_projection:
        return [(name, phase.words)]
    return [(f"{name}: {way}", (*phase.words, "--way", way)) for way in said["ways"]]


def table(values: Result) -> str:
    """Render medians, and the spread from the least to the greatest, as Markdown."""
    lines: list[str] = []
    for phase in (each for each in PHASES if each.title in values):
        lines += ["", f"| {phase.title} | " + " | ".join(figure.heading for figure in phase.figures) + " |"]
        lines.append("|---" * (len(phase.figures) + 1) + "|")
        for label, found in values[phase.title].items():
            lines.append(
                f"| {label} | " + " | ".join(cell(found[each.name], each.form) for each in phase.figures) + " |"
            )
    return "\n".join(lines)


def cell(values: list[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def machine(bench: Bench) -> Result:
    """Say what the figures were measured on."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": [round(each, 1) for each in os.getloadavg()],
        "postgresql": bench.postgres.run("SHOW server_version"),
        "fsync": bench.postgres.run("SHOW fsync"),
        "synchronous_commit": bench.postgres.run("SHOW synchronous_commit"),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="event_store.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peers", default=sys.executable, metavar="PYTHON", help="the Python that has the peers' packages"
    )
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--phases", nargs="+", metavar="WORD", help="only the rows whose title contains one of these")
    parser.add_argument("--rounds", type=int, help="5, or 1 with --quick")
    parser.add_argument("--scale", type=float, default=1.0, help="how many times the events of each row")
    parser.add_argument("--quick", action="store_true", help="few events, one round: less than a minute")
    told = parser.parse_args()
    told.rounds = told.rounds or (1 if told.quick else 5)
    return told


def main(told: argparse.Namespace) -> None:
    settings = {"fsync": "on", "synchronous_commit": "on", "max_connections": "300"}
    with PostgresServer(**settings) as postgres:
        bench = Bench(postgres, told.peers)
        contenders, missing = present(bench, told.only)
        for each in missing:
            print(f"left out: {each}", file=sys.stderr)
        before = machine(bench)
        values = measure(bench, contenders, told)
        report = {**before, "load_after": os.getloadavg()[0], "rounds": told.rounds, "left_out": missing}
    versions = {package: number for said in contenders.values() for package, number in said["versions"].items()}
    print(", ".join(f"{key} {value}" for key, value in report.items()))
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    print(table(values))
    print(json.dumps({**report, "versions": versions, "contenders": contenders, "values": values}))


if __name__ == "__main__":
    main(arguments())
