"""A service whose dead letters are tended while it runs: edited, and replayed, by each of its processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import msgspec
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Delivery, Host, Plugin, RabbitEventsError, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_deadletter.workbench import DeadLetters, Selection
from rabbitevents_retry import Retry
from tests.chaos.events import (
    CONCURRENCY,
    GRACE,
    PREFETCH,
    FailsError,
    Struck,
    incurable,
    ledger,
    needs_mending,
    url,
    work,
)

FAILED = Selection(errors=("FailsError",))


class Tending(Plugin):
    """Mends what can be, by replaying its letter with another body, again and again while the bus runs."""

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        task = asyncio.create_task(_tend(host))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _tend(host: Host) -> None:
    while not host.stopping:
        with suppress(RabbitEventsError):  # the broker is away
            async with Bus(url(), name="tender") as bus:
                letters = DeadLetters(bus, "chaos.take")
                while await host.wait(0.5):
                    with suppress(RabbitEventsError):  # somebody else tends
                        await _replay(letters)


async def _replay(letters: DeadLetters) -> None:
    """Edit what needs mending, and replay what is incurable once: it comes back."""
    bodies: dict[str, bytes] = {}
    for letter in await letters.find(FAILED, limit=5000):
        struck = msgspec.json.decode(letter.body)
        id = f"{struck['lane']}/{struck['number']}"
        if needs_mending(id):
            bodies[letter.id] = msgspec.json.encode({**struck, "mended": True})
        elif letter.replayed == 0:
            bodies[letter.id] = letter.body
    if bodies:
        await letters.replay(Selection(ids=tuple(bodies)), bodies=bodies)


def replayed() -> Bus:
    """Fail until an event is edited, some for good; each process tends what became of that."""
    notes, router = ledger(), Router("chaos")

    @router.on(Struck, concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck, delivery: Delivery) -> None:
        if incurable(struck.id) or (needs_mending(struck.id) and not struck.mended):
            await notes.note("start", struck.id)
            raise FailsError
        await work(notes, struck)

    retry = Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.5), inline_below=0.1)
    return Bus(url(), router, plugins=[Tending(), DeadLetter(), retry], grace=GRACE)
