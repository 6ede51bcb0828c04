"""The demonstration with each service in a process of its own: killed, started again, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from rabbitevents.demo import crew
from rabbitevents.demo.books import Folder
from rabbitevents.demo.crew import Assignment, Crew, ServiceNotStartedError
from rabbitevents.demo.journal import Journal
from rabbitevents.demo.orders import make_orders, poisoned
from rabbitevents.demo.run import Counts, run
from rabbitevents.demo.services import SERVICES
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.shop.analytics import Figures, Level
from rabbitevents.demo.shop.inventory import Reservation, Stock
from rabbitevents.options import Options
from rabbitevents.testing.bench import eventually
from tests.bed.redis import RedisServer

ROOT = Path(__file__).parent.parent


class Audience:
    """Hears which process is which, and kills one of them when ``after`` orders are closed."""

    def __init__(self, victim: str = "", after: int = 0) -> None:
        self.lines: list[str] = []
        self.killed_at = 0
        self._victim = victim
        self._after = after

    def say(self, line: str, /) -> None:
        """Hear of something."""
        self.lines.append(line)

    def progress(self, placed: int, closed: int, effects: int, /) -> None:
        """Learn how far it is."""
        if self._victim and not self.killed_at and closed >= self._after:
            self.killed_at = closed
            os.kill(self.pids(self._victim)[-1], signal.SIGKILL)

    def pids(self, name: str = r"\w+") -> list[int]:
        """The processes that were said to run, in order."""
        return [int(pid) for pid in re.findall(rf"^{name} runs as process (\d+)$", "\n".join(self.lines), re.MULTILINE)]

    def knows_more_than(self, pids: list[int]) -> bool:
        """Whether another process was said to run."""
        return len(self.pids()) > len(pids)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its exit code that nobody has asked for."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# --- the shop on RabbitMQ ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["order", "inventory", "payment"])
@pytest.mark.sampled
async def test_nothing_is_lost_when_a_service_is_killed_in_the_middle(
    rabbit_url: str, tmp_path: Path, victim: str
) -> None:
    settings = Settings(broker=rabbit_url, processes=True, fail=0.2)

    counts = await killed(victim, settings, tmp_path)

    assert counts.flawless
    assert counts.retried > 0
    await check_that_the_books_agree(tmp_path)


async def test_what_was_marked_in_redis_is_not_handled_again_after_a_kill(
    rabbit_url: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    settings = Settings(broker=rabbit_url, processes=True, fail=0.2, redis=redis_server.url)

    counts = await killed("payment", settings, tmp_path)

    assert counts.duplicates <= Options().concurrency  # those that the kill caught between their effect and its mark
    assert counts.flawless
    await check_that_the_books_agree(tmp_path)


async def killed(victim: str, settings: Settings, folder: Path) -> Counts:
    """Place orders, a poisoned one among them, and kill a service when some are closed."""
    audience = Audience(victim, after=50)
    orders = poisoned(list(make_orders(400, seed=1)))

    counts = (await run(orders, settings, audience, folder=folder)).counts

    assert 50 <= audience.killed_at < 399
    assert any("was killed by SIGKILL; it is started again" in line for line in audience.lines)
    assert len(audience.pids(victim)) == 2
    assert counts.placed == counts.confirmed + counts.cancelled + counts.dead == 400
    assert (counts.lost, counts.dead) == (0, 1)
    assert not any(map(is_running, audience.pids()))
    return counts


async def check_that_the_books_agree(folder: Path) -> None:
    """Check that five services that share nothing know the same of every order, but for the one that is poisoned."""
    book = Journal(folder / "order" / "outcomes.jsonl", str)
    reserved = Journal(folder / "inventory" / "reserved.jsonl", Reservation)
    returned = Journal(folder / "inventory" / "returned.jsonl", Reservation)
    payments = Journal(folder / "payment" / "charged.jsonl", Decimal)
    counted = {
        name: Journal[object](folder / "analytics" / f"{name}.jsonl", cast("type[object]", Any))
        for name in ("placed", "confirmed", "cancelled")
    }
    levels = Journal(folder / "analytics" / "levels.jsonl", Level)
    summary = await Figures(Folder(folder / "analytics")).summary()
    stock = Stock(Folder(folder / "inventory"))
    confirmed = {order for order, outcome in book.items() if outcome == "confirmed"}
    assert {order for order, price in payments.items() if price > 0} == confirmed
    assert {order for order, kept in reserved.items() if kept.pieces and order not in returned} == confirmed
    assert set(counted["confirmed"]) == confirmed
    assert set(counted["cancelled"]) == set(book) - confirmed
    assert set(reserved) == set(Journal(folder / "notification" / "sent.jsonl", str)) == set(book)
    assert len(set(counted["placed"]) - set(book)) == 1
    assert summary.revenue == sum((payments[order] for order in confirmed), Decimal(0))
    assert {sku: level.left for sku, level in levels.items()} == {sku: await stock.left(sku) for sku in levels}


def test_the_command_with_processes_counts_like_the_one_without(rabbit_url: str) -> None:
    arguments = ["--processes", "--broker", rabbit_url, "--orders", "200", "--json"]

    ran = subprocess.run(
        [sys.executable, "-m", "rabbitevents.demo", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    counts = json.loads(ran.stdout)

    assert ran.returncode == 0
    assert counts["placed"] == counts["confirmed"] + counts["cancelled"] == 200
    assert (counts["lost"], counts["duplicates"]) == (0, 0)
    assert sorted(re.findall(r"^(\w+) runs as process", ran.stderr, re.MULTILINE)) == sorted(SERVICES)


async def test_sabotage_is_noticed_across_processes(rabbit_url: str) -> None:
    settings = Settings(broker=rabbit_url, processes=True, patience=2, sabotage="drop")

    result = await run(list(make_orders(15, seed=3)), settings, Audience())

    assert result.counts.lost == 2
    assert not result.counts.flawless


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.sampled
async def test_when_the_demonstration_ends_its_services_end_too(rabbit_url: str, number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents.demo", "--processes", "--broker", rabbit_url, "--orders", "100000"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    lines = [(await process.stderr.readline()).decode() for _ in range(6)]
    pids = [int(line.split()[-1]) for line in lines if "runs as process" in line]
    running_before = [is_running(pid) for pid in pids]

    process.send_signal(number)
    code = await asyncio.wait_for(process.wait(), 30)

    assert running_before == [True] * 5
    assert code == (130 if number is signal.SIGINT else -signal.SIGKILL)
    try:
        await eventually(lambda: not any(map(is_running, pids)), "the services to end", 20)
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)


# --- the crew, and one of its members ------------------------------------------------------------------------------


def assignments(folder: Path, *names: str) -> list[Assignment]:
    """Assignments on embedded brokers: nothing comes, and nothing goes."""
    return [Assignment(name, str(folder), Settings()) for name in names]


async def test_a_process_that_ends_again_and_again_is_started_more_and_more_slowly(tmp_path: Path) -> None:
    audience = Audience()

    async with Crew(assignments(tmp_path, "payment"), audience.say) as started:
        for _ in range(3):
            there = audience.pids()
            os.kill(there[-1], signal.SIGKILL)
            await eventually(partial(audience.knows_more_than, there), "another process", 20)
        restarts = started.restarts

    pauses = [line.split(" in ")[1] for line in audience.lines if "is started again" in line]
    assert pauses == ["0.2 s", "0.4 s", "0.8 s"]
    assert restarts == 3
    assert not any(map(is_running, audience.pids()))


async def test_services_that_do_not_start_are_named_and_none_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "START_TIMEOUT", 0.05)

    with pytest.raises(ServiceNotStartedError, match="no order, payment service within"):
        async with Crew(assignments(tmp_path, "order", "payment"), print):
            pass


async def test_a_process_that_cannot_be_started_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(crew, "START_TIMEOUT", 0.3)
    audience = Audience()

    with pytest.raises(ServiceNotStartedError):
        async with Crew(assignments(tmp_path, "order"), audience.say):
            pass

    assert audience.lines[0].startswith("order cannot be started: ")
    assert "/nowhere/python" in audience.lines[0]


async def test_a_service_leaves_when_nobody_is_there_to_stop_it(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents.demo.worker"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(assignments(tmp_path, "order")[0]) + b"\n")
    ready = await asyncio.wait_for(process.stdout.readline(), 30)

    process.stdin.close()

    assert ready == b"ready\n"
    assert await asyncio.wait_for(process.wait(), 10) == 0
