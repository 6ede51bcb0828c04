"""What happens on the way to the broker."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.faults.fault import Fault, comes
from tests.chaos.world import World


class LinkReset(Fault):
    """Every connection ends by RST, in the middle of whatever passes."""

    name, touches = "link-reset", "link"
    links = accepted = 0

    async def inflict(self, world: World) -> None:
        self.links, self.accepted = world.proxy.connections, world.proxy.accepted
        world.proxy.cut()

    async def observed(self, world: World) -> bool:
        return self.links > 0 and await comes(lambda: world.proxy.accepted > self.accepted, 20)


class CutInMidFrame(Fault):
    """A connection ends after so many more bytes of one way, in the middle of a frame."""

    name, touches = "cut-in-mid-frame", "link"
    accepted = 0

    async def inflict(self, world: World) -> None:
        self.accepted = world.proxy.accepted
        way = world.random.choice(("to_server", "to_client"))
        world.proxy.cut_after(world.random.randrange(50, 5000), "to_server" if way == "to_server" else "to_client")

    async def observed(self, world: World) -> bool:
        return await comes(lambda: world.proxy.accepted > self.accepted, 20)


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
        return await comes(lambda: world.proxy.accepted > self.accepted, 35)

    async def after(self, world: World) -> float:
        world.proxy.restore()
        return time.monotonic()


class LinkDeaf(LinkBlackHoled):
    """What the services say vanishes, and what the broker says comes, until one of them has given the connections up."""

    name = "link-deaf"

    async def inflict(self, world: World) -> None:
        self.accepted = world.proxy.accepted
        world.proxy.black_hole(to_client=False, to_server=True)
