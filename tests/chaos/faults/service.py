"""What happens to the processes that handle."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from contextlib import suppress

from tests.chaos.events import GRACE, HANGS, POISON, SLOW, Struck
from tests.chaos.faults.fault import Fault, blocked, comes, start_again
from tests.chaos.intruder import slip_in, slip_in_junk
from tests.chaos.process import Process
from tests.chaos.world import World


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
        await start_again(self.victim)
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
        await start_again(self.victim)
        return time.monotonic()


class GroupStopped(ServiceStopped):
    """All processes of a service, those that it has started included, are asked to stop at once, as systemd does."""

    name, loads = "group-stopped", ("workers",)

    async def inflict(self, world: World) -> None:
        self.victim = world.random.choice(world.services)
        self.victim.send_all(signal.SIGTERM)


class DescriptorsExhausted(Fault):
    """No process can open anything any more, and all connections end, for up to 4 s."""

    name, touches, at = "descriptors-exhausted", "limits", 0.0

    async def inflict(self, world: World) -> None:
        processes = [*world.services, *([world.publisher] if world.publisher else [])]
        self.limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for each in processes for pid in each.pids}
        for pid, (_, most) in self.limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, most))
        world.proxy.cut()
        self.at = time.monotonic()

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(world.random.uniform(1.5, 4))
        return blocked(world, self.at + 0.5)

    async def after(self, world: World) -> float:
        for pid, limit in self.limits.items():
            with suppress(ProcessLookupError):  # one that was killed meanwhile
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        return time.monotonic()


class ServiceSuspended(Fault):
    """A process that handles stands still (SIGSTOP) for longer than its heartbeats and leases: it is given up, and goes on."""

    name, touches = "service-suspended", "service"
    connections = 0

    async def inflict(self, world: World) -> None:
        self.victim: Process = world.random.choice(world.services)
        self.connections = await asyncio.to_thread(world.connections)
        self.victim.send_all(signal.SIGSTOP)
        world.crashes += 1

    async def observed(self, world: World) -> bool:
        given_up = await comes(lambda: world.connections() < self.connections, 16)
        await asyncio.sleep(world.random.uniform(0, 3))
        return given_up

    async def after(self, world: World) -> float:
        self.victim.send_all(signal.SIGCONT)
        return time.monotonic()


class HungWorker(Fault):
    """An event has the event loop of a worker stand still: its service kills it, and starts another one; it comes again."""

    name, touches, loads = "hung-worker", "service", ("workers",)

    async def inflict(self, world: World) -> None:
        self.struck = Struck(f"{HANGS}-{world.random.getrandbits(40)}", 0)
        self.said = [each.said.count(" hangs: ") for each in world.services]
        self.pids = {pid for each in world.services for pid in each.pids}
        await slip_in(world, self.struck)

    async def observed(self, world: World) -> bool:
        def is_replaced() -> bool:
            said = [each.said.count(" hangs: ") for each in world.services]
            pids = {pid for each in world.services for pid in each.pids}
            return said != self.said and bool(pids - self.pids) and self.struck.id in world.tail.read().done

        world.crashes += 1
        return await comes(is_replaced, 60)


class Poison(Fault):
    """An event crashes each process that handles it, and these are started again, until it is among the dead."""

    name, touches, loads, alone = "poison", "service", ("handle",), True

    async def inflict(self, world: World) -> None:
        self.dead = (await asyncio.to_thread(world.queues)).get("chaos.take.dead", 0)
        await slip_in(world, Struck(f"{POISON}-{world.random.getrandbits(40)}", 0))

    async def observed(self, world: World) -> bool:
        self.crashes = 0
        end = time.monotonic() + 120
        while time.monotonic() < end:
            for each in world.services:
                if each.status == -signal.SIGKILL:
                    self.crashes += 1
                    world.crashes += 1
                    await start_again(each)
            if (await asyncio.to_thread(world.queues)).get("chaos.take.dead", 0) > self.dead:
                return self.crashes > 1
            await asyncio.sleep(0.1)
        return False

    async def after(self, world: World) -> float:
        for each in world.services:
            if each.status is not None:
                await start_again(each)
        return time.monotonic()


class ConsumerTimeout(Fault):
    """The broker gives a delivery 2 s, and three take 20 s: their channels are closed, and they come again."""

    name, touches, loads, alone = "consumer-timeout", "broker", ("handle",), True
    usual = 30 * 60 * 1000

    async def inflict(self, world: World) -> None:
        await self._allow(world, 2000)
        self.slow = [Struck(f"{SLOW}-{world.random.getrandbits(40)}", 0) for _ in range(3)]
        for each in self.slow:
            await slip_in(world, each)

    async def observed(self, world: World) -> bool:
        ids = {each.id for each in self.slow}

        def came_again() -> bool:
            records = world.tail.read().records
            return sum(each.what == "start" and each.id in ids for each in records) > len(ids)

        return await comes(came_again, 30)

    async def after(self, world: World) -> float:
        await self._allow(world, self.usual)
        return time.monotonic()

    async def _allow(self, world: World, milliseconds: int) -> None:
        await world.node.aeval(f"application:set_env(rabbit, consumer_timeout, {milliseconds})")
        await world.node.aclose_all_connections()  # a channel knows what was said when it was opened


class Junk(Fault):
    """What cannot be read comes in between: no JSON, other fields, an unknown type, a newer version, forged headers."""

    name, touches, alone = "junk", "messages", True
    loads = ("handle", "retries", "replayed", "delayed", "batches", "idempotent", "ordered")

    async def inflict(self, world: World) -> None:
        self.dead = (await asyncio.to_thread(world.queues)).get("chaos.take.dead", 0)
        self.number = await slip_in_junk(world)

    async def observed(self, world: World) -> bool:
        end = time.monotonic() + 20
        while (await asyncio.to_thread(world.queues)).get("chaos.take.dead", 0) < self.dead + self.number:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.2)
        return True
