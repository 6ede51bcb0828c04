"""What is appended is read: each committed event once, in order, by every reader, whoever holds what open meanwhile.

``python -m tests.appended [--writers 10 --appends 100 --events 100 --sqlite]``: writers that hold their transactions for a
while and roll back three of ten, and two readers that follow. It says what it counted, and ends with 1 where a promise was
broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any, cast

import msgspec
from attrs import frozen
from sqlalchemy import QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rabbitevents import event
from rabbitevents_eventstore import ANY, EventStore, Stored
from rabbitevents_sql import prepare_sqlite, turn_of
from tests.bed.postgres import PostgresServer
from tests.shop import eventually

ACCOUNTS = 20


@event("account.moved", entity="account", key="account")
@frozen
class Moved:
    account: str
    number: int


class Counts(msgspec.Struct):
    """What was counted."""

    committed: int = 0
    rolled_back: int = 0
    holes: int = 0
    lost: int = 0
    unexpected: int = 0
    doubled: int = 0
    inversions: int = 0
    out_of_version: int = 0
    late: float = 0.0
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        """How many promises were broken."""
        return self.lost + self.unexpected + self.doubled + self.inversions + self.out_of_version


async def write(
    store: EventStore, appends: int, events: int, hold: float, kept: dict[int, Any], counts: Counts
) -> None:
    """Append, hold the transaction open for a while, and commit, or not.

    On SQLite the writers take turns: at its one lock whoever has waited for long looks seldom, those who come look often, and
    on a slow machine one of them got there no more within the 30 s that it waits.
    """
    for _ in range(appends):
        account = f"a-{random.randrange(ACCOUNTS)}"
        moved = [Moved(account, random.getrandbits(60)) for _ in range(random.randint(1, events))]
        async with turn_of(store.engine), AsyncSession(store.engine) as session, session.begin() as transaction:
            appended = await store.append("account", account, moved, expected=ANY, session=session)
            await asyncio.sleep(random.random() * hold)
            if random.random() < 0.3:
                await transaction.rollback()
                counts.rolled_back += len(appended)
                continue
        kept.update({each.position: each.event.id for each in appended})


async def follow(store: EventStore, got: list[Stored[Any]]) -> None:
    """Note what comes, as it comes."""
    async for each in store.read(live=True):
        got.append(each)  # noqa: PERF401 - each as it comes


def judge(kept: dict[int, Any], got: list[Stored[Any]], counts: Counts) -> None:
    """Compare what a reader got with what was committed."""
    seen = {each.position: each.event.id for each in got}
    counts.doubled += len(got) - len(seen)
    counts.lost += len(kept.keys() - seen.keys())
    counts.unexpected += sum(1 for position, id in seen.items() if kept.get(position) != id)
    counts.inversions += sum(1 for one, other in pairwise(got) if one.position >= other.position)
    versions: dict[str | None, int] = {}
    for each in got:
        before = versions.get(each.event.entity_id, 0)
        counts.out_of_version += each.version != before + 1
        versions[each.event.entity_id] = each.version


async def appended(engine: AsyncEngine, *, writers: int, appends: int, events: int, hold: float) -> Counts:
    """Let writers write and two readers follow, and count."""
    store, other = EventStore(engine, events=[Moved]), EventStore(engine, events=[Moved])
    await store.tables.create(engine)
    counts, kept, began = Counts(), dict[int, Any](), time.monotonic()
    got: tuple[list[Stored[Any]], list[Stored[Any]]] = ([], [])
    readers = [asyncio.create_task(follow(store, got[0])), asyncio.create_task(follow(other, got[1]))]
    await asyncio.gather(*(write(store, appends, events, hold, kept, counts) for _ in range(writers)))
    written = time.monotonic()
    while min(map(len, got)) < len(kept) and time.monotonic() < written + 30:
        await asyncio.sleep(0.01)
        for each in readers:
            if each.done():
                each.result()
    counts.late = round(time.monotonic() - written, 3)
    for each in readers:
        each.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    # SQLAlchemy gives back the connection of one that is cancelled in a task of its own.
    await eventually(lambda: cast("QueuePool", engine.pool).checkedout() == 0, "connections to be given back")
    for one in got:
        judge(kept, one, counts)
    counts.committed = len(kept)
    counts.holes = max(kept, default=0) - len(kept)
    counts.seconds = round(time.monotonic() - began, 1)
    return counts


async def _run(told: argparse.Namespace) -> Counts:
    sizes = {"writers": told.writers, "appends": told.appends, "events": told.events, "hold": told.hold}
    if told.sqlite:
        with tempfile.TemporaryDirectory() as folder:
            engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/appended.db")
            prepare_sqlite(engine)
            try:
                return await appended(engine, **sizes)
            finally:
                await engine.dispose()
    with PostgresServer() as server:
        engine = create_async_engine(server.url(), pool_size=told.writers + 10)
        try:
            return await appended(engine, **sizes)
        finally:
            await engine.dispose()


def main() -> int:
    """Run it as it is told."""
    parser = argparse.ArgumentParser(prog="python -m tests.appended", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--writers", type=int, default=10)
    parser.add_argument("--appends", type=int, default=100)
    parser.add_argument("--events", type=int, default=100, help="at most, in one append")
    parser.add_argument("--hold", type=float, default=0.2, help="seconds for which a transaction is held, at most")
    parser.add_argument("--sqlite", action="store_true")
    counts = asyncio.run(_run(parser.parse_args()))
    print(json.dumps(msgspec.to_builtins(counts)))
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
