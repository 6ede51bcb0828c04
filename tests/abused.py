"""``run --workers 4`` under handlers that hang, crash and leak, for as long as one likes.

``python -m tests.abused --minutes 10 --workers 4`` prints its judgement as a line of JSON, and ends with 1 where something
is wrong. It runs a RabbitMQ of its own, and the service in rounds of about a minute each. In a round come ordinary orders
all the while, such as log and print more than a pipe takes at once, such as leave memory and processes behind, and two
poisoned ones: one hangs every event loop that it meets, the other ends every process. Whoever grows too large is killed, as
by the kernel. Every other round ends when all is well again, by SIGTERM to every process at once; the others while a
worker hangs.

What must hold: ``/live`` says 200 from the first to the last moment, ``/ready`` 503 while a worker is away, ``/metrics`` is
whole; the exit code is 0 after the rounds that end well and 1 after the others; a hanging worker is found in time; every
order has its effect, and both poisoned ones are dead letters; no line of stderr or stdout is mixed with another.
"""

from __future__ import annotations

import argparse
import asyncio
import calendar
import ctypes
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from rabbitevents import Bus
from rabbitevents.cli.supervisor import LONGEST_PAUSE
from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.rabbitmq import RabbitNode
from tests.shop import OrderPlaced

HANG: Final = 4.0
"""Seconds after which the service takes a worker's event loop for hung."""

FOUND: Final = 3.0
"""Seconds more within which it must be found: a look takes up to a second, and so does a beat; the rest is the machine's."""

POISONED: Final = ("hanging-1", "crashing-1")

LARGE: Final = 150
"""MiB from which on a worker is killed."""

SUBREAPER: Final = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2): the service inherits orphans as process 1 of a container does."""

SERVICE = """
import asyncio, logging, os, subprocess, time
from rabbitevents import Bus, Router
from rabbitevents_deadletter import DeadLetter
from tests.shop import OrderPlaced

ledger = os.open("ledger", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
store, kept, log = Router("store"), [], logging.getLogger("store")
number = os.environ["RABBITEVENTS_WORKER"]

def note(*words):
    os.write(ledger, (" ".join(map(str, (*words, os.getpid(), time.time()))) + "\\n").encode())

@store.on(OrderPlaced, concurrency=10, prefetch=20)
async def pack(order: OrderPlaced) -> None:
    note("begins", order.order_id)
    match order.order_id.partition("-")[0]:
        case "loud":
            print("printed", number, "x" * 9000, "whole")
            try:
                exec(compile("\\n".join(f"def f{n}(): return f{n+1}()" for n in range(90)) + "\\nf90 = end\\nf0()", "many.py", "exec"),
                     {"end": lambda: 1 / 0})
            except ZeroDivisionError:
                log.warning("loud", exc_info=True, extra={"much": "x" * 9000})
        case "leaking":
            kept.append(bytearray(os.urandom(1 << 16)) * 160)
            await asyncio.to_thread(subprocess.run, ["sh", "-c", "sleep 0.3 & exit"])
        case "hanging":
            time.sleep(3600)
        case "crashing":
            os._exit(3)
    await asyncio.sleep(0.01)
    note("ended", order.order_id)

bus = Bus(os.environ["URL"], store, plugins=[DeadLetter()], grace=10, delivery_limit=8)
"""

SUPERVISOR = """
import runpy, sys
from rabbitevents.cli import supervisor

supervisor.LONGEST_PAUSE = float(sys.argv.pop(1))
runpy.run_module("rabbitevents", run_name="__main__", alter_sys=True)
"""
"""`python -m rabbitevents`, whose supervisor waits no longer than its first argument says."""


class Round:
    """One run of the service, and what was seen of it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, port: int, hang: float) -> None:
        self.process = process
        self.hang = hang
        self.folder = folder
        self.port = port
        self.answers: Counter[str] = Counter()
        self.killed = 0
        self.zombies = 0
        self.dead = 0

    def noted(self, word: str) -> list[tuple[str, int, float]]:
        """What handlers wrote down: order, process, time."""
        file = self.folder / "ledger"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(order, int(pid), float(at)) for kind, order, pid, at in lines if kind == word]

    def children(self) -> list[int]:
        """The processes that the service has, its orphans among them."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def handled(self) -> set[str]:
        """The orders that had their effect."""
        return {order for order, _, _ in self.noted("ended")}

    def dead_children(self) -> int:
        """How many of them have ended, and nobody has taken up their exit codes."""
        return sum(_state_of(pid) == "Z" for pid in self.children())

    async def asked(self, client: httpx.AsyncClient, question: str) -> int:
        """Ask, and count the answer."""
        try:
            response = await client.get(f"http://{LOOPBACK}:{self.port}/{question}")
        except httpx.TransportError as error:
            self.answers[f"{question} {type(error).__name__}"] += 1
            return 0
        self.answers[f"{question} {response.status_code}"] += 1
        if question == "metrics":
            families = {family.name: family.samples for family in text_string_to_metric_families(response.text)}
            answered = {sample.value for sample in families["rabbitevents_worker_answered"]}
            self.answers["metrics whole"] += answered == {0.0} or "python_info" in families
        return response.status_code

    async def probe(self) -> None:
        """Ask as an orchestrator and Prometheus do, until cut off."""
        async with httpx.AsyncClient(timeout=5) as client:
            for number in range(1_000_000):
                await self.asked(client, "live")
                await self.asked(client, "ready")
                if number % 8 == 0:
                    await self.asked(client, "metrics")
                await asyncio.sleep(0.25)

    async def be_the_kernel(self) -> None:
        """Kill whoever has grown too large, until cut off."""
        while True:
            await asyncio.sleep(0.5)
            for pid in self.children():
                if _size_of(pid) > LARGE:
                    self.killed += 1
                    os.kill(pid, signal.SIGKILL)


def _write_down(folder: Path) -> None:
    folder.mkdir()
    (folder / "parcels.py").write_text(SERVICE)


@asynccontextmanager
async def a_round(folder: Path, url: str, workers: int, hang: float, longest: float) -> AsyncGenerator[Round]:
    """Run the service; it is killed at the end, should it still be there."""
    port = free_port()
    path = os.pathsep.join([os.getcwd(), f"{os.getcwd()}/plugins"])
    await asyncio.to_thread(_write_down, folder)
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SUPERVISOR, str(longest), "run", "parcels:bus", "--workers", str(workers)),
            *("--health", str(port), "--hang", str(hang), "--log", "json"),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "URL": url},
            stdout=stdout,
            stderr=stderr,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(SUBREAPER, 1),
        )
    try:
        yield Round(process, folder, port, hang)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def abuse(
    node: RabbitNode,
    folder: Path,
    *,
    workers: int,
    seconds: float,
    well: bool,
    hang: float = HANG,
    longest: float = LONGEST_PAUSE,
) -> dict[str, Any]:
    """Run one round; return what was seen of it, and under "faults" what must not be.

    ``hang`` is as the service is told; a worker that ended is started again after ``longest`` seconds at most, for a
    round has some twenty of them.
    """
    url = await asyncio.to_thread(node.add_vhost)
    async with a_round(folder, url, workers, hang, longest) as told, Bus(url, name="customers") as customers:
        await _until_well(told)
        watching = [asyncio.create_task(told.probe()), asyncio.create_task(told.be_the_kernel())]
        wanted = await _orders(customers, seconds)

        def dead() -> int:
            counts = node.queue_counts("store.pack.dead", url)
            return counts.ready + counts.unacked  # DeadLetter looks at what the broker put there

        await _until(lambda: dead() >= len(POISONED), "the poisoned orders to be dead", 180)
        try:
            await _until(lambda: not wanted - told.handled(), "all orders to be handled", 90)
        except AssertionError:
            print(sorted(wanted - told.handled()), await node.aqueue_counts("store.pack", url), dead(), file=sys.stderr)
            print(*(told.folder / "stderr").read_text().splitlines()[-40:], sep="\n", file=sys.stderr)
            raise
        if not well:
            await customers.publish(OrderPlaced("hanging-2"))
            await _until(lambda: any(order == "hanging-2" for order, _, _ in told.noted("begins")), "a hang", 30)
        else:
            await _until_well(told)
        with suppress(AssertionError):  # they are taken up once a second, and more may come
            await _until(lambda: not told.dead_children(), "the orphans to be taken up", 5)
        told.zombies = told.dead_children()
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
        for pid in (told.process.pid, *told.children()):  # as systemd does
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        code = await asyncio.wait_for(told.process.wait(), 30)
        told.dead = await asyncio.to_thread(dead)
    return judged(told, code, well=well, orders=len(wanted))


async def _orders(customers: Bus, seconds: float) -> set[str]:
    """Publish for so long; return the orders that must have an effect."""
    wanted = set[str]()
    for number in range(max(4, int(seconds))):
        orders = [*(f"quick-{number}-{each}" for each in range(20)), *(f"loud-{number}-{each}" for each in range(4))]
        orders += [f"leaking-{number}-{each}" for each in range(2)]
        wanted |= set(orders)
        orders += {1: [POISONED[0]], 2: [POISONED[1]]}.get(number, [])
        await customers.publish_many([OrderPlaced(order) for order in orders])
        await asyncio.sleep(1)
    return wanted


async def _until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait until ``condition`` holds; it is asked in a thread, and seldom, so that those who probe go on."""
    end = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(condition):
        assert asyncio.get_running_loop().time() < end, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.3)


async def _until_well(told: Round) -> None:
    """Wait until all workers are well."""
    await _until(lambda: _is_ready(told.port), "ready", 90)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://{LOOPBACK}:{port}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def judged(told: Round, code: int, *, well: bool, orders: int) -> dict[str, Any]:
    """Say what a round was like, and what of it must not be."""
    records, broken = list[dict[str, Any]](), 0
    for line in (told.folder / "stderr").read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            broken += 1
    printed = (told.folder / "stdout").read_text().splitlines()
    broken += sum(re.fullmatch(r"printed \d x{9000} whole", line) is None for line in printed)
    hung = [record for record in records if " hangs: " in record["message"]]
    late = [each for each in map(_found_after, hung, [told] * len(hung)) if each is None or each > told.hang + FOUND]
    answers = dict(sorted(told.answers.items()))
    faults = {
        "code": code if code != (0 if well else 1) else 0,
        "live was not 200": sum(
            n for answer, n in answers.items() if answer.startswith("live") and answer != "live 200"
        ),
        "ready was never 503": int("ready 503" not in answers),
        "metrics not whole": told.answers["metrics 200"] - told.answers["metrics whole"],
        "lines broken": broken,
        "hung and not found in time": len(late),
        "hung without a line": int(len(hung) < 1),
        "zombies": told.zombies,
        "dead but for the poisoned": told.dead - len(POISONED),
        "poison handled": sum(order in POISONED for order, _, _ in told.noted("ended")),
    }
    return {
        "code": code,
        "orders": orders,
        "answers": answers,
        "lines": len(records) + len(printed),
        "longest": max(len(json.dumps(record)) for record in records),
        "hung": len(hung),
        "found after": [round(found, 1) for each in hung if (found := _found_after(each, told)) is not None],
        "crashed": sum("ended with exit code 3" in record["message"] for record in records),
        "killed for their size": told.killed,
        "faults": {name: number for name, number in faults.items() if number},
    }


def _found_after(record: dict[str, Any], told: Round) -> float | None:
    """Return the seconds from a hang's begin to its line."""
    pid = int(re.findall(r"\(pid (\d+)\)", record["message"])[0])
    began = [at for order, where, at in told.noted("begins") if where == pid and order.startswith("hanging")]
    said = time.strptime(record["time"][:19], "%Y-%m-%dT%H:%M:%S")
    return None if not began else calendar.timegm(said) + float(record["time"][19:23]) - began[-1]


def _size_of(pid: int) -> float:
    """Return a process's resident MiB; 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


async def main(minutes: float, workers: int) -> int:
    """Run rounds for so long; return the exit code."""
    rounds, end = list[dict[str, Any]](), time.monotonic() + minutes * 60
    with RabbitNode() as node, tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            number = len(rounds)
            found = await abuse(node, Path(folder, str(number)), workers=workers, seconds=30, well=number % 2 == 0)
            rounds.append(found)
            print(json.dumps(found), file=sys.stderr, flush=True)
    faults = [found["faults"] for found in rounds if found["faults"]]
    total = Counter[str]()
    for found in rounds:
        total.update({name: n for name, n in found.items() if isinstance(n, int) and name not in ("code", "longest")})
        total.update(found["answers"])
    codes = [found["code"] for found in rounds]
    print(json.dumps({"rounds": len(rounds), "codes": codes, "total": total, "faults": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    told_to = argparse.ArgumentParser(description="Run workers under handlers that hang, crash and leak.")
    told_to.add_argument("--minutes", type=float, default=10)
    told_to.add_argument("--workers", type=int, default=4)
    given = told_to.parse_args()
    sys.exit(asyncio.run(main(given.minutes, given.workers)))
