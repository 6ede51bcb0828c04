"""What a fault is, and what several of them need."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import ClassVar

from tests.bed.rabbitmq import RabbitNode
from tests.chaos.events import GRACE
from tests.chaos.process import Process
from tests.chaos.world import World
from tests.committed import until


class Fault:
    """What happens to a world. ``touches`` says which part of it: two faults meet where they touch different ones.

    What touches the "cluster" needs a RabbitMQ of three nodes.
    """

    name: ClassVar[str]
    touches: ClassVar[str]
    loads: ClassVar[tuple[str, ...]] = ()
    """The loads that it makes sense for; none: all."""
    uses: ClassVar[str] = ""
    """The server that a load must need for it."""
    lossless: ClassVar[bool] = True
    """Whether nothing may be lost by it."""
    alone: ClassVar[bool] = False
    """Whether it meets no other one at a time: it needs a broker that answers."""

    without: ClassVar[tuple[str, ...]] = ()
    """The loads that it makes no sense for."""
    operated: ClassVar[bool] = False
    """Whether an operator's commands are run, which look at the management API."""

    async def inflict(self, world: World) -> None:
        """Do it."""
        raise NotImplementedError

    async def observed(self, world: World) -> bool:
        """Say, while it lasts, whether it had its effect."""
        raise NotImplementedError

    async def after(self, world: World) -> float:
        """Heal it, and return, when all stands again, since when it was there (the ledger's clock)."""
        return time.monotonic()


async def accepts(node: RabbitNode) -> float:
    """Wait until a node takes connections; return when that was."""
    while True:
        try:
            _, writer = await asyncio.open_connection(node.layout.address, node.port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return time.monotonic()


def blocked(world: World, since: float) -> bool:
    """Say whether nobody could publish; commits need no broker, so they say nothing."""
    return world.confirmed_since(since) == 0 or world.database is not None


async def stopped_and_started(victim: Process, world: World) -> None:
    """Ask a process to stop, and start it again with what its environment says now, as a deploy does."""
    victim.send(signal.SIGTERM)
    if not await victim.ended(GRACE + 5 + 2):
        world.late += 1
        world.crashes += 1
        await victim.kill()
    await start_again(victim)


async def start_again(victim: Process) -> None:
    """Start a process, and wait until it runs."""
    await victim.start()
    await until(lambda: "runs on" in victim.said, "the service", 60, every=0.05)


async def comes(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; say whether it came in time."""
    try:
        await until(condition, "it", seconds, every=0.05)
    except TimeoutError:
        return False
    return True
