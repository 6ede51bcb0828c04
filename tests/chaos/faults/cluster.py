"""What happens to the nodes of a cluster of three."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from tests.bed.node import NodeError
from tests.bed.rabbitmq import RabbitNode
from tests.chaos.faults.fault import Fault, accepts, blocked, comes
from tests.chaos.world import World
from tests.committed import until

LOST = 20.0
"""Seconds for which the majority is away."""


class NodeKilled(Fault):
    """A node is killed by SIGKILL, and comes back once events have flowed without it, or after 40 s."""

    touches, at = "cluster", 0.0
    victims: Sequence[RabbitNode] = ()

    def chosen(self, world: World) -> Sequence[RabbitNode]:
        """Say which nodes."""
        raise NotImplementedError

    async def inflict(self, world: World) -> None:
        await asyncio.to_thread(world.node.settle)  # a queue that was just declared is the broker's own trouble
        self.victims = await asyncio.to_thread(self.chosen, world)
        self.at = time.monotonic()
        await asyncio.gather(*(victim.akill() for victim in self.victims))

    async def observed(self, world: World) -> bool:
        went_on = await comes(lambda: world.tail.read().flows(self.at), 40)
        await asyncio.sleep(world.random.uniform(0, 3))
        return went_on and not any(victim.running for victim in self.victims)

    async def after(self, world: World) -> float:
        await start(self.victims)
        await whole(world)
        return self.at  # two of three were there all along: recovery counts from the kill


class ConnectedNodeKilled(NodeKilled):
    """The node that most connections lead to is killed: they have to find another one."""

    name = "connected-node-killed"

    def chosen(self, world: World) -> Sequence[RabbitNode]:
        return [max(world.servers.nodes, key=connections)]


class QueueLeaderKilled(NodeKilled):
    """The node that leads the queue is killed: the others elect another leader."""

    name = "queue-leader-killed"

    def chosen(self, world: World) -> Sequence[RabbitNode]:
        return [leader(world)]


class MajorityLost(NodeKilled):
    """Two of the three nodes are killed, and away for 20 s: nothing can be confirmed."""

    name = "majority-lost"

    def chosen(self, world: World) -> Sequence[RabbitNode]:
        return world.random.sample(world.servers.nodes, 2)

    async def observed(self, world: World) -> bool:
        await asyncio.sleep(LOST)
        return blocked(world, self.at + 2)

    async def after(self, world: World) -> float:
        there = asyncio.gather(*(accepts(node) for node in world.servers.nodes))
        await start(self.victims)
        return max(await there)


class RollingRestart(Fault):
    """One node after the other shuts down in order and is started again, each when the one before is back."""

    name, touches, alone = "rolling-restart", "cluster", True

    async def inflict(self, world: World) -> None:
        self.at = time.monotonic()
        for node in world.random.sample(world.servers.nodes, 3):
            await node.astop()
            await start([node])
            await whole(world)

    async def observed(self, world: World) -> bool:
        return world.confirmed_since(self.at) > 0


class NodesCut(Fault):
    """Nothing passes between the node that leads the queue and another one; the third, and all clients, reach both.

    That lasts until the two have given each other up, and 10 s more at most.
    """

    name, touches = "nodes-cut", "cluster"

    async def inflict(self, world: World) -> None:
        network, nodes = world.servers.network, world.servers.nodes
        leading = await asyncio.to_thread(leader, world)
        self.one, self.other = leading, max((each for each in nodes if each is not leading), key=connections)
        hosts = [each.layout.host for each in (self.one, self.other) if each.layout.host is not None]
        assert network is not None
        await asyncio.to_thread(network.cut, *hosts)

    async def observed(self, world: World) -> bool:
        apart = await comes(lambda: not sees(self.one, self.other) and not sees(self.other, self.one), 40)
        await asyncio.sleep(world.random.uniform(0, 10))
        return apart

    async def after(self, world: World) -> float:
        assert world.servers.network is not None
        await asyncio.to_thread(world.servers.network.heal)
        await whole(world)
        return max(await asyncio.gather(*(accepts(node) for node in world.servers.nodes)))


def connections(node: RabbitNode) -> int:
    """Count the connections that lead to a node."""
    return int(node.eval("length(pg_local:get_members(rabbit_connections))"))


def leader(world: World) -> RabbitNode:
    """Return the node that leads the queue of events; as far as is known where it was chosen just now."""
    name = world.node.eval(f"""
        {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{world.vhost}">>, queue, <<"{world.load.queue}">>)),
        {{Name, Node}} = amqqueue:get_pid(Q),
        case ra_leaderboard:lookup_leader(Name) of {{_, Now}} -> Now; undefined -> Node end""")
    return next(node for node in world.servers.nodes if node.layout.name == name.strip("'"))


def sees(node: RabbitNode, other: RabbitNode) -> bool:
    """Say whether a node knows another one as running."""
    return node.eval(f"lists:member('{other.layout.name}', nodes())") == "true"


async def start(victims: Iterable[RabbitNode]) -> None:
    """Start nodes, side by side: each may wait for the others."""
    await asyncio.gather(*(victim.astart(120) for victim in victims if not victim.running))


async def whole(world: World) -> None:
    """Wait until all nodes run and see each other, and each has its replica of every queue. Raises TimeoutError."""
    await until(
        lambda: all(_is_whole(node, world) for node in world.servers.nodes), "the whole cluster", 120, every=0.5
    )


def _is_whole(node: RabbitNode, world: World) -> bool:
    expression = f"""
        rabbit:is_running() andalso length(nodes()) >= 2 andalso lists:all(fun(Q) ->
            case amqqueue:get_pid(Q) of
                {{Name, _}} -> is_pid(whereis(Name));
                _ -> true
            end
        end, rabbit_amqqueue:list(<<"{world.vhost}">>))"""
    try:
        return node.eval(expression) == "true"
    except NodeError:
        return False
