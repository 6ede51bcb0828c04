"""Compare rabbitevents with its peers, end to end, over one RabbitMQ: ``python benchmarks/end_to_end.py --url amqp://``.

Every phase of every contender runs in a process of its own; the contenders alternate, and each round begins with
another one. After each phase the broker is asked what is left: what was published must be in the queue, and what was
consumed must be gone from it. A contender that loses, repeats or skips an event fails the run.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = ("raw_aio_pika", "faststream_pydantic", "faststream_msgspec", "rabbitevents_")
REFERENCE = "faststream_pydantic"

Result = dict[str, Any]
Round = dict[str, dict[str, Result]]
"""contender -> phase -> what the phase reported"""


@dataclass(frozen=True)
class Phase:
    """One thing that is timed, and how many of the events it takes."""

    name: str
    title: str
    share: float = 1.0
    keeps: bool = False
    """Whether the events stay in the queue for the next phase."""


PHASES = (
    Phase("publish_one", "publish, one at a time, each confirmed", share=0.1),
    Phase("publish_many", "publish, 500 in flight, each confirmed", keeps=True),
    Phase("consume", "consume, prefetch 200, each acknowledged"),
)
LATENCY = Phase("latency", "latency at 1,000 events a second, from publish to handler", share=0.25)


def run(contender: str, phase: str, url: str, events: int) -> Result:
    """Run one phase of a contender in a new process and return what it reported."""
    command = [sys.executable, "-m", f"benchmarks.contenders.{contender}"]
    options = ["--url", url, "--phase", phase, "--events", str(events)]
    finished = subprocess.run(
        command + options,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins")))},
        stdout=subprocess.PIPE,
        timeout=120 + events / 200,
        check=True,
    )
    result: Result = json.loads(finished.stdout.splitlines()[-1])
    return result


class Broker:
    """The benchmark's own view of the broker: counts, purges and deletes, so that nobody marks their own work."""

    def __init__(self, connection: aio_pika.abc.AbstractConnection) -> None:
        self._connection = connection

    async def expect(self, queue: str, count: int) -> None:
        """Wait up to 10 s until that many events are in the queue, and raise if they are not."""
        found = -1
        for _ in range(50):
            async with await self._connection.channel() as channel:
                found = (await channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0
            if found == count:
                return
            await asyncio.sleep(0.2)
        raise SystemExit(f"{queue} holds {found} events, {count} expected")

    async def purge(self, queue: str) -> None:
        async with await self._connection.channel() as channel:
            await (await channel.get_queue(queue, ensure=False)).purge()

    async def delete(self, *names: str) -> None:
        """Delete the queues and exchanges of these names."""
        for name in names:
            async with await self._connection.channel() as channel:
                await channel.queue_delete(name)
                await channel.exchange_delete(name)

    def version(self) -> str:
        properties: Any = self._connection.transport.connection.server_properties  # type: ignore[union-attr]
        return f"{properties['product']} {properties['version']}"


async def compare(url: str, names: list[str], phases: list[Phase], events: int, rounds: int) -> Result:
    """Run all rounds; return the contenders' versions and every single figure."""
    async with await aio_pika.connect(url) as connection:
        broker = Broker(connection)
        declared = {name: await asyncio.to_thread(run, name, "declare", url, 0) for name in names}
        figures: list[Round] = []
        for number in range(rounds):
            figures.append({})
            for name in names[number % len(names) :] + names[: number % len(names)]:
                figures[-1][name] = await compete(broker, url, name, declared[name]["queue"], phases, events)
        await broker.delete(*{name for d in declared.values() for name in (d["queue"], d["exchange"], *d["leftovers"])})
        return {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "broker": broker.version(),
            "events": events,
            "versions": {package: v for name in names for package, v in declared[name]["versions"].items()},
            "rounds": figures,
        }


async def compete(
    broker: Broker, url: str, name: str, queue: str, phases: list[Phase], events: int
) -> dict[str, Result]:
    """Run a contender's phases in turn, and check after each what it left in its queue."""
    results: dict[str, Result] = {}
    await broker.purge(queue)
    for phase in phases:
        results[phase.name] = result = await asyncio.to_thread(run, name, phase.name, url, int(events * phase.share))
        print(f"  {name:22s}{phase.name:14s}" + "".join(f"{k} {v:<12,.4g}" for k, v in result.items()), file=sys.stderr)
        await broker.expect(queue, result["left"])
        if not phase.keeps:
            await broker.purge(queue)
    return results


def table(report: Result, names: list[str], phases: list[Phase]) -> str:
    """Render medians over the rounds."""
    rounds: list[Round] = report["rounds"]
    lines = [
        f"{report['machine']}, {report['broker']}, {report['events']:,} events, {len(rounds)} rounds, medians",
        ", ".join(f"{package} {version}" for package, version in report["versions"].items()),
    ]
    for phase in phases:
        heading = ("p50 ms", "p99 ms") if phase is LATENCY else RATES
        lines += ["", phase.title, f"  {'':22s}" + "".join(f"{column:>14s}" for column in heading)]
        for name in names:
            cells = latencies(rounds, name) if phase is LATENCY else rates(rounds, name, phase)
            lines.append(f"  {name:22s}" + "".join(f"{cell:>14s}" for cell in cells))
    return "\n".join(lines)


RATES = ("events/s", "slowest", "fastest", "x FastStream", "CPU us", "x less CPU")


def rates(rounds: list[Round], name: str, phase: Phase) -> list[str]:
    """Return a contender's cells. A ratio is the median of the rounds' ratios, not the ratio of medians."""
    results = [r[name][phase.name] for r in rounds]
    rate = [result["rate"] for result in results]
    references = [r[REFERENCE][phase.name] for r in rounds if REFERENCE in r]
    faster = [mine["rate"] / theirs["rate"] for mine, theirs in zip(results, references, strict=False)]
    leaner = [theirs["cpu_us"] / mine["cpu_us"] for mine, theirs in zip(results, references, strict=False)]
    return [
        *(f"{value:,.0f}" for value in (statistics.median(rate), min(rate), max(rate))),
        f"{statistics.median(faster):.2f}" if faster else "-",
        f"{statistics.median([result['cpu_us'] for result in results]):.1f}",
        f"{statistics.median(leaner):.2f}" if leaner else "-",
    ]


def latencies(rounds: list[Round], name: str) -> list[str]:
    """Return a contender's cells of the latency table, in milliseconds."""
    results = [r[name][LATENCY.name] for r in rounds]
    return [f"{statistics.median([result[key] for result in results]):.2f}" for key in ("p50_ms", "p99_ms")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="amqp://guest:guest@localhost/", help="a RabbitMQ that may be kept busy")
    parser.add_argument("--events", type=int, default=20_000, help="how many to publish and consume (default: 20000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="NAME")
    parser.add_argument("--latency", action="store_true", help="measure latency as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every single figure")
    arguments = parser.parse_args()

    names = [name for name in CONTENDERS if name in arguments.only]
    phases = [*PHASES, LATENCY] if arguments.latency else list(PHASES)
    report = asyncio.run(compare(arguments.url, names, phases, arguments.events, arguments.rounds))
    print(table(report, names, phases))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
