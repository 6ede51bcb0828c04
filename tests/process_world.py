"""A bus with a process, on the embedded broker and a database, and what is seen of it from outside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Fact, Plugin, facts
from rabbitevents.testing import Probe, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_process import Process
from rabbitevents_retry import Retry
from tests.ordering import (
    fulfilling,
)


class World(Plugin):
    """A bus with a process: what is seen of it from outside. Facts are kept by itself, a plugin."""

    def __init__(self, engine: AsyncEngine, process: Process, *further_in: Plugin) -> None:
        self.engine = engine
        self.process = process
        self.facts: list[Fact] = []
        inbox = Inbox(async_sessionmaker(engine), busy=0.1)
        outbox = Outbox(engine, unroutable="ignore", poll=0.02)
        retry = Retry(wait=wait_fixed(10), stop=stop_after_attempt(3))
        self.bus = Bus("memory://", process, plugins=[self, DeadLetter(), retry, inbox, *further_in, outbox])

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)

    def count(self, kind: type[Fact]) -> int:
        return sum(isinstance(each, kind) for each in self.facts)

    @property
    def reasons(self) -> list[str]:
        """Why events were given up on."""
        return [each.reason for each in self.facts if isinstance(each, facts.DeadLettered)]

    async def rows(self) -> Sequence[Any]:
        async with self.engine.connect() as connection:
            return (await connection.execute(select(self.process.tables.process))).all()

    async def state(self) -> Any:
        """The document of the one process that there is."""
        (row,) = await self.rows()
        return bytes(row.state).decode()

    async def change(self, **values: Any) -> None:
        """Change what is kept, as somebody else has."""
        async with self.engine.begin() as connection:
            await connection.execute(update(self.process.tables.process).values(**values))


@asynccontextmanager
async def world(
    engine: AsyncEngine, process: Process | None = None, *further_in: Plugin
) -> AsyncGenerator[tuple[World, Probe]]:
    made = World(engine, process or fulfilling(), *further_in)
    await made.process.tables.create(engine)
    async with running(made.bus) as probe:
        yield made, probe


async def publish(probe: Probe, *events: Any) -> None:
    """Publish events one after another, each when what came of the one before has settled."""
    for each in events:
        await probe.bus.publish(each)
        await probe.settled()
