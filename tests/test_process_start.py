"""What a bus with a process needs is looked at when it starts."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import sessionmaker

from rabbitevents import Bus, ConfigurationError
from rabbitevents.operations.wiring import wiring
from rabbitevents.testing import running
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_process import Process, ProcessTables
from tests.ordering import (
    OrderPlaced,
    fulfilling,
)
from tests.process_world import World, publish, world

# --- at start ---------------------------------------------------------------------------------------------------------


def without_inbox(engine: AsyncEngine, process: Process) -> Bus:
    return Bus("memory://", process, plugins=[Outbox(engine)])


def without_outbox(engine: AsyncEngine, process: Process) -> Bus:
    return Bus("memory://", process)


@pytest.mark.parametrize("made", [without_inbox, without_outbox])
async def test_a_bus_without_inbox_or_outbox_does_not_start(sqlite_engine: AsyncEngine, made: Any) -> None:
    process = fulfilling()
    await process.tables.create(sqlite_engine)

    with pytest.raises(ConfigurationError, match=r"process 'fulfilment' needs an Inbox and an Outbox.*plugins=\["):
        async with running(made(sqlite_engine, process)):
            pass


async def test_a_process_that_leaves_the_inbox_out_does_not_start(sqlite_engine: AsyncEngine) -> None:
    process = fulfilling(plugins={"once": None})
    await process.tables.create(sqlite_engine)
    inbox = Inbox(async_sessionmaker(sqlite_engine))

    with pytest.raises(ConfigurationError, match="process 'fulfilment' needs an Inbox and an Outbox"):
        async with running(Bus("memory://", process, plugins=[inbox, Outbox(sqlite_engine)])):
            pass


async def test_an_inbox_for_threads_does_not_do(sqlite_engine: AsyncEngine) -> None:
    process = fulfilling()
    await process.tables.create(sqlite_engine)
    threads = create_engine(f"sqlite:///{sqlite_engine.url.database}")

    with pytest.raises(ConfigurationError, match="nobody can serve its parameter 'session: AsyncSession'"):
        async with running(Bus("memory://", process, plugins=[Inbox(sessionmaker(threads)), Outbox(sqlite_engine)])):
            pass
    threads.dispose()


async def test_missing_tables_are_said_at_start(engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match=r"rabbitevents_process.*rabbitevents sql print MODULE:BUS --dialect"):
        async with running(World(engine, fulfilling()).bus):
            pass


async def test_tables_of_another_version_are_said_at_start(engine: AsyncEngine) -> None:
    here = World(engine, fulfilling())
    await here.process.tables.create(engine)
    async with engine.begin() as connection:
        await connection.execute(update(here.process.tables.version).values(version=7))

    with pytest.raises(ConfigurationError, match="says version 7, and this version of rabbitevents needs 1"):
        async with running(here.bus):
            pass


async def test_the_sql_that_is_printed_makes_tables_that_do(engine: AsyncEngine) -> None:
    tables = ProcessTables("shop_")
    sql = tables.sql("sqlite") if engine.dialect.name == "sqlite" else tables.sql("postgresql")
    async with engine.begin() as connection:
        for statement in sql.split(";\n")[:-1]:
            await connection.execute(text(statement))

    async with world(engine, fulfilling(tables=tables)) as (here, probe):
        await publish(probe, OrderPlaced("42"))

        assert [row.key for row in await here.rows()] == ["42"]


async def test_tables_may_be_in_a_schema(postgres_engine: AsyncEngine) -> None:
    tables = ProcessTables(schema="messaging")
    async with postgres_engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA messaging"))

    async with world(postgres_engine, fulfilling(tables=tables)) as (here, probe):
        await publish(probe, OrderPlaced("42"))

        assert tables.process.fullname == "messaging.rabbitevents_process"
        assert len(await here.rows()) == 1


async def test_creating_tables_twice_is_the_same_as_once(engine: AsyncEngine) -> None:
    tables = ProcessTables()
    await tables.create(engine)
    async with engine.begin() as connection:
        made = {"process": "x", "key": "y", "state": b"", "schema_version": 1, "timeouts": b"{}"}
        await connection.execute(insert(tables.process).values(made))

    await tables.create(engine)

    async with engine.connect() as connection:
        assert len((await connection.execute(select(tables.process))).all()) == 1


def test_what_it_is_made_of_is_explained() -> None:
    found = wiring(Bus("memory://", fulfilling()))

    said = repr(found)
    assert "OrderPlaced: begin" in said
    assert "CardCharged: progress" in said
    assert "unpaid: give_up" in said
