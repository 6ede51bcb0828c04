"""The service of an event store: a projection of what is appended, and a process that follows it on the bus."""

from __future__ import annotations

from datetime import timedelta

from attrs import define, evolve
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_eventstore import EventStore, Projections, projection
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_process import Process, Step
from rabbitevents_retry import Retry
from tests.chaos.events import CONCURRENCY, EFFECTS, GRACE, LEASE, PREFETCH, Passed, Struck, engine, ledger, url


@define
class Lane:
    """What a process knows of a lane."""

    lane: str
    seen: int = 1


@projection("chaos_effects", tables=[EFFECTS])
async def note(struck: list[Struck], session: AsyncSession) -> None:
    """Have a row for each event: the effect, which counts with how far the projection is."""
    await session.execute(insert(EFFECTS), [{"what": "effect", "id": each.id} for each in struck])


def following() -> Process:
    """Return a process for each lane: each of its events is a step, which says so to others."""
    made = Process("following", Lane, key="lane", keep=timedelta(days=1), concurrency=CONCURRENCY, prefetch=PREFETCH)

    @made.starts(Struck)
    def begin(struck: Struck) -> Step:
        return Step(Lane(struck.lane), Passed(struck.lane, struck.number))

    @made.on(Struck)
    def go_on(struck: Struck, state: Lane) -> Step:
        return Step(evolve(state, seen=state.seen + 1), Passed(struck.lane, struck.number))

    return made


def store_of(database: AsyncEngine, outbox: Outbox) -> EventStore:
    """Return the store, whose events go out by an outbox."""
    return EventStore(database, events=[Struck], outbox=outbox)


def stored() -> Bus:
    """Follow what is appended, in the store and on the bus; what the process says has a row, too."""
    notes, database, router = ledger(), engine(), Router("chaos")

    @router.on(Passed, concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(passed: Passed, session: AsyncSession) -> None:
        await notes.note("start", passed.id)
        await session.execute(insert(EFFECTS).values(what="passed", id=passed.id))
        await notes.note("came", passed.id)

    outbox = Outbox(database, lease=LEASE)
    store = store_of(database, outbox)
    retry = Retry(stop=stop_after_attempt(20), wait=wait_fixed(0.5))
    inbox = Inbox(async_sessionmaker(database))
    projections = Projections(store, [note], lease=LEASE)
    plugins = [DeadLetter(), retry, inbox, store, projections, outbox]
    return Bus(url(), following(), router, plugins=plugins, grace=GRACE)
