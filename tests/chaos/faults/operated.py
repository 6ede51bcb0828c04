"""What is changed at the broker or in the code while events flow, and led over by an operator's commands."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.bed.node import NodeError
from tests.chaos.faults.fault import Fault, comes, stopped_and_started
from tests.chaos.faults.queues import Unbound
from tests.chaos.intruder import bindings
from tests.chaos.world import World

IN_TIME = 240.0
"""Seconds that leading over may take: two waits of some 15 s each, on a busy machine."""

_ONE_QUEUE = ("handle", "workers", "sync", "delayed", "retries", "ordered", "batches", "idempotent")
"""The loads whose queue an operator leads over."""


class TopologyDrifted(Unbound):
    """The queue's bindings are taken away by hand: `plan` finds them missing, and `apply`, or a start, makes them again.

    Raises NodeError where a promise of these is broken.
    """

    name, touches, without, alone, operated = "topology-drifted", "queue", ("partitions",), True, True

    async def observed(self, world: World) -> bool:
        seen = await super().observed(world)
        status, said = await world.operate("plan")
        missing = [each for each in self.bindings if f"+ binding  {each.exchange} -> {world.load.queue}: " not in said]
        if missing and set(missing) <= set(await bindings(world)):
            return False  # a process that has started meanwhile made them again, as it should
        must(status == 3 and not missing, f"plan said nothing of {missing}, exit {status}", said)
        return seen

    async def after(self, world: World) -> float:
        if world.random.random() < 0.5:
            status, said = await world.operate("apply")
            must(status == 0, f"apply ended with {status}", said)
        else:
            await stopped_and_started(world.random.choice(world.services), world)
        since = time.monotonic()
        there = await bindings(world)
        must(set(self.bindings) <= set(there), f"only {there} were made again", "")
        return since


class PolicyOverrides(Fault):
    """Another team's policy has the queue drop its oldest events beyond 5, while its services stand still.

    That takes away what was confirmed, and a broker cannot be kept from it: it must be said by `plan`. What was published
    while it held is forfeited; what is published afterwards must come. Raises NodeError where `plan` is silent.
    """

    name, touches, lossless, alone, operated = "policy-overrides", "queue", False, True, True
    loads = ("handle", "retries", "batches")

    async def inflict(self, world: World) -> None:
        definition = '[{<<"max-length">>, 5}, {<<"overflow">>, <<"drop-head">>}]'
        words = f'<<"{world.vhost}">>, <<"drops">>, <<"^chaos[.]take$">>, {definition}, 0, <<"queues">>, <<"test">>'
        await world.node.aeval(f"ok = rabbit_policy:set({words})")
        self.at = time.monotonic()
        for each in world.services:
            each.send_all(signal.SIGSTOP)

    async def observed(self, world: World) -> bool:
        try:
            seen = await comes(lambda: world.confirmed_since(self.at) > 10, 5)
            status, said = await world.operate("plan")
        finally:
            for each in world.services:
                each.send_all(signal.SIGCONT)
        overridden = [line for line in said.splitlines() if line.startswith("!") and world.load.queue in line]
        must(status == 3 and bool(overridden), f"plan said nothing of the policy, exit {status}", said)
        return seen

    async def after(self, world: World) -> float:
        await world.node.aeval(f'ok = rabbit_policy:delete(<<"{world.vhost}">>, <<"drops">>, <<"test">>)')
        world.forfeit_until = time.monotonic()
        return world.forfeit_until


class Migration(Fault):
    """New code wants another delivery limit: it is deployed process by process, and the queue is made anew."""

    name, touches, loads, alone, operated = "migration", "queue", _ONE_QUEUE, True, True

    async def inflict(self, world: World) -> None:
        self.before = await self._stands(world)
        environment = self.deployed(world)
        for each in [world.operator, *world.services]:
            each.say(**environment)
        for each in world.services:
            await stopped_and_started(each, world)
            await asyncio.sleep(world.random.uniform(0, 2))  # both are at work meanwhile

    async def observed(self, world: World) -> bool:
        status, said = await world.operate("migrate", self.wanted, "--yes", seconds=IN_TIME)
        must(status == 0 and ", 0 lost" in said, f"migrate ended with {status}", said)
        status, left = await world.operate("plan")
        must("to migrate" not in left, f"plan, exit {status}, has it to migrate still", left)
        return await self._stands(world) != self.before

    def deployed(self, world: World) -> dict[str, str]:
        """Return what the new code's environment says."""
        self.wanted = world.load.queue
        world.generation += 1
        return {"MORE_DELIVERIES": str(world.generation % 2 * 50)}

    async def _stands(self, world: World) -> str:
        """Return the name and the delivery limit of the queues of events."""
        return await world.node.aeval(f"""
            [{{N, lists:keyfind(<<"x-delivery-limit">>, 1, amqqueue:get_arguments(Q))}}
                || Q <- rabbit_amqqueue:list(<<"{world.vhost}">>), {{resource, _, _, N}} <- [amqqueue:get_name(Q)],
                N =:= <<"chaos.take">> orelse N =:= <<"chaos.took">>]""")


class RollingRename(Migration):
    """New code calls the handler otherwise (``was=``): it is deployed process by process, and its queue is led over.

    The next one leads back, in the same way.
    """

    name = "rolling-rename"

    def deployed(self, world: World) -> dict[str, str]:
        world.generation += 1
        new, old = ("took", "take") if world.generation % 2 else ("take", "took")
        self.wanted = f"chaos.{new}"
        return {"NAME": new, "WAS": f"chaos.{old}"}


def must(holds: bool, what: str, said: str) -> None:
    """Raise NodeError, with the end of what a command said, where something does not hold."""
    if not holds:
        raise NodeError(f"{what}: {said[-400:]}")
