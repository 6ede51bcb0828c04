"""What projections make of events is right: their processes are killed meanwhile, and everything is counted.

``python -m tests.projected [--kills 100 --events 20000 --sqlite --batch]``: a writer, and processes with a projection of one
name, of which one after the other is killed with -9. It says what it counted, and ends with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from attrs import frozen
from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rabbitevents import Bus, event
from rabbitevents_eventstore import ANY, EventStore, Projection, Projections, Stored, projection
from rabbitevents_outbox import prepare_sqlite
from tests.bed.postgres import PostgresServer
from tests.committed import Process

ACCOUNTS = 20
BACKLOG = 500
"""How far the writer may be ahead, so that at the end there is little to wait for."""


@event("account.moved", entity="account", key="account")
@frozen
class Moved:
    account: str
    amount: int


@event("account.closed", entity="account", key="account")
@frozen
class Closed:
    account: str


EVENTS = [Moved, Closed]


class Base(DeclarativeBase):
    pass


class Total(Base):
    """What the events of an account come to: nothing in it tells that an event was applied twice, but its numbers."""

    __tablename__ = "totals"
    account: Mapped[str] = mapped_column(primary_key=True)
    events: Mapped[int]
    amount: Mapped[int]


class Applied(Base):
    """Each event that was applied, as often as it was."""

    __tablename__ = "applied"
    id: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int]


async def add(session: AsyncSession, totals: dict[str, tuple[int, int]]) -> None:
    """Add numbers of events and amounts to accounts."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    new = (insert_sqlite if is_sqlite else insert_postgresql)(Total)
    rows = [{"account": account, "events": n, "amount": amount} for account, (n, amount) in totals.items()]
    changed = {"events": Total.events + new.excluded.events, "amount": Total.amount + new.excluded.amount}
    await session.execute(new.values(rows).on_conflict_do_update(index_elements=["account"], set_=changed))


@projection("totals", tables=[Total, Applied])
async def single(event: Stored[Moved], session: AsyncSession) -> None:
    await add(session, {event.payload.account: (1, event.payload.amount)})
    session.add(Applied(position=event.position))


@projection("totals", tables=[Total, Applied])
async def batch(events: list[Stored[Moved]], session: AsyncSession) -> None:
    numbers, amounts = Counter[str](), Counter[str]()
    for each in events:
        numbers[each.payload.account] += 1
        amounts[each.payload.account] += each.payload.amount
    await add(session, {account: (number, amounts[account]) for account, number in numbers.items()})
    await session.execute(insert(Applied), [{"position": each.position} for each in events])


def engine_of(url: str) -> AsyncEngine:
    """Return an engine; for SQLite, one that is set up."""
    engine = create_async_engine(url)
    if engine.dialect.name == "sqlite":
        prepare_sqlite(engine)
    return engine


async def made(engine: AsyncEngine, **told: Any) -> EventStore:
    """Make the tables, and return the store."""
    store = EventStore(engine, events=EVENTS, **told)
    await store.tables.create(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return store


async def totals_of(engine: AsyncEngine) -> dict[str, tuple[int, int]]:
    """Return events and amount of each account, as the projection has them."""
    async with engine.connect() as connection:
        rows = await connection.execute(select(Total.account, Total.events, Total.amount))
        return {row.account: (row.events, row.amount) for row in rows}


async def applied_to(engine: AsyncEngine) -> list[int]:
    """Return the positions of what was applied, in the order in which it was."""
    async with engine.connect() as connection:
        return list((await connection.execute(select(Applied.position).order_by(Applied.id))).scalars())


class Counts(msgspec.Struct):
    """What was counted."""

    events: int = 0
    applied: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    kills: int = 0
    hits: int = 0
    """Kills while it was getting further."""
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        """How many promises were broken."""
        return self.lost + self.doubled + self.wrong


async def write(store: EventStore, events: int, kept: list[int], done: asyncio.Event) -> None:
    """Append until there are enough, and it is done."""
    while len(kept) < events or not done.is_set():
        account = f"a-{random.randrange(ACCOUNTS)}"
        moved = [Moved(account, random.randrange(1000)) for _ in range(random.randint(1, 40))]
        appended = await store.append("account", account, moved, expected=ANY)
        kept.extend(each.position for each in appended)
        while kept[-1] - await _position(store) > BACKLOG and not done.is_set():  # noqa: ASYNC110 - of the projection, no event tells
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.02)


async def projected(url: str, *, events: int, kills: int, batch: bool, pause: float = 0.3) -> Counts:
    """Let a writer write and two processes project, of which one is killed again and again; count."""
    engine, counts, began = engine_of(url), Counts(), time.monotonic()
    store, kept, done = await made(engine), list[int](), asyncio.Event()
    command = [sys.executable, "-m", "tests.projected", "--serve", url, *(["--batch"] if batch else [])]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = [Process(command, dict(os.environ), folder / f"{n}.log") for n in range(2)]
        for each in processes:
            stack.push_async_callback(each.kill)
            await each.start()
        writing = asyncio.create_task(write(store, events, kept, done))
        for _ in range(kills):
            counts.hits += await _moves(store)
            await asyncio.sleep(random.random() * pause)
            await random.choice(processes).again()
            counts.kills += 1
        done.set()
        await writing
        try:
            await store.caught_up("totals", kept[-1], timeout=120)
        except Exception:
            print(*(each.said for each in processes), sep="\n", file=sys.stderr)
            raise
        await _judge(store, kept, counts)
    counts.seconds = round(time.monotonic() - began, 1)
    return counts


async def _moves(store: EventStore) -> bool:
    """Wait until the projection gets further; say whether it did."""
    before, until = await _position(store), time.monotonic() + 10
    while await _position(store) == before:
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.01)
    return True


async def _position(store: EventStore) -> int:
    found = await store.checkpoints.live("totals")
    return 0 if found is None else found.position


async def _judge(store: EventStore, kept: list[int], counts: Counts) -> None:
    applied = await applied_to(store.engine)
    counts.events, counts.applied = len(kept), len(applied)
    counts.doubled = len(applied) - len(set(applied))
    counts.lost = len(set(kept) - set(applied))
    expected: dict[str, tuple[int, int]] = {}
    async for each in store.read():
        n, amount = expected.get(each.payload.account, (0, 0))
        expected[each.payload.account] = n + 1, amount + each.payload.amount
    totals = await totals_of(store.engine)
    counts.wrong = sum(1 for account in expected.keys() | totals.keys() if expected.get(account) != totals.get(account))
    async with store.engine.connect() as connection:
        counts.wrong += await connection.scalar(select(func.sum(Total.events))) != len(kept)


async def serve(url: str, chosen: Projection) -> None:
    """Be one of the processes, until killed."""
    store = EventStore(engine_of(url), events=EVENTS)
    async with Bus("memory://", plugins=[store, Projections(store, [chosen], lease=1)]):
        await asyncio.Event().wait()


async def _run(told: argparse.Namespace) -> Counts:
    sizes = {"events": told.events, "kills": told.kills, "batch": told.batch}
    if told.sqlite:
        with tempfile.TemporaryDirectory() as folder:
            return await projected(f"sqlite+aiosqlite:///{folder}/projected.db", **sizes)
    with PostgresServer() as server:
        return await projected(server.url(), **sizes)


def main() -> int:
    """Run it as it is told."""
    parser = argparse.ArgumentParser(prog="python -m tests.projected", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--events", type=int, default=20_000, help="at least")
    parser.add_argument("--sqlite", action="store_true")
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.serve:
        asyncio.run(serve(told.serve, batch if told.batch else single))
        return 0
    counts = asyncio.run(_run(told))
    print(json.dumps(msgspec.to_builtins(counts)))
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
