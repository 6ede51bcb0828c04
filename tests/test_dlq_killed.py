"""`dlq replay` in a process of its own, ended in the middle: nothing is lost, nothing goes to another handler."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rabbitevents import Bus, Properties, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, MemoryStore
from tests.bed.rabbitmq import RabbitNode
from tests.deadletters import DEAD, QUEUE, PaymentError, letters, raw, ready, until
from tests.scale import WHOLE
from tests.shop import OrderPlaced, eventually

ROOT = Path(__file__).parent.parent
LETTERS = 2_000 if WHOLE else 600
KILLS = 50 if WHOLE else 12


@asynccontextmanager
async def replaying(url: str, *options: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A running `rabbitevents dlq replay`; killed at the end if it is still there."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents", "dlq", "replay", "--url", url, "--queue", QUEUE, *options),
        env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def two_handlers(*, repaired: bool, effects: Counter[str] | None = None) -> Router:
    """A router with two handlers of one event, of which the first fails until it is repaired."""
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        if not repaired:
            raise PaymentError
        if effects is not None:
            effects[order.order_id] += 1

    @router.on(OrderPlaced)
    async def note(order: OrderPlaced) -> None:
        if effects is not None:
            effects["noted"] += 1

    return router


async def fail_all(url: str, number: int) -> None:
    """Have a service handle events in one handler and fail with them in another, and stop."""
    async with Bus(url, two_handlers(repaired=False), plugins=[DeadLetter(traceback=False, message=False)]) as bus:
        for i in range(number):
            properties = Properties(type="order.placed", message_id=f"id-{i}")
            await bus.send(raw(b'{"order_id": "o-%d"}' % i, properties=properties))
        await until(bus, number)


async def moved(node: RabbitNode, url: str) -> int:
    """How many have come to the queue whose handler failed."""
    counts = await node.aqueue_counts(QUEUE, url)
    return counts.ready + counts.unacked


@pytest.mark.timeout(600)
async def test_killed_again_and_again_between_its_first_and_its_last_message_it_loses_none(
    rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    await fail_all(rabbit_url, LETTERS)
    kills, before = 0, 0

    while kills < KILLS:
        async with replaying(rabbit_url, "--rate", "400") as process:
            wanted = before + chance.randint(1, 30)
            while (now := await moved(rabbit_node, rabbit_url)) < wanted:
                assert process.returncode is None, f"seed {seed}: it ended by itself after {now - before}"
            process.kill()
            await process.wait()
        after = await moved(rabbit_node, rabbit_url)
        assert before < now <= after < LETTERS, f"seed {seed}: not between its first and its last message"
        kills, before = kills + 1, after
        await eventually(lambda: rabbit_node.queue_counts(DEAD, rabbit_url).unacked == 0, "what it held to be back")
        assert await ready(rabbit_url) >= LETTERS - after
    async with replaying(rabbit_url) as process:
        assert await process.wait() == 0

    replayed = await moved(rabbit_node, rabbit_url)
    effects: Counter[str] = Counter()
    plugins = [DeadLetter(), Idempotency(MemoryStore())]
    async with Bus(rabbit_url, two_handlers(repaired=True, effects=effects), plugins=plugins) as bus:
        await eventually(lambda: len(effects) == LETTERS, f"{LETTERS} effects", 60)
        await until(bus, 0, QUEUE)
    duplicates = replayed - LETTERS
    print(f"{kills} kills, {LETTERS} letters, {duplicates} replayed twice (seed {seed})")
    assert await ready(rabbit_url) == 0
    assert 0 <= duplicates <= 2 * KILLS  # of each process, those whose acknowledgement was on its way
    assert set(effects.values()) == {1}
    assert "noted" not in effects
    assert await letters(rabbit_url) == []


async def test_interrupted_it_ends_after_the_current_one_and_says_how_far_it_came(
    rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    await fail_all(rabbit_url, 300)

    async with replaying(rabbit_url, "--rate", "100") as process:
        while await moved(rabbit_node, rabbit_url) < 5:
            assert process.returncode is None
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), 10)

    there, left = await ready(rabbit_url, QUEUE), await ready(rabbit_url)
    assert there + left == 300
    assert process.returncode == 130
    assert said.decode().strip() == (
        f"shop.record.dead: {there} replayed, {left} of 300 not looked at, since it was broken off"
    )


A_SERVICE = """
from rabbitevents import Bus
from tests.test_dlq_killed import two_handlers

bus = Bus({url!r}, two_handlers(repaired=False))
"""


async def test_discard_asks_and_then_discards(rabbit_url: str, tmp_path: Path) -> None:
    await fail_all(rabbit_url, 3)
    (tmp_path / "a_service.py").write_text(A_SERVICE.format(url=rabbit_url))
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents", "dlq", "discard", "a_service:bus", "--limit", "2"),
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(b"y\n"), 60)

    assert process.returncode == 0, said.decode()
    assert said.decode().endswith("shop.record.dead: 2 discarded, 1 of 3 not looked at\n")
    assert await ready(rabbit_url) == 1
