"""Lanes that publish, one event after the other each, whatever with; what comes of each goes into the ledger.

It needs Python alone: those that we are compared with publish by it too, in an environment of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import FrameType
from typing import NamedTuple

from tests.chaos.ledger import Ledger

PAUSE = 0.05
"""Seconds between two events of a lane, on average."""


class Pace(NamedTuple):
    """How many lanes publish, where the publisher does not say it itself, how often (seconds), and until when.

    One that ends by SIGTERM alone has no ``stopped``.
    """

    lanes: int | None = None
    pause: float = PAUSE
    stopped: threading.Event | None = None


_USUAL = Pace()
pace: ContextVar[Pace] = ContextVar("pace", default=_USUAL)


async def publish(ledger: Ledger, answer: Callable[[str, int], Awaitable[str]], *, lanes: int) -> None:
    """Publish until SIGTERM, or as the `pace` says; return when all were answered.

    ``answer`` publishes the event of a lane and a number, and returns "confirmed", "failed" or "unknown". A lane whose
    event got no answer goes on under another name: it could still come after the next one.
    """
    told = pace.get()
    stopped = told.stopped or threading.Event()
    if told.stopped is None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def lane(place: int) -> None:
        life = number = 0
        while not stopped.is_set():
            name = f"{os.getpid()}-{place}-{life}"
            await ledger.note("attempt", f"{name}/{number}")
            outcome = await answer(name, number)
            await ledger.note(outcome, f"{name}/{number}")
            number += 1
            if outcome != "confirmed":
                life, number = life + 1, 0
                await asyncio.sleep(0.1)
            await asyncio.sleep(random.uniform(0, 2 * told.pause))

    await asyncio.gather(*map(lane, range(told.lanes or lanes)))


def publish_from_threads(ledger: Ledger, answer: Callable[[str, int], str], *, threads: int) -> None:
    """Do the same without an event loop, each lane in a thread of its own."""
    told = pace.get()
    stopped = told.stopped or threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    def lane(place: int) -> None:
        name = f"{os.getpid()}-{place}-0"
        for number in itertools.count():
            if stopped.is_set():
                return
            ledger.write("attempt", [f"{name}/{number}"])
            ledger.write(answer(name, number), [f"{name}/{number}"])
            time.sleep(random.uniform(0, told.pause))

    if told.stopped is None:
        signal.signal(signal.SIGTERM, stop)
    running = [threading.Thread(target=lane, args=(place,)) for place in range(told.lanes or threads)]
    for each in running:
        each.start()
    for each in running:
        each.join()
