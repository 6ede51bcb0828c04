"""The broker is killed with -9, ten times, while orders are placed and handled: nothing confirmed is lost."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial

import pytest

from rabbitevents import Bus, PublishError
from tests.bed.fixtures import NodeFactory
from tests.scale import WHOLE
from tests.shop import Effects, OrderPlaced, eventually, recording

KILLS = 10 if WHOLE else 3
PUBLISHERS = 200
DEADLINE = 20.0


class Placing:
    """Publishers that place one order after the other, and note what became of each."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.confirmed: set[str] = set()
        self.failed: dict[str, PublishError] = {}
        self.slowest = 0.0
        self.in_flight = 0
        self.enough = False
        self._number = itertools.count()

    async def run(self) -> None:
        now = asyncio.get_running_loop().time
        while not self.enough:
            order = f"o-{next(self._number)}"
            started = now()
            self.in_flight += 1
            try:
                await self.bus.publish(OrderPlaced(order), timeout=DEADLINE)
                self.confirmed.add(order)
            except PublishError as error:
                self.failed[order] = error
            finally:
                self.in_flight -= 1
                self.slowest = max(self.slowest, now() - started)


@pytest.mark.timeout(400)
async def test_kills_with_publishes_in_flight_and_handlers_running_lose_nothing(own_node: NodeFactory) -> None:
    node = await own_node()
    effects = Effects()
    gate = asyncio.Event()

    async def until_killed(_: object) -> None:
        await asyncio.wait_for(gate.wait(), 30)

    def more_than(number: int) -> bool:
        return sum(effects.done.values()) > number

    def more_confirmed(number: int) -> bool:
        return len(placing.confirmed) > number

    bus = Bus(node.url, recording(effects, before=until_killed, concurrency=60), publish_timeout=DEADLINE)
    counted: list[tuple[int, int]] = []
    back_after: list[float] = []
    now = asyncio.get_running_loop().time
    placing = Placing(bus)
    async with bus:
        await node.asettle()  # killed within seconds of its declaration, a quorum queue is forgotten by RabbitMQ itself
        tasks_before = len(asyncio.all_tasks())
        publishers = [asyncio.create_task(placing.run()) for _ in range(PUBLISHERS)]
        for kill in range(KILLS):
            gate.clear()
            await eventually(lambda: effects.running >= 50 and placing.in_flight >= 100, "a busy moment", 30)
            counted.append((placing.in_flight, effects.running))
            await node.akill()
            gate.set()
            await eventually(lambda: not bus.health().ok, "health to say that the broker is gone")
            await node.astart()
            opened, handled, confirmed = now(), sum(effects.done.values()), len(placing.confirmed)
            await eventually(partial(more_than, handled), f"consumers after kill {kill}", 10)
            back_after.append(now() - opened)
            # What was redelivered comes first, and is settled now: an event that three kills interrupt would be handled
            # alone, as a suspect. And publishing runs again, so that the next kill finds publishes on the wire.
            await eventually(partial(more_than, handled + 500), "redelivered orders")
            await eventually(partial(more_confirmed, confirmed + PUBLISHERS), "publishing")
        placing.enough = True
        ended = await asyncio.gather(*publishers, return_exceptions=True)
        await eventually(lambda: placing.confirmed <= set(effects.done), "every confirmed order to be handled", 60)
        await eventually(lambda: bus.health().ok, "health")
        tasks_after = len(asyncio.all_tasks())

    lost = placing.confirmed - set(effects.done)
    print(f"\nconfirmed {len(placing.confirmed)}, errors {len(placing.failed)}, lost {len(lost)}, "
          f"handled twice {sum(n > 1 for n in effects.done.values())}, slowest call {placing.slowest:.1f} s, "
          f"consumers back after {max(back_after):.1f} s at most")  # fmt: skip
    assert all(publishes >= 100 and handlers >= 50 for publishes, handlers in counted)
    assert not lost
    assert [e for e in ended if e is not None] == []
    assert placing.slowest < DEADLINE + 1
    assert max(back_after) < 10
    assert tasks_after <= tasks_before
