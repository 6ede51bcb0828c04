"""The databases that there are, what goes wrong with them, and how SQLite is set up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import ConfigurationError
from rabbitevents.texts import cut, printable, text_of

Backend = Literal["postgresql", "sqlite"]
"""The databases whose SQL is known here."""


def _let_through() -> tuple[type[Exception], ...]:
    """Return what asyncpg raises where it cannot connect: SQLAlchemy has its own words for that since 2.1."""
    if not sqlalchemy.__version__.startswith("2.0.") or find_spec("asyncpg") is None:
        return ()
    asyncpg = import_module("asyncpg")
    return (asyncpg.PostgresError, asyncpg.InterfaceError)


AWAY: Final[tuple[type[Exception], ...]] = (DBAPIError, PoolTimeoutError, OSError, TimeoutError, *_let_through())
"""What a database raises that cannot be reached, does not answer, or does not do as it is told."""

BUSY: Final = 30_000
"""Milliseconds for which a connection to SQLite waits until another one has written."""


def backend_of(engine: AsyncEngine | Engine) -> Backend:
    """Return which database an engine leads to. Raises `ConfigurationError` for one that is not known here.

    :param engine: An engine, async or not.
    """
    name = engine.dialect.name
    if name not in ("postgresql", "sqlite"):
        raise ConfigurationError(f"the engine leads to {name}: rabbitevents has its tables on PostgreSQL or SQLite")
    return "postgresql" if name == "postgresql" else "sqlite"


_TURNS: WeakKeyDictionary[Engine, asyncio.Lock] = WeakKeyDictionary()


def turn_of(engine: AsyncEngine | Engine) -> AbstractAsyncContextManager[Any]:
    """Return what is entered to use a database: SQLite has one writer, and those of this process take turns here.

    At its own lock each would sleep in a thread, up to 0.1 s at a time. PostgreSQL lets everybody in. Who has a turn and asks
    for another one waits for ever; reading needs none.

    :param engine: The engine that the others have too, and not one that `execution_options` made of it.
    """
    sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if backend_of(sync) != "sqlite":
        return nullcontext()
    return _TURNS.setdefault(sync, asyncio.Lock())


def short_turn_of(engine: AsyncEngine) -> AbstractAsyncContextManager[Any]:
    """Return `turn_of` for what may be called, by mistake, while its caller has the turn: it waits as long as `BUSY` says.

    Then it goes on without, and SQLite says that it is locked, as it does to whoever takes no turns.

    :param engine: As for `turn_of`.
    """
    turn = turn_of(engine)
    return _in_time(turn) if isinstance(turn, asyncio.Lock) else turn


@asynccontextmanager
async def _in_time(turn: asyncio.Lock) -> AsyncGenerator[None]:
    async with AsyncExitStack() as stack:
        with suppress(TimeoutError):
            async with asyncio.timeout(BUSY / 1000):
                await stack.enter_async_context(turn)
        yield


def where(engine: AsyncEngine | Engine) -> str:
    """Name a database for errors, without a password.

    :param engine: The engine that leads to it.
    """
    return engine.url.render_as_string(hide_password=True)


def reason(error: BaseException) -> str:
    """Say why a database did not do as it was told, in a line without values and statements.

    :param error: What it raised, or what stands for that.
    """
    original = getattr(error, "orig", None)
    said = text_of(original if original is not None else error).strip().splitlines()
    unsaid = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return printable(cut(said[0] if said else unsaid, 200))


def prepare_sqlite(engine: AsyncEngine | Engine) -> None:
    """Set an engine up for SQLite: to be called once, before its first connection.

    A transaction takes its turn to write when it begins (``BEGIN IMMEDIATE``), waiting up to 30 s; readers do not wait
    (WAL). Without it a transaction that reads and then writes fails at once where another one has written meanwhile.

    :param engine: An engine for SQLite, async or not.
    """
    if backend_of(engine) != "sqlite":
        raise ConfigurationError("prepare_sqlite() takes an engine for SQLite")
    sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine

    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    def begun(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(sync, "connect", connected)
    event.listen(sync, "begin", begun)
