"""A projection is made anew beside the one that is read: no hole, no double, and never two that write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Column, ForeignKey, Index, Integer, MetaData, Table, Text, func, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rabbitevents import Bus, ConfigurationError, Router
from rabbitevents.testing import running
from rabbitevents_eventstore import (
    EventStore,
    Progress,
    Projection,
    Projections,
    RebuildError,
    Stored,
    projection,
)
from rabbitevents_eventstore.checkpoints import Hold
from rabbitevents_outbox import Outbox
from rabbitevents_sql import turn_of
from tests.projected import EVENTS, Applied, Moved, Total, applied_to, batch, made, single, totals_of
from tests.shop import eventually
from tests.test_projections import Mishap, append, careful, live, projecting, until_status


@pytest.fixture
async def store(engine: AsyncEngine) -> EventStore:
    return await made(engine)


def doubled(version: int = 2) -> Projection:
    """The next version of the projection, which counts amounts twice."""

    @projection("totals", version=version, tables=[Total, Applied])
    async def doubled(event: Stored[Moved], session: AsyncSession) -> None:
        await single(event, session)
        total = await session.get_one(Total, event.payload.account)
        total.amount += event.payload.amount

    return doubled


@asynccontextmanager
async def writing(store: EventStore) -> AsyncGenerator[list[int]]:
    """Append as long as this is entered."""
    kept, ended = list[int](), asyncio.Event()

    async def write() -> None:
        while not ended.is_set():
            kept.extend(await append(store, 1, 2, 3))
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        try:
            yield kept
        finally:
            ended.set()


async def sums(store: EventStore) -> int:
    return sum([each.payload.amount async for each in store.read(types=[Moved])])


@pytest.mark.parametrize("form", [single, batch], ids=["single", "batch"])
@pytest.mark.sampled
async def test_the_same_version_is_made_anew(store: EventStore, form: Projection) -> None:
    positions = await append(store, *range(700))
    async with projecting(store, form):
        await store.caught_up("totals", positions[-1], timeout=60)
    async with store.engine.begin() as connection:
        await connection.execute(text("UPDATE totals SET amount = 0"))
        await connection.execute(text("DELETE FROM applied WHERE position > 10"))
    told: list[Progress] = []

    done = await Projections(store, [form]).rebuild("totals", tell=told.append)

    assert await applied_to(store.engine) == positions
    assert await totals_of(store.engine) == {"a": (700, sum(range(700)))}
    assert (done.position, done.last, done.done) == (positions[-1], positions[-1], True)
    assert [each.position for each in told] == sorted({each.position for each in told})
    assert told[-1].position == positions[-1]
    assert [(each.building, each.status) for each in await store.checkpoints.read()] == [(False, "running")]


async def test_on_sqlite_pages_are_applied_in_turn_with_others_that_write(sqlite_engine: AsyncEngine) -> None:
    store, turn = await made(sqlite_engine), turn_of(sqlite_engine)
    assert isinstance(turn, asyncio.Lock)
    in_turn: list[bool] = []

    @projection("totals", tables=[Total, Applied])
    async def watched(event: Stored[Moved], session: AsyncSession) -> None:
        in_turn.append(turn.locked())
        await single(event, session)

    positions = await append(store, 1, 2)
    async with projecting(store, watched):
        await store.caught_up("totals", positions[-1], timeout=60)
    await Projections(store, [watched]).rebuild("totals")

    assert in_turn == [True] * 4
    assert not turn.locked()


@pytest.mark.timeout(180)
@pytest.mark.sampled
async def test_versions_change_places_under_writes_without_a_hole_and_never_both_write(store: EventStore) -> None:
    old = EventStore(create_async_engine(store.engine.url), events=EVENTS)
    first = await append(store, *range(300))
    async with projecting(old, single), projecting(store, doubled()), writing(store) as more:
        await store.caught_up("totals", first[-1], timeout=60)

        done = await Projections(store, [doubled()]).rebuild("totals")
        at_the_swap = len(more)
        await eventually(lambda: len(more) > at_the_swap + 10, "writes after the swap", 60)
        await store.caught_up("totals", more[-1], timeout=60)
    await old.engine.dispose()
    async with projecting(store, doubled()):
        await store.caught_up("totals", more[-1], timeout=60)

    assert first[-1] <= done.position
    assert (await live(store)).version == 2
    assert await applied_to(store.engine) == first + more
    assert await totals_of(store.engine) == {"a": (300 + len(more), 2 * await sums(store))}


@pytest.mark.sampled
async def test_what_is_read_stays_until_the_swap(store: EventStore) -> None:
    positions, seen = await append(store, *range(600)), list[Any]()
    async with projecting(store, single):
        await store.caught_up("totals", positions[-1], timeout=60)
    before = await totals_of(store.engine)
    reading = asyncio.Event()

    @projection("totals", version=2, tables=[Total, Applied])
    async def watched(event: Stored[Moved], session: AsyncSession) -> None:
        await single(event, session)
        reading.set()

    async def look() -> None:
        await reading.wait()
        while (await live(store)).version == 1:
            seen.append(await totals_of(store.engine))
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(look())
        await Projections(store, [watched]).rebuild("totals")

    assert seen
    assert seen == [before] * len(seen)


async def test_an_event_that_fails_leaves_what_is_read_as_it_was(store: EventStore) -> None:
    positions = await append(store, *range(20))
    async with projecting(store, single):
        await store.caught_up("totals", positions[-1], timeout=60)
    before = await totals_of(store.engine)
    failing = careful(Mishap(7))

    with pytest.raises(RebuildError, match=r"account\.moved, position 8\).*ValueError: an amount of 7"):
        await Projections(store, [failing]).rebuild("totals")

    assert await totals_of(store.engine) == before
    assert [(each.building, each.position) for each in await store.checkpoints.read()] == [(False, positions[-1])]
    assert await tables_of(store.engine) == {"totals", "applied"}


async def test_events_that_cannot_be_applied_can_be_left_out(store: EventStore) -> None:
    positions = await append(store, *range(20))
    wrong = [each.event.id async for each in store.read()][7]

    await Projections(store, [careful(Mishap(7))]).rebuild("totals", skip=[wrong])

    assert await applied_to(store.engine) == [*positions[:7], *positions[8:]]


async def test_a_projection_that_has_stopped_goes_on_once_it_is_made_anew(store: EventStore) -> None:
    async with projecting(store, careful(Mishap(7))):
        positions = await append(store, *range(20))
        await until_status(store, "stopped")
    async with projecting(store, doubled()):
        await Projections(store, [doubled()]).rebuild("totals")
        more = await append(store, 1)
        await store.caught_up("totals", more[-1], timeout=60)

    assert await applied_to(store.engine) == positions + more


async def test_one_process_at_a_time_builds_a_projection(store: EventStore) -> None:
    positions = await append(store, 1)
    projections, other = Projections(store, [single]), Hold("totals", 1, uuid4(), building=True)
    assert await store.checkpoints.begin(other)

    with pytest.raises(RebuildError, match="another process builds projection totals"):
        await projections.rebuild("totals")
    await store.checkpoints.end(other)
    await projections.rebuild("totals")

    assert await applied_to(store.engine) == positions


async def test_older_code_than_what_is_live_builds_nothing(store: EventStore) -> None:
    await store.checkpoints.make("totals", 3)

    with pytest.raises(ConfigurationError, match="version 3 is live, and this is version 2"):
        await Projections(store, [doubled()]).rebuild("totals")
    with pytest.raises(ConfigurationError, match="no projection 'others': there are totals"):
        await Projections(store, [doubled()]).rebuild("others")


async def test_a_rebuild_that_is_broken_off_leaves_nothing(store: EventStore) -> None:
    await append(store, *range(10))
    entered = asyncio.Event()

    @projection("totals", tables=[Total, Applied])
    async def endless(event: Stored[Moved], session: AsyncSession) -> None:
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Projections(store, [endless]).rebuild("totals"))
    await entered.wait()
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert [each.building for each in await store.checkpoints.read()] == [False]
    assert await tables_of(store.engine) == {"totals", "applied"}
    await Projections(store, [single]).rebuild("totals")
    assert len(await applied_to(store.engine)) == 10


async def test_a_rebuild_publishes_nothing(engine: AsyncEngine) -> None:
    outbox, handled = Outbox(engine), list[Moved]()
    store, shop = await made(engine, outbox=outbox), Router("shop")

    @shop.on(Moved)
    async def take(event: Moved) -> None:
        handled.append(event)

    projections = Projections(store, [single])
    async with running(Bus("memory://", shop, plugins=[store, projections, outbox])) as probe:
        await append(store, *range(10))
        await probe.settled()
        sent = len(probe.messages)
        await projections.rebuild("totals")
        await probe.settled()

        assert len(handled) == sent == len(probe.messages) == 10


# --- tables --------------------------------------------------------------------------------------------------------


async def tables_of(engine: AsyncEngine) -> set[str]:
    """Return the tables that are there, in any schema, but for those of the library."""

    def names(connection: Any) -> set[str]:
        found = inspect(connection)
        schemas = [each for each in found.get_schema_names() if each != "information_schema"]
        return {name for schema in schemas for name in found.get_table_names(schema=schema)}

    async with engine.connect() as connection:
        return {name for name in await connection.run_sync(names) if not name.startswith("rabbitevents_")}


METADATA = MetaData()
PEOPLE = Table("people", METADATA, Column("name", Text, primary_key=True))
"""A table that is looked things up in, and no projection's."""
ACCOUNT = Table(
    "account",
    METADATA,
    Column("name", Text, ForeignKey(PEOPLE.c.name), primary_key=True),
    Column("account", Integer, nullable=False, index=True),
)
MOVE = Table(
    "move",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("account", Text, ForeignKey(ACCOUNT.c.name), nullable=False),
    Column("amount", Integer, nullable=False),
    Index("biggest", "amount", unique=False),
)


@projection("accounts", tables=[MOVE, ACCOUNT])
async def accounts(event: Moved, session: AsyncSession) -> None:
    """Write by hand, look something up, and use a column that is called as its table is."""
    name = await session.scalar(select(PEOPLE.c.name).where(PEOPLE.c.name == event.account))
    if await session.scalar(select(func.count()).select_from(ACCOUNT).where(ACCOUNT.c.name == name)) == 0:
        await session.execute(text("INSERT INTO account (name, account) VALUES (:name, 0)"), {"name": name})
    await session.execute(text("UPDATE account SET account = account.account + 1 WHERE name = :name"), {"name": name})
    await session.execute(insert(MOVE).values(account=name, amount=event.amount))


async def test_keys_indexes_lookups_and_statements_by_hand_work_beside_as_they_do_in_place(store: EventStore) -> None:
    async with store.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
        await connection.execute(insert(PEOPLE).values(name="a"))
    indexes = await _indexes(store.engine)
    positions = await append(store, 1, 2, 3)
    projections = Projections(store, [accounts])

    for _ in range(2):
        await projections.rebuild("accounts")
    async with running(Bus("memory://", plugins=[projections])):
        positions += await append(store, 4)
        await store.caught_up("accounts", positions[-1], timeout=60)

    async with store.engine.connect() as connection:
        assert (await connection.execute(select(ACCOUNT))).all() == [("a", 4)]
        assert list((await connection.execute(select(MOVE.c.amount).order_by(MOVE.c.id))).scalars()) == [1, 2, 3, 4]
    assert await _indexes(store.engine) == indexes
    assert await tables_of(store.engine) == {"totals", "applied", "account", "move", "people"}


async def _indexes(engine: AsyncEngine) -> Any:
    def of(connection: Any) -> Any:
        found = inspect(connection)
        return [
            (found.get_indexes(each), found.get_foreign_keys(each), found.get_pk_constraint(each))
            for each in ("account", "move")
        ]

    async with engine.connect() as connection:
        return await connection.run_sync(of)


async def test_a_new_version_may_have_other_tables(store: EventStore) -> None:
    wider = MetaData()
    totals = Table(
        "totals", wider, Column("account", Text, primary_key=True), Column("biggest", Integer, nullable=False)
    )
    extra = Table("extra", wider, Column("account", Text, primary_key=True))
    positions = await append(store, 5, 9, 7)
    async with projecting(store, single):
        await store.caught_up("totals", positions[-1], timeout=60)

    @projection("totals", version=2, tables=[totals, extra])
    async def biggest(events: list[Moved], session: AsyncSession) -> None:
        await session.execute(insert(totals).values(account="a", biggest=max(each.amount for each in events)))

    await Projections(store, [biggest]).rebuild("totals")

    async with store.engine.connect() as connection:
        assert (await connection.execute(select(totals))).all() == [("a", 9)]
        assert (await connection.execute(select(extra))).all() == []


async def test_whoever_may_read_the_tables_may_still(postgres_engine: AsyncEngine) -> None:
    store = await made(postgres_engine)
    await append(store, 1)
    async with store.engine.begin() as connection:
        await connection.execute(text("DROP ROLE IF EXISTS reporting"))
        await connection.execute(text("CREATE ROLE reporting"))
        await connection.execute(text("GRANT SELECT, UPDATE ON totals TO reporting"))

    await Projections(store, [single]).rebuild("totals")

    rights = text(
        "SELECT has_table_privilege('reporting', 'totals', w) FROM unnest(ARRAY['SELECT', 'UPDATE', 'DELETE']) w"
    )
    async with store.engine.begin() as connection:
        assert list((await connection.execute(rights)).scalars()) == [True, True, False]
        await connection.execute(text("DROP OWNED BY reporting"))
        await connection.execute(text("DROP ROLE reporting"))


async def test_tables_that_a_view_is_made_of_are_left_as_they_were(postgres_engine: AsyncEngine) -> None:
    store = await made(postgres_engine)
    await append(store, 1)
    async with store.engine.begin() as connection:
        await connection.execute(text("CREATE VIEW rich AS SELECT * FROM totals"))

    with pytest.raises(RebuildError, match="other objects depend on it"):
        await Projections(store, [single]).rebuild("totals")

    assert await totals_of(store.engine) == {}
    assert await tables_of(store.engine) == {"totals", "applied"}


async def test_tables_in_a_schema_are_built_beside_too(postgres_engine: AsyncEngine) -> None:
    store, metadata = await made(postgres_engine), MetaData(schema="reports")
    table = Table("sums", metadata, Column("account", Text, primary_key=True), Column("amount", Integer))
    async with store.engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA reports"))
        await connection.run_sync(metadata.create_all)
    await append(store, 1, 2)

    @projection("sums", tables=[table])
    async def adding(events: list[Moved], session: AsyncSession) -> None:
        amounts = [each.amount for each in events]
        await session.execute(insert(table).values(account="a", amount=amounts[0] + amounts[1]))

    await Projections(store, [adding]).rebuild("sums")

    async with store.engine.connect() as connection:
        assert (await connection.execute(select(table))).all() == [("a", 3)]


async def test_readers_that_keep_a_table_for_a_while_are_waited_for(postgres_engine: AsyncEngine) -> None:
    store = await made(postgres_engine)
    positions = await append(store, 1, 2)
    async with store.engine.connect() as reader:
        await reader.execute(select(Total))
        building = asyncio.create_task(Projections(store, [single]).rebuild("totals"))
        await asyncio.sleep(3)  # longer than one attempt waits for the locks
        assert not building.done()
        await reader.rollback()
        await building

    assert await applied_to(store.engine) == positions


async def test_an_sqlite_in_memory_is_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    store = await made(engine)

    with pytest.raises(ConfigurationError, match="use a file"):
        await Projections(store, [single]).rebuild("totals")
    await engine.dispose()
