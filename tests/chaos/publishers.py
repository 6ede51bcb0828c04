"""The publishers under test: ``python -m tests.chaos.publishers NAME`` publishes until SIGTERM.

What comes of each attempt is written into the ledger.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker

from rabbitevents import Bus, SyncBus
from rabbitevents.errors import BrokerError, NotSentError, PublishError
from rabbitevents_eventstore import ANY
from rabbitevents_outbox import Outbox
from tests.chaos import lanes
from tests.chaos.events import Struck, engine, ledger, url, waits
from tests.chaos.stored import store_of

TWICE = 0.2
"""Which share of the events is published twice, under one id, where handlers are idempotent."""
AWAY = (PublishError, DBAPIError, OSError, TimeoutError)
"""What says that an event is not published, or that nobody knows."""

Send = Callable[[Struck], Awaitable[object]]


async def _publishing(send: Send, *, number: int) -> None:
    async def answer(lane: str, number: int) -> str:
        struck = Struck(lane, number)
        try:
            await send(struck)
        except AWAY as error:
            return _outcome(struck, error)
        return "confirmed"

    await lanes.publish(ledger(), answer, lanes=number)


def _outcome(struck: Struck, error: BaseException) -> str:
    if isinstance(error, NotSentError):
        return "failed"
    print(f"{struck.id}: {error}"[:300], flush=True)
    return "unknown"


async def publish() -> None:
    """Publish at the broker."""
    async with Bus(url(), name="publisher", unroutable="raise") as bus:
        await _publishing(bus.publish, number=20)


async def publish_some_twice() -> None:
    """Publish at the broker, some of it a second time."""
    async with Bus(url(), name="publisher", unroutable="raise") as bus:

        async def send(struck: Struck) -> None:
            envelope = await bus.publish(struck)
            if random.random() < TWICE:
                with suppress(PublishError):  # it was confirmed already
                    await bus.publish(envelope)

        await _publishing(send, number=20)


async def delay() -> None:
    """Publish what is to wait at the broker first."""
    async with Bus(url(), name="publisher", unroutable="raise") as bus:

        async def send(struck: Struck) -> None:
            await bus.publish(struck, delay=waits(struck.id) or None)

        await _publishing(send, number=30)


async def commit() -> None:
    """Commit to the outbox; the services relay it."""
    database = engine()
    outbox, sessions = Outbox(database, name="writer", relay=False), async_sessionmaker(database)

    async def send(struck: Struck) -> None:
        async with asyncio.timeout(20), sessions.begin() as session:
            await outbox.publish(session, struck)

    await _publishing(send, number=8)
    await database.dispose()


async def append() -> None:
    """Append to the event store, whose outbox the services relay."""
    database = engine()
    store = store_of(database, Outbox(database, name="writer", relay=False))

    async def send(struck: Struck) -> None:
        async with asyncio.timeout(20):
            await store.append("lane", struck.lane, [struck], expected=ANY)

    await _publishing(send, number=8)
    await database.dispose()


def publish_from_threads() -> None:
    """Publish from eight threads."""
    with SyncBus(url(), name="publisher", unroutable="raise") as bus:

        def answer(lane: str, number: int) -> str:
            struck = Struck(lane, number)
            try:
                bus.publish(struck)
            except (PublishError, BrokerError) as error:
                return _outcome(struck, error)
            return "confirmed"

        lanes.publish_from_threads(ledger(), answer, threads=8)


PUBLISHERS = (publish, publish_some_twice, delay, commit, append)

if __name__ == "__main__":
    if sys.argv[1] == publish_from_threads.__name__:
        publish_from_threads()
    else:
        asyncio.run({each.__name__: each for each in PUBLISHERS}[sys.argv[1]]())
