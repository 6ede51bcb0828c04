"""The publishers under test: ``python -m tests.chaos.publishers NAME`` publishes until SIGTERM.

What comes of each attempt is written into the ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker

from rabbitevents import Bus, SyncBus
from rabbitevents.errors import NotSentError, PublishError
from rabbitevents_eventstore import ANY
from rabbitevents_outbox import Outbox
from tests.chaos.events import Struck, engine, ledger, url, waits
from tests.chaos.ledger import Ledger
from tests.chaos.stored import store_of

PAUSE = 0.05
"""Seconds between two events of a lane, on average."""
TWICE = 0.2
"""Which share of the events is published twice, under one id, where handlers are idempotent."""
AWAY = (PublishError, DBAPIError, OSError, TimeoutError)
"""What leaves an outcome unknown."""

Send = Callable[[Struck], Awaitable[object]]


class Publishing:
    """Lanes that publish one event after the other, each when the one before it was answered, until told to stop.

    A lane whose event got no answer goes on under another name: it could still come after the next one.
    """

    def __init__(self, ledger: Ledger, send: Send, *, lanes: int) -> None:
        self._ledger = ledger
        self._send = send
        self._lanes = lanes
        self._stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopped.set)

    async def run(self) -> None:
        """Publish until SIGTERM; return when all were answered."""
        await asyncio.gather(*(self._lane(number) for number in range(self._lanes)))

    async def _lane(self, lane: int) -> None:
        life = number = 0
        while not self._stopped.is_set():
            struck = Struck(f"{os.getpid()}-{lane}-{life}", number)
            number += 1
            await self._ledger.note("attempt", struck.id)
            answer = await self._answer(struck)
            await self._ledger.note(answer, struck.id)
            if answer != "confirmed":
                life, number = life + 1, 0
                await asyncio.sleep(0.1)
            await asyncio.sleep(random.uniform(0, 2 * PAUSE))

    async def _answer(self, struck: Struck) -> str:
        try:
            await self._send(struck)
        except AWAY as error:
            return _outcome(struck, error)
        return "confirmed"


def _outcome(struck: Struck, error: BaseException) -> str:
    if isinstance(error, NotSentError):
        return "failed"
    print(f"{struck.id}: {error}"[:300], flush=True)
    return "unknown"


async def publish() -> None:
    """Publish at the broker."""
    async with Bus(url(), name="publisher", unroutable="raise") as bus:
        await Publishing(ledger(), bus.publish, lanes=20).run()


async def publish_some_twice() -> None:
    """Publish at the broker, some of it a second time."""
    async with Bus(url(), name="publisher", unroutable="raise") as bus:

        async def send(struck: Struck) -> None:
            envelope = await bus.publish(struck)
            if random.random() < TWICE:
                with suppress(PublishError):  # it was confirmed already
                    await bus.publish(envelope)

        await Publishing(ledger(), send, lanes=20).run()


async def delay() -> None:
    """Publish what is to wait at the broker first."""
    async with Bus(url(), name="publisher", unroutable="raise") as bus:

        async def send(struck: Struck) -> None:
            await bus.publish(struck, delay=waits(struck.id) or None)

        await Publishing(ledger(), send, lanes=30).run()


async def commit() -> None:
    """Commit to the outbox; the services relay it."""
    database = engine()
    outbox, sessions = Outbox(database, name="writer", relay=False), async_sessionmaker(database)

    async def send(struck: Struck) -> None:
        async with asyncio.timeout(20), sessions.begin() as session:
            await outbox.publish(session, struck)

    await Publishing(ledger(), send, lanes=8).run()
    await database.dispose()


async def append() -> None:
    """Append to the event store, whose outbox the services relay."""
    database = engine()
    store = store_of(database, Outbox(database, name="writer", relay=False))

    async def send(struck: Struck) -> None:
        async with asyncio.timeout(20):
            await store.append("lane", struck.lane, [struck], expected=ANY)

    await Publishing(ledger(), send, lanes=8).run()
    await database.dispose()


def publish_from_threads() -> None:
    """Publish from eight threads."""
    stopped, notes = threading.Event(), ledger()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with SyncBus(url(), name="publisher", unroutable="raise") as bus:
        threads = [threading.Thread(target=_lane, args=(bus, notes, lane, stopped)) for lane in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()


def _lane(bus: SyncBus, notes: Ledger, lane: int, stopped: threading.Event) -> None:
    for number in itertools.count():
        if stopped.is_set():
            return
        struck = Struck(f"{os.getpid()}-{lane}-0", number)
        notes.write("attempt", [struck.id])
        try:
            bus.publish(struck)
            answer = "confirmed"
        except PublishError as error:
            answer = _outcome(struck, error)
        notes.write(answer, [struck.id])
        time.sleep(random.uniform(0, PAUSE))


PUBLISHERS = (publish, publish_some_twice, delay, commit, append)

if __name__ == "__main__":
    if sys.argv[1] == publish_from_threads.__name__:
        publish_from_threads()
    else:
        asyncio.run({each.__name__: each for each in PUBLISHERS}[sys.argv[1]]())
