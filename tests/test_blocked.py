"""A broker that is short of memory: publishers get their error, consumers go on, stopping ends in time."""

from __future__ import annotations

import asyncio

import pytest

from rabbitevents import Bus, NotSentError, OutcomeUnknownError, PublishError
from tests.bed.fixtures import NodeFactory
from tests.shop import Effects, OrderPlaced, eventually, recording


@pytest.mark.timeout(180)
async def test_publishers_get_their_error_consumers_go_on_and_stopping_ends_in_time(own_node: NodeFactory) -> None:
    node = await own_node()
    now = asyncio.get_running_loop().time
    effects, release = Effects(), asyncio.Event()

    async def wait(_: object) -> None:
        await release.wait()

    busy = Bus(node.url, recording(effects, before=wait), name="busy", grace=2)
    idle = Bus(node.url, name="idle")
    async with busy, idle:
        await busy.publish_many([OrderPlaced(f"o-{i}") for i in range(200)])
        await idle.publish(OrderPlaced("warm up"))
        await eventually(lambda: effects.running == 50, "handlers")

        await node.aset_memory_alarm(True)
        started = now()
        results = await asyncio.gather(
            *(bus.publish(OrderPlaced(f"blocked {n}"), timeout=3) for bus in (busy, idle) for n in range(20)),
            return_exceptions=True,
        )
        took = now() - started
        problems = [check.detail for check in busy.health().problems]
        with pytest.raises(NotSentError) as blocked:
            await idle.publish(OrderPlaced("known to be blocked"), timeout=0.5)
        release.set()
        await effects.until(201)

        assert all(isinstance(r, NotSentError | OutcomeUnknownError) for r in results)
        assert took < 4
        assert any("block" in problem for problem in problems)
        assert "block" in str(blocked.value)

        await node.aset_memory_alarm(False)
        await idle.publish(OrderPlaced("after"), timeout=10)
        await eventually(lambda: "after" in effects.done, "the order after the alarm")

        await node.aset_memory_alarm(True)
        with pytest.raises(PublishError):
            await busy.publish(OrderPlaced("blocked again"), timeout=0.5)
        started = now()
        await busy.stop()
        stopped_after = now() - started

    assert stopped_after < 2 + 5
    confirmed = {f"o-{i}" for i in range(200)} | {"warm up", "after"}
    assert confirmed <= set(effects.done)
