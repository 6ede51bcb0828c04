"""Redis killed, stopped, emptied and away for long, under load on RabbitMQ: nothing is lost, and almost nothing repeated.

Every event is published three times: two copies together, and one some seconds later.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from itertools import count

import pytest
from redis.asyncio import Redis

from rabbitevents import Bus, Event, Router
from rabbitevents_idempotency import Idempotency, RedisStore
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import ON_DISK, RedisServer
from tests.idempotent import Observing, Queues
from tests.scale import WHOLE
from tests.shop import OrderPlaced, eventually

LEASE = timedelta(seconds=3)
BACK_WITHIN = 5.0
LONG = 30 if WHOLE else 12
"""Seconds of a long outage: every lease has ended in it, and Redis is asked as seldom as it ever is."""
UNDER_WAY = 0.5
"""So long after a loss of data, in seconds, what was claimed before it may have its effect."""


class Load:
    """Orders that are published without a pause, and when their effects were."""

    def __init__(self, server: RedisServer, client: Redis, url: str, queues: Queues) -> None:
        self.server = server
        self.effects: defaultdict[str, list[float]] = defaultdict(list)
        self.published: set[str] = set()
        self.queues = queues
        self.observing = Observing()
        self.enough = False
        router = Router("shop")

        @router.on(OrderPlaced, concurrency=20)
        async def record(order: OrderPlaced) -> None:
            await asyncio.sleep(random.uniform(0, 0.02))
            self.effects[order.order_id].append(self.now())
            await asyncio.sleep(random.uniform(0, 0.01))

        self.plugin = Idempotency(RedisStore(client), lease=LEASE)
        self.bus = Bus(url, router, plugins=[self.observing, self.plugin])

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def publish(self) -> None:
        """Publish until it is enough; each event three times."""
        async with asyncio.TaskGroup() as copies:
            for number in count():
                if self.enough:
                    break
                envelope = await self.bus.publish(OrderPlaced(f"o-{number}"))
                self.published.add(f"o-{number}")
                copies.create_task(self._repeat(envelope, 0))
                copies.create_task(self._repeat(envelope, random.uniform(1, 6)))
                await asyncio.sleep(0.005)

    async def _repeat(self, envelope: Event[OrderPlaced], after: float) -> None:
        await asyncio.sleep(after)
        await self.bus.publish(envelope)

    @property
    def done(self) -> int:
        return len(self.effects)

    async def more(self, effects: int, seconds: float) -> float:
        """Wait for so many more effects, and return how long that took."""
        started, wanted = self.now(), self.done + effects
        await eventually(lambda: self.done >= wanted, f"{effects} effects more", seconds)
        return self.now() - started

    async def through(
        self, go_away: Callable[[], Awaitable[object]], come_back: Callable[[], Awaitable[object]]
    ) -> float:
        """Run under load through an outage and to the quiet after it; return how soon it went on."""
        async with self.bus:
            publishing = asyncio.create_task(self.publish())
            await self.more(200, 30)
            await go_away()
            await eventually(lambda: not self.bus.health().ok, "health to say that the store is away", 5)
            done_at_once = self.done
            await come_back()
            back_after = await self.more(1, BACK_WITHIN)
            await eventually(lambda: self.bus.health().ok, "health to see that it is back", BACK_WITHIN)
            await self.more(200, 30)
            self.enough = True
            await asyncio.wait_for(publishing, 30)
            await self.queues.quiet()
        print(f"\n{self.done} events, on again after {back_after:.2f} s; {len(self.repeated)} had a second effect")
        assert set(self.effects) == self.published
        assert self.done > done_at_once
        return back_after

    async def while_away(self, seconds: float) -> None:
        """Let an outage last; nothing is begun in it, but what was claimed may end."""
        await asyncio.sleep(1)
        done = self.done
        await asyncio.sleep(seconds - 1)
        assert self.done == done

    @property
    def repeated(self) -> dict[str, list[float]]:
        return {order: times for order, times in self.effects.items() if len(times) > 1}


@pytest.fixture
async def load_on(rabbit_url: str, rabbit_node: RabbitNode) -> AsyncIterator[Callable[[RedisServer], Awaitable[Load]]]:
    clients: list[Redis] = []

    async def make(server: RedisServer) -> Load:
        clients.append(Redis(port=server.port))
        return Load(server, clients[-1], rabbit_url, Queues(rabbit_node, rabbit_url))

    yield make
    for client in clients:
        await client.aclose()


Make = Callable[[RedisServer], Awaitable[Load]]


@pytest.mark.timeout(180)
async def test_a_redis_that_was_killed_and_kept_its_data_costs_nothing(load_on: Make) -> None:
    with RedisServer(**ON_DISK) as server:
        load = await load_on(server)

        async def kill() -> None:
            server.kill()

        async def start_again() -> None:
            await load.while_away(LONG)
            await server.astart()

        await load.through(kill, start_again)

    assert load.repeated == {}


@pytest.mark.timeout(180)
async def test_a_redis_that_was_shut_down_and_kept_its_data_costs_nothing(load_on: Make) -> None:
    with RedisServer(**ON_DISK) as server:
        load = await load_on(server)

        async def start_again() -> None:
            await load.while_away(4)
            await server.astart()

        await load.through(server.astop, start_again)

    assert load.repeated == {}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seconds", [3, LONG])
@pytest.mark.sampled
async def test_a_redis_that_stood_still_costs_nothing(seconds: int, redis_server: RedisServer, load_on: Make) -> None:
    load = await load_on(redis_server)

    async def suspend() -> None:
        redis_server.suspend()

    async def resume() -> None:
        await load.while_away(seconds)
        redis_server.resume()

    await load.through(suspend, resume)

    assert load.repeated == {}


@pytest.mark.timeout(180)
async def test_a_redis_that_was_killed_with_its_data_costs_the_marks_of_before(
    redis_server: RedisServer, load_on: Make
) -> None:
    load, killed_at = await load_on(redis_server), 0.0

    async def kill() -> None:
        nonlocal killed_at
        redis_server.kill()
        killed_at = load.now()

    async def start_again() -> None:
        await load.while_away(3)
        await redis_server.astart()

    await load.through(kill, start_again)

    assert {len(times) for times in load.repeated.values()} <= {2}
    assert all(first < killed_at + UNDER_WAY < second for first, second in load.repeated.values())


@pytest.mark.timeout(180)
async def test_a_redis_that_was_emptied_costs_the_marks_of_before(redis_server: RedisServer, load_on: Make) -> None:
    load = await load_on(redis_server)

    async with load.bus:
        publishing = asyncio.create_task(load.publish())
        await load.more(300, 30)
        redis_server.flush()
        flushed_at = load.now()
        back_after = await load.more(20, BACK_WITHIN)
        await load.more(300, 30)
        load.enough = True
        await asyncio.wait_for(publishing, 30)
        await load.queues.quiet()

    print(f"\n{load.done} events, on again after {back_after:.2f} s; {len(load.repeated)} had a second effect")
    assert set(load.effects) == load.published
    assert {len(times) for times in load.repeated.values()} <= {2}
    assert all(first < flushed_at + UNDER_WAY and flushed_at < second for first, second in load.repeated.values())
