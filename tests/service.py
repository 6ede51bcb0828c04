"""A service in a process of its own, for the tests that kill it: ``python -m tests.service MODE URL LEDGER``.

What its handlers do is written to LEDGER, one line each, fsynced: "start ID", "effect ID", "exit".
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress

from rabbitevents import Bus, Router
from tests.shop import OrderPlaced

MODE, URL, LEDGER = sys.argv[1:4]
GRACE = 3.0

ledger = os.open(LEDGER, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
router = Router("shop")


def note(*words: str) -> None:
    """Write one line that survives whatever happens to this process."""
    os.write(ledger, (" ".join(words) + "\n").encode())
    os.fsync(ledger)


async def slow(order: OrderPlaced) -> None:
    """Take a moment, or, every third order, longer than the grace period."""
    note("start", order.order_id)
    number = int(order.order_id.split("-")[1])
    await asyncio.sleep(30 if number % 3 == 0 else 1)
    note("effect", order.order_id)


def in_a_thread(order: OrderPlaced) -> None:
    """Hang longer than anybody waits."""
    note("thread", order.order_id)
    time.sleep(30)


async def quick(order: OrderPlaced) -> None:
    """Take no time."""
    note("effect", order.order_id)


async def stubborn(order: OrderPlaced) -> None:
    """Swallow every cancellation."""
    note("start", order.order_id)
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def crashing(order: OrderPlaced) -> None:
    """Take the whole process along, if the order is the poisoned one."""
    if order.order_id == "poison":
        note("crash", order.order_id)
        os._exit(1)
    await asyncio.sleep(0.002)
    note("effect", order.order_id)


HANDLERS = {"slow": slow, "quick": quick, "stubborn": stubborn}

if MODE == "crash":
    router.on(OrderPlaced, name="record", concurrency=10, prefetch=50)(crashing)
else:
    router.on(OrderPlaced, name="record", concurrency=100, prefetch=100)(HANDLERS[MODE])
if MODE == "slow":
    router.on(OrderPlaced, name="threaded", concurrency=1, prefetch=1)(in_a_thread)

Bus(URL, router, grace=GRACE, delivery_limit=6 if MODE == "crash" else 50).run()
note("exit")
