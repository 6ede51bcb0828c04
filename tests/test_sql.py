"""What the plugins on SQLAlchemy share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from sqlalchemy import URL, Column, Integer, MetaData, Table, Text, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from rabbitevents import ConfigurationError
from rabbitevents_eventstore import EventTables
from rabbitevents_outbox import Tables
from rabbitevents_process import ProcessTables
from rabbitevents_sql import AWAY, VersionedTables, after_commit, age, at, backend_of, now, reason, turn_of, where
from tests.bed.loopback import LOOPBACK


class NoteTables(VersionedTables):
    """What somebody's own plugin has."""

    number: ClassVar[int] = 3
    noted_in: ClassVar[str] = "notes_version"
    made_by: ClassVar[str] = "`make notes-{backend}`"

    def __init__(self, prefix: str = "shop_", *, schema: str | None = None, metadata: MetaData | None = None) -> None:
        super().__init__(prefix, schema=schema, metadata=metadata)
        self.notes: Table = self._table(
            "notes", Column("id", Integer, primary_key=True), Column("note", Text, index=True)
        )


@pytest.fixture
async def connection(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        yield connection


def statements(tables: VersionedTables, engine: AsyncEngine) -> list[str]:
    return [each for each in tables.sql(backend_of(engine)).split(";\n\n") if each]


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Tables, EventTables, ProcessTables, NoteTables])
@pytest.mark.parametrize("way", ["create", "sql"])
async def test_tables_that_were_made_either_way_pass_their_check(
    engine: AsyncEngine, kind: type[VersionedTables], way: str
) -> None:
    tables = kind("other_")

    if way == "create":
        await tables.create(engine)
        await tables.create(engine)  # once more does nothing
    else:
        async with engine.begin() as connection:
            for statement in statements(tables, engine):
                await connection.exec_driver_sql(statement)

    async with engine.connect() as connection:
        await connection.run_sync(tables.check, *tables.all)
        assert (await connection.execute(select(tables.version))).all() == [(tables.number,)]


@pytest.mark.parametrize("kind", [Tables, EventTables, ProcessTables, NoteTables])
async def test_all_tables_begin_with_that_of_the_version(kind: type[VersionedTables]) -> None:
    metadata = MetaData()

    tables = kind("other_", schema="past", metadata=metadata)

    assert tables.all[0] is tables.version
    assert {table.fullname for table in tables.all} == set(metadata.tables)
    assert all(table.fullname.startswith("past.other_") for table in tables.all)


async def test_a_check_says_what_is_missing_and_what_makes_it(connection: AsyncConnection) -> None:
    tables = NoteTables()

    with pytest.raises(ConfigurationError) as refused:
        await connection.run_sync(tables.check, tables.notes)

    backend = backend_of(connection.engine)
    assert str(refused.value).startswith(
        f"table 'shop_notes_version' of {where(connection.engine)} cannot be read; `make notes-{backend}` makes it: "
    )


@pytest.mark.parametrize(
    ("found", "said"), [(None, "says no version"), (2, "is of version 2"), (4, "is of version 4")], ids=str
)
async def test_a_check_says_which_version_there_is(engine: AsyncEngine, found: int | None, said: str) -> None:
    tables = NoteTables()
    await tables.create(engine)
    version = tables.version

    async with engine.begin() as connection:
        await connection.execute(delete(version) if found is None else update(version).values(version=found))

    with pytest.raises(
        ConfigurationError, match=f"'shop_notes_version' .* {said}, and this .* needs 3: bring .*make no"
    ):
        async with engine.connect() as connection:
            await connection.run_sync(tables.check)


async def test_a_check_looks_at_columns_too(engine: AsyncEngine) -> None:
    tables = NoteTables()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE shop_notes (id INTEGER PRIMARY KEY)"))
    async with engine.begin() as connection:
        await connection.run_sync(tables.version.create)
        await connection.execute(insert(tables.version).values(version=3))

    async with engine.connect() as connection:
        await connection.run_sync(tables.check)
        with pytest.raises(ConfigurationError, match=r"'shop_notes' .* cannot be read; `make notes-.*: .*note"):
            await connection.run_sync(tables.check, tables.notes)


@pytest.mark.parametrize("kind", [Tables, EventTables, ProcessTables, NoteTables])
@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"prefix": ""}, "prefix is blank"),
        ({"prefix": "x" * 41}, "prefix is longer than 40 bytes"),
        ({"prefix": None}, "prefix=None"),
        ({"schema": " "}, "schema is blank"),
    ],
    ids=str,
)
def test_a_name_that_cannot_be_is_said_by_whose_it_is(kind: Any, told: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{kind.__name__}: {said}"):
        kind(**told)


@pytest.mark.parametrize("kind", [Tables, EventTables, ProcessTables, NoteTables])
def test_sql_for_another_database_is_refused(kind: type[VersionedTables]) -> None:
    backend: Any = "mysql"
    with pytest.raises(ConfigurationError, match=f"{kind.__name__}.sql: backend='mysql': say 'postgresql' or 'sqlite'"):
        kind().sql(backend)


# --- databases -----------------------------------------------------------------------------------------------------


def test_an_engine_for_another_database_is_refused() -> None:
    class Dialect:
        name = "mysql"

    class Engine:
        dialect = Dialect()

    engine: Any = Engine()
    with pytest.raises(ConfigurationError, match=r"the engine leads to mysql: .* PostgreSQL or SQLite"):
        backend_of(engine)


async def test_the_writers_of_one_sqlite_take_turns_and_those_of_postgresql_do_not(engine: AsyncEngine) -> None:
    inside: list[int] = []
    most = 0

    async def write() -> None:
        nonlocal most
        async with turn_of(engine):
            inside.append(1)
            most = max(most, len(inside))
            await asyncio.sleep(0)
            inside.pop()

    await asyncio.gather(write(), write(), write())

    assert most == (1 if backend_of(engine) == "sqlite" else 3)


@asynccontextmanager
async def starting_postgres() -> AsyncGenerator[URL]:
    """A PostgreSQL that lets nobody in yet, as after a crash."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
        writer.write(b"E" + (len(fields) + 4).to_bytes(4) + fields)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(refuse, LOOPBACK, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield URL.create("postgresql", username="shop", host=LOOPBACK, port=port, database="shop")


@pytest.mark.parametrize(("driver", "told"), [("asyncpg", {"ssl": False}), ("psycopg", {"sslmode": "disable"})])
async def test_a_database_that_lets_nobody_in_yet_is_away(driver: str, told: dict[str, Any]) -> None:
    async with starting_postgres() as url:
        engine = create_async_engine(url.set(drivername=f"postgresql+{driver}"), connect_args=told)

        with pytest.raises(AWAY) as refusal:
            await engine.connect()

    assert "the database system is starting up" in reason(refusal.value)


async def test_a_reason_is_a_line_without_statement_and_values(connection: AsyncConnection) -> None:
    with pytest.raises(DBAPIError) as failed:
        await connection.execute(text("SELECT missing, :secret FROM nowhere"), {"secret": "hunter2"})

    said = reason(failed.value)

    assert "nowhere" in said
    assert "hunter2" not in said
    assert "SELECT" not in said


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "no answer in time"),
        (OSError("refused\nand more"), "refused"),
        (ValueError(), "ValueError"),
        (ValueError("a\x1b[2Jb"), "a\\x1b[2Jb"),
        (SpeechlessError(), "(RuntimeError in its __str__)"),
    ],
    ids=["late", "two lines", "without words", "escapes", "speechless"],
)
def test_a_reason_is_never_empty(error: Exception, said: str) -> None:
    assert reason(error) == said


def test_a_place_is_named_without_its_password() -> None:
    engine = create_async_engine("postgresql+asyncpg://shop:secret@127.0.0.1:1/shop")

    assert where(engine) == "postgresql+asyncpg://shop:***@127.0.0.1:1/shop"


# --- the clock -----------------------------------------------------------------------------------------------------


async def test_the_clock_is_the_databases(connection: AsyncConnection) -> None:
    past, here, later = at(-3600.0), now(), at(3600.0)

    found = (await connection.execute(select(past < here, here < later, age(past), age(later)))).one()

    assert (bool(found[0]), bool(found[1])) == (True, True)
    assert float(found[2]) == pytest.approx(3600, abs=1)
    assert float(found[3]) == pytest.approx(-3600, abs=1)


# --- commits -------------------------------------------------------------------------------------------------------


async def test_what_is_to_follow_a_commit_follows_that_of_its_own_transaction_once(engine: AsyncEngine) -> None:
    called: list[str] = []
    async with AsyncSession(engine) as session:
        async with session.begin():
            after_commit(session.sync_session, lambda: called.append("rolled back"))
            await session.rollback()
        async with session.begin():
            async with session.begin_nested():
                after_commit(session.sync_session, lambda: called.append("committed"))
            async with session.begin_nested():
                await session.execute(text("SELECT 1"))
            before = list(called)
        async with session.begin():
            await session.execute(text("SELECT 1"))

    assert before == []
    assert called == ["committed"]


async def test_what_is_asked_for_twice_follows_once(engine: AsyncEngine) -> None:
    called: list[None] = []

    def call() -> None:
        called.append(None)

    async with AsyncSession(engine) as session, session.begin():
        for _ in range(2):
            after_commit(session.sync_session, call)

    assert len(called) == 1
