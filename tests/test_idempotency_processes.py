"""Processes that race, stand still, and crash at every point of the way, on a real Redis and a real RabbitMQ."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest

from rabbitevents import Bus, Event
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import RedisServer
from tests.idempotent import Queues
from tests.idempotent_service import BATCH, KEYS
from tests.scale import WHOLE
from tests.shop import OrderPlaced, eventually

CHECKOUT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'plugins'}"}
EVENTS = 200 if WHOLE else 75
KILLS = 10 if WHOLE else 4


@asynccontextmanager
async def process(*words: object, stdout: int | None = None) -> AsyncGenerator[Process]:
    """A process of `tests.idempotent_service`; killed at the end if it is still there."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.idempotent_service", *map(str, words),
        cwd=CHECKOUT, env=ENVIRONMENT, stdout=stdout,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


class Scene:
    """One broker, one Redis, one ledger."""

    def __init__(self, url: str, node: RabbitNode, server: RedisServer, folder: Path) -> None:
        self.url = url
        self.queues = Queues(node, url)
        self.port = server.port
        self.path = folder / "ledger"
        self.published: dict[str, Event[OrderPlaced]] = {}

    def service(self, how: str) -> AbstractAsyncContextManager[Process]:
        return process("serve", how, self.url, self.port, self.path)

    def lines(self, what: str) -> list[tuple[str, str]]:
        """The orders, with the process, of one kind of line, in order."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        words = [line.split() for line in lines]
        return [(order, pid) for kind, order, pid in words if kind == what]

    def go(self) -> None:
        """Let who stands still go on."""
        Path(f"{self.path}.go").touch()

    def stands_still(self) -> bool:
        """Whether somebody has come to where the first one stands still."""
        return Path(f"{self.path}.go.first").exists()

    def has_effects(self, number: int) -> bool:
        return len(self.lines("effect")) >= number

    def of(self, what: str) -> Counter[str]:
        return Counter(order for order, _ in self.lines(what))

    def extra_effects(self) -> int:
        """Count the effects that were repeated; each of them must have been without a mark when its process ended."""
        marked, seen, extra = set(self.lines("marked")), dict[str, str](), 0
        for order, pid in self.lines("effect"):
            if order in seen:
                extra += 1
                assert (order, seen[order]) not in marked, f"{order} was marked, and had another effect"
            seen[order] = pid
        return extra

    async def publish(self, orders: list[str], copies: int = 1) -> None:
        """Publish orders, each with so many copies of the same event."""
        async with Bus(self.url, name="publisher", unroutable="raise") as publisher:
            envelopes = await publisher.publish_many([OrderPlaced(order) for order in orders])
            self.published.update(zip(orders, envelopes, strict=True))
            for _ in range(copies - 1):
                await publisher.publish_many(envelopes)

    async def redeliver(self, order: str) -> None:
        """Bring the one event that was published again, as the broker does whose consumer is gone."""
        async with Bus(self.url, name="publisher", unroutable="raise") as publisher:
            await publisher.publish(self.published[order])

    async def declare(self) -> None:
        """Let a service declare its queue."""
        async with process("serve", "declare", self.url, self.port, f"{self.path}.none") as child:
            await eventually(self.queues.is_consumed, "the consumer", 30)
            child.terminate()
            await child.wait()


@pytest.fixture
async def scene(rabbit_url: str, rabbit_node: RabbitNode, redis_server: RedisServer, tmp_path: Path) -> Scene:
    scene = Scene(rabbit_url, rabbit_node, redis_server, tmp_path)
    await scene.declare()
    return scene


# --- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
async def test_of_a_hundred_claimants_in_ten_processes_one_wins_each_of_a_thousand_keys(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    go = tmp_path / "go"

    async with AsyncExitStack() as stack:
        racing = [
            await stack.enter_async_context(process("race", redis_server.port, go, stdout=PIPE)) for _ in range(10)
        ]
        for child in racing:
            assert child.stdout is not None
            assert await asyncio.wait_for(child.stdout.readline(), 60) == b"ready\n"
        go.touch()
        printed = [(await asyncio.wait_for(child.communicate(), 120))[0].decode().split() for child in racing]

    won = Counter(key for keys in printed for key in keys)
    print(f"\nwins: {sum(won.values())} of {KEYS} keys, by process: {sorted(map(len, printed))}")
    assert won == {f"key-{number}": 1 for number in range(KEYS)}
    assert sum(bool(keys) for keys in printed) > 1


@pytest.mark.timeout(180)
async def test_no_second_process_starts_while_a_handler_runs_ten_times_as_long_as_its_lease(scene: Scene) -> None:
    orders = [f"o-{number}" for number in range(20)]  # twice as many as one process takes at a time

    async with scene.service("long"), scene.service("long"):
        await eventually(lambda: scene.queues.counts("shop.record").consumers == 2, "two consumers", 30)
        await scene.publish(orders, copies=3)
        await eventually(lambda: len(scene.of("effect")) == 20, "the effects", 60)
        await scene.queues.quiet()

    assert scene.of("start") == dict.fromkeys(orders, 1)
    assert len({pid for _, pid in scene.lines("start")}) == 2
    assert scene.of("leaselost") == scene.of("fenced") == {}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["stopped", "stalled"])
async def test_an_owner_that_stood_still_past_its_lease_cannot_write_nor_complete(how: str, scene: Scene) -> None:
    async with scene.service(how) as first:
        await eventually(scene.queues.is_consumed, "the consumer", 30)
        await scene.publish(["o-1"])
        # Not at its line in the ledger: stopped before it has left its mark, it would leave the standing to the second.
        await eventually(scene.stands_still, "the first owner", 30)
        if how == "stopped":
            first.send_signal(signal.SIGSTOP)
        async with scene.service(how) as second:
            await scene.redeliver("o-1")
            await eventually(lambda: bool(scene.of("effect")), "the second owner's effect", 30)
            await eventually(lambda: bool(scene.of("marked")), "its mark", 30)
            scene.go()
            if how == "stopped":
                first.send_signal(signal.SIGCONT)
            await eventually(lambda: bool(scene.of("fenced")), "the first owner to be refused", 30)
            await scene.queues.quiet()

    with closing(sqlite3.connect(f"{scene.path}.stock")) as stock:
        rows = stock.execute("SELECT id, writes FROM effects").fetchall()
    assert rows == [("o-1", 1)]
    assert scene.lines("effect") == scene.lines("marked") == [("o-1", str(second.pid))]
    assert scene.lines("stale") == [("o-1", str(first.pid))]
    assert [pid for _, pid in scene.lines("fenced")] == [str(first.pid)]


# --- crashes ---------------------------------------------------------------------------------------------------------

POINTS = ["before-claim", "after-claim", "in-the-effect", "after-the-effect", "after-complete", "after-ack"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.sampled
async def test_each_event_has_one_effect_but_one_more_at_most_if_it_crashed_between_effect_and_mark(
    point: str, scene: Scene
) -> None:
    orders = [f"o-{number}" for number in range(EVENTS)]
    await scene.publish(orders)

    crashes = 0
    while len(scene.of("arrived")) < EVENTS:
        async with scene.service(point) as child:
            assert await asyncio.wait_for(child.wait(), 60) == 1
            crashes += 1
    async with scene.service(point):
        await eventually(lambda: len(scene.of("effect")) == EVENTS, "all effects", 60)
        await scene.queues.quiet()

    effects = scene.of("effect")
    extra = sum(effects.values()) - EVENTS
    print(f"\n{point}: {EVENTS} events crashed there, in {crashes} crashes; {extra} extra effects")
    assert crashes == EVENTS / BATCH
    assert scene.of("arrived") == dict.fromkeys(orders, 1)
    assert set(effects) == set(orders)
    if point == "after-the-effect":
        assert set(effects.values()) == {2}  # each crashed there once, so each of them has its one extra effect
    else:
        assert extra == 0


@pytest.mark.timeout(300)
async def test_an_event_that_crashes_the_process_ends_alone_among_the_dead(scene: Scene) -> None:
    orders = [f"o-{number}" for number in range(500)]
    await scene.publish([*orders[:100], "poison", *orders[100:]])

    crashes = 0
    while scene.queues.counts("shop.record.dead").ready == 0:
        async with scene.service("poison") as child:
            ended = asyncio.create_task(child.wait())
            while not ended.done() and scene.queues.counts("shop.record.dead").ready == 0:
                await asyncio.wait({ended}, timeout=0.1)
            crashes += ended.done()
            ended.cancel()
        assert crashes <= 8
    async with scene.service("poison"):
        await eventually(lambda: len(scene.of("effect")) == 500, "all other effects", 60)
        await scene.queues.quiet()

    extra = scene.extra_effects()
    print(f"\n{crashes} crashes; {extra} extra effects, of unmarked events")
    assert crashes == scene.of("start")["poison"] == 5
    assert set(scene.of("effect")) == set(orders)
    assert extra <= crashes * BATCH
    assert scene.queues.counts("shop.record.dead").ready == 1


@pytest.mark.timeout(300)
async def test_kills_at_any_moment_lose_nothing_and_repeat_only_what_was_not_marked(scene: Scene) -> None:
    events, seed = 600 * KILLS, random.randrange(10**6)
    rng = random.Random(seed)
    await scene.publish([f"o-{number}" for number in range(events)])

    kills = 0
    while kills < KILLS:
        before = len(scene.lines("effect"))
        async with scene.service("load") as child:
            enough = before + rng.randrange(20, 250)
            await eventually(partial(scene.has_effects, enough), "a busy moment", 60)
            child.kill()
            kills += 1
    async with scene.service("load"):
        await eventually(lambda: len(scene.of("effect")) == events, "all effects", 60)
        await scene.queues.quiet()

    extra = scene.extra_effects()
    starts = sum(scene.of("start").values())
    print(f"\n{kills} kills (seed {seed}): {starts - events} extra starts, {extra} extra effects, of unmarked events")
    assert len(scene.of("effect")) == events
    assert extra <= kills * BATCH
