"""On SQLite, which has one writer, appends in transactions of their own take turns with others of their process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rabbitevents_eventstore import ANY, NEW, EventStore
from rabbitevents_sql import databases, turn_of
from tests.shop import OrderPlaced, eventually
from tests.test_eventstore import OrderNoted, payloads, store_on, versions


@pytest.fixture
async def store(sqlite_engine: AsyncEngine) -> EventStore:
    return await store_on(sqlite_engine)


async def test_an_append_waits_for_its_turn_and_not_at_the_database(store: EventStore) -> None:
    turn = turn_of(store.engine)
    assert isinstance(turn, asyncio.Lock)

    async with turn:
        appending = asyncio.create_task(store.append("order", "42", [OrderPlaced("42")], expected=NEW))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(appending), 0.2)
        async with store.engine.begin():
            pass  # it has not begun: nobody holds SQLite's own lock
    await appending

    assert await versions(store) == [1]
    assert not turn.locked()


async def test_appends_at_once_are_each_there(store: EventStore) -> None:
    await asyncio.gather(*(store.append("order", f"{n}", [OrderPlaced(f"{n}")], expected=NEW) for n in range(20)))
    await asyncio.gather(*(store.append("order", "7", [OrderNoted(f"{n}")], expected=ANY) for n in range(5)))

    assert len(await payloads(store.read())) == 25
    assert await versions(store, "7") == [1, 2, 3, 4, 5, 6]


async def test_one_that_is_cancelled_while_it_waits_leaves_the_turn_to_others(store: EventStore) -> None:
    turn = turn_of(store.engine)
    assert isinstance(turn, asyncio.Lock)
    async with turn:
        waiting = [
            asyncio.create_task(store.append("order", f"{n}", [OrderPlaced(f"{n}")], expected=NEW)) for n in (1, 2)
        ]
        await asyncio.sleep(0)
        waiting[0].cancel()

    await asyncio.gather(*waiting, return_exceptions=True)

    assert (await versions(store, "1"), await versions(store, "2")) == ([], [1])
    await eventually(lambda: not turn.locked(), "nobody has the turn", 5)


async def test_one_that_its_own_caller_keeps_from_its_turn_fails_as_sqlite_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "BUSY", 100)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/events.db")
    databases.prepare_sqlite(engine)
    store = await store_on(engine)

    async with turn_of(engine), AsyncSession(engine) as session, session.begin():
        await store.append("order", "42", [OrderPlaced("42")], expected=NEW, session=session)
        with pytest.raises(OperationalError, match="database is locked"):
            await store.append("order", "43", [OrderPlaced("43")], expected=NEW)  # and not session=session

    assert await versions(store) == [1]
    await engine.dispose()
