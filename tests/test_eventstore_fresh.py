"""What a process has appended itself is applied by its projections at once; what others append is not passed over by that."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rabbitevents_eventstore import ANY, EventStore
from rabbitevents_eventstore.fresh import MOST, Fresh
from rabbitevents_eventstore.watermark import Watermark
from tests.bed.postgres import PostgresServer
from tests.projected import EVENTS, Moved, applied_to, batch, made, single
from tests.shop import eventually
from tests.test_projections import append, live, projecting, until_status


@contextmanager
def statements(engine: AsyncEngine) -> Generator[list[str]]:
    """Keep what is said to the database."""
    said: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: Any) -> None:
        said.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield said
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def until(store: EventStore, position: int) -> None:
    """Wait until the projection is there, and until whoever does that has noted it."""
    await store.caught_up("totals", position, timeout=60)


async def test_what_was_appended_here_is_not_read_again(postgres_engine: AsyncEngine) -> None:
    store = await made(postgres_engine)
    async with projecting(store, single):
        await until(store, (await append(store, 1))[-1])
        with statements(postgres_engine) as said:
            appended = [(await append(store, amount))[-1] for amount in range(5)]
            await until(store, appended[-1])

    # A look that falls between a commit and its being known here reads that one event.
    assert len([each for each in said if "rabbitevents_events.body" in each]) < len(appended)


async def test_what_others_append_in_between_is_applied_too(engine: AsyncEngine) -> None:
    store, other = await made(engine), EventStore(engine, events=EVENTS)

    async def write(store: EventStore, account: str) -> list[int]:
        return [(await append(store, amount, account=account))[-1] for amount in range(40)]

    async with projecting(store, single):
        appended = await asyncio.gather(write(store, "a"), write(other, "b"), write(store, "c"))
        await until(store, max(map(max, appended)))

    assert await applied_to(engine) == sorted(chain(*appended))


async def test_what_is_read_again_for_more_than_is_kept_is_the_same(engine: AsyncEngine) -> None:
    store = await made(engine)
    async with projecting(store, batch):
        appended = [await append(store, *range(90)) for _ in range(2 * MOST // 90 + 2)]
        await until(store, appended[-1][-1])

    assert await applied_to(engine) == list(chain(*appended))


async def test_what_a_savepoint_took_back_is_not_applied(engine: AsyncEngine) -> None:
    store = await made(engine)
    async with projecting(store, single):
        async with AsyncSession(engine) as session, session.begin():
            savepoint = await session.begin_nested()
            await store.append("account", "a", [Moved("a", 1)], expected=ANY, session=session)
            await savepoint.rollback()
            (kept,) = await store.append("account", "b", [Moved("b", 2)], expected=ANY, session=session)
        last = (await append(store, 3))[-1]
        await until(store, last)

    assert await applied_to(engine) == [kept.position, last]


async def test_an_append_that_is_held_open_is_waited_for_by_those_of_this_process_too(
    postgres_engine: AsyncEngine,
) -> None:
    store = await made(postgres_engine)
    async with projecting(store, single):
        first = (await append(store, 1))[-1]
        await until(store, first)
        async with AsyncSession(postgres_engine) as session, session.begin():
            (held,) = await store.append("account", "h", [Moved("h", 1)], expected=ANY, session=session)
            after = (await append(store, 2))[-1]
            with statements(postgres_engine) as said:
                await eventually(
                    lambda: len([each for each in said if "pg_locks" in each]) > 1, "a look at who appends"
                )
            assert (await live(store)).position == first
        await until(store, after)

    assert await applied_to(postgres_engine) == [first, held.position, after]


async def test_commits_that_the_database_has_lost_are_not_applied_from_memory(postgres_engine: AsyncEngine) -> None:
    """As a server does to which one fails over: its last commits are gone, those of projections too."""
    store = await made(postgres_engine)
    async with projecting(store, single):
        appended = [(await append(store, amount))[-1] for amount in range(3)]
        await until(store, appended[-1])
        async with postgres_engine.begin() as connection:
            await connection.execute(text("SELECT 1 FROM rabbitevents_projections FOR UPDATE"))
            await connection.execute(text("DELETE FROM rabbitevents_events WHERE position > 1"))
            await connection.execute(text("DELETE FROM applied WHERE position > 1"))
            await connection.execute(
                text("SELECT setval(pg_get_serial_sequence('rabbitevents_events', 'position'), 1)")
            )
            await connection.execute(text("UPDATE rabbitevents_projections SET position = 1, owner = NULL"))
        await until_status(store, "stopped")

    assert await applied_to(postgres_engine) == [1]


async def test_what_a_crash_of_the_server_took_of_a_projection_is_applied_again() -> None:
    """Its commits do not wait for the disk; here the server would write them only after ten seconds."""
    with PostgresServer(wal_writer_delay="10s") as server:
        engine = create_async_engine(server.url())
        store = await made(engine)
        async with projecting(store, single):
            appended = await append(store, *range(10))
            await until(store, appended[-1])
            await server.akill()
            await server.astart()
            appended += await append(store, *range(10))
            await until(store, appended[-1])

        assert await applied_to(engine) == appended
        await engine.dispose()


async def test_a_wake_between_a_look_and_a_rest_is_not_missed(engine: AsyncEngine) -> None:
    watermark = (await made(engine)).watermark
    waking = watermark.waking
    await watermark.look()
    watermark.wake()

    async with asyncio.timeout(30):
        await watermark.rest(waking, 60)


def test_a_look_that_was_overtaken_by_a_commit_takes_nothing_back(sqlite_engine: AsyncEngine) -> None:
    watermark = Watermark(sqlite_engine, EventStore(sqlite_engine, events=EVENTS).tables, 1, lambda _: None)

    followed = [watermark.committed(first, last, count) for first, last, count in [(1, 2, 2), (3, 3, 1), (5, 5, 1)]]

    assert followed == [True, True, False]  # 4 may be somebody else's
    assert (watermark.value, watermark.last, watermark.news) == (3, 5, 3)


def rows(first: int, last: int) -> list[dict[str, int]]:
    return [{"position": position} for position in range(first, last + 1)]


def test_fresh_rows_are_given_only_where_none_is_missing() -> None:
    fresh = Fresh()
    fresh.is_wanted = True
    fresh.add(11, rows(11, 12))
    fresh.add(13, rows(13, 13))

    assert fresh.between(10, 13) == rows(11, 13)
    assert fresh.between(11, 12) == rows(12, 12)
    assert fresh.between(13, 13) == []
    assert fresh.between(9, 13) is None  # what is behind 9 is not here
    assert fresh.between(12, 14) is None
    fresh.add(20, rows(20, 20))
    assert fresh.between(12, 20) is None
    assert fresh.between(19, 20) == rows(20, 20)


def test_fresh_rows_are_few_and_none_where_nobody_follows() -> None:
    fresh, idle = Fresh(), Fresh()
    fresh.is_wanted = True
    for position in range(1, 5 * MOST):
        fresh.add(position, rows(position, position))
        idle.add(position, rows(position, position))

    assert fresh.between(5 * MOST - 1 - MOST, 5 * MOST - 1) == rows(4 * MOST, 5 * MOST - 1)
    assert fresh.between(2 * MOST, 5 * MOST - 1) is None
    assert idle.between(5 * MOST - 2, 5 * MOST - 1) is None
