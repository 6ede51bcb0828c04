"""What happens to queues, and to what is in them."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.chaos.faults.fault import Fault, comes
from tests.chaos.intruder import bind, bindings
from tests.chaos.world import World


class QueueDeleted(Fault):
    """The queue is deleted under its consumers, with what is in it: nothing can bring that back."""

    name, touches, lossless = "queue-deleted", "queue", False
    loads = ("handle", "batches")

    async def inflict(self, world: World) -> None:
        await world.node.adelete_queue("chaos.take", world.url)

    async def observed(self, world: World) -> bool:
        await comes(lambda: "chaos.take" in world.queues(), 20)
        world.forfeit_until = time.monotonic()
        return True


class QueueFull(Fault):
    """An operator's policy gives the queue room for few, and its services stand still meanwhile: it refuses what comes.

    They go on while there still is no room, for up to 3 s.
    """

    name, touches = "queue-full", "queue"

    async def inflict(self, world: World) -> None:
        definition = '[{<<"max-length">>, 5}, {<<"overflow">>, <<"reject-publish">>}]'
        words = f'<<"{world.vhost}">>, <<"full">>, <<"^chaos[.]take([.][0-9]-of-[0-9])?$">>, {definition}, 0, <<"queues">>, <<"test">>'
        await world.node.aeval(f"ok = rabbit_policy:set({words})")
        for each in world.services:
            each.send_all(signal.SIGSTOP)

    async def observed(self, world: World) -> bool:
        before = world.tail.read().refused
        seen = world.database is not None or await comes(lambda: world.tail.read().refused > before, 3)
        for each in world.services:
            each.send_all(signal.SIGCONT)
        await asyncio.sleep(world.random.uniform(0, 3))
        return seen

    async def after(self, world: World) -> float:
        await world.node.aeval(f'ok = rabbit_policy:delete(<<"{world.vhost}">>, <<"full">>, <<"test">>)')
        return time.monotonic()


class Unbound(Fault):
    """The queue's bindings are removed: nothing that is published leads there, until they are made again after up to 4 s."""

    name, touches, without = "unbound", "queue", ("partitions",)

    async def inflict(self, world: World) -> None:
        self.bindings = await bindings(world)
        await bind(world, self.bindings, there=False)

    async def observed(self, world: World) -> bool:
        before = world.tail.read().refused
        seen = world.database is not None or await comes(lambda: world.tail.read().refused > before, 10)
        await asyncio.sleep(world.random.uniform(0, 3))
        return seen

    async def after(self, world: World) -> float:
        await bind(world, self.bindings, there=True)
        return time.monotonic()


class DeadQueueDeleted(Fault):
    """The queue of dead letters is deleted, with what is in it: what dies afterwards must be there."""

    name, touches, lossless = "dead-queue-deleted", "dead", False
    loads = ("retries", "replayed")

    async def inflict(self, world: World) -> None:
        await world.node.adelete_queue("chaos.take.dead", world.url)

    async def observed(self, world: World) -> bool:
        world.forfeit_until = time.monotonic()
        return await comes(lambda: world.queues().get("chaos.take.dead", 0) > 0, 30)
