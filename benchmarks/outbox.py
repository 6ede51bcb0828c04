"""Outboxes and inboxes side by side, on one PostgreSQL and one RabbitMQ: ``python benchmarks/outbox.py``.

    python -m venv peers && peers/bin/pip install faststream-outbox 'faststream[rabbit]' orjson 'sqlalchemy[asyncio]' asyncpg
    python benchmarks/outbox.py --peers peers/bin/python

rabbitevents, faststream-outbox (with its defaults, and tuned for a high rate), and a table by hand. Who cannot be imported
is left out, and it is said who. Both servers are started here and belong to nobody else; PostgreSQL with ``fsync=on`` and
``synchronous_commit=on``, for all of them. Every phase of every contender runs in a process, a database and a virtual host
of its own; in each round another contender begins. Printed are medians, and from which to which round; the last line is
all of it as JSON. ``--quick`` takes less than a minute on two free cores, and shows that it runs, not who is fast.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from tests.bed.postgres import PostgresServer  # noqa: E402
from tests.bed.rabbitmq import RabbitNode  # noqa: E402

Result = dict[str, Any]

OURS = "rabbitevents"
CONTENDERS = {
    OURS: "benchmarks.outboxes.rabbitevents_",
    "faststream-outbox": "benchmarks.outboxes.faststream_",
    "faststream-outbox, tuned": "benchmarks.outboxes.faststream_tuned",
    "by hand": "benchmarks.outboxes.by_hand",
}
SLOWEST = "faststream-outbox"
"""Who is left out where it has to be quick: with its defaults."""
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'plugins'}"}


class Figure(NamedTuple):
    """One column: its heading, the result's name, and how it is written."""

    heading: str
    name: str
    form: str = ",.0f"


class Phase(NamedTuple):
    """One row of the comparison: what is run, and what is printed of it."""

    title: str
    words: tuple[str, ...]
    figures: tuple[Figure, ...]
    full: int
    quick: int


RATES = (Figure("events/s", "rate"), Figure("CPU us", "cpu_us", ".1f"))
DELAYS = (Figure("p50 ms", "p50_ms", ".1f"), Figure("p99 ms", "p99_ms", ".1f"))
HANDLED = (*RATES, Figure("added by the mark: CPU us", "added_us"))
RELAYED = (*RATES, Figure("inversions", "inversions"))
PUBLISHED = (
    Figure("added CPU us", "cpu_us"),
    Figure("added ms", "ms", ".2f"),
    Figure("without: CPU us", "without_cpu_us"),
    Figure("without: ms", "without_ms", ".2f"),
    Figure("8 writers: tx/s", "rate"),
    Figure("without: tx/s", "without_rate"),
)
PHASES = (
    Phase("relayed, 1,000 entities", ("--phase", "relay", "--entities", "1000"), RELAYED, 6_000, 1_000),
    Phase("relayed, one entity", ("--phase", "relay", "--entities", "1"), RELAYED, 2_000, 200),
    Phase("commit to handler, one process", ("--phase", "latency"), DELAYS, 1_000, 200),
    Phase("commit to handler, writer apart", ("--phase", "latency", "--apart"), DELAYS, 1_000, 200),
    Phase("one event in a transaction", ("--phase", "publish"), PUBLISHED, 1_000, 100),
    Phase("handled, a row written for each event", ("--phase", "inbox"), HANDLED, 3_000, 300),
)
INBOX = PHASES[-1]


class Bench:
    """The two servers, and the processes that are measured on them."""

    def __init__(self, postgres: PostgresServer, node: RabbitNode, peers: str) -> None:
        self.postgres = postgres
        self.node = node
        self._peers = peers

    def run(self, contender: str, *words: str) -> Result:
        """Run one phase of a contender in a process of its own."""
        url = self.node.add_vhost()
        database = self.postgres.url(database=self.postgres.database())
        try:
            return self.ask(contender, *words, "--postgres", database, "--amqp", url)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{contender}, {' '.join(words)}:\n{error.stderr[-3000:]}") from None
        finally:
            self.node.delete_vhost(url)

    def ask(self, contender: str, *words: str) -> Result:
        """Run a contender's module, and return what it prints last. Raises `CalledProcessError`."""
        done = subprocess.run(
            [sys.executable if contender == OURS else self._peers, "-m", CONTENDERS[contender], *words],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=900,
            check=True,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))


def present(bench: Bench, names: Iterable[str]) -> tuple[dict[str, Result], list[str]]:
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
                plain: float | None = None
                for label, words in runs_of(phase, name, contenders[name]):
                    events = max(1, round((phase.quick if told.quick else phase.full) * told.scale))
                    result = bench.run(name, *words, "--events", str(events))
                    if phase is INBOX:
                        plain = result["cpu_us"] if plain is None else plain
                        result["added_us"] = result["cpu_us"] - plain
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
    if phase is not INBOX:
        return [(name, phase.words)]
    return [(f"{name}: {way}", (*phase.words, "--way", way)) for way in said["inboxes"]]


def table(values: Result, contenders: dict[str, Result]) -> str:
    """Render medians, and the spread from the least to the greatest, as Markdown."""
    lines: list[str] = []
    for phase in (each for each in PHASES if each.title in values):
        lines += ["", f"| {phase.title} | " + " | ".join(figure.heading for figure in phase.figures) + " |"]
        lines.append("|---" * (len(phase.figures) + 1) + "|")
        for label, found in values[phase.title].items():
            lines.append(
                f"| {label} | " + " | ".join(cell(found[each.name], each.form) for each in phase.figures) + " |"
            )
    lines += ["", "| | an entity's order | how the relay is woken | inbox |", "|---|---|---|---|"]
    for name, said in contenders.items():
        lines.append(f"| {name} | {said['order']} | {said['woken']} | {(said['inboxes'] or ['none'])[-1]} |")
    return "\n".join(lines)


def cell(values: list[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def machine(bench: Bench) -> Result:
    """Say what the figures were measured on."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": [round(each, 1) for each in os.getloadavg()],
        "rabbitmq": bench.node.version,
        "postgresql": bench.postgres.run("SHOW server_version"),
        "fsync": bench.postgres.run("SHOW fsync"),
        "synchronous_commit": bench.postgres.run("SHOW synchronous_commit"),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="outbox.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peers", default=sys.executable, metavar="PYTHON", help="the Python that has the peers' packages"
    )
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--phases", nargs="+", metavar="WORD", help="only the rows whose title contains one of these")
    parser.add_argument("--rounds", type=int, help="5, or 1 with --quick")
    parser.add_argument("--scale", type=float, default=1.0, help="how many times the events of each row")
    parser.add_argument("--quick", action="store_true", help="few events, one round: less than a minute")
    told = parser.parse_args()
    told.rounds = told.rounds or (1 if told.quick else 5)
    told.only = told.only or [name for name in CONTENDERS if not (told.quick and name == SLOWEST)]
    return told


def main(told: argparse.Namespace) -> None:
    settings = {"fsync": "on", "synchronous_commit": "on", "max_connections": "300"}
    with PostgresServer(**settings) as postgres, RabbitNode() as node:
        bench = Bench(postgres, node, told.peers)
        contenders, missing = present(bench, told.only)
        for each in missing:
            print(f"left out: {each}", file=sys.stderr)
        before = machine(bench)
        values = measure(bench, contenders, told)
        report = {**before, "load_after": os.getloadavg()[0], "rounds": told.rounds, "left_out": missing}
    versions = {package: number for said in contenders.values() for package, number in said["versions"].items()}
    print(", ".join(f"{key} {value}" for key, value in report.items()))
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    print(table(values, contenders))
    print(json.dumps({**report, "versions": versions, "contenders": contenders, "values": values}))


if __name__ == "__main__":
    main(arguments())
