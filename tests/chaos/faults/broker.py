"""What happens to the broker as a whole."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.faults.fault import Fault, accepts, blocked
from tests.chaos.world import World
from tests.committed import until


def keeps_bindings(version: str) -> bool:
    """Whether the bindings of an exchange keep their order when the whole broker is started again, as Khepri has them."""
    return tuple(map(int, version.split(".")[:2])) >= (4, 2)


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
        there = asyncio.create_task(accepts(world.node))
        await world.node.astart()
        accepted = await there
        if not keeps_bindings(world.node.version):
            world.servers.moved_until = accepted
        return accepted


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
        return blocked(world, self.at + 0.5)

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
        return committed or blocked(world, self.at + 0.5)

    async def after(self, world: World) -> float:
        await world.node.aset_memory_alarm(on=False)
        return time.monotonic()


class DiskAlarm(MemoryAlarm):
    """The broker runs short of disk, and blocks publishers for 2 s or more."""

    name = "disk-alarm"

    async def inflict(self, world: World) -> None:
        await world.node.aeval('rabbit_disk_monitor:set_disk_free_limit("1000000GB")')
        await until(lambda: world.node.eval("rabbit_alarm:get_alarms()") != "[]", "the alarm", 20, every=0.1)
        self.at = time.monotonic()

    async def after(self, world: World) -> float:
        await world.node.aeval('rabbit_disk_monitor:set_disk_free_limit("1MB")')
        await until(lambda: world.node.eval("rabbit_alarm:get_alarms()") == "[]", "its end", 20, every=0.1)
        return time.monotonic()


class PasswordChanged(Fault):
    """The password is another one, and all connections are closed: nobody is let in for up to 4 s."""

    name, touches = "password-changed", "broker"
    closed, at = 0, 0.0

    async def inflict(self, world: World) -> None:
        await asyncio.to_thread(world.node.set_password, "guest", "another")
        self.closed = await world.node.aclose_all_connections()
        self.at = time.monotonic()

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(world.random.uniform(1.5, 4))
        return self.closed > 0 and blocked(world, self.at + 0.5)

    async def after(self, world: World) -> float:
        await asyncio.to_thread(world.node.set_password, "guest", "guest")
        return time.monotonic()


class RightsTaken(PasswordChanged):
    """The user may do nothing any more, and all connections are closed, for up to 4 s."""

    name = "rights-taken"

    async def inflict(self, world: World) -> None:
        await asyncio.to_thread(world.node.set_permissions, world.url, "^$", "^$", "^$")
        self.closed = await world.node.aclose_all_connections()
        self.at = time.monotonic()

    async def after(self, world: World) -> float:
        await asyncio.to_thread(world.node.set_permissions, world.url)
        return time.monotonic()
