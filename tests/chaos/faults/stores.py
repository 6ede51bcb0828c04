"""What happens to Redis and to PostgreSQL."""

from __future__ import annotations

import asyncio
import time

from tests.bed.loopback import LOOPBACK
from tests.bed.redis import RedisError, RedisServer
from tests.chaos.faults.fault import Fault, comes
from tests.chaos.world import World


class RedisKilled(Fault):
    """Redis is killed by SIGKILL, and started again after up to 3 s with all that it answered."""

    name, touches, uses = "redis-killed", "redis", "redis"

    async def inflict(self, world: World) -> None:
        world.store_away = True
        await asyncio.to_thread(world.servers.redis.kill)

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(world.random.uniform(0, 3))
        return not world.servers.redis.running

    async def after(self, world: World) -> float:
        await world.servers.redis.astart()
        world.store_away = False
        return time.monotonic()


class RedisStopped(RedisKilled):
    """Redis shuts down in order, and is started again."""

    name = "redis-stopped"

    async def inflict(self, world: World) -> None:
        world.store_away = True
        await world.servers.redis.astop()


class RedisSuspended(Fault):
    """Redis stands still (SIGSTOP) for 5 s, longer than a lease of the services: its sockets stay open."""

    name, touches, uses = "redis-suspended", "redis", "redis"
    at = 0.0

    async def inflict(self, world: World) -> None:
        world.store_away = True
        self.suspended = self.victim(world)
        await asyncio.to_thread(self.suspended.suspend)
        self.at = time.monotonic()

    def victim(self, world: World) -> RedisServer:
        """Return who stands still."""
        return world.servers.redis

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(5)
        return not any(at > self.at + 0.5 for at in world.tail.read().begun)

    async def after(self, world: World) -> float:
        await asyncio.to_thread(self.suspended.resume)
        world.store_away = False
        return time.monotonic()


class ShardHung(RedisSuspended):
    """One of three shards stands still (SIGSTOP) for 5 s: its events wait, and those of the others go on."""

    name, uses = "shard-hung", "shards"

    def victim(self, world: World) -> RedisServer:
        self._said = _outages(world)
        return world.random.choice(world.servers.shards)

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(5)
        goes_on = any(at > self.at + 3 for at in world.tail.read().begun)
        return goes_on and _outages(world) > self._said


def _outages(world: World) -> int:
    """Count how often a service said that its store cannot be reached."""
    return sum(service.said.count("is out of reach") for service in world.services)


class PostgresKilled(Fault):
    """PostgreSQL is killed by SIGKILL with all of its processes, and started again after up to 2 s."""

    name, touches, uses = "postgres-killed", "postgres", "postgres"

    async def inflict(self, world: World) -> None:
        await world.servers.postgres.akill()

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(world.random.uniform(0, 2))
        return not world.servers.postgres.running

    async def after(self, world: World) -> float:
        await world.servers.postgres.astart()
        return time.monotonic()


class PostgresSuspended(Fault):
    """PostgreSQL stands still (SIGSTOP) for 5 s, longer than a relay's lease."""

    name, touches, uses = "postgres-suspended", "postgres", "postgres"
    at = 0.0

    async def inflict(self, world: World) -> None:
        await asyncio.to_thread(world.servers.postgres.suspend)
        self.at = time.monotonic()

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(5)
        return world.confirmed_since(self.at + 0.5) == 0

    async def after(self, world: World) -> float:
        await asyncio.to_thread(world.servers.postgres.resume)
        return time.monotonic()


class RedisFull(Fault):
    """Redis has no room for more and refuses what would write, for up to 4 s."""

    name, touches, uses = "redis-full", "redis", "redis"
    refusing, willing = ("CONFIG SET maxmemory 1",), ("CONFIG SET maxmemory 0",)

    async def inflict(self, world: World) -> None:
        world.store_away = True
        for command in self.refusing:
            await asyncio.to_thread(world.servers.redis.command, command)

    async def observed(self, world: World) -> bool:
        try:
            await asyncio.to_thread(world.servers.redis.command, "SET chaos 1")
        except RedisError:
            await asyncio.sleep(world.random.uniform(1, 4))
            return True
        return False

    async def after(self, world: World) -> float:
        for command in self.willing:
            await asyncio.to_thread(world.servers.redis.command, command)
        world.store_away = False
        return time.monotonic()


class RedisReadOnly(RedisFull):
    """Redis is made a replica (of one that is not there), and reads alone, for up to 4 s."""

    name = "redis-read-only"
    refusing, willing = (f"REPLICAOF {LOOPBACK} 1",), ("REPLICAOF NO ONE",)


class RedisFlushed(Fault):
    """Redis forgets all: what was handled and comes again has a second effect, and nothing that is published afterwards."""

    name, touches, uses = "redis-flushed", "redis", "redis"

    async def inflict(self, world: World) -> None:
        await asyncio.to_thread(world.servers.redis.flush)
        world.forgotten_until = time.monotonic()

    async def observed(self, world: World) -> bool:
        since = time.monotonic()
        return await comes(lambda: world.tail.read().flows(since), 20)
