"""NOTIFY wakes the projections of other processes after a commit; what it does not say, a look finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rabbitevents import ConfigurationError
from rabbitevents_eventstore import ANY, EventStore, following
from tests.bed.postgres import PostgresServer
from tests.projected import EVENTS, Moved, applied_to, engine_of, made, single
from tests.test_outbox_notify import listening
from tests.test_projections import append, projecting

SELDOM = 600.0
"""Seconds between two looks: what comes sooner was not found by one."""

DRIVERS = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@asynccontextmanager
async def two(postgres: PostgresServer, driver: str = "asyncpg") -> AsyncGenerator[tuple[EventStore, EventStore]]:
    """Two stores on one database, each with connections of its own, as two processes have them."""
    url = postgres.url(driver, database=postgres.database())
    reads, writes = engine_of(url), create_async_engine(url)
    yield await made(reads, wake="notify"), EventStore(writes, events=EVENTS, wake="notify")
    for engine in (reads, writes):
        await engine.dispose()


async def seldom(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what follows look by itself no more, once it has caught up."""
    for name in ("OFTEN", "SELDOM", "AT_HOME"):
        monkeypatch.setattr(following, name, SELDOM)
    await store.caught_up("totals", (await append(store, 0))[-1], timeout=60)


@DRIVERS
async def test_what_another_process_appends_is_applied_long_before_a_look(
    postgres: PostgresServer, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(postgres, driver) as (here, there), projecting(here, single):
        await listening(here.engine)
        await seldom(here, monkeypatch)

        for amount in range(5):
            await here.caught_up("totals", (await append(there, amount))[-1], timeout=60)

        assert await applied_to(here.engine) == [1, 2, 3, 4, 5, 6]


async def test_a_transaction_tells_once_it_has_committed(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(postgres) as (here, there), projecting(here, single):
        await listening(here.engine)
        await seldom(here, monkeypatch)
        async with AsyncSession(there.engine) as session, session.begin():
            appended = await there.append("account", "b", [Moved("b", 1)], expected=ANY, session=session)

        await here.caught_up("totals", appended[-1].position, timeout=60)


async def test_a_listener_whose_connection_is_ended_is_made_anew_and_looks_for_what_it_missed(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(postgres) as (here, there), projecting(here, single):
        first = await listening(here.engine)
        await seldom(here, monkeypatch)
        await asyncio.to_thread(postgres.run, f"SELECT pg_terminate_backend({first})")
        missed = await append(there, 1)
        await listening(here.engine, but=first)

        await here.caught_up("totals", missed[-1], timeout=60)
        await here.caught_up("totals", (await append(there, 2))[-1], timeout=60)

    assert "who follows rabbitevents_events in postgresql" in caplog.text
    assert "polls only, until NOTIFY is heard again" in caplog.text


async def test_sqlite_has_no_notify(sqlite_engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match="EventStore: wake='notify' needs PostgreSQL, SQLite has no NOTIFY"):
        EventStore(sqlite_engine, events=EVENTS, wake="notify")


async def test_a_way_to_wake_that_there_is_not_is_named(sqlite_engine: AsyncEngine) -> None:
    wake: Any = "listen"

    with pytest.raises(ConfigurationError, match="EventStore: wake"):
        EventStore(sqlite_engine, events=EVENTS, wake=wake)
