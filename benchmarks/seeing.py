"""What it costs to see: tracing, metrics and exporting, ours and FastStream's, in one run: ``python -m benchmarks.seeing``.

First what ours add to an event by themselves (`alone.py`), then whole clients side by side: each contender publishes
and consumes the same orders over one RabbitMQ, every phase in a process of its own, in turns. What is compared with a
contender that sees nothing is compared within a round; medians stand in the table.

* The RabbitMQ is a node of its own, or that of ``--url``. ``--alone`` leaves that part out.
* CPU us is the client's own CPU time for one event, with that of its exporter's thread.
* Where spans are sent, the collector is a process that takes all at once; "sent" is what share of the spans had been
  sent when the last event was done: the batch processor drops what it has no room for, and what is dropped costs less.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aio_pika

from benchmarks import alone
from benchmarks.end_to_end import Broker
from benchmarks.observed import COUNTED, ENVIRONMENT, EXPORTERS, ROOT, collector, contender, receive
from benchmarks.workload import PHASES

Result = dict[str, Any]
Round = dict[str, dict[str, Result]]
"""contender -> phase -> what the phase reported"""

MEASURED = ("publish_many", "consume")
WAYS = ("", ", tracing all", ", tracing 1 in 100", ", tracing none", ", metrics", ", tracing all, metrics")
SENT = ", tracing all, metrics, to "


def exporters() -> list[str]:
    """Return those that are installed."""
    return [name for name in EXPORTERS if "gRPC" not in name or find_spec("grpc")]


def names() -> list[str]:
    """Return all contenders that can run here."""
    sending = [SENT + name for name in ("SDK, HTTP", "SDK, gRPC") if name in exporters()]
    ours = [*WAYS, ", tracing 1 in 100, metrics", *sending, ", tracing 1 in 100, metrics, to SDK, HTTP"]
    theirs = [*WAYS, sending[0]] if find_spec("faststream") else []
    return [f"rabbitevents{way}" for way in ours] + [f"FastStream{way}" for way in theirs]


def one(name: str, phase: str, url: str, events: int) -> Result:
    """Run one phase of a contender in a new process and return what it reported."""
    with collector(name) as port:
        options = ["--contender", name, "--phase", phase, "--url", url, "--events", str(events), "--port", str(port)]
        finished = subprocess.run(
            [sys.executable, "-m", "benchmarks.seeing", *options],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=120 + events / 100,
            check=True,
        )
    result: Result = json.loads(finished.stdout.splitlines()[-1])
    return result


async def measure(url: str, names: list[str], events: int, rounds: int) -> tuple[str, list[Round]]:
    """Run all rounds; each begins with another contender. After each phase the broker is asked what is left."""
    found: list[Round] = []
    async with await aio_pika.connect(url) as connection:
        broker = Broker(connection)
        declared = {name: await asyncio.to_thread(one, name, "declare", url, 0) for name in names}
        for number in range(rounds):
            found.append({})
            for name in names[number % len(names) :] + names[: number % len(names)]:
                queue = declared[name]["queue"]
                await broker.purge(queue)
                found[-1][name] = results = {}
                for phase in MEASURED:
                    results[phase] = result = await asyncio.to_thread(one, name, phase, url, events)
                    shown = "".join(f"{k} {v:<12,.4g}" for k, v in result.items())
                    print(f"  {name:50s}{phase:14s}{shown}", file=sys.stderr)
                    await broker.expect(queue, result["left"])
        await broker.delete(*{x for d in declared.values() for x in (d["queue"], d["exchange"], *d["leftovers"])})
        return broker.version(), found


@contextmanager
def rabbitmq(url: str) -> Generator[str]:
    """Yield a RabbitMQ that may be kept busy: that of ``url``, or a node of its own."""
    if url:
        yield url
        return
    from tests.bed.rabbitmq import RabbitNode

    with RabbitNode() as node:
        yield node.add_vhost()


def table(rounds: list[Round], names: list[str]) -> str:
    """Render medians over the rounds; what is compared is compared within a round."""
    lines: list[str] = []
    for phase, title in (("publish_many", "published, 500 in flight"), ("consume", "handled")):
        lines += [f"| {title} | events/s | x of seeing nothing | CPU us | adds | sent |", "|---|---|---|---|---|---|"]
        for name in names:
            of = [each[name][phase] for each in rounds]
            plain = [each.get(name.partition(",")[0], each[name])[phase] for each in rounds]
            rate, cpu = (statistics.median(each[figure] for each in of) for figure in ("rate", "cpu_us"))
            slower = statistics.median(a["rate"] / b["rate"] for a, b in zip(of, plain, strict=True))
            adds = statistics.median(a["cpu_us"] - b["cpu_us"] for a, b in zip(of, plain, strict=True))
            sent = f"{statistics.median(each['sent'] for each in of):.0%}" if ", to " in name else ""
            lines.append(f"| {name} | {rate:,.0f} | {slower:.2f} | {cpu:.1f} | {adds:.1f} | {sent} |")
        lines.append("")
    return "\n".join(lines)


def compete(name: str, phase: str, url: str, events: int, port: int) -> None:
    """Run one phase in this process, and print what came out."""
    result = asyncio.run(PHASES[phase](contender(name, port), url, events))
    if COUNTED and COUNTED[-1].made:
        result["sent"] = COUNTED[-1].exported / COUNTED[-1].made
    print(json.dumps(result), flush=True)
    os._exit(0)  # the exporter's last batches are not waited for: nobody reads them


def run(given: argparse.Namespace) -> None:
    """Print all tables."""
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {given.rounds} rounds\n")
    print(asyncio.run(alone.table(5_000, 5 * given.rounds, exporters())), flush=True)
    if given.alone:
        return
    chosen = given.only or names()
    with rabbitmq(given.url) as url:
        version, rounds = asyncio.run(measure(url, chosen, given.events, given.rounds))
    print(f"\n{version}, {given.events:,} events, medians\n\n{table(rounds, chosen)}")
    if given.json:
        given.json.write_text(json.dumps(rounds, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="seeing.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="", help="a RabbitMQ that may be kept busy, instead of a node of its own")
    parser.add_argument("--alone", action="store_true", help="only what ours add by themselves, without a broker")
    parser.add_argument("--events", type=int, default=10_000, help="how many to publish and consume (10000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the contenders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every single figure")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--receive", choices=("http", "grpc"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        receive(given.receive)
    elif given.contender:
        compete(given.contender, given.phase, given.url, given.events, given.port)
    else:
        run(given)


if __name__ == "__main__":
    main()
