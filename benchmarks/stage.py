"""Where contenders run: a RabbitMQ and a Redis of the benchmark's own, and one process for each role.

Nobody marks their own work: after each role the broker is asked what is left in the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika

from benchmarks.field import ROOT, Contender
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import RedisServer

ROUTER, EXCHANGE = "bench", "bench"
QUEUE = f"{ROUTER}.on_order"
CLASSIC_QUEUE = "classic.on_order"
REDIS = "RABBITEVENTS_BENCHMARK_REDIS"
TYPE = "order.placed"

Result = dict[str, Any]


class ContenderError(Exception):
    """A contender has failed, or lost, repeated or skipped an event; the text is what is known."""


@dataclass(frozen=True)
class Work:
    """One role's work."""

    role: str
    events: int
    warm_up: int
    first: int = 0
    items: int = 3
    note: int = 37
    rate: int = 0

    @property
    def total(self) -> int:
        return self.events + self.warm_up

    @property
    def left(self) -> int | None:
        """How many events it adds to the queue; None where it empties it."""
        return self.total if self.role.startswith("publish") else None


class Stage:
    """A broker and a Redis that nobody else uses."""

    def __init__(self, node: RabbitNode, redis: RedisServer | None) -> None:
        self._node = node
        self._redis = redis
        self.until = math.inf
        """When, by `time.monotonic`, whoever still runs is killed."""

    @property
    def version(self) -> str:
        return f"RabbitMQ {self._node.version}"

    @contextlib.contextmanager
    def place(self, contender: Contender, kind: str = "quorum") -> Generator[Place]:
        """Yield a virtual host with an exchange and a queue for one contender, gone afterwards."""
        url = self._node.add_vhost()
        place = Place(self._node, self._redis, url, CLASSIC_QUEUE if kind == "classic" else QUEUE, self.until)
        try:
            if contender.declares and kind == "quorum":
                place.run(contender, Work("declare", 0, 0))
            else:
                asyncio.run(_declare(url, place.queue, kind))
            yield place
        finally:
            self._node.delete_vhost(url)

    @contextlib.contextmanager
    def empty(self) -> Generator[str]:
        """Yield the URL of a virtual host with nothing in it."""
        url = self._node.add_vhost()
        try:
            yield url
        finally:
            self._node.delete_vhost(url)


@contextlib.contextmanager
def stage(*, with_redis: bool) -> Generator[Stage]:
    """Start them; the RabbitMQ is the one that is installed, or that of the other Debian that the tests run with."""
    root = os.environ.get("RABBITEVENTS_TEST_ROOT")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer()) if with_redis else None
        yield Stage(stack.enter_context(RabbitNode(root=root)), redis)


async def _declare(url: str, queue: str, kind: str) -> None:
    async with await aio_pika.connect(url) as connection, await connection.channel() as channel:
        exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        there = await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": kind})
        await there.bind(exchange, TYPE)


@dataclass
class Place:
    """One contender's virtual host."""

    node: RabbitNode
    redis: RedisServer | None
    url: str
    queue: str
    until: float = math.inf
    held: int = 0
    """How many events must be in the queue."""
    patience: float = 10.0
    """Seconds in which the broker has to come to that."""

    def run(self, contender: Contender, work: Work) -> Result:
        """Let a contender do one role's work, and check what is in the queue then."""
        words = [work.role, self.url, EXCHANGE, self.queue]
        words += map(str, (work.events, work.warm_up, work.first, work.items, work.note, work.rate))
        environment = contender.environment()
        if self.redis is not None:
            environment[REDIS] = self.redis.url
        patience = min(60 + work.total / 100, self.until - time.monotonic())
        result = run([*contender.command, *words], environment, max(0.0, patience))
        if result.get("handled", work.total) != work.total or result.get("distinct", work.total) != work.total:
            raise ContenderError(
                f"{result['handled']} events handled, {result['distinct']} differ, {work.total} expected"
            )
        if work.left is not None:
            self.held += work.left
        elif work.role != "declare":
            self.held = 0
        if work.role != "declare":
            self._expect(self.held)
        return result

    def _expect(self, count: int) -> None:
        deadline = time.monotonic() + self.patience
        while (found := sum(self.node.queue_counts(self.queue, self.url)[:2])) != count:
            if time.monotonic() > deadline:
                raise ContenderError(f"the queue holds {found} events, {count} expected")
            time.sleep(0.02)


def run(words: list[str], environment: dict[str, str], patience: float) -> Result:
    """Run a program that prints one line of JSON and then waits for its input's end; add its peak memory in MB.

    Raises ContenderError with the end of what it said when it fails, or needs longer than ``patience`` seconds.
    """
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        too_late = threading.Timer(patience, process.kill)
        too_late.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            line = _first(process.stdout.readline, "{")
            peak = _peak(process.pid) if line else 0.0
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            status = process.wait()
        finally:
            too_late.cancel()
            process.kill()
        if status != 0 or not line:
            said.seek(0)
            last = " / ".join(said.read().strip().splitlines()[-3:])
            raise ContenderError(f"it ended with {status}, of at most {patience:.0f} s: {last[-400:]}")
    result: Result = json.loads(line)
    return result | {"peak_mb": peak}


def _first(readline: Callable[[], str], start: str) -> str:
    """Return the first line that begins so, or nothing at the end."""
    while (line := readline()) and not line.startswith(start):
        pass
    return line


def _peak(pid: int) -> float:
    """Return the most memory that a process has had, in MB."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0
