"""Processes in several operating system processes: the races that other libraries have lost, on both databases."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import Bus, Event, Router
from rabbitevents_outbox import Tables
from rabbitevents_process import ProcessTables
from tests.bed.postgres import PostgresServer
from tests.committed import Process as Service
from tests.committed import processes, until
from tests.committed_service import engine_of
from tests.process_service import Charged, Imported, ItemAdded, Noted, Placed

pytestmark = pytest.mark.timeout(180)

KEYS = [f"o-{number}" for number in range(12)]
PROCESS = ProcessTables()


class World:
    """A broker, a database, and what the steps of all processes have said."""

    def __init__(self, amqp: str, database: str) -> None:
        self.environment = {"AMQP_URL": amqp, "DATABASE_URL": database}
        self.engine: AsyncEngine = engine_of(database)
        self.noted: list[Noted] = []
        self.services: list[Service] = []
        self.timed_out = 0
        """How many timeouts have come, be it that nobody waits for them any more."""
        self._seen: set[UUID] = set()
        watch = Router("watch")

        @watch.on("ordering.timed-out")
        async def count() -> None:
            self.timed_out += 1

        @watch.on(Noted)
        async def note(noted: Event[Noted]) -> None:
            if noted.id not in self._seen:  # what was sent when a process was killed is sent again, with the same id
                self._seen.add(noted.id)
                self.noted.append(noted.payload)

        self.bus = Bus(amqp, watch)

    @property
    def what(self) -> dict[str, Counter[str]]:
        """What was done, for each order."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for each in self.noted:
            found[each.order_id][each.what] += 1
        return dict(found)

    def count(self, what: str) -> int:
        return sum(each.what == what for each in self.noted)

    @property
    def pids(self) -> set[int]:
        return {each.pid for each in self.noted}

    @asynccontextmanager
    async def running(self, number: int = 2, **environment: str) -> AsyncGenerator[list[Service]]:
        """Run the service in so many processes; at the end they are killed."""
        there = {**self.environment, **environment}
        async with processes("run tests.process_service:bus", number, there) as services:
            self.services = services
            await until(lambda: all("runs on" in each.said for each in services), "the services", 60)
            yield services

    async def publish(self, events: Sequence[Any]) -> None:
        await self.bus.publish_many(events)

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = 40) -> None:
        try:
            await until(condition, what, seconds)
        except TimeoutError as error:
            said = "\n".join(each.said[-3000:] for each in self.services)
            raise AssertionError(f"{error}; {self.what}\n{said}") from error

    def facts(self, name: str) -> int:
        """How often the services have told a fact."""
        return sum(each.said.count(f"fact {name} ") for each in self.services)

    async def dead(self) -> int:
        depth = await self.bus.depth("ordering.events.dead")
        return 0 if depth is None else depth.ready

    async def rows(self, *which: Any) -> int:
        """How many processes there are."""
        async with self.engine.connect() as connection:
            counted = select(func.count()).select_from(PROCESS.process).where(*which)
            return await connection.scalar(counted) or 0


@pytest.fixture(params=["sqlite", "postgresql"])
async def world(
    request: pytest.FixtureRequest, rabbit_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[World]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('process')}/test.db"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.url(database=server.database())
    made = World(rabbit_url, url)
    await Tables().create(made.engine)
    await PROCESS.create(made.engine)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(made.engine.dispose)
        await stack.enter_async_context(made.bus)
        yield made


# --- the six races -------------------------------------------------------------------------------------------------


@pytest.mark.sampled
async def test_an_event_that_comes_before_its_start_is_taken_once_the_process_has_begun(world: World) -> None:
    async with world.running(UNPAID="600"):
        await world.publish([ItemAdded(key) for key in KEYS])
        await world.until(lambda: world.facts("Retried") >= len(KEYS), "events that came too early")
        await world.publish([Placed(key) for key in KEYS])
        await world.until(lambda: world.count("added") >= len(KEYS), "the early events")

    assert all(what["began"] == what["added"] == 1 for what in world.what.values()), world.what
    assert await world.dead() == 0


@pytest.mark.sampled
async def test_of_two_starts_at_once_one_starts_and_the_other_one_goes_on(world: World) -> None:
    async with world.running(UNPAID="600"):
        await world.publish([start(key) for key in KEYS for start in (Placed, Imported)])
        await world.until(lambda: len(world.noted) >= 2 * len(KEYS), "both starts")

        assert all(what["began"] == what["joined"] == 1 for what in world.what.values()), world.what
        assert world.facts("Retried") == 0
    assert len(world.pids) == 2


@pytest.mark.sampled
async def test_a_timeout_after_the_end_is_nothing(world: World) -> None:
    async with world.running(UNPAID="5"):
        await world.publish([Placed(key) for key in KEYS])
        await world.until(lambda: world.count("began") >= len(KEYS), "the starts")
        await world.publish([Charged(key) for key in KEYS])
        await world.until(lambda: world.count("paid") >= len(KEYS), "the ends")
        await world.until(lambda: world.timed_out >= len(KEYS), "the timeouts")
        await world.publish([Charged(key) for key in KEYS])  # which come behind them
        await world.until(lambda: world.facts("LateForProcess") >= len(KEYS), "the late ones")

        assert world.count("given up") == 0
        assert (world.facts("Retried"), world.facts("Held"), await world.dead()) == (0, 0, 0)
    assert await world.rows(PROCESS.process.c.done_at.is_not(None)) == len(KEYS)


@pytest.mark.sampled
async def test_a_timeout_and_the_event_that_it_waits_for_at_the_same_moment_have_one_outcome(world: World) -> None:
    async with world.running():
        await world.publish([Placed(key) for key in KEYS])
        await world.until(lambda: world.count("began") >= len(KEYS), "the starts")
        for number, key in enumerate(KEYS):
            await asyncio.sleep(0.05 if number else 0.7)  # around the moment at which the timeouts are due
            await world.publish([Charged(key)])
        await world.until(lambda: world.count("paid") + world.count("given up") >= len(KEYS), "an outcome for each")
        await world.until(lambda: world.facts("LateForProcess") >= world.count("given up"), "those that came second")

        assert all(what["paid"] + what["given up"] == 1 for what in world.what.values()), world.what
        assert (world.facts("Retried"), await world.dead()) == (0, 0)


@pytest.mark.sampled
async def test_a_timeout_starts_nothing_where_its_process_is_gone(world: World) -> None:
    async with world.running(UNPAID="5"):
        await world.publish([Placed(key) for key in KEYS])
        await world.until(lambda: world.count("began") >= len(KEYS), "the starts")
        async with world.engine.begin() as connection:
            await connection.execute(delete(PROCESS.process))
        await world.publish([Placed("other")])
        await world.until(lambda: world.timed_out > len(KEYS), "the timeouts")
        await world.until(lambda: world.count("given up") >= 1, "the other one's, set after all of theirs")

        assert world.count("given up") == 1
        assert (world.facts("Retried"), await world.dead(), await world.rows()) == (0, 0, 1)


@pytest.mark.sampled
async def test_an_older_and_a_newer_version_of_the_state_side_by_side_lose_nothing(world: World) -> None:
    """As while a new version is rolled out: what the newer one has written, the older one leaves to it."""
    async with world.running(1, STATE="1", UNPAID="600"):
        await world.publish([Placed(key) for key in KEYS])
        await world.until(lambda: world.count("began") >= len(KEYS), "the starts")

    async with world.running(1, STATE="1") as old, world.running(1, STATE="2") as new:
        world.services = [*old, *new]
        published: list[ItemAdded] = []
        while not world.facts("Retried"):  # which of the two has an event is RabbitMQ's choice
            more = [ItemAdded(key) for key in KEYS]
            await world.publish(more)
            published.extend(more)
            await world.until(lambda: world.count("added") >= len(published), "all items")
        await world.publish([Charged(key) for key in KEYS])
        await world.until(lambda: world.count("paid") >= len(KEYS), "the ends")

    items = len(published) // len(KEYS)
    assert {each.order_id: each.number for each in world.noted if each.what == "paid"} == dict.fromkeys(KEYS, items)
    assert await world.dead() == 0


# --- restarts, and many at once --------------------------------------------------------------------------------------


@pytest.mark.sampled
async def test_timeouts_outlive_the_processes_that_set_them(world: World) -> None:
    async with world.running():
        await world.publish([Placed(key) for key in KEYS])
        await world.until(lambda: world.count("began") >= len(KEYS) // 2, "some starts")
    there = world.count("given up")

    async with world.running():
        await world.until(lambda: world.count("given up") >= len(KEYS), "the timeouts")

    assert there < len(KEYS)
    assert all(what["began"] == what["given up"] == 1 for what in world.what.values()), world.what


@pytest.mark.sampled
async def test_sixty_events_of_one_key_in_eight_processes_count_no_retry(world: World) -> None:
    async with world.running(8, UNPAID="600"):
        await world.publish([Imported("o-1")])
        await world.until(lambda: world.count("began") == 1, "the start")
        await world.publish([ItemAdded("o-1") for _ in range(60)])
        await world.until(lambda: world.count("added") >= 60, "sixty events")

        assert sorted(each.number for each in world.noted if each.what == "added") == list(range(1, 61))
        assert (world.facts("Retried"), world.facts("Held"), await world.dead()) == (0, 0, 0)
    assert len(world.pids) > 4
