"""Nothing that commits late is passed over, and nobody waits for whom there is no need to wait."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from rabbitevents import Bus, ConfigurationError, Fact, Plugin, Router, event
from rabbitevents.testing import running
from rabbitevents_eventstore import ANY, NEW, EventStore, StoreHeldBack, StoreRestoredError
from tests.appended import appended
from tests.bed.postgres import BINARIES, PostgresServer
from tests.shop import eventually


@event("thing.happened", entity="thing", key="thing")
@frozen
class Happened:
    thing: str


class Noted(Plugin):
    """Keeps the facts."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)


class Follower:
    """What a live reader has got so far."""

    def __init__(self, store: EventStore) -> None:
        self.got: list[str] = []
        self._store = store

    @asynccontextmanager
    async def following(self) -> AsyncGenerator[None]:
        task = asyncio.create_task(self._follow())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _follow(self) -> None:
        async for each in self._store.read(live=True):
            self.got.append(each.payload.thing)

    async def until(self, *things: str) -> None:
        await eventually(lambda: self.got == list(things), f"{things}, got {self.got}")


async def store_on(engine: AsyncEngine, **told: Any) -> EventStore:
    made = EventStore(engine, events=[Happened], **told)
    await made.tables.create(engine)
    return made


async def happen(store: EventStore, thing: str, session: AsyncConnection | None = None) -> None:
    await store.append("thing", thing, [Happened(thing)], expected=ANY, session=session)


async def begun(connection: AsyncConnection) -> None:
    """Begin a transaction, as an application does that has something else to write first."""
    await connection.execute(text("SELECT 1"))


async def read(store: EventStore) -> list[str]:
    return [each.payload.thing async for each in store.read()]


async def test_every_committed_event_is_read_once_and_in_order(engine: AsyncEngine) -> None:
    held = 0.1 if engine.dialect.name == "postgresql" else 0.01  # one at a time writes on SQLite

    counts = await appended(engine, writers=10, appends=10, events=20, hold=held)

    assert counts.committed > 200
    assert counts.rolled_back > 0
    assert counts.faults == 0, counts


async def test_an_append_that_is_held_open_is_waited_for_and_named(postgres_engine: AsyncEngine) -> None:
    noted = Noted()
    store = await store_on(postgres_engine, patience=0.1)
    follower = Follower(store)
    bus = Bus("memory://", Router("shop"), plugins=[noted, store])
    async with running(bus) as probe, follower.following(), postgres_engine.connect() as holder:
        await happen(store, "before")
        pid = await holder.scalar(text("SELECT pg_backend_pid()"))
        await happen(store, "held", holder)
        await happen(store, "after")
        await follower.until("before")
        await eventually(lambda: any(isinstance(each, StoreHeldBack) for each in noted.facts), "the fact")
        (check,) = (each for each in probe.bus.health().checks if each.name == "event store")
        assert follower.got == ["before"]
        assert (check.ok, check.degraded) == (False, True)
        assert f"process {pid}" in check.detail
        assert "idle_in_transaction_session_timeout" in check.detail
        await holder.commit()
        await follower.until("before", "held", "after")
        await eventually(lambda: probe.bus.health().ok, "health")

    (fact,) = (each for each in noted.facts if isinstance(each, StoreHeldBack))
    assert fact.pid == pid


async def test_a_read_that_ends_waits_for_what_was_open_when_it_began(postgres_engine: AsyncEngine) -> None:
    store = await store_on(postgres_engine)
    async with postgres_engine.connect() as holder:
        await begun(holder)
        await happen(store, "held", holder)
        await happen(store, "after")
        reading = asyncio.create_task(read(store))
        done, _ = await asyncio.wait([reading], timeout=0.3)
        assert not done
        await holder.commit()

        assert await reading == ["held", "after"]


async def test_what_was_rolled_back_holds_nobody_up(postgres_engine: AsyncEngine) -> None:
    store = await store_on(postgres_engine)
    follower = Follower(store)
    async with follower.following(), postgres_engine.connect() as holder:
        await begun(holder)
        await happen(store, "held", holder)
        await happen(store, "after")
        await holder.rollback()
        await follower.until("after")
        await begun(holder)
        await happen(store, "rolled back", holder)
        await holder.rollback()

        assert await read(await store_on(postgres_engine)) == ["after"]  # as after a restart
        await happen(store, "later")
        await follower.until("after", "later")


async def test_sessions_that_are_idle_and_append_nothing_hold_nobody_up(postgres_engine: AsyncEngine) -> None:
    store = await store_on(postgres_engine)
    async with AsyncExitStack() as stack:
        async with postgres_engine.begin() as connection:
            await connection.execute(text("CREATE TABLE elsewhere (n int)"))
        for number in range(20):
            idle = await stack.enter_async_context(postgres_engine.connect())
            await idle.execute(text(f"INSERT INTO elsewhere VALUES ({number})"))
        await happen(store, "a thing")

        assert await read(store) == ["a thing"]


async def test_an_early_transaction_with_a_late_append_keeps_its_entitys_order(postgres_engine: AsyncEngine) -> None:
    store = await store_on(postgres_engine)
    async with postgres_engine.connect() as early:
        await early.execute(text("CREATE TABLE elsewhere (n int)"))
        await early.execute(text("SELECT pg_current_xact_id()"))
        await store.append("thing", "x", [Happened("x")], expected=NEW)
        await store.append("thing", "x", [Happened("x")], expected=1, session=early)
        await early.commit()

    assert [each.version async for each in store.read()] == [1, 2]


async def test_an_append_by_hand_is_waited_for_too(postgres_engine: AsyncEngine) -> None:
    store = await store_on(postgres_engine)
    by_hand = text(
        "INSERT INTO rabbitevents_events (entity_type, entity_id, version, event_id, type, schema_version, timestamp, "
        "metadata, body) VALUES ('thing', 'hand', 1, gen_random_uuid(), 'thing.happened', 1, now(), '{}', '{\"thing\": \"hand\"}')"
    )
    follower = Follower(store)
    async with follower.following(), postgres_engine.connect() as hand:
        await hand.execute(by_hand)
        await happen(store, "after")
        await hand.commit()
        await follower.until("hand", "after")


async def test_a_prepared_transaction_is_waited_for() -> None:
    with PostgresServer(max_prepared_transactions="5") as server:
        engine = create_async_engine(server.url())
        store = await store_on(engine, patience=0.1)
        follower = Follower(store)
        async with follower.following(), engine.connect() as connection:
            await happen(store, "before")
            await begun(connection)
            await happen(store, "prepared", connection)
            await connection.exec_driver_sql("PREPARE TRANSACTION 'it'")
            await connection.rollback()
            await happen(store, "after")
            await eventually(lambda: any("prepared" in each.detail for each in store.health()), "the check")
            assert follower.got == ["before"]

            await asyncio.to_thread(server.run, "COMMIT PREPARED 'it'")
            await follower.until("before", "prepared", "after")
        await engine.dispose()


async def test_a_replica_is_refused(postgres_server: PostgresServer) -> None:
    engine = create_async_engine(postgres_server.url())
    store = await store_on(engine)
    await happen(store, "before")
    await engine.dispose()
    postgres_server.kill()
    (postgres_server.folder / "data" / "standby.signal").touch()
    await asyncio.to_thread(postgres_server.start)

    with pytest.raises(ConfigurationError, match="is a replica"):
        await read(EventStore(engine, events=[Happened]))

    await engine.dispose()


async def test_a_store_that_loses_commits_while_it_is_read_stops_its_reader(postgres_engine: AsyncEngine) -> None:
    store = await store_on(postgres_engine)
    reading = store.read(live=True)
    for thing in ("a", "b"):
        await happen(store, thing)
    assert [(await anext(reading)).payload.thing for _ in range(2)] == ["a", "b"]
    async with postgres_engine.begin() as connection:  # as a restored backup has it
        await connection.execute(text("DELETE FROM rabbitevents_events WHERE position = 2"))
        await connection.execute(text("SELECT setval(pg_get_serial_sequence('rabbitevents_events', 'position'), 1)"))

    with pytest.raises(StoreRestoredError) as refused:
        await anext(reading)

    assert (refused.value.position, refused.value.last) == (2, 1)


@pytest.mark.parametrize("how", ["DROP TRIGGER rabbitevents_appending ON", "ALTER TABLE"])
async def test_a_table_without_its_trigger_stops_the_start(postgres_engine: AsyncEngine, how: str) -> None:
    store = await store_on(postgres_engine)
    off = " DISABLE TRIGGER rabbitevents_appending" if how == "ALTER TABLE" else ""
    async with postgres_engine.begin() as connection:
        await connection.execute(text(f"{how} rabbitevents_events{off}"))

    with pytest.raises(ConfigurationError, match="has no trigger rabbitevents_appending, or it is off"):
        async with running(Bus("memory://", Router("shop"), plugins=[store])):
            pass


async def test_a_writer_and_a_reader_need_few_rights(postgres_server: PostgresServer) -> None:
    owner = create_async_engine(postgres_server.url())
    tables = (await store_on(owner)).tables
    await asyncio.to_thread(
        postgres_server.run,
        "CREATE ROLE writer LOGIN; CREATE ROLE reader LOGIN; GRANT SELECT, INSERT ON rabbitevents_events TO writer; "
        "GRANT SELECT ON rabbitevents_events, rabbitevents_events_position_seq, rabbitevents_events_version TO reader",
    )
    writing, reading = (
        create_async_engine(postgres_server.url().replace("test@", f"{role}@")) for role in ("writer", "reader")
    )
    writer, reader = EventStore(writing, events=[Happened]), EventStore(reading, events=[Happened])

    await happen(writer, "a thing")
    async with reading.connect() as connection:
        await connection.run_sync(tables.check)
    async with writing.connect() as holder:
        await begun(holder)
        await happen(writer, "held", holder)
        following = asyncio.create_task(read(reader))
        done, _ = await asyncio.wait([following], timeout=0.3)
        assert not done
        await holder.commit()
        assert await following == ["a thing", "held"]

    for engine in (owner, writing, reading):
        await engine.dispose()


async def test_a_dump_that_is_restored_into_another_cluster_is_read_on(
    postgres_engine: AsyncEngine, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    store = await store_on(postgres_engine)
    for thing in ("a", "b"):
        await happen(store, thing)
    database = postgres_server.database()
    await asyncio.to_thread(dump, postgres_engine, tmp_path / "dump.sql")
    await asyncio.to_thread(postgres_server.run, f"\\i {tmp_path / 'dump.sql'}", database)
    restored = create_async_engine(postgres_server.url(database=database))

    copy = EventStore(restored, events=[Happened])
    await happen(copy, "c")

    assert [each.payload.thing async for each in copy.read(after=1)] == ["b", "c"]
    async with restored.connect() as connection:
        await connection.run_sync(copy.tables.check)
    await restored.dispose()


def dump(engine: AsyncEngine, file: Path) -> None:
    """Write a database as SQL."""
    url = engine.url.set(drivername="postgresql").render_as_string()
    subprocess.run([BINARIES[-1] / "pg_dump", "--no-owner", "-f", file, url], check=True, timeout=30)


async def test_a_reader_that_is_as_far_as_what_was_just_committed_is_not_ahead_of_the_store(
    postgres_engine: AsyncEngine,
) -> None:
    """What commits between two statements of a look is seen by the second one alone."""
    store = await store_on(postgres_engine)
    ended = asyncio.Event()

    async def write(thing: str) -> None:
        for _ in range(150):
            await happen(store, thing)

    async def follow() -> None:
        position = 0
        while not ended.is_set():
            position = (await store.reader.page(position, ["thing.happened"])).upto

    following = [asyncio.create_task(follow()) for _ in range(2)]
    await asyncio.gather(*(write(f"t-{n}") for n in range(6)))
    ended.set()

    await asyncio.gather(*following)
