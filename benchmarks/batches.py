"""What batches gain: one event a call and a hundred, with a Redis round trip, and in an inbox on PostgreSQL.

    python -m benchmarks.batches [--events 20000] [--rounds 3]

The same events, queue and window; both ways in turn, each on a queue of its own that is full when the clock starts. It
ends with one JSON object: events a second, medians, and how many times as fast.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from attrs import frozen
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from rabbitevents import Batch, Bus, Plugin, Router, event
from rabbitevents_outbox import Inbox, Outbox, Tables
from tests.bed.postgres import PostgresServer
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import RedisServer


@event("batches.counted", entity="item", key="item")
@frozen
class Counted:
    item: int


Handler = Callable[..., Awaitable[None]]


async def rate(
    url: str, name: str, handler: Handler, seen: list[int], events: int, plugins: list[Plugin], batch: Batch | None
) -> float:
    """Return how many events a second are handled, from a queue that is full at first."""
    router = Router("batches")
    told: dict[str, Any] = {"batch": batch} if batch is not None else {"concurrency": 20, "prefetch": 200}
    router.on(Counted, name=name, **told)(handler)
    async with Bus(url, router, plugins=plugins) as bus:
        await bus.pause(f"batches.{name}")
        for start in range(0, events, 1000):
            await bus.publish_many([Counted(number) for number in range(start, min(start + 1000, events))])
        seen[0], began = 0, time.perf_counter()
        await bus.resume(f"batches.{name}")
        while seen[0] < events:  # noqa: ASYNC110 - handlers count, and are not to wake anybody
            await asyncio.sleep(0.002)
        return events / (time.perf_counter() - began)


async def run(events: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure all four, in turn."""
    async with AsyncExitStack() as stack:
        node = stack.enter_context(RabbitNode())
        redis = await stack.enter_async_context(Redis.from_url(stack.enter_context(RedisServer()).url))
        engine = create_async_engine(stack.enter_context(PostgresServer()).url(), pool_size=30)
        stack.push_async_callback(engine.dispose)
        await Tables().create(engine)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE counted (item INTEGER)"))
        seen = [0]
        insert = text("INSERT INTO counted VALUES (:item)")

        async def redis_one(counted: Counted) -> None:
            await redis.incrby("counted", 1)
            seen[0] += 1

        async def redis_many(counted: list[Counted]) -> None:
            await redis.incrby("counted", len(counted))
            seen[0] += len(counted)

        async def inbox_one(counted: Counted, session: AsyncSession) -> None:
            await session.execute(insert, {"item": counted.item})
            seen[0] += 1

        async def inbox_many(counted: list[Counted], session: AsyncSession) -> None:
            await session.execute(insert, [{"item": each.item} for each in counted])
            seen[0] += len(counted)

        batch = Batch(size=100, within=0.2)

        def inbox() -> list[Plugin]:
            return [Inbox(async_sessionmaker(engine)), Outbox(engine)]

        ways: dict[str, tuple[Handler, Callable[[], list[Plugin]], Batch | None]] = {
            "redis, one by one": (redis_one, list, None),
            "redis, batches of 100": (redis_many, list, batch),
            "inbox, one by one": (inbox_one, inbox, None),
            "inbox, batches of 100": (inbox_many, inbox, batch),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, (handler, plugins, told) in ways.items():
                print(f"\rround {number + 1} of {rounds}: {way}\033[K", end="", file=sys.stderr, flush=True)
                name = f"{way.split(',')[0]}-{'many' if told else 'one'}-{number}"
                rates[way].append(await rate(node.url, name, handler, seen, events, plugins(), told))
        print(file=sys.stderr)
    medians = {way: round(statistics.median(each)) for way, each in rates.items()}
    return {
        what: {
            "one_by_one": medians[f"{what}, one by one"],
            "batches": medians[f"{what}, batches of 100"],
            "times": round(medians[f"{what}, batches of 100"] / medians[f"{what}, one by one"], 2),
        }
        for what in ("redis", "inbox")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    print(json.dumps(asyncio.run(run(told.events, told.rounds))))


if __name__ == "__main__":
    main()
