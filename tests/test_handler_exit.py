"""A handler that ends its process has not failed: ``python -m tests.test_handler_exit URL HOW LEDGER`` is the service."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Delivery, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, MemoryStore
from rabbitevents_retry import Retry
from tests.bed.node import NodeError
from tests.bed.rabbitmq import RabbitNode
from tests.shop import OrderPlaced, eventually

CHECKOUT = Path(__file__).parent.parent
CODE = 7


def serve(url: str, how: str, path: str) -> None:
    """Note the attempt, and end the process; the second process to come here handles the event."""
    router = Router("shop")

    def note(attempt: int) -> int:
        """Write down an attempt, and return how many there were."""
        with Path(path).open("a+") as lines:
            lines.write(f"{attempt}\n")
            lines.seek(0)
            return len(lines.readlines())

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced, delivery: Delivery) -> None:
        if note(delivery.attempt) == 1:
            raise SystemExit(CODE) if how == "exit" else KeyboardInterrupt

    retry = Retry(stop=stop_after_attempt(3), wait=wait_fixed(0.01))
    once = Idempotency(MemoryStore(), lease=timedelta(seconds=1))
    Bus(url, router, plugins=[DeadLetter(), retry, once], grace=1).run()


@pytest.mark.parametrize("how", ["exit", "interrupt"])
async def test_a_handler_that_ends_its_process_is_no_failure_and_its_event_comes_again(
    how: str, rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    words = ("-m", "tests.test_handler_exit", rabbit_url, how, str(ledger))
    environment = {**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'plugins'}"}

    def left() -> tuple[int, int]:
        counts = rabbit_node.queue_counts("shop.record", rabbit_url)
        return counts.ready + counts.unacked, rabbit_node.queue_counts("shop.record.dead", rabbit_url).ready

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, *words, cwd=CHECKOUT, env=environment, stderr=asyncio.subprocess.DEVNULL
        )

    first = await start()
    try:
        async with Bus(rabbit_url, name="publisher", unroutable="raise") as publisher:
            await eventually(lambda: _consumed(rabbit_node, rabbit_url), "the consumer", 30)
            await publisher.publish(OrderPlaced("o-1"))
        code = await asyncio.wait_for(first.wait(), 20)
    finally:
        if first.returncode is None:
            first.kill()
            await first.wait()
    after_the_first = left()
    second = await start()
    try:
        await eventually(lambda: ledger.read_text().count("\n") == 2 and left()[0] == 0, "the second process", 30)
    finally:
        second.kill()
        await second.wait()

    assert code != 0
    assert how != "exit" or code == CODE
    assert after_the_first == (1, 0)
    assert ledger.read_text().splitlines() == ["1", "1"]
    assert left() == (0, 0)


def _consumed(node: RabbitNode, url: str) -> bool:
    try:
        return node.queue_counts("shop.record", url).consumers == 1
    except NodeError:
        return False


if __name__ == "__main__":
    serve(*sys.argv[1:4])
