"""What all of them do: have one effect for each event, after a while, and say what came of each publish."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

from tests.chaos import lanes
from tests.chaos.ledger import Ledger

QUEUE = "chaos.take"
CONCURRENCY, PREFETCH, LONGEST = 10, 50, 0.02

LEDGER = Ledger(os.environ["LEDGER"])


async def work(lane: str, number: int) -> None:
    """Have one effect."""
    await LEDGER.note("start", f"{lane}/{number}")
    await asyncio.sleep(random.uniform(0, LONGEST))
    await LEDGER.note("effect", f"{lane}/{number}")


def work_here(lane: str, number: int) -> None:
    """Have one effect, in this thread."""
    LEDGER.write("start", [f"{lane}/{number}"])
    time.sleep(random.uniform(0, LONGEST))
    LEDGER.write("effect", [f"{lane}/{number}"])


def started() -> None:
    """Say that it takes events."""
    print("runs on", os.environ["AMQP_URL"].rpartition("@")[2], flush=True)


def stopped() -> asyncio.Event:
    """Return what is set by SIGTERM."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, event.set)
    return event


async def publish(send: Callable[[str, int], Awaitable[object]]) -> None:
    """Publish until SIGTERM; whatever is raised leaves the outcome unknown."""

    async def answer(lane: str, number: int) -> str:
        try:
            await send(lane, number)
        except Exception as error:
            print(f"{lane}/{number}: {type(error).__name__}: {error}"[:300], flush=True)
            return "unknown"
        return "confirmed"

    await lanes.publish(LEDGER, answer, lanes=20)
