"""Projections: what they make of events counts once, whatever happens, and what stops them is seen."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rabbitevents import Bus, ConfigurationError, Event, Fact, Plugin, facts
from rabbitevents.testing import running
from rabbitevents_eventstore import (
    ANY,
    EventStore,
    Projection,
    ProjectionBehindError,
    Projections,
    ProjectionStopped,
    Stored,
    projection,
)
from rabbitevents_eventstore.checkpoints import Checkpoint, Hold
from rabbitevents_eventstore.projecting import LostError, Projector
from rabbitevents_outbox import Outbox
from tests.bed.postgres import PostgresServer
from tests.projected import (
    EVENTS,
    Applied,
    Closed,
    Moved,
    Total,
    applied_to,
    batch,
    made,
    projected,
    single,
    totals_of,
)
from tests.shop import OrderPlaced, eventually


@pytest.fixture
async def store(engine: AsyncEngine) -> EventStore:
    return await made(engine)


class Noted(Plugin):
    """Keeps the facts."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)


class Mishap:
    """What makes a projection fail: the amounts that it cannot stand."""

    def __init__(self, *amounts: int) -> None:
        self.amounts = set(amounts)

    def check(self, moved: Moved) -> None:
        if moved.amount in self.amounts:
            raise ValueError(f"an amount of {moved.amount}")


def careful(mishap: Mishap) -> Projection:
    """A projection that writes, and then fails, as its mishap says."""

    @projection("totals", tables=[Total, Applied])
    async def careful(event: Stored[Moved], session: AsyncSession) -> None:
        await single(event, session)
        mishap.check(event.payload)

    return careful


def careful_batch(mishap: Mishap) -> Projection:
    @projection("totals", tables=[Total, Applied])
    async def careful(events: list[Stored[Moved]], session: AsyncSession) -> None:
        await batch(events, session)
        for each in events:
            mishap.check(each.payload)

    return careful


CAREFUL = pytest.mark.parametrize("careful", [careful, careful_batch], ids=["single", "batch"])


def bus_of(store: EventStore, *chosen: Projection, noted: Noted | None = None, lease: float = 30) -> Bus:
    return Bus("memory://", plugins=[store, *([noted] if noted else []), Projections(store, chosen, lease=lease)])


@asynccontextmanager
async def projecting(store: EventStore, *chosen: Projection, lease: float = 30) -> AsyncGenerator[Bus]:
    bus = bus_of(store, *chosen, lease=lease)
    async with running(bus):
        yield bus


async def append(store: EventStore, *amounts: int, account: str = "a") -> list[int]:
    appended = await store.append("account", account, [Moved(account, each) for each in amounts], expected=ANY)
    return [each.position for each in appended]


async def live(store: EventStore, name: str = "totals") -> Checkpoint:
    found = await store.checkpoints.live(name)
    assert found is not None
    return found


async def until_status(store: EventStore, status: str, name: str = "totals") -> Checkpoint:
    async with asyncio.timeout(60):
        while True:
            found = await store.checkpoints.live(name)
            if found is not None and found.status == status:
                return found
            await asyncio.sleep(0.01)


# --- each event once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [single, batch], ids=["single", "batch"])
async def test_what_is_there_and_what_comes_is_applied_once_in_order(store: EventStore, form: Projection) -> None:
    positions = await append(store, *range(600))

    async with projecting(store, form):
        positions += await append(store, *range(30))
        await store.caught_up("totals", positions[-1], timeout=60)

    assert await applied_to(store.engine) == positions
    assert await totals_of(store.engine) == {"a": (630, sum(range(600)) + sum(range(30)))}


async def test_an_event_is_given_as_it_was_asked_for(store: EventStore) -> None:
    given: dict[str, list[Any]] = {name: [] for name in ("plain", "enveloped", "stored", "plains", "enveloped_ones")}

    @projection("plain", tables=[Total])
    async def plain(event: Moved | Closed, session: AsyncSession) -> None:
        given["plain"].append(event)

    @projection("enveloped", tables=[Applied])
    async def enveloped(event: Event[Moved] | Event[Closed], session: AsyncSession) -> None:
        given["enveloped"].append(event.payload)

    @projection("stored", tables=[_table("third")])
    async def stored(event: Stored[Moved | Closed], session: AsyncSession) -> None:
        given["stored"].append(event.payload)

    @projection("plains", tables=[_table("fourth")])
    async def plains(events: list[Moved | Closed], session: AsyncSession) -> None:
        given["plains"].extend(events)

    @projection("enveloped_ones", tables=[_table("fifth")])
    async def enveloped_ones(events: list[Event[Moved | Closed]], session: AsyncSession) -> None:
        given["enveloped_ones"].extend(each.payload for each in events)

    async with projecting(store, plain, enveloped, stored, plains, enveloped_ones):
        appended = await store.append("account", "a", [Moved("a", 1), Closed("a")], expected=ANY)
        for name in given:
            await store.caught_up(name, appended[-1].position, timeout=60)

    assert given == {name: [Moved("a", 1), Closed("a")] for name in given}


def _table(name: str) -> Table:
    return Table(name, MetaData(), Column("id", Integer, primary_key=True))


async def test_a_projection_goes_on_where_it_was(store: EventStore) -> None:
    async with projecting(store, single):
        first = await append(store, 1, 2, 3)
        await store.caught_up("totals", first[-1], timeout=60)
    second = await append(store, 4, 5)

    async with projecting(store, single):
        await store.caught_up("totals", second[-1], timeout=60)

    assert await applied_to(store.engine) == first + second


async def test_of_two_processes_one_has_a_projection_and_the_other_takes_over(store: EventStore) -> None:
    other = EventStore(create_async_engine(store.engine.url), events=EVENTS)
    async with projecting(other, single):
        async with projecting(store, single):
            first = await append(store, *range(100))
            await store.caught_up("totals", first[-1], timeout=60)
            held = (await live(store)).is_held
        second = await append(store, *range(100))
        await store.caught_up("totals", second[-1], timeout=60)
    await other.engine.dispose()

    assert held
    assert not (await live(store)).is_held
    assert await applied_to(store.engine) == first + second


@pytest.mark.parametrize("loss", ["owner", "position", "version", "paused"])
async def test_who_has_lost_a_projection_writes_nothing_more(store: EventStore, loss: str) -> None:
    """A process that was suspended for longer than its lease, and goes on with the page that it has read."""
    await append(store, 1, 2, 3)
    await store.checkpoints.make("totals", 1)
    hold = Hold("totals", 1, uuid4())
    position = await store.checkpoints.take(hold)
    page = await store.reader.page(0, ["account.moved"])
    meanwhile = {"owner": uuid4(), "position": 1, "version": 2, "paused": "paused"}
    column = "status" if loss == "paused" else loss
    async with store.engine.begin() as connection:
        await connection.execute(update(store.tables.projections).values({column: meanwhile[loss]}))

    projector = Projector(single, store.shelf, store.checkpoints, store.engine.begin, store.engine, lambda: False)
    with pytest.raises(LostError):
        await projector.advance(hold, position or 0, page)

    assert await applied_to(store.engine) == []


async def test_a_rare_type_is_read_past_all_others(store: EventStore) -> None:
    seen: list[Closed] = []

    @projection("closings", tables=[Total])
    async def closings(event: Closed, session: AsyncSession) -> None:
        seen.append(event)

    await append(store, *range(3000))
    closed = await store.append("account", "a", [Closed("a")], expected=ANY)
    more = await append(store, *range(3000))

    async with projecting(store, closings):
        await store.caught_up("closings", more[-1], timeout=60)

    assert seen == [Closed("a")]
    assert (await live(store, "closings")).position == more[-1] > closed[-1].position


@pytest.mark.timeout(180)
@pytest.mark.parametrize("form", ["single", "batch"])
@pytest.mark.sampled
async def test_its_processes_are_killed_and_its_counts_equal_the_events(form: str, postgres: PostgresServer) -> None:
    counts = await projected(postgres.url(database=postgres.database()), events=1000, kills=6, batch=form == "batch")

    assert counts.faults == 0, counts
    assert counts.hits > 0


@pytest.mark.timeout(180)
async def test_on_sqlite_its_processes_are_killed_and_its_counts_equal_the_events(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('projected')}/test.db"

    counts = await projected(url, events=500, kills=4, batch=False)

    assert counts.faults == 0, counts
    assert counts.hits > 0


# --- what stops it -------------------------------------------------------------------------------------------------


@CAREFUL
async def test_an_event_that_fails_stops_its_projection_before_it(
    store: EventStore, careful: Any, caplog: pytest.LogCaptureFixture
) -> None:
    noted, closings = Noted(), list[Closed]()

    @projection("closings", tables=[_table("others")])
    async def others(event: Closed, session: AsyncSession) -> None:
        closings.append(event)

    bus = bus_of(store, careful(Mishap(7)), others, noted=noted)
    with caplog.at_level(logging.ERROR, "rabbitevents.eventstore"):
        async with running(bus):
            positions = await append(store, *range(20))
            stopped = await until_status(store, "stopped")
            after = await store.append("account", "b", [Closed("b")], expected=ANY)
            await store.caught_up("closings", after[-1].position, timeout=60)
            await eventually(lambda: not _check(bus, "totals").ok, "health to say so", 60)
            check = _check(bus, "totals")

    failed = [each async for each in store.read()][7].event
    assert await applied_to(store.engine) == positions[:7]
    assert await totals_of(store.engine) == {"a": (7, sum(range(7)))}
    assert (stopped.position, stopped.failed_event, stopped.error) == (
        positions[6],
        failed.id,
        "ValueError: an amount of 7",
    )
    assert closings == [Closed("b")]
    assert check.degraded
    assert str(failed.id) in check.detail
    (line,) = [each.getMessage() for each in caplog.records]
    assert all(
        word in line for word in ("totals", str(failed.id), "account.moved", "projection retry", "projection skip")
    )
    (fact,) = [each for each in noted.facts if isinstance(each, ProjectionStopped)]
    assert fact == ProjectionStopped("totals", 1, positions[7], failed.id, "account.moved", "ValueError")
    assert {each.projection for each in noted.facts if isinstance(each, facts.Projected)} == {"totals", "closings"}


def _check(bus: Bus, name: str) -> Any:
    return next(each for each in bus.health().checks if each.name == f"projection {name}")


@CAREFUL
async def test_an_event_that_cannot_be_read_stops_its_projection_too(store: EventStore, careful: Any) -> None:
    positions = await append(store, *range(5))
    table = store.tables.events
    async with store.engine.begin() as connection:
        await connection.execute(update(table).where(table.c.position == positions[3]).values(body=b'{"account": 1}'))

    async with projecting(store, careful(Mishap())):
        stopped = await until_status(store, "stopped")

    assert await applied_to(store.engine) == positions[:3]
    assert stopped.failed_event is not None
    assert stopped.error is not None
    assert "DecodeError" in stopped.error


@CAREFUL
async def test_a_projection_that_was_mended_goes_on_with_the_event_that_stopped_it(
    store: EventStore, careful: Any
) -> None:
    mishap = Mishap(2)
    async with projecting(store, careful(mishap)):
        positions = await append(store, *range(5))
        await until_status(store, "stopped")
        mishap.amounts.clear()

        turned = await store.checkpoints.turn("totals", "stopped", "running")
        await store.caught_up("totals", positions[-1], timeout=60)

    assert turned
    assert await applied_to(store.engine) == positions


@CAREFUL
async def test_an_event_that_is_skipped_is_left_out_and_no_other(store: EventStore, careful: Any) -> None:
    async with projecting(store, careful(Mishap(2))):
        positions = await append(store, *range(5))
        stopped = await until_status(store, "stopped")
        assert stopped.failed_event is not None
        others = [each.event.id async for each in store.read() if each.event.id != stopped.failed_event]

        refused = [await store.checkpoints.skip("totals", each) for each in others]
        skipped = await store.checkpoints.skip("totals", stopped.failed_event)
        await store.caught_up("totals", positions[-1], timeout=60)

    assert skipped
    assert not any(refused)
    assert await applied_to(store.engine) == [*positions[:2], *positions[3:]]


async def test_a_projection_that_is_paused_stands_until_it_is_resumed(store: EventStore) -> None:
    async with projecting(store, single) as bus:
        first = await append(store, 1, 2)
        await store.caught_up("totals", first[-1], timeout=60)

        assert await store.checkpoints.turn("totals", "running", "paused")
        second = await append(store, 3)
        await eventually(lambda: "paused" in _check(bus, "totals").detail, "health to say that it is paused", 60)
        assert await applied_to(store.engine) == first

        assert await store.checkpoints.turn("totals", "paused", "running")
        await store.caught_up("totals", second[-1], timeout=60)

    assert await applied_to(store.engine) == first + second


async def test_a_projection_that_is_ahead_of_its_store_stops(store: EventStore) -> None:
    """As after a restore of the events from an older backup."""
    await append(store, 1, 2)
    await store.checkpoints.make("totals", 1)
    table = store.tables.projections
    async with store.engine.begin() as connection:
        await connection.execute(update(table).values(position=1000))

    async with projecting(store, single):
        stopped = await until_status(store, "stopped")

    assert stopped.failed_event is None
    assert stopped.error is not None
    assert "StoreRestoredError" in stopped.error
    assert await applied_to(store.engine) == []


async def test_code_of_another_version_than_the_one_that_is_live_does_nothing(store: EventStore) -> None:
    @projection("totals", version=2, tables=[Total, Applied])
    async def newer(event: Stored[Moved], session: AsyncSession) -> None:
        raise AssertionError("it was called")

    await store.checkpoints.make("totals", 1)
    async with projecting(store, newer) as bus:
        await append(store, 1)
        await eventually(lambda: "rebuild" in _check(bus, "totals").detail, "health to say the way out", 60)

    assert (await live(store)).position == 0


async def test_a_projection_commits_and_rolls_back_nothing_by_itself(store: EventStore) -> None:
    @projection("totals", tables=[Total, Applied])
    async def committing(event: Stored[Moved], session: AsyncSession) -> None:
        await single(event, session)
        await session.commit()
        if event.payload.amount == 2:
            raise ValueError

    async with projecting(store, committing):
        positions = await append(store, *range(5))
        await until_status(store, "stopped")

    assert await applied_to(store.engine) == positions[:2]


async def test_a_projection_that_cancels_itself_is_stopped_as_by_any_failure(store: EventStore) -> None:
    @projection("totals", tables=[Total, Applied])
    async def cancelled(event: Moved, session: AsyncSession) -> None:
        raise asyncio.CancelledError

    async with projecting(store, cancelled):
        await append(store, 1)
        stopped = await until_status(store, "stopped")

    assert stopped.error is not None
    assert "CancelledError" in stopped.error


async def test_an_error_that_cannot_say_its_text_stops_it_too(store: EventStore) -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise ValueError

    @projection("totals", tables=[Total, Applied])
    async def failing(event: Moved, session: AsyncSession) -> None:
        raise UnspeakableError

    async with projecting(store, failing):
        await append(store, 1)
        stopped = await until_status(store, "stopped")

    assert stopped.error is not None
    assert "UnspeakableError" in stopped.error


async def test_a_statement_that_fails_stops_it_though_the_projection_goes_on(store: EventStore) -> None:
    """PostgreSQL answers the COMMIT of a transaction in which a statement has failed with a ROLLBACK."""

    @projection("totals", tables=[Total, Applied])
    async def careless(event: Stored[Moved], session: AsyncSession) -> None:
        await single(event, session)
        if event.payload.amount == 2:
            with pytest.raises(Exception, match="nowhere"):
                await session.execute(select(_table("nowhere")))

    async with projecting(store, careless):
        positions = await append(store, *range(5))
        if store.engine.dialect.name == "sqlite":  # where the others of the transaction stand
            await store.caught_up("totals", positions[-1], timeout=60)
            return
        stopped = await until_status(store, "stopped")

    assert stopped.position == positions[1]
    assert await applied_to(store.engine) == positions[:2]


async def test_a_doctor_finds_what_stands_and_tables_that_are_missing(store: EventStore) -> None:
    look: Any = None
    projections = Projections(store, [single])
    await store.checkpoints.make("totals", 1)

    healthy = list(await projections.diagnose(look))
    await store.checkpoints.turn("totals", "running", "paused")
    paused = list(await projections.diagnose(look))
    async with store.engine.begin() as connection:
        await connection.run_sync(store.tables.projections.drop)
    missing = list(await projections.diagnose(look))

    assert healthy == []
    assert [(each.grade, each.where) for each in paused] == [("wrong", "projection totals")]
    assert "paused" in paused[0].what
    assert [(each.grade, each.where) for each in missing] == [("wrong", "Projections")]


async def test_a_database_that_is_away_is_waited_for_with_one_line(
    postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(postgres_server.url())
    store = await made(engine)
    async with projecting(store, single) as bus:
        first = await append(store, *range(10))
        await store.caught_up("totals", first[-1], timeout=60)
        with caplog.at_level(logging.WARNING, "rabbitevents.eventstore"):
            await postgres_server.akill()
            await eventually(lambda: not _check(bus, "totals").ok, "health to say so", 60)
            await asyncio.sleep(1)  # in which it is tried several times
            await postgres_server.astart()
            await eventually(lambda: _check(bus, "totals").ok, "the database to be there again", 60)
        second = await append(store, *range(10))
        await store.caught_up("totals", second[-1], timeout=60)
    await engine.dispose()

    said = [each.levelname for each in caplog.records if each.levelno >= logging.WARNING]
    assert said == ["WARNING"]
    assert len(await _applied(postgres_server)) == 20


async def _applied(server: PostgresServer) -> list[str]:
    return (await asyncio.to_thread(server.run, "SELECT position FROM applied")).splitlines()


async def test_a_page_that_takes_long_is_committed_in_parts(store: EventStore) -> None:
    @projection("totals", tables=[Total, Applied])
    async def slow(event: Stored[Moved], session: AsyncSession) -> None:
        await single(event, session)
        await asyncio.sleep(0.3)

    positions = await append(store, *range(100))
    async with projecting(store, slow):
        await store.caught_up("totals", positions[0], timeout=60)
        applied = await applied_to(store.engine)

    assert 1 <= len(applied) < 20
    assert applied == positions[: len(applied)]


# --- reading what was written --------------------------------------------------------------------------------------


async def test_what_a_projection_has_not_reached_is_said(store: EventStore) -> None:
    positions = await append(store, 1, 2)
    await store.checkpoints.make("totals", 1)

    with pytest.raises(ProjectionBehindError) as late:
        await store.caught_up("totals", positions[-1], timeout=0.1)
    with pytest.raises(ConfigurationError, match="no projection 'others'"):
        await store.caught_up("others", positions[-1])
    await store.checkpoints.turn("totals", "running", "paused")
    with pytest.raises(ProjectionBehindError, match="paused"):
        await store.caught_up("totals", positions[-1], timeout=60)
    await store.caught_up("totals", 0)

    assert (late.value.projection, late.value.wanted, late.value.position) == ("totals", positions[-1], 0)


async def test_a_probe_waits_for_projections(engine: AsyncEngine) -> None:
    outbox = Outbox(engine)
    store = await made(engine, outbox=outbox)
    async with running(Bus("memory://", plugins=[store, Projections(store, [single]), outbox])) as probe:
        positions = await append(store, *range(50))
        await probe.settled()

        assert await applied_to(engine) == positions


# --- what cannot be meant ------------------------------------------------------------------------------------------


async def _payload(event: Moved, session: AsyncSession) -> None: ...


async def _asks_for_the_bus(event: Moved, bus: Bus) -> None: ...


async def _asks_for_more(event: Moved, session: AsyncSession, bus: Bus) -> None: ...


async def _takes_anything(event: Any, session: AsyncSession) -> None: ...


async def _takes_both(event: Moved | Event[Closed], session: AsyncSession) -> None: ...


async def _keeps_to_itself(event: Moved, *, session: AsyncSession) -> None: ...


async def _takes_bare_envelopes(event: Event, session: AsyncSession) -> None: ...


def _is_plain(event: Moved, session: AsyncSession) -> None: ...


@pytest.mark.parametrize(
    ("told", "function", "said"),
    [
        ({"name": ""}, _payload, "name is blank"),
        ({"name": "Order Summary"}, _payload, "small letters"),
        ({"name": "x; drop table"}, _payload, "small letters"),
        ({"name": "x" * 101}, _payload, "longer than"),
        ({"version": 0}, _payload, "version=0: say a whole number"),
        ({"version": "2"}, _payload, "version='2' is text"),
        ({"tables": []}, _payload, "tables is empty"),
        ({"tables": "totals"}, _payload, "tables is text"),
        ({"tables": ["totals"]}, _payload, "tables has text in it"),
        ({"tables": [Total, _table("totals")]}, _payload, "two of one name"),
        ({}, _is_plain, "coroutine function"),
        ({}, Moved, "coroutine function"),
        ({}, _asks_for_the_bus, "is called with events and a session"),
        ({}, _asks_for_more, "is called with events and a session"),
        ({}, _keeps_to_itself, "is called with events and a session"),
        ({}, _takes_anything, "says which events"),
        ({}, _takes_both, "says which events"),
        ({}, _takes_bare_envelopes, "says which events"),
    ],
)
def test_a_projection_that_cannot_be_is_refused(told: dict[str, Any], function: Any, said: str) -> None:
    whole: dict[str, Any] = {"name": "totals", "tables": [Total], **told}

    with pytest.raises(ConfigurationError, match=re.escape(said)):
        projection(whole.pop("name"), **whole)(function)


async def test_projections_that_cannot_be_together_are_refused(sqlite_engine: AsyncEngine) -> None:
    store = await made(sqlite_engine)

    @projection("notes", tables=[_table("notes")])
    async def notes(event: OrderPlaced, session: AsyncSession) -> None: ...

    @projection("other", tables=[Applied])
    async def other(event: Moved, session: AsyncSession) -> None: ...

    for chosen, said in (
        ([single, batch], "'totals' and 'totals' have one name"),
        ([single, other], "'totals' and 'other' have one table"),
        ([notes], "OrderPlaced is not among the store's events"),
        (single, "it takes a list"),
        ([_payload], "it takes instances"),
    ):
        given: Any = chosen
        with pytest.raises(ConfigurationError, match=re.escape(said)):
            Projections(store, given)
    for wrong in (0.5, "30"):
        lease: Any = wrong
        with pytest.raises(ConfigurationError, match="lease"):
            Projections(store, [single], lease=lease)


async def test_a_bus_whose_database_lacks_the_table_does_not_start(engine: AsyncEngine) -> None:
    store = await made(engine)
    async with engine.begin() as connection:
        await connection.run_sync(store.tables.projections.drop)

    with pytest.raises(ConfigurationError, match=r"rabbitevents_projections.*EventTables"):
        async with running(Bus("memory://", plugins=[Projections(store, [single])])):
            pass
