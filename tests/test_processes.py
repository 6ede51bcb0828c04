"""Services in processes of their own: stopped in the middle of their work, and crashing again and again."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rabbitevents import Bus
from tests.bed.loopback import free_port
from tests.bed.node import NodeError
from tests.bed.rabbitmq import RabbitNode
from tests.shop import OrderPlaced, eventually

ROOT = Path(__file__).parent.parent
GRACE = 3.0


class Ledger:
    """What a service wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, kind: str) -> Counter[str]:
        """The orders of one kind of line."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return Counter(line.partition(" ")[2] for line in lines if line.partition(" ")[0] == kind)


@asynccontextmanager
async def service(mode: str, url: str, ledger: Ledger) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A running service; killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.service", mode, url, str(ledger.path), cwd=ROOT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def has_consumer(node: RabbitNode, queue: str, url: str) -> bool:
    """Whether the queue is there and is consumed."""
    try:
        return node.queue_counts(queue, url).consumers == 1
    except NodeError:
        return False


async def declared(mode: str, url: str, ledger: Ledger, node: RabbitNode, queue: str) -> None:
    """Let the service declare its queues, and stop it again."""
    async with service(mode, url, ledger) as process:
        await eventually(lambda: has_consumer(node, queue, url), "the consumer", 30)
        process.terminate()
        await process.wait()


@pytest.mark.timeout(180)
async def test_sigterm_under_load_finishes_or_gives_back_everything(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    await declared("slow", rabbit_url, ledger, rabbit_node, "shop.record")
    orders = {f"o-{i}" for i in range(150)}
    async with Bus(rabbit_url, name="publisher") as publisher:
        await publisher.publish_many([OrderPlaced(order) for order in sorted(orders)])

    async with service("slow", rabbit_url, ledger) as process:
        await eventually(
            lambda: len(ledger.of("start")) == 100 and bool(ledger.of("thread")), "100 running handlers", 30
        )
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        code = await asyncio.wait_for(process.wait(), 30)
        took = time.monotonic() - started

    running = set(ledger.of("start"))
    finished = set(ledger.of("effect"))
    left = await rabbit_node.aqueue_counts("shop.record", rabbit_url)
    threaded = await rabbit_node.aqueue_counts("shop.threaded", rabbit_url)
    dead = [await rabbit_node.aqueue_counts(f"shop.{name}.dead", rabbit_url) for name in ("record", "threaded")]
    assert code == 0
    assert took < GRACE + 5
    assert finished == {order for order in running if int(order.split("-")[1]) % 3}
    assert (left.ready, left.unacked) == (150 - len(finished), 0)
    assert (threaded.ready, threaded.unacked) == (150, 0)
    assert [counts.ready for counts in dead] == [0, 0]

    async with service("quick", rabbit_url, ledger) as process:
        await eventually(lambda: set(ledger.of("effect")) == orders, "the rest", 30)
    assert set(ledger.of("effect").values()) == {1}


@pytest.mark.timeout(180)
async def test_an_event_that_crashes_the_process_ends_alone_among_the_dead(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    await declared("crash", rabbit_url, ledger, rabbit_node, "shop.record")
    orders = [OrderPlaced(f"o-{i}") for i in range(999)]
    async with Bus(rabbit_url, name="publisher") as publisher:
        await publisher.publish_many([*orders[:400], OrderPlaced("poison"), *orders[400:]])

    crashes = 0
    while len(ledger.of("effect")) < 999 or (await rabbit_node.aqueue_counts("shop.record.dead", rabbit_url)).ready < 1:
        assert crashes < 12
        async with service("crash", rabbit_url, ledger) as process:
            done = asyncio.create_task(
                eventually(
                    lambda: len(ledger.of("effect")) == 999 and process.returncode is None, "effects or a crash", 30
                )
            )
            ended = asyncio.create_task(process.wait())
            await asyncio.wait({done, ended}, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            ended.cancel()
            crashes += process.returncode is not None

    assert set(ledger.of("effect")) == {order.order_id for order in orders}
    assert (await rabbit_node.aqueue_counts("shop.record.dead", rabbit_url)).ready == 1
    assert (await rabbit_node.aqueue_counts("shop.record", rabbit_url)).ready == 0
    assert ledger.of("crash")["poison"] == 7  # a limit of 6 redeliveries


@pytest.mark.parametrize("signals", [1, 2])
async def test_sigterm_while_the_broker_is_away_ends_the_service_at_once(signals: int, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    async with service("quick", f"amqp://127.0.0.1:{free_port()}/", ledger) as process:
        await eventually(ledger.path.exists, "the service to start")
        await asyncio.sleep(2)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)

        # The second one may come when the bus has ended already, and the signal is the interpreter's again.
        assert await asyncio.wait_for(process.wait(), 5) in {0, -signal.SIGTERM if signals == 2 else 0}


async def test_a_handler_that_will_not_be_cancelled_does_not_hold_up_the_exit(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    async with service("stubborn", rabbit_url, ledger) as process:
        await eventually(lambda: has_consumer(rabbit_node, "shop.record", rabbit_url), "the consumer", 30)
        async with Bus(rabbit_url, name="publisher") as publisher:
            await publisher.publish(OrderPlaced("o"))
        await eventually(lambda: bool(ledger.of("start")), "the handler")
        process.terminate()
        started = time.monotonic()
        await asyncio.wait_for(process.wait(), 30)

    assert time.monotonic() - started < GRACE + 5
    assert (await rabbit_node.aqueue_counts("shop.record", rabbit_url)).ready == 1
