"""What is committed is published, and nothing else: processes are killed meanwhile, and everything is counted.

``python -m tests.committed relays [--rows 50000 --kills 100 --crashes 5 --sqlite]``: writers with pauses and rollbacks,
relays that are killed, a database that crashes. ``python -m tests.committed handlers [--rows 10000 --kills 200]``: services
with an inbox that are killed. Each says what it counted, and ends with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from rabbitevents import Bus, Event, Router
from rabbitevents_outbox import Outbox, Tables
from rabbitevents_sql import AWAY
from tests.bed.postgres import PostgresServer
from tests.bed.rabbitmq import RabbitNode
from tests.committed_service import EFFECTS, Handled, Written, engine_of

WRITERS = 20
ACCOUNTS = 300


class Counts(msgspec.Struct):
    """What was counted."""

    committed: int = 0
    unknown: int = 0
    rolled_back: int = 0
    published: int = 0
    duplicates: int = 0
    lost: int = 0
    unexpected: int = 0
    inversions: int = 0
    kills: int = 0
    hits: int = 0
    crashes: int = 0
    effects: int = 0
    doubled: int = 0
    downstream: int = 0
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        """How many promises were broken."""
        return self.lost + self.unexpected + self.inversions + self.doubled


class Ledger:
    """What was committed, as whoever committed it knows, and what came, in order."""

    def __init__(self) -> None:
        self.committed: dict[str, tuple[str, int]] = {}
        self.unknown: dict[str, list[str]] = {}
        """Events of transactions whose outcome nobody knows, by the first one's id: all of them or none."""
        self.rolled_back: set[str] = set()
        self.came: Counter[str] = Counter()
        self.order: defaultdict[str, list[int]] = defaultdict(list)

    def take(self, event: Event[Any]) -> None:
        """Note an event that came."""
        id = str(event.id)
        self.came[id] += 1
        if self.came[id] == 1:
            self.order[event.payload.account].append(event.payload.number)

    @property
    def missing(self) -> int:
        """How many committed events have not come."""
        return sum(1 for id in self.committed if id not in self.came)

    def judge(self, counts: Counts) -> Counts:
        """Compare."""
        counts.committed, counts.unknown = len(self.committed), len(self.unknown)
        counts.rolled_back, counts.published = len(self.rolled_back), len(self.came)
        counts.duplicates = self.came.total() - len(self.came)
        counts.lost = self.missing
        counts.unexpected = sum(1 for id in self.rolled_back if id in self.came)
        for ids in self.unknown.values():
            there = sum(1 for id in ids if id in self.came)
            counts.unexpected += there not in (0, len(ids))
        counts.inversions = sum(
            1 for numbers in self.order.values() for one, other in itertools.pairwise(numbers) if one > other
        )
        return counts


async def write(
    engine: AsyncEngine, ledger: Ledger, rows: int, done: list[int], locks: dict[str, asyncio.Lock]
) -> None:
    """Write transactions of one to five events of an account, each while nobody else writes one of that account."""
    sessions, outbox = async_sessionmaker(engine), Outbox(engine)
    while done[0] < rows:
        account = f"a-{random.randrange(ACCOUNTS)}"
        async with locks[account]:
            size = random.randint(1, 5)
            numbers = range(done[1], done[1] + size)
            done[1] += size
            ids: list[str] = []
            stays = random.random() >= 0.1
            try:
                async with sessions() as session, asyncio.timeout(20), session.begin() as transaction:
                    for number in numbers:
                        ids.append(str((await outbox.publish(session, Written(account, number))).id))
                        await asyncio.sleep(random.choice((0, 0, 0, 0.001, 0.01)))
                    if not stays:
                        await transaction.rollback()
            except AWAY:
                ledger.unknown[ids[0] if ids else account] = ids
                await asyncio.sleep(0.05)
                continue
            if stays:
                ledger.committed.update({id: (account, n) for id, n in zip(ids, numbers, strict=True)})
                done[0] += size
            else:
                ledger.rolled_back.update(ids)


class Process:
    """One service of ours, started again whenever it is killed."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        self._command = command
        self._environment = environment
        self.output = output
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env={**os.environ, **self._environment}, stdout=output, stderr=output
            )

    @property
    def said(self) -> str:
        """What it has printed since it was last started."""
        return self.output.read_text() if self.output.exists() else ""

    @property
    def pid(self) -> int:
        """Its id, 0 while there is none."""
        return 0 if self._process is None else self._process.pid

    async def ended(self) -> None:
        """Wait for its end."""
        if self._process is not None:
            await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def again(self) -> None:
        """Kill it, forget what it said, and start it again."""
        await self.kill()
        self.output.write_bytes(b"")
        await self.start()


@asynccontextmanager
async def processes(what: str, number: int, environment: dict[str, str]) -> AsyncGenerator[list[Process]]:
    """Run several of one service; they are gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rabbitevents", *what.split()]
        made = [Process(command, environment, Path(folder) / f"{n}.log") for n in range(number)]
        try:
            for each in made:
                await each.start()
            yield made
        finally:
            for each in made:
                await each.kill()


@asynccontextmanager
async def bed(sqlite: bool) -> AsyncGenerator[tuple[str, str, PostgresServer | None]]:
    """A broker and a database: their URLs, and the server of the second one."""
    async with AsyncExitStack() as stack:
        node = stack.enter_context(RabbitNode())
        if sqlite:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url, server = f"sqlite+aiosqlite:///{folder}/committed.db", None
        else:
            server = stack.enter_context(PostgresServer())
            url = server.url()
        engine = engine_of(url)
        await Tables().create(engine)
        async with engine.begin() as connection:
            await connection.run_sync(EFFECTS.metadata.create_all)
        await engine.dispose()
        yield node.add_vhost(), url, server


def progress(text: str) -> None:
    print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


async def relays(
    amqp: str, database: str, server: PostgresServer | None, *, rows: int, kills: int, crashes: int, number: int
) -> Counts:
    """Write, kill, count."""
    ledger, counts, began = Ledger(), Counts(), time.monotonic()
    router = Router("ledger")

    @router.on(Written, concurrency=1, prefetch=1000)
    async def take(entry: Event[Written]) -> None:
        ledger.take(entry)

    engine = engine_of(database)
    environment = {"AMQP_URL": amqp, "DATABASE_URL": database}
    done = [0, 0]
    locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    async with Bus(amqp, router), processes("relay tests.committed_service:relay", number, environment) as relaying:
        writing = [asyncio.create_task(write(engine, ledger, rows, done, locks)) for _ in range(WRITERS)]
        every = max(1, kills // (crashes + 1))
        while counts.kills < kills:
            await until(lambda: done[0] >= rows * counts.kills // kills, "the writers", 120)
            at_work = [each for each in relaying if "this process relays" in each.said]
            with contextlib.suppress(TimeoutError):
                await until(lambda: ledger.missing > 0, "something on its way", random.uniform(0.1, 0.5))
            victim = random.choice(at_work or relaying)
            counts.hits += victim in at_work and ledger.missing > 0
            await victim.again()
            counts.kills += 1
            if server is not None and counts.crashes < crashes and counts.kills % every == 0:
                await server.akill()
                counts.crashes += 1
                await asyncio.sleep(random.uniform(0, 1))
                await server.astart()
            progress(
                f"{counts.kills} of {kills} kills, {done[0]:,} of {rows:,} events, {ledger.missing:,} on their way"
            )
        await asyncio.gather(*writing)
        try:
            await until(lambda: ledger.missing == 0, "all events", 40)
        except TimeoutError:
            async with engine.connect() as connection:
                left = await connection.scalar(select(func.count()).select_from(Tables().outbox))
            progress(f"{ledger.missing} are missing, {left} are in the outbox\n")
            for each in relaying:
                progress(f"{each.said[-3000:]}\n")
        await quiet(engine)
    await engine.dispose()
    counts.seconds = round(time.monotonic() - began, 1)
    return ledger.judge(counts)


async def handlers(amqp: str, database: str, *, rows: int, kills: int, number: int) -> Counts:
    """Publish, kill, count."""
    counts, began = Counts(), time.monotonic()
    downstream: Counter[str] = Counter()
    router = Router("downstream")

    @router.on(Handled, concurrency=1, prefetch=1000)
    async def take(entry: Event[Handled]) -> None:
        downstream[f"{entry.payload.account} {entry.payload.number} {entry.id}"] += 1

    engine = engine_of(database)
    environment = {"AMQP_URL": amqp, "DATABASE_URL": database}
    running = processes("run tests.committed_service:bus", number, environment)
    async with Bus(amqp, router, unroutable="raise") as bus, running as handling:
        await until(lambda: all("runs on" in each.said for each in handling), "the services", 60)
        entries = [Written(f"a-{n % ACCOUNTS}", n) for n in range(rows)]
        slice_ = max(1, rows // max(1, kills))
        published = 0
        while counts.kills < kills or published < rows:
            if published < rows:
                await bus.publish_many(entries[published : published + slice_])
                published = min(rows, published + slice_)
            if counts.kills < kills:
                await until(lambda: any("runs on" in each.said for each in handling), "a service", 60)
                await asyncio.sleep(random.uniform(0.05, 0.5))
                victim = random.choice([each for each in handling if "runs on" in each.said])
                counts.hits += len(downstream) < published
                await victim.again()
                counts.kills += 1
            progress(
                f"{counts.kills} of {kills} kills, {published:,} of {rows:,} events, {len(downstream):,} came through"
            )
        with contextlib.suppress(TimeoutError):
            await until(lambda: len(downstream) >= rows, "the events downstream", 180)
        await quiet(engine)
        async with engine.connect() as connection:
            effects = Counter(tuple(each) for each in await connection.execute(select(EFFECTS)))
    await engine.dispose()
    counts.committed, counts.effects, counts.downstream = rows, effects.total(), len(downstream)
    counts.doubled = effects.total() - len(effects) + max(0, len(downstream) - rows)
    counts.duplicates = downstream.total() - len(downstream)
    counts.lost = (rows - len(effects)) + max(0, rows - len(downstream))
    counts.seconds = round(time.monotonic() - began, 1)
    return counts


async def quiet(engine: AsyncEngine) -> None:
    """Wait until the outbox is empty."""
    outbox = Tables().outbox
    end = time.monotonic() + 60
    while time.monotonic() < end:
        async with engine.connect() as connection:
            if not await connection.scalar(select(func.count()).select_from(outbox)):
                return
        await asyncio.sleep(0.1)


async def until(condition: Any, what: str, seconds: float, *, every: float = 0.01) -> None:
    """Wait for a condition. Raises TimeoutError, which says what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(every)


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.committed")
    parser.add_argument("what", choices=["relays", "handlers"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--crashes", type=int, default=5)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--sqlite", action="store_true")
    told = parser.parse_args()
    async with bed(told.sqlite) as (amqp, database, server):
        if told.what == "relays":
            number = 1 if told.sqlite else told.processes
            counts = await relays(
                amqp,
                database,
                server,
                rows=told.rows or 50_000,
                kills=100 if told.kills is None else told.kills,
                crashes=told.crashes,
                number=number,
            )
        else:
            kills = 200 if told.kills is None else told.kills
            counts = await handlers(amqp, database, rows=told.rows or 10_000, kills=kills, number=told.processes)
    progress("")
    print(json.dumps(msgspec.structs.asdict(counts)))
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
