"""The services under test: a bus for each load, which ``rabbitevents run`` starts.

Where everything is, the environment says. What is done is written into the ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from datetime import timedelta
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from tenacity import stop_after_attempt, wait_chain, wait_fixed

from rabbitevents import Batch, Bus, Delivery, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, RedisStore
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_retry import Retry
from tests.chaos.events import (
    CONCURRENCY,
    DELIVERY_LIMIT,
    EFFECTS,
    GRACE,
    HANGS,
    LEASE,
    LONGEST,
    PARTITIONS,
    POISON,
    PREFETCH,
    USUAL_LIMIT,
    FailsError,
    Passed,
    Struck,
    called,
    engine,
    failures,
    hang_once,
    ledger,
    limit,
    redis,
    url,
    work,
)


def handle() -> Bus:
    """Handle, and nothing else; an event may crash its process, or hang it."""
    notes, router = ledger(), Router("chaos")

    @router.on(Struck, **called(), concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck) -> None:
        if struck.lane.startswith(POISON):
            os.kill(os.getpid(), signal.SIGKILL)
        if struck.lane.startswith(HANGS):
            await notes.note("start", struck.id)
            hang_once(struck)
        await work(notes, struck)

    return Bus(url(), router, plugins=[DeadLetter()], grace=GRACE, delivery_limit=limit(DELIVERY_LIMIT))


def retries() -> Bus:
    """Fail first: once, tried again in the process, or twice, by way of the broker; some for good."""
    notes, router = ledger(), Router("chaos")

    @router.on(Struck, **called(), concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck, delivery: Delivery) -> None:
        if delivery.attempt <= failures(struck.id):
            await notes.note("start", struck.id)
            raise FailsError
        await work(notes, struck)

    retry = Retry(stop=stop_after_attempt(3), wait=wait_chain(wait_fixed(0.05), wait_fixed(0.5)), inline_below=0.1)
    return Bus(url(), router, plugins=[DeadLetter(), retry], grace=GRACE, delivery_limit=limit(USUAL_LIMIT))


def ordered() -> Bus:
    """Handle each lane in its order, across processes of which one is at work; some fail first."""
    return _in_order(ordered=True, single_active_consumer=True, concurrency=30, prefetch=200)


def partitions() -> Bus:
    """The same, by several processes at work, each with some of the partitions."""
    return _in_order(partitions=PARTITIONS, concurrency=30 // PARTITIONS, prefetch=200 // PARTITIONS)


def _in_order(**told: Any) -> Bus:
    notes, router = ledger(), Router("chaos")

    @router.on(Struck, **called(), **told)
    async def take(struck: Struck, delivery: Delivery) -> None:
        if delivery.attempt <= (struck.number % 10 == 3):
            await notes.note("start", struck.id)
            raise FailsError
        await work(notes, struck)

    retry = Retry(stop=stop_after_attempt(20), wait=wait_fixed(0.2), inline_below=0.05)
    return Bus(url(), router, plugins=[DeadLetter(), retry], grace=GRACE, delivery_limit=limit(USUAL_LIMIT))


def batches() -> Bus:
    """Handle many by one call."""
    notes, router = ledger(), Router("chaos")

    @router.on(Struck, **called(), batch=Batch(size=20, within=0.05), concurrency=2)
    async def take(struck: list[Struck]) -> None:
        ids = [each.id for each in struck]
        await notes.note("start", *ids)
        await asyncio.sleep(random.uniform(0, LONGEST))
        await notes.note("effect", *ids)

    return Bus(url(), router, plugins=[DeadLetter(), Retry()], grace=GRACE, delivery_limit=limit(USUAL_LIMIT))


def idempotent() -> Bus:
    """Handle once, with marks in Redis; one event in five is published twice."""
    notes, router = ledger(), Router("chaos")

    @router.on(Struck, **called(), concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck) -> None:
        await work(notes, struck)

    once = Idempotency(RedisStore(redis()), lease=LEASE, keep=timedelta(days=1))
    return Bus(url(), router, plugins=[DeadLetter(), Retry(), once], grace=GRACE, delivery_limit=limit(USUAL_LIMIT))


def transactions() -> Bus:
    """Handle in an inbox, with a row as the effect, and an event downstream through an outbox."""
    notes, router, database = ledger(), Router("chaos"), engine()

    @router.on(Struck, **called(), concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def take(struck: Struck, session: AsyncSession) -> Passed:
        await notes.note("start", struck.id)
        await session.execute(insert(EFFECTS).values(what="effect", id=struck.id))
        return Passed(struck.lane, struck.number)

    @router.on(Passed, concurrency=CONCURRENCY, prefetch=PREFETCH)
    async def pass_on(passed: Passed) -> None:
        await notes.note("passed", passed.id)

    plugins = [DeadLetter(), Retry(), Inbox(async_sessionmaker(database)), Outbox(database, lease=LEASE)]
    return Bus(url(), router, plugins=plugins, grace=GRACE, delivery_limit=limit(USUAL_LIMIT))
