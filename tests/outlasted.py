"""What an outbox outlasts, for as long as it is said and not scaled: something is away, and everything is counted.

``python -m tests.outlasted broker --seconds 1800``: RabbitMQ is away; no row dies, and no attempt is counted.
``... database --seconds 60``: PostgreSQL is killed, and then suspended, for so long each; at most three lines are said.
``... suspended --seconds 60``: a relay stands still for so long past its lease, while another one takes over.
``... snapshot --rows 100000``: rows are relayed beside a reader with an old snapshot, and without one.

Each has a RabbitMQ and a PostgreSQL of its own, prints what it counted as a line of JSON, and ends with 1 where a promise
was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any, Final

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from rabbitevents import Bus, Event, Router
from rabbitevents_outbox import Outbox, Tables
from rabbitevents_sql import AWAY
from tests.bed.postgres import PostgresServer
from tests.bed.rabbitmq import RabbitNode
from tests.committed import Counts, Ledger, Process, processes, quiet, until
from tests.committed_service import Written, engine_of

RELAY: Final = "relay tests.committed_service:relay"
LEASE: Final = 30.0
"""Seconds: as it is by default."""

AT_WORK: Final = "this process relays"

LOOKS: Final = (
    "SELECT *, clock_timestamp() FROM rabbitevents_outbox_lease",
    "SELECT pid, state, wait_event, xact_start, left(query, 100) FROM pg_stat_activity WHERE datname IS NOT NULL",
    "SELECT pid, mode, granted, relation::regclass FROM pg_locks",
)
"""What to look at where nobody takes over."""


class Place:
    """A broker, a database, and who writes and listens there."""

    def __init__(self, node: RabbitNode, server: PostgresServer, engine: AsyncEngine) -> None:
        self.node = node
        self.server = server
        self.engine = engine
        self.ledger = Ledger()
        self.failed = 0
        self._number = 0

    @property
    def environment(self) -> dict[str, str]:
        """What tells a relay where it works."""
        return {"AMQP_URL": self.node.url, "DATABASE_URL": self.server.url(), "LEASE": str(LEASE)}

    async def write(self, events: int, accounts: int = 50) -> None:
        """Write one transaction; where the database is away, it fails by itself."""
        numbers = range(self._number, self._number + events)
        self._number += events
        outbox, ids = Outbox(self.engine), list[str]()
        try:
            async with asyncio.timeout(10), async_sessionmaker(self.engine).begin() as session:
                entries = [Written(f"a-{n % accounts}", n) for n in numbers]
                ids = [str(each.id) for each in await outbox.publish(session, *entries)]
        except AWAY:
            self.failed += 1
            if ids:
                self.ledger.unknown[ids[0]] = ids
            return
        self.ledger.committed.update({id: (f"a-{n % accounts}", n) for id, n in zip(ids, numbers, strict=True)})

    async def write_for(self, seconds: float, events: int, every: float) -> None:
        """Write a transaction every so many seconds, for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.write(events)
            await asyncio.sleep(min(every, max(0.0, end - time.monotonic())))

    async def rows(self) -> dict[str, int]:
        """Count what stands in the outbox: rows, attempts, dead ones."""
        row = Tables().outbox.c
        counted = select(func.count(), func.coalesce(func.sum(row.attempts), 0), func.count(row.dead_at))
        async with self.engine.connect() as connection:
            found = (await connection.execute(counted)).one()
        return dict(zip(("rows", "attempts", "dead"), map(int, found), strict=True))

    async def epoch(self) -> int:
        """Return how often the lease was taken."""
        async with self.engine.connect() as connection:
            return int(await connection.scalar(select(Tables().lease.c.epoch)) or 0)


@asynccontextmanager
async def place() -> AsyncGenerator[Place]:
    """Start a broker and a database, and listen."""
    async with AsyncExitStack() as stack:
        node = await asyncio.to_thread(stack.enter_context, RabbitNode())
        server = await asyncio.to_thread(stack.enter_context, PostgresServer())
        engine = engine_of(server.url())
        stack.push_async_callback(engine.dispose)
        await Tables().create(engine)
        yield Place(node, server, engine)


@asynccontextmanager
async def listening(here: Place) -> AsyncGenerator[None]:
    """Note what comes, one after the other."""
    router = Router("ledger")

    @router.on(Written, concurrency=1, prefetch=1000)
    async def take(entry: Event[Written]) -> None:
        here.ledger.take(entry)

    async with Bus(here.node.url, router):
        await here.node.asettle()  # killed within seconds of its declaration, a quorum queue is forgotten by RabbitMQ
        yield


def lines(relay: Process) -> list[str]:
    """What a relay has said, by lines."""
    return relay.said.splitlines()


async def ended(here: Place, seconds: float) -> dict[str, Any]:
    """Wait until all has come, and return the counts."""
    began = time.monotonic()
    try:
        await until(lambda: here.ledger.missing == 0, "all events", seconds)
    except TimeoutError as error:
        say(str(error))
    counts, took = here.ledger.judge(Counts()), round(time.monotonic() - began, 1)
    wanted = ("committed", "published", "duplicates", "lost", "unexpected", "inversions")
    return {**{name: getattr(counts, name) for name in wanted}, "drained_after": took}


def sound(counts: dict[str, Any]) -> bool:
    """Say whether nothing was lost, made up, or out of order."""
    return not (counts["lost"] or counts["unexpected"] or counts["inversions"])


# --- the broker is away --------------------------------------------------------------------------------------------


async def broker(told: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Kill RabbitMQ, write meanwhile, start it again."""
    async with place() as here, listening(here), processes(RELAY, 1, here.environment) as (relay,):
        await until(lambda: AT_WORK in relay.said, "the relay", 60)
        await here.write(100)
        await until(lambda: here.ledger.missing == 0, "the first events", 30)
        before = len(lines(relay))
        await here.node.akill()
        say(f"RabbitMQ is away for {told.seconds:g} s")
        await here.write_for(told.seconds, 10, 5.0)
        waiting, said = await here.rows(), lines(relay)[before:]
        await here.node.astart()
        counts = await ended(here, 120)
        await quiet(here.engine)
        all_said = lines(relay)[before:]
    found = {"seconds": told.seconds, "waiting": waiting, "said_meanwhile": said, "said": len(all_said), **counts}
    return found, sound(counts) and not waiting["attempts"] and not waiting["dead"]


# --- the database is away ------------------------------------------------------------------------------------------


async def database(told: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Kill PostgreSQL and start it again, and then suspend it, and let it go on."""
    found: dict[str, Any] = {"seconds": told.seconds}
    async with place() as here, listening(here), processes(RELAY, 1, here.environment) as (relay,):
        await until(lambda: AT_WORK in relay.said, "the relay", 60)

        async def away(how: str, leave: Callable[[], Awaitable[Any]], come_back: Callable[[], Awaitable[Any]]) -> None:
            await here.write(100)
            before = len(lines(relay))
            await leave()
            say(f"PostgreSQL is {how} for {told.seconds:g} s")
            await here.write_for(told.seconds, 10, 1.0)
            await come_back()
            await here.engine.dispose()
            await until(lambda: " goes on" in "\n".join(lines(relay)[before:]), "the relay to go on", 60)
            await here.write_for(5, 10, 1.0)
            counts = await ended(here, 60)
            found[how] = {**counts, "said": lines(relay)[before:], "failed_transactions": here.failed}

        server = here.server
        await away("killed", server.akill, server.astart)
        await away("suspended", _thread(server.suspend), _thread(server.resume))
    ways = [found[how] for how in ("killed", "suspended")]
    return found, all(sound(each) and len(each["said"]) <= 3 for each in ways)


def _thread(function: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    return lambda: asyncio.to_thread(function)


# --- a relay stands still ------------------------------------------------------------------------------------------


async def suspended(told: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Suspend the relay that sends, in the middle of it, and let it go on when another one has long taken over."""
    async with place() as here, listening(here), processes(RELAY, 2, here.environment) as two:
        await until(lambda: any(AT_WORK in each.said for each in two), "a relay", 60)
        await until(lambda: all(" runs on " in each.said for each in two), "both", 60)
        (victim,) = [each for each in two if AT_WORK in each.said]
        epoch = await here.epoch()
        writing = asyncio.create_task(here.write_for(LEASE + told.seconds + 10, 100, 0.2))
        await asyncio.sleep(2)
        while here.ledger.missing < 20:  # noqa: ASYNC110 - in the middle of a batch
            await asyncio.sleep(0)
        victim.send(signal.SIGSTOP)
        on_its_way, began = here.ledger.missing, time.monotonic()
        say(f"a relay stands still for {LEASE + told.seconds:g} s")
        (other,) = [each for each in two if each is not victim]
        try:
            await until(lambda: AT_WORK in other.said, "the other one", LEASE + 15)
        except TimeoutError:
            for sql in LOOKS:
                say(here.server.run(sql))
            say(other.said)
            raise
        taken_after = round(time.monotonic() - began, 1)
        await asyncio.sleep(max(0.0, began + LEASE + told.seconds - time.monotonic()))
        before = len(lines(victim))
        victim.send(signal.SIGCONT)
        await writing
        counts = await ended(here, 60)
        await quiet(here.engine)
        found = {
            "stood_still": LEASE + told.seconds,
            "on_its_way": on_its_way,
            "taken_after": taken_after,
            "epochs": [epoch, await here.epoch()],
            "said_by_it": lines(victim)[before:],
            **counts,
        }
    return found, sound(counts) and found["epochs"] == [epoch, epoch + 1]


# --- an old snapshot -----------------------------------------------------------------------------------------------


async def snapshot(told: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Relay rows beside a reader that keeps an old snapshot, and without one, in turns."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    async with place() as here:
        router = Router("ledger")

        @router.on(Written)
        async def take(entry: Written) -> None: ...

        async with Bus(here.node.url, router):
            await here.node.asettle()
        for held in (False, True, True, False, False, True):
            rates[held].append(await rate(here, told.rows, held=held))
            say(f"{'beside a snapshot' if held else 'alone'}: {rates[held][-1]:,.0f} a second")
    alone, beside = median(rates[False]), median(rates[True])
    found = {"rows": told.rows, "alone": rates[False], "beside": rates[True], "ratio": round(beside / alone, 2)}
    return found, beside >= 0.8 * alone


async def rate(here: Place, rows: int, *, held: bool) -> float:
    """Return how many rows a second are relayed, the second time that so many are: then dead ones stand before them."""
    async with here.engine.connect() as connection:
        if not held:
            await vacuum(here)
        else:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            await connection.execute(text("SELECT count(*) FROM rabbitevents_outbox"))
        await relayed(here, rows)
        return round(await relayed(here, rows), 1)


async def relayed(here: Place, rows: int) -> float:
    """Write rows, and relay them; return how many went a second."""
    for _ in range(rows // 1000):
        await here.write(1000, accounts=1000)
    outbox = Outbox(here.engine)
    async with Bus(here.node.url, name="relay", plugins=[outbox]):
        began = time.monotonic()
        await until(lambda: not outbox.busy(), "the rows", 600)
        took = time.monotonic() - began
    left = await here.rows()
    if left["rows"]:
        raise RuntimeError(f"left in the outbox: {left}")
    await here.node.aeval("[rabbit_amqqueue:purge(Q) || Q <- rabbit_amqqueue:list()], ok")
    return rows / took


async def vacuum(here: Place) -> None:
    """Remove dead rows, as time would."""
    await asyncio.to_thread(here.server.run, "VACUUM rabbitevents_outbox")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


WAYS: Final = {"broker": (broker, 1800.0), "database": (database, 60.0), "suspended": (suspended, 60.0)}
ALL: Final = {**WAYS, "snapshot": (snapshot, 0.0)}


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.outlasted")
    parser.add_argument("what", choices=sorted(ALL))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rows", type=int, default=100_000)
    told = parser.parse_args()
    run, seconds = ALL[told.what]
    told.seconds = seconds if told.seconds is None else told.seconds
    async with asyncio.timeout(told.seconds * 3 + 1800):
        found, holds = await run(told)
    print(json.dumps({"what": told.what, "holds": holds, **found}, indent=1))
    return 0 if holds else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.exit(asyncio.run(main()))
