"""What the processes under test have in common: the events, how they fail, and where everything is."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from attrs import frozen
from redis.asyncio import Redis, RedisCluster
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rabbitevents import event
from tests.bed.loopback import LOOPBACK
from tests.chaos.ledger import Ledger

CONCURRENCY = 10
PREFETCH = 50
LEASE = 3.0
"""Seconds: short, so that a process that was killed is soon replaced."""
GRACE = 5.0
"""Seconds that a stop has; the library may take 5 more."""
LONGEST = 0.02
"""Seconds that a handler takes at most."""
DELIVERY_LIMIT, USUAL_LIMIT = 12, 50
"""How often the broker delivers what crashes its processes: in the load that meets such events, and by default."""
PARTITIONS = 4
"""How many queues there are where an order is kept by several processes at work."""
POISON, JUNK, SLOW, HANGS = "poison", "junk", "slow", "hangs"
"""How the lanes are called whose events crash whoever handles them, cannot be read, take long, and hang who is first."""
LONG = 20.0
"""How many seconds."""

EFFECTS = Table(
    "chaos_effects",
    MetaData(),
    Column("number", Integer, primary_key=True),
    Column("what", Text),
    Column("id", Text),
)
"""One row for each handling, in their order: nothing in it is unique but its number, so that a second one is seen."""


@event("chaos.struck", entity="lane", key="lane")
@frozen
class Struck:
    lane: str
    number: int
    mended: bool = False
    """Whether somebody has edited it, as a dead letter."""

    @property
    def id(self) -> str:
        """What the ledger calls it."""
        return f"{self.lane}/{self.number}"


@event("chaos.passed", entity="lane", key="lane")
@frozen
class Passed:
    lane: str
    number: int

    @property
    def id(self) -> str:
        """What the ledger calls it."""
        return f"{self.lane}/{self.number}"


class FailsError(Exception):
    """The handler fails."""


def number_of(id: str) -> int:
    """Return an event's number in its lane."""
    return int(id.rpartition("/")[2])


def failures(id: str) -> int:
    """Return how often an event fails before it is handled, in a load with retries; 9: it dies."""
    number = number_of(id)
    return {3: 1, 7: 2}.get(number % 10, 0) if number % 50 != 12 else 9


def dies(id: str) -> bool:
    """Whether an event fails for good, in a load with retries."""
    return failures(id) > 3


def needs_mending(id: str) -> bool:
    """Whether an event fails until it is edited, in the load whose dead letters are tended."""
    return number_of(id) % 10 == 3


def incurable(id: str) -> bool:
    """Whether an event fails in that load however often it is replayed."""
    return number_of(id) % 100 == 42


def crashes(id: str) -> bool:
    """Whether an event ends whoever handles it, or cannot be read: it ends among the dead."""
    return id.startswith((POISON, JUNK))


def waits(id: str) -> float:
    """Return how long an event waits at the broker, in the load that delays, in seconds."""
    return (0.0, 0.3, 0.0, 1.2, 2.0, 4.5)[number_of(id) % 6]


async def work(ledger: Ledger, struck: Struck) -> None:
    """Have one effect, after a while."""
    await ledger.note("start", struck.id)
    await asyncio.sleep(LONG if struck.lane.startswith(SLOW) else random.uniform(0, LONGEST))
    await ledger.note("effect", struck.id)


place: ContextVar[Mapping[str, str]] = ContextVar("place", default=os.environ)
"""Where everything is, by name: the environment says it, unless one process has several places."""


def hang_once(struck: Struck) -> None:
    """Keep the event loop from turning, for whoever has this event first, whichever process that is."""
    try:
        os.close(os.open(f"{place.get()['LEDGER']}.{struck.lane}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    time.sleep(600)


def called() -> dict[str, Any]:
    """Return what the handler is called, and was, as the decorator is told: who deploys says another name."""
    told = place.get()
    return {"name": told["NAME"], "was": ("chaos.take", told["WAS"])} if "NAME" in told else {"name": "take"}


def limit(usual: int) -> int:
    """Return how often the broker delivers an event: who deploys says that it is more."""
    return usual + int(place.get().get("MORE_DELIVERIES", "0"))


def url() -> list[str]:
    """Return where the broker is: one URL, or one for each node of a cluster."""
    return place.get()["AMQP_URL"].split()


def ledger() -> Ledger:
    """Open the ledger."""
    return Ledger(place.get()["LEDGER"])


def redis() -> Redis | RedisCluster:
    """Return a client of the Redis, or of the cluster whose one shard is known."""
    told = place.get()
    if "SHARD_PORT" in told:
        return RedisCluster(host=LOOPBACK, port=int(told["SHARD_PORT"]))
    return Redis(port=int(told["REDIS_PORT"]))


def engine() -> AsyncEngine:
    """Return an engine for the database."""
    return create_async_engine(place.get()["DATABASE_URL"], pool_size=int(place.get().get("DATABASE_POOL", "30")))
