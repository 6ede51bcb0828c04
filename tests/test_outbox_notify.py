"""NOTIFY wakes the relay of another process after a commit; what it does not say, the poll finds."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from rabbitevents import ConfigurationError
from rabbitevents.testing import running
from rabbitevents_outbox import Outbox, Tables, notify
from rabbitevents_outbox.notify import Channel
from tests.bed.pgbouncer import PgBouncer
from tests.bed.postgres import PostgresServer
from tests.shop import eventually
from tests.test_outbox import OrderPriced, Shop, shop
from tests.test_outbox_trouble import wait_for

SELDOM = 600.0
"""Seconds between two polls, and a tenth where one found something: what comes sooner was not found by one. All rows are
read every 10 s, though: of `SEVERAL`, one after the other, few are found by that."""

SEVERAL = 5

WRITER = """
import asyncio, sys
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from rabbitevents_outbox import Outbox
from tests.test_outbox import OrderPriced

async def main():
    engine = create_async_engine(sys.argv[1])
    outbox = Outbox(engine, relay=False, wake="notify")
    for line in sys.stdin:
        async with async_sessionmaker(engine).begin() as session:
            await outbox.publish(session, OrderPriced("o-1", int(line)))
        await asyncio.sleep(0.1)  # a service stays; what a script leaves behind at once is polled for

asyncio.run(main())
"""


@asynccontextmanager
async def database(postgres: PostgresServer, driver: str = "asyncpg") -> AsyncGenerator[AsyncEngine]:
    engine = create_async_engine(postgres.url(driver, database=postgres.database()))
    await Tables().create(engine)
    yield engine
    await engine.dispose()


async def listeners(engine: AsyncEngine) -> list[int]:
    """Return the processes of the server on whose connection the last thing was to listen."""
    async with engine.connect() as connection:
        asked = "SELECT pid FROM pg_stat_activity WHERE query ILIKE 'LISTEN %' AND datname = current_database()"
        return [pid for (pid,) in await connection.execute(text(asked))]


async def listening(engine: AsyncEngine, but: int = 0) -> int:
    """Wait until somebody listens, who is not ``but``, and return the process."""
    found: list[int] = []

    async def others() -> list[int]:
        found[:] = [pid for pid in await listeners(engine) if pid != but]
        return found

    await wait_for(others, bool, "a listener")
    return found[0]


async def came(here: Shop, number: int) -> None:
    await eventually(lambda: len(here.got) >= number, "the event", 20)


async def come_soon(here: Shop, writer: Outbox, engine: AsyncEngine) -> None:
    """Write several events, each when the one before it has come; fail where they come as seldom as polls do."""
    began = len(here.got)
    async with asyncio.timeout(10 * (SEVERAL - 2)):
        for n in range(SEVERAL):
            async with async_sessionmaker(engine).begin() as session:
                await writer.publish(session, OrderPriced("o-1", n))
            await came(here, began + n + 1)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_what_another_process_commits_is_relayed_long_before_a_poll(
    postgres: PostgresServer, driver: str
) -> None:
    async with database(postgres, driver) as engine, shop(engine, poll=SELDOM, wake="notify") as (here, _, _sessions):
        await listening(engine)
        url = engine.url.render_as_string(hide_password=False)
        command = (sys.executable, "-c", WRITER, url)
        writer = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        assert writer.stdin is not None

        async with asyncio.timeout(10 * (SEVERAL - 2)):
            for n in range(SEVERAL):
                writer.stdin.write(f"{n}\n".encode())
                await came(here, n + 1)

        writer.stdin.close()
        assert await writer.wait() == 0
    assert here.prices == list(range(SEVERAL))


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_listener_whose_connection_is_ended_is_made_anew(
    postgres: PostgresServer, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with database(postgres, driver) as engine:
        writer = Outbox(engine, relay=False, wake="notify")
        async with shop(engine, poll=SELDOM, wake="notify") as (here, _probe, _sessions):
            first = await listening(engine)
            postgres.run(f"SELECT pg_terminate_backend({first})")
            async with async_sessionmaker(engine).begin() as session:
                await writer.publish(session, OrderPriced("o-1", -1))

            second = await listening(engine, but=first)
            await eventually(lambda: len(here.got) == 1, "what was written meanwhile", 20)
            await come_soon(here, writer, engine)

    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    said = [each for each in warned if "NOTIFY" in each]
    assert second != first
    assert len(said) == 1
    assert "polls only, until NOTIFY is heard again" in said[0]


async def test_a_listener_that_hears_nothing_is_given_up_and_the_poll_goes_on(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    name = postgres.database()
    with PgBouncer.before(postgres, name) as url:
        there = make_url(url).set(drivername="postgresql+psycopg")
        engine = create_async_engine(there, poolclass=NullPool, connect_args={"prepare_threshold": None})
        await Tables().create(engine)
        busy = [await engine.connect() for _ in range(2)]
        async with shop(engine, wake="notify") as (here, _probe, sessions):
            await eventually(lambda: "polls only" in caplog.text, "the warning", 20)
            async with sessions.begin() as session:
                await here.outbox.publish(session, OrderPriced("o-1", 1))

            await eventually(lambda: here.prices == [1], "the event", 20)
        for each in busy:
            await each.close()
        await engine.dispose()
    assert "through pgbouncer in transaction mode none does" in caplog.text


@asynccontextmanager
async def overhearing(engine: AsyncEngine) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    """A connection of the test's own that listens where relays do."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as hears:
        await hears.execute(SQL("LISTEN {}").format(Identifier(Channel(engine, Tables()).name)))
        yield hears


async def test_however_many_commits_there_are_a_process_tells_once_in_a_while(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "PAUSE", 0.3)  # in place of 10 ms, which a NOTIFY may take on a busy machine
    async with database(postgres) as engine, overhearing(engine) as hears:
        writer, sessions = Outbox(engine, relay=False, wake="notify"), async_sessionmaker(engine)
        began = asyncio.get_running_loop().time()
        for n in range(100):
            async with sessions.begin() as session:
                await writer.publish(session, OrderPriced("o-1", n))
        took = asyncio.get_running_loop().time() - began

        heard = [each async for each in hears.notifies(timeout=1.0)]

    assert 2 <= len(heard) <= took / 0.3 + 2


async def test_what_is_rolled_back_tells_nobody(postgres: PostgresServer) -> None:
    async with database(postgres) as engine, overhearing(engine) as hears:
        async with async_sessionmaker(engine)() as session:
            await session.begin()
            await Outbox(engine, relay=False, wake="notify").publish(session, OrderPriced("o-1", 1))
            await session.rollback()

        assert [each async for each in hears.notifies(timeout=0.5)] == []


async def test_a_process_that_relays_itself_tells_nobody(postgres: PostgresServer) -> None:
    async with (
        database(postgres) as engine,
        overhearing(engine) as hears,
        shop(engine, wake="notify") as (here, probe, sessions),
    ):
        await listening(engine)
        await eventually(lambda: not here.outbox.busy(), "the relay")
        async with sessions.begin() as session:
            await here.outbox.publish(session, OrderPriced("o-1", 1))
        await probe.settled()

        heard = [each.payload async for each in hears.notifies(timeout=0.5)]

    assert "" not in heard  # what it sends is its own probe


async def test_a_thread_of_a_service_tells_too(postgres: PostgresServer) -> None:
    async with database(postgres) as engine, shop(engine, poll=SELDOM, wake="notify") as (here, _probe, _sessions):
        await listening(engine)
        writing = Shop(Outbox(engine, relay=False, wake="notify"))  # a bus that runs, so that its threads have a loop
        plain = create_engine(engine.url.set(drivername="postgresql+psycopg"))

        def write(n: int) -> None:
            with Session(plain) as session, session.begin():
                writing.outbox.write(session, OrderPriced("o-1", n))

        async with running(writing.bus), asyncio.timeout(10 * (SEVERAL - 2)):
            for n in range(SEVERAL):
                thread = threading.Thread(target=write, args=(n,))
                thread.start()
                await asyncio.to_thread(thread.join)
                await came(here, n + 1)
        plain.dispose()


async def test_sqlite_has_no_notify(sqlite_engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match="wake='notify' needs PostgreSQL, SQLite has no NOTIFY: leave it out"):
        Outbox(sqlite_engine, wake="notify")


async def test_a_way_to_wake_that_there_is_not_is_named(sqlite_engine: AsyncEngine) -> None:
    wake: Any = "listen"

    with pytest.raises(ConfigurationError, match="Outbox: wake"):
        Outbox(sqlite_engine, wake=wake)
