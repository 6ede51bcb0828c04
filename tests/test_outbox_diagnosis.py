"""What the doctor says of an outbox: what is dead, what waits, and that nobody relays; and nothing where all is well."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from rabbitevents_outbox import Outbox, Tables, diagnosis
from rabbitevents_outbox.diagnosis import diagnose
from rabbitevents_outbox.shards import Shards
from rabbitevents_sql import at, now
from tests.bed.loopback import LOOPBACK, free_port
from tests.test_outbox import OrderPriced, shop


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look may take longer here: the doctor has no more than 3 s for a plugin, and a busy machine takes as long."""
    monkeypatch.setattr(diagnosis, "PATIENCE", 30.0)


async def write(engine: AsyncEngine, *orders: str, shards: int = 1) -> None:
    async with async_sessionmaker(engine).begin() as session:
        for order in orders:
            await Outbox(engine, shards=shards).publish(session, OrderPriced(order, 1))


async def said(engine: AsyncEngine, shards: int = 1) -> list[str]:
    return [f"{each.grade}: {each.what}; {each.way_out}" for each in await diagnose(engine, Tables(), shards)]


async def test_where_nothing_waits_nothing_is_said(engine: AsyncEngine) -> None:
    assert await said(engine) == []


async def test_rows_that_wait_and_a_relay_that_is_nowhere_are_said(engine: AsyncEngine) -> None:
    await write(engine, "o-1", "o-2", "o-3")
    await Shards(engine, Tables(), 30).make(1)

    (line,) = await said(engine)

    assert line.startswith("wrong: no relay is there, and 3 rows are waiting, the oldest for ")
    assert line.endswith("; run a bus with this outbox, or `rabbitevents relay MODULE:BUS`")


async def test_a_relay_whose_lease_is_over_is_nowhere_and_one_that_holds_it_is_there(engine: AsyncEngine) -> None:
    await write(engine, "o-1")
    relay = Shards(engine, Tables(), 30)
    await relay.make(1)
    held = await relay.acquire()
    assert held is not None
    there = await said(engine)

    await relay.release(held)

    assert there == []
    assert (await said(engine))[0].startswith("wrong: no relay is there, and 1 row is waiting")


async def test_rows_that_wait_long_though_a_relay_is_there_are_a_risk(engine: AsyncEngine) -> None:
    await write(engine, "o-1")
    relay = Shards(engine, Tables(), 30)
    await relay.make(1)
    await relay.acquire()
    async with engine.begin() as connection:
        await connection.execute(update(Tables().outbox).values(created_at=at(-timedelta(hours=2).total_seconds())))

    (line,) = await said(engine)

    assert line.startswith("risk: 1 row is waiting, the oldest for 7,200 s, though a relay is there; its log says why")


async def test_dead_rows_are_said_with_what_sends_them_or_gives_them_up(engine: AsyncEngine) -> None:
    await write(engine, "o-1")
    async with engine.begin() as connection:
        await connection.execute(update(Tables().outbox).values(attempts=10, dead_at=now()))

    assert await said(engine) == [
        "wrong: 1 row is dead, and later events of their entities wait for them; `rabbitevents outbox list` says why each "
        "does; then `rabbitevents outbox retry`, or `drop`"
    ]


async def test_of_several_shards_it_is_said_how_many_have_a_relay(postgres_engine: AsyncEngine) -> None:
    await write(postgres_engine, *(f"o-{n}" for n in range(21)), shards=3)
    relay = Shards(postgres_engine, Tables(), 30)
    await relay.make(3)
    await relay.acquire()

    (line,) = await said(postgres_engine, 3)

    assert line.startswith("wrong: 1 of 3 shards have a relay, and 21 rows are waiting")


async def test_a_relay_at_work_is_left_in_peace(engine: AsyncEngine) -> None:
    async with shop(engine) as (here, probe, sessions):
        async with sessions.begin() as session:
            await here.outbox.publish(session, OrderPriced("o-1", 1))
        await probe.settled()

        assert await said(engine) == []


@pytest.mark.parametrize("table", ["rabbitevents_outbox", "rabbitevents_outbox_lease", "rabbitevents_version"])
async def test_a_table_that_is_missing_is_said_with_what_makes_it(engine: AsyncEngine, table: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(f"DROP TABLE {table}"))

    (line,) = await said(engine)

    assert line.startswith(f"wrong: table '{table}' of ")
    assert "`rabbitevents sql print" in line


async def test_a_database_that_is_away_is_said_without_its_password() -> None:
    engine = create_async_engine(f"postgresql+asyncpg://shop:secret@{LOOPBACK}:{free_port()}/shop")

    (found,) = await diagnose(engine, Tables(), 1)

    assert (found.grade, found.way_out) == ("wrong", "is it running there?")
    assert found.what.startswith("the database does not answer: ")
    assert "secret" not in str(found)
