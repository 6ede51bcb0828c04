"""Attempts when the process is killed in between: ``python -m tests.test_retry_processes POLICY URL LEDGER`` is the service.

Each attempt is a line in LEDGER, fsynced before the handler fails.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tenacity import stop_after_attempt, wait_chain, wait_fixed

from rabbitevents import Bus, Delivery, Router
from rabbitevents_retry import Retry
from tests.bed.node import NodeError
from tests.bed.rabbitmq import RabbitNode
from tests.shop import OrderPlaced, eventually
from tests.test_retry import Grave

ROOT = Path(__file__).parent.parent

LONG = 9.0
"""Seconds at the broker: long enough for a busy machine to see that all of them wait, and to kill the process."""

POLICIES: dict[str, Callable[[], Retry]] = {
    "one": lambda: Retry(stop=stop_after_attempt(1)),
    "three": lambda: Retry(stop=stop_after_attempt(3), wait=wait_fixed(LONG)),
    # 1 | 2 3 | 4 5 6 | 7 8: a bar is a wait at the broker, a space one in the process
    "eight": lambda: Retry(
        stop=stop_after_attempt(8), wait=wait_chain(*map(wait_fixed, (LONG, 0.01, LONG, 0.01, 0.01, LONG, 0.01)))
    ),
    # 1 | 2 3 4: killed in the second wait in the process
    "inline": lambda: Retry(stop=stop_after_attempt(4), wait=wait_chain(*map(wait_fixed, (4, 0.5, 3))), inline_below=4),
}


def serve(policy: str, url: str, path: str) -> None:
    """Fail at each event, and write it down."""
    ledger = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    router = Router("shop")

    @router.on(OrderPlaced, concurrency=50)
    async def record(order: OrderPlaced, delivery: Delivery) -> None:
        os.write(ledger, f"{order.order_id} {delivery.attempt}\n".encode())
        os.fsync(ledger)
        raise ConnectionError

    Bus(url, router, plugins=[Grave(), POLICIES[policy]()]).run()


class Scene:
    """A service that is killed and started again, its ledger, and its queue."""

    def __init__(self, policy: str, url: str, node: RabbitNode, ledger: Path) -> None:
        self.policy, self.url, self.node, self.path = policy, url, node, ledger

    @property
    def ledger(self) -> Counter[tuple[str, int]]:
        """How often each order was attempted under each number."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return Counter((line.split()[0], int(line.split()[1])) for line in lines)

    def attempts(self) -> Counter[str]:
        """How often each order was attempted."""
        effects: Counter[str] = Counter()
        for (order, _), times in self.ledger.items():
            effects[order] += times
        return effects

    def reached(self, attempt: int) -> int:
        """How many orders have come to an attempt of this number."""
        return sum(number == attempt for _, number in self.ledger)

    def at_rest(self) -> bool:
        """Whether nothing is in the queue, nor in the service."""
        counts = self.node.queue_counts("shop.record", self.url)
        return counts.ready + counts.unacked == 0

    async def rests_after(self, attempt: int, orders: int) -> None:
        """Wait until all of them have made this attempt, and none is in the service or its queue."""
        await eventually(lambda: self.reached(attempt) == orders and self.at_rest(), f"attempt {attempt}", 30)

    def dead(self) -> int:
        return self.node.queue_counts("shop.record.dead", self.url).ready

    def consumed(self) -> bool:
        try:
            return self.node.queue_counts("shop.record", self.url).consumers == 1
        except NodeError:
            return False

    @asynccontextmanager
    async def service(self) -> AsyncGenerator[asyncio.subprocess.Process]:
        """Run the service; it is killed with -9 at the end."""
        words = ("-m", "tests.test_retry_processes", self.policy, self.url, str(self.path))
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
        )
        try:
            await eventually(self.consumed, "the service", 30)
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await eventually(lambda: not self.consumed(), "the broker to see that it is gone", 30)

    async def publish(self, number: int) -> None:
        async with Bus(self.url, name="publisher") as publisher:
            await publisher.publish_many([OrderPlaced(f"o-{n}") for n in range(number)])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("policy", "trips", "attempts"), [("one", [], 1), ("three", [1, 2], 3), ("eight", [1, 3, 6], 8)]
)
@pytest.mark.sampled
async def test_a_process_killed_while_events_wait_at_the_broker_costs_no_attempt_and_adds_none(
    policy: str, trips: list[int], attempts: int, rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    scene = Scene(policy, rabbit_url, rabbit_node, tmp_path / "ledger")
    kills = 0

    for last in [*trips, attempts]:
        async with scene.service() as process:
            if kills == 0:
                await scene.publish(50)
            await scene.rests_after(last, 50)
            process.kill()
            await process.wait()
            assert scene.reached(last + 1) == 0, "the machine is too slow: some came back before the process was killed"
            kills += 1

    print(
        f"\n{attempts} attempts, killed {kills} times between them: {sum(scene.attempts().values())} effects of 50 events"
    )
    assert scene.attempts() == {f"o-{n}": attempts for n in range(50)}
    assert set(scene.ledger.values()) == {1}
    assert scene.dead() == 50


@pytest.mark.timeout(180)
async def test_a_process_killed_in_a_wait_of_its_own_repeats_the_attempts_since_the_last_trip_to_the_broker(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    scene = Scene("inline", rabbit_url, rabbit_node, tmp_path / "ledger")

    async with scene.service() as process:
        await scene.publish(20)
        await eventually(lambda: scene.reached(3) == 20, "the third attempts", 30)
        process.kill()
    killed_in = scene.attempts()
    async with scene.service():
        await eventually(lambda: scene.dead() == 20 and scene.at_rest(), "the end", 30)

    print(f"\n4 attempts, killed in the wait after the third: {sorted(scene.attempts().values())} effects")
    assert set(killed_in.values()) == {3}
    assert {number for _, number in scene.ledger} == {1, 2, 3, 4}
    for order in killed_in:
        # Once before the trip; those since the trip twice; and what had not begun, once.
        assert [scene.ledger[order, number] for number in (1, 2, 3, 4)] == [1, 2, 2, 1]


if __name__ == "__main__":
    serve(*sys.argv[1:4])
