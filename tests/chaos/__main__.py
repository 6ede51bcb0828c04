"""``python -m tests.chaos --injections 60 --seed 1 [--only NAME] [--with NAME] [--pairwise] [--json]``: see the package."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
from typing import Any

from tests.chaos.faults import FAULTS
from tests.chaos.loads import LOADS
from tests.chaos.plan import compared, planned
from tests.chaos.run import run, summary
from tests.chaos.selftest import selftest
from tests.chaos.soak import soak


def parser() -> argparse.ArgumentParser:
    names = f"Loads: {', '.join(LOADS)}. Faults: {', '.join(FAULTS)}."
    asked = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, epilog=names)
    asked.add_argument("--injections", type=int, default=70, help="how many together (70)")
    asked.add_argument("--seed", type=int, default=1, help="says which scenarios, in which order, and when (1)")
    asked.add_argument("--only", metavar="NAME", action="append", default=[], help="scenarios with this load or fault")
    asked.add_argument(
        "--with", metavar="NAME", action="append", default=[], dest="meets", help="and with this one too"
    )
    asked.add_argument("--pairwise", action="store_true", help="every two faults besides, at the same time")
    asked.add_argument("--cluster", action="store_true", help="a RabbitMQ of three nodes, and what happens to these")
    asked.add_argument("--peers", action="store_true", help="the same for others: aio-pika, FastStream, Celery")
    asked.add_argument("--minutes", type=float, help="begin no scenario after so long")
    asked.add_argument("--soak", action="store_true", help="all loads in one process, for --minutes (60): what grows?")
    asked.add_argument("--json", action="store_true", help="one JSON object alone, for programs; else it is indented")
    asked.add_argument("--self-test", action="store_true", help="does the judge see defects that are built in?")
    return asked


def main() -> int:
    told = parser().parse_args()
    if told.self_test:
        return asyncio.run(selftest(told.seed, told.only))
    if told.soak:
        soaked, red = asyncio.run(soak(told.seed, told.minutes or 60))
        return report(told, soaked, red=red)
    names = [*told.only, *told.meets]
    try:
        if told.peers:
            scenarios = compared(told.injections, names)
        else:
            scenarios = planned(told.seed, told.injections, only=names, pairwise=told.pairwise, cluster=told.cluster)
    except ValueError as error:
        parser().error(str(error))
    nodes = 3 if told.cluster else 1
    counts, version = asyncio.run(run(scenarios, told.seed, minutes=told.minutes, nodes=nodes))
    return report(
        told, {"rabbitmq": version, "nodes": nodes, **summary(counts)}, red=any(count.red for count in counts)
    )


def report(told: argparse.Namespace, found: dict[str, Any], *, red: bool) -> int:
    """Print the one object of a run; return the exit status."""
    said = {"seed": told.seed, "python": platform.python_version(), **found}
    print(json.dumps(said, indent=None if told.json else 2))
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
