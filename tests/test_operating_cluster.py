"""What an operator's commands rest on, on a cluster of three nodes: the atomic switch, and leaders that move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from rabbitevents.operations.planning import planned
from tests.bed.rabbitmq import RabbitNode
from tests.migrated import QUEUE
from tests.operating import Place, shop
from tests.switching import PUBLISHES, SWITCHES, switched
from tests.test_topology_migrate import Effects, all_handled, migrated, publishing

pytestmark = [pytest.mark.each_version, pytest.mark.timeout(400)]
"""Three nodes start, and one of the tests has some forty processes, one after the other."""


@pytest.fixture
async def place(managed_cluster: list[RabbitNode]) -> AsyncIterator[Place]:
    """An empty virtual host of the cluster."""
    here = Place(managed_cluster[0], managed_cluster[0].add_vhost())
    yield here
    managed_cluster[0].delete_vhost(here.url)


async def test_switches_at_one_node_under_publishers_at_two_others_lose_double_and_return_nothing(
    place: Place, managed_cluster: list[RabbitNode]
) -> None:
    others = [place.at(node) for node in managed_cluster[1:]]

    counted = await switched(place, others * 2, wanted=lambda sent: sent < PUBLISHES, flips=SWITCHES)

    assert counted.flips >= SWITCHES
    assert (counted.published, counted.lost, counted.doubled, counted.returned) == (4 * PUBLISHES, 0, 0, 0)
    assert counted.disordered == 0
    assert min(counted.near, counted.far) > 100


async def test_a_queue_is_made_anew_while_its_leader_moves_between_any_two_steps(
    place: Place, managed_cluster: list[RabbitNode]
) -> None:
    """A waiting queue whose leader moves hands on what was not confirmed yet once more, with or without a queue made anew."""
    effects, steps, processes, moves = Effects(), list[str](), 0, 0
    here = place.at(managed_cluster[1])

    async with AsyncExitStack() as replicas:
        await replicas.enter_async_context(effects.service(here))
        async with publishing(place.at(managed_cluster[2])) as publisher:
            async for done in migrated(place, limit=30):
                processes += 1
                if not done:  # it says that nobody consumes it, and to start the service
                    # Before RabbitMQ 4 a consumer of a queue that is deleted may not be told, where its leader has moved.
                    assert managed_cluster[0].version.startswith("3.")
                    await replicas.aclose()
                    await replicas.enter_async_context(effects.service(here))
                    continue
                steps += done
                moves += await place.node.amove_leaders()
            left = await planned(shop(place.url, delivery_limit=30), http=place.node.http_url)
        await all_handled(effects, publisher.published)

    assert not [step for step in steps if "LOST" in step]
    assert len(steps) == 37
    assert moves > processes
    assert [each for each in left.changes if each.name.startswith(QUEUE)] == []
    twice = [number for number, times in effects.handled.items() if times > 1]
    assert all(int(number) % 10 == 3 for number in twice)
