"""Processes for the tests of idempotency that kill and stop them: ``python -m tests.idempotent_service MODE ...``.

``race REDIS_PORT GO``: ten claimants, each for all of a thousand keys; prints those that were won, one a line.
``serve HOW AMQP_URL REDIS_PORT LEDGER``: a service with one handler. What it does is written to LEDGER, fsynced, a line
each: what, which order, and its process id. HOW is how its handler behaves, or the point at which it crashes.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from redis.asyncio import Redis

from rabbitevents import Bus, Consume, Delivery, Fact, Plugin, Router, Settlement
from rabbitevents_idempotency import Acquired, Claim, Fenced, Idempotency, LeaseLost, RedisStore
from tests.shop import OrderPlaced, eventually

LEASE = timedelta(seconds=1)
CLAIMANTS = 10
KEYS = 1000
BATCH = 25
"""So many events are at the point together when the process crashes there."""


async def race(port: int, go: Path) -> None:
    """Claim whatever others claim at the same time."""
    async with Redis(port=port) as client:
        store = RedisStore(client)
        won: list[str] = []

        async def wins(key: str, owner: str) -> bool:
            return isinstance(await store.claim(key, owner, timedelta(minutes=5)), Acquired)

        async def claim_all(claimant: int) -> None:
            keys = [f"key-{number}" for number in range(KEYS)]
            random.shuffle(keys)
            won.extend([key for key in keys if await wins(key, f"{os.getpid()}-{claimant}-{key}")])

        await store.look()
        print("ready", flush=True)
        await appears(go)
        await asyncio.gather(*(claim_all(claimant) for claimant in range(CLAIMANTS)))
        print("\n".join(won), flush=True)


class Ledger:
    """What this process does, and what those before it did."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_RDWR)
        lines = Path(path).read_text().splitlines()
        self.crashed: set[str] = {line.split()[1] for line in lines if line.startswith("arrived ")}

    def note(self, what: str, order: str) -> None:
        """Write one line that survives whatever happens to this process."""
        os.write(self._file, f"{what} {order} {os.getpid()}\n".encode())
        os.fsync(self._file)


class Crash:
    """Ends the process once a batch of orders that were not there before has arrived at one point."""

    def __init__(self, point: str, ledger: Ledger, orders: int) -> None:
        self.point = point
        self.batch = min(BATCH, orders - len(ledger.crashed))
        self._ledger = ledger
        self._arrived = 0
        self._begun = 0

    async def at(self, point: str, order: str) -> None:
        """Crash here, with others, or pass."""
        if point != self.point or order in self._ledger.crashed:
            return
        self._ledger.note("arrived", order)
        self._arrived += 1
        if self._arrived >= self.batch:
            os._exit(1)
        await asyncio.Event().wait()

    async def begin(self, order: str) -> None:
        """Let no more than a batch begin, where the point is after the end: the rest must not be underway."""
        if self.point == "after-ack" and order not in self._ledger.crashed:
            self._begun += 1
            if self._begun > self.batch:
                await asyncio.Event().wait()


class CrashingStore(RedisStore):
    """A store with points before and after its steps. Orders are found by their event's id."""

    def __init__(self, client: Redis, crash: Crash, ledger: Ledger, orders: dict[str, str]) -> None:
        super().__init__(client, timeout=5)
        self._crash = crash
        self._ledger = ledger
        self._orders = orders

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True, digest: str = "") -> Claim:
        await self._crash.at("before-claim", self._orders[key])
        claim = await super().claim(key, owner, lease, takeover=takeover, digest=digest)
        if isinstance(claim, Acquired):
            await self._crash.at("after-claim", self._orders[key])
        return claim

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        completed = await super().complete(key, owner, keep)
        if completed:
            self._ledger.note("marked", self._orders[key])
            await self._crash.at("after-complete", self._orders[key])
        return completed


class Outermost(Plugin):
    """Knows which order a key is about, has a point after the acknowledgement, and notes what is reported."""

    def __init__(self, crash: Crash, ledger: Ledger, orders: dict[str, str]) -> None:
        self._crash = crash
        self._ledger = ledger
        self._orders = orders
        self._afterwards: set[asyncio.Task[None]] = set()

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        order = self._orders[f"{delivery.queue}:{delivery.id}"] = delivery.body.decode().split('"')[3]
        await self._crash.begin(order)
        settlement = await proceed(delivery)
        if self._crash.point == "after-ack":
            self._afterwards.add(asyncio.create_task(self._afterward(order)))
        return settlement

    async def _afterward(self, order: str) -> None:
        await asyncio.sleep(0.1)  # the acknowledgement is written at the end of this turn of the loop
        await self._crash.at("after-ack", order)

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, (Fenced, LeaseLost)):
            self._ledger.note(type(fact).__name__.lower(), fact.id)


class Stock:
    """A resource that checks fencing tokens: a table, shared by all processes."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS effects (id TEXT PRIMARY KEY, fence INTEGER, writes INTEGER)"
        )

    def write(self, order: str, fence: int) -> bool:
        """Write, unless somebody with a greater fence was here."""
        cursor = self._database.execute(
            "INSERT INTO effects VALUES (?, ?, 1) ON CONFLICT (id) DO UPDATE SET fence = ?, writes = writes + 1 "
            "WHERE fence < ?",
            (order, fence, fence, fence),
        )
        return cursor.rowcount == 1


def serve(how: str, url: str, port: int, path: str) -> None:
    """Run the service."""
    ledger = Ledger(path)
    crash = Crash(how, ledger, 200)
    orders: dict[str, str] = {}
    router = Router("shop")
    window = {"stopped": 1, "stalled": 1, "long": 10, "load": 50}.get(how, BATCH)

    @router.on(OrderPlaced, concurrency=min(window, BATCH), prefetch=window)
    async def record(order: OrderPlaced, delivery: Delivery) -> None:
        name = order.order_id
        ledger.note("start", name)
        if how == "load":
            await asyncio.sleep(0.005)
        if how == "poison":
            await asyncio.sleep(0.05)
            if name == "poison":
                os._exit(1)
        if how == "long":
            await asyncio.sleep(LEASE.total_seconds() * 10)
        if how in ("stopped", "stalled"):
            await stand_still(how, f"{path}.go")
            written = Stock(f"{path}.stock").write(name, delivery.fence or 0)
            ledger.note("effect" if written else "stale", name)
            return
        await crash.at("in-the-effect", name)
        ledger.note("effect", name)
        await crash.at("after-the-effect", name)

    store = CrashingStore(Redis(port=port), crash, ledger, orders)
    plugins: Sequence[Plugin] = [Outermost(crash, ledger, orders), Idempotency(store, lease=LEASE, abandoned=5)]
    Bus(url, router, plugins=plugins, grace=5).run()


async def stand_still(how: str, path: str) -> None:
    """Stand still until a file is there, in the first process that comes here: stopped from outside, or by itself."""
    if is_first(Path(f"{path}.first")):
        if how == "stalled":
            stall(Path(path))
        await appears(Path(path))


def is_first(mark: Path) -> bool:
    """Say whether nobody left this mark before, and leave it."""
    was_there = mark.exists()
    mark.touch()
    return not was_there


def stall(go: Path) -> None:
    """Keep the event loop from turning."""
    while not go.exists():
        time.sleep(0.05)


async def appears(file: Path) -> None:
    """Wait until there is such a file."""
    await eventually(file.exists, str(file), 60)


if __name__ == "__main__":
    if sys.argv[1] == "race":
        asyncio.run(race(int(sys.argv[2]), Path(sys.argv[3])))
    else:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
