"""What it costs to see: tracing, metrics and exporting, ours and FastStream's, in one run: ``python -m benchmarks.seeing``.

First what ours add to an event by themselves (`alone.py`), then whole clients side by side: each contender publishes
and consumes the same orders over a RabbitMQ of its own, every role in a process, in turns. What is compared with a
contender that sees nothing is compared within a round; medians stand in the table. ``--alone`` leaves that part out.

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
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import alone
from benchmarks.observed import COUNTED, EXPORTERS, collector, contender, receive
from benchmarks.roles import run
from benchmarks.workload import Told

Result = dict[str, Any]
Round = dict[str, dict[str, Result]]
"""contender -> role -> what it measured"""

MEASURED = ("publish_in_flight", "consume")
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


def measure(names: list[str], events: int, rounds: int) -> tuple[str, list[Round]]:
    """Run all rounds; each begins with another contender. After each role the broker is asked what is left."""
    from benchmarks.field import Contender, in_turn
    from benchmarks.stage import Work, stage  # which the processes of contenders have no use for

    found: list[Round] = []
    with stage(with_redis=False) as place:
        for number in range(rounds):
            found.append({})
            for name in in_turn(names, number):
                with collector(name) as port:
                    command = (sys.executable, "-m", "benchmarks.seeing", "--contender", name, str(port))
                    who = Contender(name, name, "python", command, 0)
                    with place.place(who) as there:
                        found[-1][name] = {role: there.run(who, Work(role, events, 1_000)) for role in MEASURED}
                print(f"  {name:50s}{found[-1][name]['consume']['cpu_us']:10.1f} us consumed", file=sys.stderr)
        return place.version, found


def table(rounds: list[Round], names: list[str]) -> str:
    """Render medians over the rounds; what is compared is compared within a round."""
    lines: list[str] = []
    for phase, title in (("publish_in_flight", "published, 500 in flight"), ("consume", "handled")):
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


def compete(name: str, port: int, words: list[str]) -> None:
    """Run one role in this process, and print what came out."""
    told = Told.of(words)
    if told.role == "declare":
        from benchmarks.contenders.python.rabbitevents_ import RabbitEvents, declare

        result = asyncio.run(declare(RabbitEvents(told)))
    else:
        result = run(contender(name, port, told))
    if COUNTED and COUNTED[-1].made:
        result["sent"] = COUNTED[-1].exported / COUNTED[-1].made
    print(json.dumps(result), flush=True)
    sys.stdin.read()
    os._exit(0)  # the exporter's last batches are not waited for: nobody reads them


def report(given: argparse.Namespace) -> None:
    """Print all tables."""
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {given.rounds} rounds\n")
    print(asyncio.run(alone.table(5_000, 5 * given.rounds, exporters())), flush=True)
    if given.alone:
        return
    chosen = given.only or names()
    version, rounds = measure(chosen, given.events, given.rounds)
    print(f"\n{version}, {given.events:,} events, medians\n\n{table(rounds, chosen)}")
    if given.json:
        given.json.write_text(json.dumps(rounds, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="seeing.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--alone", action="store_true", help="only what ours add by themselves, without a broker")
    parser.add_argument("--events", type=int, default=10_000, help="how many to publish and consume (10000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the contenders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every single figure")
    parser.add_argument("--contender", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--receive", choices=("http", "grpc"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        receive(given.receive)
    elif given.contender:
        name, port, *words = given.contender
        compete(name, int(port), words)
    else:
        report(given)


if __name__ == "__main__":
    main()
