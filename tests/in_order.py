"""Two processes that share an ordered queue, killed again and again: counts what came in another order than it was sent.

    python -m tests.in_order --orders 1000 --steps 100 --kills 20 [--restart] [--stops] [--partitions 4 [--resize 6]]

Each order's events are published one after the other. One process has them at a time, and some fail at first. The one at
work is killed with -9 (with ``--stops``: half of them are asked to stop), and the broker is killed in the middle. The
judge is what was done: of each event the first time counts. An inversion is an event that was done first after a later
one of its order. With ``--partitions`` both processes have some; with ``--resize`` an operator leads over to another
number of them in the middle. It ends with one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from rabbitevents import Bus
from tests.bed.rabbitmq import RabbitNode
from tests.committed import Process, processes, progress, until
from tests.in_order_service import Stepped


class Counts(msgspec.Struct):
    """What came of it."""

    rabbitmq: str = ""
    events: int = 0
    kills: int = 0
    stops: int = 0
    restarts: int = 0
    resized: str = ""
    """What leading over to other partitions said in the end."""
    done: int = 0
    lost: int = 0
    doubled: int = 0
    """Done more than once: those that a kill caught between their effect and their acknowledgement."""
    inversions: int = 0
    processes: int = 0
    seconds: float = 0.0


class Ledger:
    """What was done, in its order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[tuple[str, int, str]]:
        text = self.path.read_text() if self.path.exists() else ""
        parts = (line.split() for line in text.splitlines())
        return [(order, int(step), pid) for order, step, pid in parts]

    @property
    def size(self) -> int:
        return self.path.read_bytes().count(b"\n") if self.path.exists() else 0

    def judge(self, counts: Counts) -> None:
        latest: dict[str, int] = defaultdict(lambda: -1)
        seen: set[tuple[str, int]] = set()
        lines = self.lines()
        for order, step, _ in lines:
            if (order, step) in seen:
                continue
            seen.add((order, step))
            counts.inversions += step < latest[order]
            latest[order] = max(latest[order], step)
        counts.done, counts.doubled = len(seen), len(lines) - len(seen)
        counts.lost = counts.events - len(seen)
        counts.processes = len({pid for _, _, pid in lines})


async def publish(bus: Bus, orders: int, steps: int, rate: float) -> None:
    """Publish each order's steps in turn; with a ``rate``, at most so many events a second."""
    began = time.monotonic()
    for step in range(steps):
        await bus.publish_many([Stepped(f"o-{order}", step) for order in range(orders)])
        if rate:
            await asyncio.sleep(began + (step + 1) * orders / rate - time.monotonic())


async def run(arguments: argparse.Namespace, *, root: str | None = None) -> Counts:
    """Publish, kill, judge."""
    counts, began = Counts(events=arguments.orders * arguments.steps), time.monotonic()
    resizes = bool(arguments.resize)
    with tempfile.TemporaryDirectory() as folder, RabbitNode(root=root, management=resizes) as node:
        counts.rabbitmq = str(node.version)
        ledger = Ledger(Path(folder) / "ledger")
        environment = {"AMQP_URL": node.url, "LEDGER": str(ledger.path), "LONGEST": str(arguments.longest)}
        environment["PARTITIONS"] = str(arguments.partitions)
        async with processes("run tests.in_order_service:bus", 2, environment) as both:
            await until(lambda: all(" follow (" in each.said for each in both), "both", 30)
            await node.asettle()  # a queue that is killed as it is new is forgotten by RabbitMQ
            async with Bus(node.url, name="publisher", unroutable="raise") as publisher, asyncio.TaskGroup() as group:
                group.create_task(publish(publisher, arguments.orders, arguments.steps, arguments.rate))
                await disturb(arguments, node, both, ledger, counts)
                if resizes:
                    counts.resized = await resize(node, environment, arguments.resize)
                    for each in both:
                        each.send(signal.SIGTERM)
                        await each.ended()
                        await each.again()
            await until(
                lambda: len({line[:2] for line in ledger.lines()}) >= counts.events, "all of them", 120, every=0.5
            )
        ledger.judge(counts)
    counts.seconds = round(time.monotonic() - began, 1)
    return counts


async def resize(node: RabbitNode, environment: dict[str, str], partitions: int) -> str:
    """Lead over to other partitions, while all that is published goes on; who is started from now on has those."""
    environment["PARTITIONS"] = str(partitions)
    words = ["topology", "migrate", "tests.in_order_service:bus", "orders.follow", "--yes", "--http", node.http_url]
    leading = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "rabbitevents",
        *words,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await leading.communicate()
    if leading.returncode:
        raise AssertionError(said.decode())
    return said.decode().strip().splitlines()[-2]


async def disturb(
    arguments: argparse.Namespace, node: RabbitNode, both: list[Process], ledger: Ledger, counts: Counts
) -> None:
    while counts.kills + counts.stops < arguments.kills:
        done, there = counts.kills + counts.stops, ledger.size
        due = there + (counts.events - there) // (arguments.kills - done + 2)  # so that whoever took over is at work
        await until(lambda due=due: ledger.size >= due, f"{due} effects", 120, every=0.05)
        active = max(both, key=lambda each: sum(pid == str(each.pid) for _, _, pid in ledger.lines()[-50:]))
        if arguments.stops and done % 2:
            active.send(signal.SIGTERM)
            await active.ended()
            counts.stops += 1
        else:
            counts.kills += 1
        await active.again()
        if arguments.restart and counts.restarts == 0 and done >= arguments.kills // 2:
            await node.akill()
            counts.restarts += 1
            await asyncio.sleep(random.uniform(0, 1))
            await node.astart()
        progress(f"{done + 1} of {arguments.kills}, {ledger.size:,} of {counts.events:,} effects")


def parser() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--orders", type=int, default=1000)
    asked.add_argument("--steps", type=int, default=100)
    asked.add_argument("--kills", type=int, default=20)
    asked.add_argument("--longest", type=float, default=0.005, help="seconds that a handler takes at most")
    asked.add_argument("--partitions", type=int, default=1, help="how many; one is a queue that nothing divides")
    asked.add_argument("--resize", type=int, default=0, help="lead over to so many partitions after the kills")
    asked.add_argument(
        "--rate", type=float, default=0, help="events a second that are published; by default as fast as can be"
    )
    asked.add_argument("--root", help="a folder with another Debian, whose RabbitMQ is taken")
    asked.add_argument("--restart", action="store_true", help="kill the broker in the middle, too")
    asked.add_argument("--stops", action="store_true", help="ask every second one to stop, in place of a kill")
    return asked


def main() -> None:
    counts: Any = msgspec.to_builtins(asyncio.run(run(told := parser().parse_args(), root=told.root)))
    progress("")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
