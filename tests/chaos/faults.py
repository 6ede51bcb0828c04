"""The faults, each a small class with a name. An injection counts where there was load, and its effect was seen."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import ClassVar

from tests.bed.loopback import LOOPBACK
from tests.chaos.services import GRACE
from tests.chaos.world import Process, World
from tests.committed import until

BLOCKED_FOR = 1.0
"""Seconds without a confirm that show that nobody can publish."""


class Fault:
    """What happens to a world. ``touches`` says which part of it: two faults meet where they touch different ones."""

    name: ClassVar[str]
    touches: ClassVar[str]
    loads: ClassVar[tuple[str, ...]] = ()
    """The loads that it makes sense for; none: all."""
    lossless: ClassVar[bool] = True
    """Whether nothing may be lost by it."""

    async def inflict(self, world: World) -> None:
        """Do it."""
        raise NotImplementedError

    async def observed(self, world: World) -> bool:
        """Say, while it lasts, whether it had its effect."""
        raise NotImplementedError

    async def after(self, world: World) -> float:
        """Heal it, and return, when all stands again, since when it was there (the ledger's clock)."""
        return time.monotonic()


class BrokerKilled(Fault):
    """The broker is killed by SIGKILL, and started again after up to 2 s."""

    name, touches = "broker-killed", "broker"
    connections = 0

    async def inflict(self, world: World) -> None:
        self.connections = await asyncio.to_thread(world.connections)
        await asyncio.to_thread(world.node.settle)  # a queue that was just declared is the broker's own trouble
        await world.node.akill()

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(world.random.uniform(0, 2))
        return self.connections > 0 and not world.node.running and not world.proxy.connections

    async def after(self, world: World) -> float:
        accepts = asyncio.create_task(_accepts(world.node.port))
        await world.node.astart()
        return await accepts


class BrokerRestarted(BrokerKilled):
    """The broker shuts down in order, and is started again."""

    name = "broker-restarted"

    async def inflict(self, world: World) -> None:
        self.connections = await asyncio.to_thread(world.connections)
        await asyncio.to_thread(world.node.stop)


class BrokerSuspended(Fault):
    """The broker stands still (SIGSTOP) for 5 s: its sockets stay open, and nothing answers."""

    name, touches = "broker-suspended", "broker"
    at = 0.0

    async def inflict(self, world: World) -> None:
        await asyncio.to_thread(world.node.suspend)
        self.at = time.monotonic()

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(5)
        return _blocked(world, self.at + 0.5)

    async def after(self, world: World) -> float:
        await asyncio.to_thread(world.node.resume)
        return time.monotonic()


class ConnectionsClosed(Fault):
    """The broker closes all connections."""

    name, touches = "connections-closed", "broker"
    closed = 0

    async def inflict(self, world: World) -> None:
        self.closed = await world.node.aclose_all_connections()

    async def observed(self, world: World) -> bool:
        return self.closed > 0


class MemoryAlarm(Fault):
    """The broker runs short of memory, and blocks publishers for 2 s or more."""

    name, touches = "memory-alarm", "broker"
    at = 0.0

    async def inflict(self, world: World) -> None:
        await world.node.aset_memory_alarm(on=True)
        self.at = time.monotonic()

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(world.random.uniform(2, 4))
        committed = world.database is not None  # which needs no broker
        return committed or _blocked(world, self.at + 0.5)

    async def after(self, world: World) -> float:
        await world.node.aset_memory_alarm(on=False)
        return time.monotonic()


class QueueDeleted(Fault):
    """The queue is deleted under its consumers, with what is in it: nothing can bring that back."""

    name, touches, lossless = "queue-deleted", "queue", False
    loads = ("handle", "batches")

    async def inflict(self, world: World) -> None:
        await world.node.adelete_queue("chaos.take", world.url)

    async def observed(self, world: World) -> bool:
        await asyncio.to_thread(_until_there, world)
        world.forfeit_until = time.monotonic()
        return True


class LinkReset(Fault):
    """Every connection ends by RST, in the middle of whatever passes."""

    name, touches = "link-reset", "link"
    links = accepted = 0

    async def inflict(self, world: World) -> None:
        self.links, self.accepted = world.proxy.connections, world.proxy.accepted
        world.proxy.cut()

    async def observed(self, world: World) -> bool:
        return self.links > 0 and await _comes(lambda: world.proxy.accepted > self.accepted, 20)


class CutInMidFrame(Fault):
    """A connection ends after so many more bytes of one way, in the middle of a frame."""

    name, touches = "cut-in-mid-frame", "link"
    accepted = 0

    async def inflict(self, world: World) -> None:
        self.accepted = world.proxy.accepted
        way = world.random.choice(("to_server", "to_client"))
        world.proxy.cut_after(world.random.randrange(50, 5000), "to_server" if way == "to_server" else "to_client")

    async def observed(self, world: World) -> bool:
        return await _comes(lambda: world.proxy.accepted > self.accepted, 20)


class ConfirmsLost(Fault):
    """What the broker says is lost for up to a second, and then the connections are: publishes went through unknown."""

    name, touches = "confirms-lost", "link"
    passed = 0

    async def inflict(self, world: World) -> None:
        world.proxy.black_hole(to_client=True, to_server=False)
        self.passed = world.proxy.passed("to_server")

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(world.random.uniform(0.2, 1))
        return world.proxy.passed("to_server") > self.passed

    async def after(self, world: World) -> float:
        world.proxy.restore()
        return time.monotonic()


class LinkBlackHoled(Fault):
    """What passes vanishes both ways, with all sockets open, until the services have given the connections up."""

    name, touches = "link-black-holed", "link"
    accepted = 0

    async def inflict(self, world: World) -> None:
        self.accepted = world.proxy.accepted
        world.proxy.black_hole()

    async def observed(self, world: World) -> bool:
        return await _comes(lambda: world.proxy.accepted > self.accepted, 35)

    async def after(self, world: World) -> float:
        world.proxy.restore()
        return time.monotonic()


class LinkDeaf(LinkBlackHoled):
    """What the services say vanishes, and what the broker says comes, until one of them has given the connections up."""

    name = "link-deaf"

    async def inflict(self, world: World) -> None:
        self.accepted = world.proxy.accepted
        world.proxy.black_hole(to_client=False, to_server=True)


class ServiceKilled(Fault):
    """A process that handles is killed by SIGKILL with a full window, and started again."""

    name, touches = "service-killed", "service"

    async def inflict(self, world: World) -> None:
        self.victim: Process = world.random.choice(world.services)
        await self.victim.kill()
        world.crashes += 1

    async def observed(self, world: World) -> bool:
        return self.victim.status == -signal.SIGKILL

    async def after(self, world: World) -> float:
        await _start_again(self.victim)
        return time.monotonic()


class ServiceStopped(Fault):
    """A process that handles is asked to stop (SIGTERM), and started again when it has ended."""

    name, touches = "service-stopped", "service"

    async def inflict(self, world: World) -> None:
        self.victim: Process = world.random.choice(world.services)
        self.victim.send(signal.SIGTERM)

    async def observed(self, world: World) -> bool:
        in_time = await self.victim.ended(GRACE + 5 + 2)
        if not in_time:
            world.late += 1
            await self.victim.kill()
        # What was handled and cannot be marked before the stop ends is acknowledged without a mark, which is documented.
        world.crashes += world.store_away or not in_time
        return in_time and self.victim.status == 0

    async def after(self, world: World) -> float:
        await _start_again(self.victim)
        return time.monotonic()


class RedisKilled(Fault):
    """Redis is killed by SIGKILL, and started again after up to 3 s with all that it answered."""

    name, touches, loads = "redis-killed", "redis", ("idempotent",)

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

    name, touches, loads = "redis-suspended", "redis", ("idempotent",)
    at = 0.0

    async def inflict(self, world: World) -> None:
        world.store_away = True
        await asyncio.to_thread(world.servers.redis.suspend)
        self.at = time.monotonic()

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(5)
        return not any(at > self.at + 0.5 for at in world.tail.read().begun)

    async def after(self, world: World) -> float:
        await asyncio.to_thread(world.servers.redis.resume)
        world.store_away = False
        return time.monotonic()


class PostgresKilled(Fault):
    """PostgreSQL is killed by SIGKILL with all of its processes, and started again after up to 2 s."""

    name, touches, loads = "postgres-killed", "postgres", ("transactions",)

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

    name, touches, loads = "postgres-suspended", "postgres", ("transactions",)
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


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        BrokerKilled,
        BrokerRestarted,
        BrokerSuspended,
        ConnectionsClosed,
        MemoryAlarm,
        QueueDeleted,
        LinkReset,
        CutInMidFrame,
        ConfirmsLost,
        LinkBlackHoled,
        LinkDeaf,
        ServiceKilled,
        ServiceStopped,
        RedisKilled,
        RedisStopped,
        RedisSuspended,
        PostgresKilled,
        PostgresSuspended,
    )
}


async def _accepts(port: int) -> float:
    """Wait until a port takes connections; return when that was."""
    while True:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return time.monotonic()


def _blocked(world: World, since: float) -> bool:
    return world.confirmed_since(since) == 0 or world.database is not None


async def _start_again(victim: Process) -> None:
    await victim.start()
    await until(lambda: "runs on" in victim.said, "the service", 60, every=0.05)


async def _comes(condition: Callable[[], bool], seconds: float) -> bool:
    try:
        await until(condition, "it", seconds, every=0.05)
    except TimeoutError:
        return False
    return True


def _until_there(world: World) -> None:
    end = time.monotonic() + 20
    while "chaos.take" not in world.queues() and time.monotonic() < end:
        time.sleep(0.1)
