"""The services that `tests.committed` kills: their broker and database are told by the environment.

``relay`` has an outbox alone; ``bus`` handles orders in an inbox, each with one effect and one event downstream.
"""

from __future__ import annotations

import os

from attrs import frozen
from sqlalchemy import Column, MetaData, Table, Text, insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from rabbitevents import Bus, Router, event
from rabbitevents_deadletter import DeadLetter
from rabbitevents_outbox import Inbox, Outbox, prepare_sqlite
from rabbitevents_retry import Retry

LEASE = float(os.environ.get("LEASE", "1"))
"""Seconds: short, so that a relay that is killed is soon replaced."""


@event("entry.written", entity="account", key="account")
@frozen
class Written:
    account: str
    number: int


@event("entry.handled", entity="account", key="account")
@frozen
class Handled:
    account: str
    number: int


EFFECTS = Table("effects", MetaData(), Column("account", Text), Column("number", Text))
"""One row for each handling: nothing in it is unique, so that a second one is seen."""


def engine_of(url: str) -> AsyncEngine:
    if url.startswith("sqlite"):
        engine = create_async_engine(url)
        prepare_sqlite(engine)
        return engine
    return create_async_engine(url, pool_size=30)


def relay() -> Bus:
    outbox = Outbox(engine_of(os.environ["DATABASE_URL"]), lease=LEASE, batch=200)
    return Bus(os.environ["AMQP_URL"], name="relay", plugins=[outbox], grace=1)


def bus() -> Bus:
    engine = engine_of(os.environ["DATABASE_URL"])
    router = Router("handling")

    @router.on(Written, concurrency=10, prefetch=50)
    async def handle(entry: Written, session: AsyncSession) -> Handled:
        await session.execute(insert(EFFECTS).values(account=entry.account, number=str(entry.number)))
        return Handled(entry.account, entry.number)

    plugins = [DeadLetter(), Retry(), Inbox(async_sessionmaker(engine)), Outbox(engine, lease=LEASE)]
    return Bus(os.environ["AMQP_URL"], router, plugins=plugins, grace=1)
