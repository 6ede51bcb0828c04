"""Retrying by way of RabbitMQ: counted from effects, back to the one queue, in nobody's way, and nothing lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from tenacity import stop_after_attempt, wait_chain, wait_fixed

from rabbitevents import Bus, Delivery, Message, Router
from rabbitevents.properties import HeaderValue, Properties
from rabbitevents_retry import Fatal, Retry
from tests.bed.fixtures import NodeFactory
from tests.bed.rabbitmq import RabbitNode
from tests.shop import OrderPlaced, eventually
from tests.test_retry import Grave, Witness

MIXED = wait_chain(*map(wait_fixed, (0.01, 0.5, 0.01, 0.01, 1.2, 0.5, 0.01)))


class Failing:
    """A router with a handler, ``shop.record``, that fails as often as it is told, and the effects of that."""

    def __init__(
        self, fails: Callable[[OrderPlaced, Delivery], bool], *, concurrency: int = 10, prefetch: int = 100
    ) -> None:
        self.effects: Counter[str] = Counter()
        self.said: dict[str, list[int]] = defaultdict(list)
        self.order: list[str] = []
        self.router = Router("shop")

        @self.router.on(OrderPlaced, concurrency=concurrency, prefetch=prefetch)
        async def record(order: OrderPlaced, delivery: Delivery) -> None:
            self.effects[order.order_id] += 1
            self.order.append(order.order_id)
            self.said[order.order_id].append(delivery.attempt)
            if fails(order, delivery):
                raise ConnectionError


def always(order: OrderPlaced, delivery: Delivery) -> bool:
    return True


async def buried(number: int, node: RabbitNode, url: str) -> None:
    """Wait until so many dead letters are there, and nothing is left in the queue."""

    def done() -> bool:
        queue = node.queue_counts("shop.record", url)
        return node.queue_counts("shop.record.dead", url).ready >= number and queue.ready + queue.unacked == 0

    await eventually(done, f"{number} dead letters", 60)


@pytest.mark.parametrize("attempts", [1, 3, 8])
async def test_effects_are_exactly_as_many_as_the_policy_says(
    attempts: int, rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    failing, witness = Failing(always), Witness()
    retry = Retry(stop=stop_after_attempt(attempts), wait=MIXED, inline_below=0.4)
    orders = [OrderPlaced(f"o-{n}") for n in range(100)]

    async with Bus(rabbit_url, failing.router, plugins=[Grave(), retry, witness]) as bus:
        await bus.publish_many(orders)
        await buried(100, rabbit_node, rabbit_url)

    places = Counter(fact.inline for fact in witness.retries)
    print(f"\n{attempts} attempts: {sum(failing.effects.values())} effects of 100 events, waits {dict(places)}")
    assert failing.effects == {order.order_id: attempts for order in orders}
    assert all(said == list(range(1, attempts + 1)) for said in failing.said.values())
    assert (await rabbit_node.aqueue_counts("shop.record.dead", rabbit_url)).ready == 100


async def test_a_retry_returns_only_to_the_queue_whose_handler_failed(rabbit_url: str) -> None:
    failing = Failing(lambda order, delivery: delivery.attempt < 4)
    others: Counter[str] = Counter()

    @failing.router.on("order.*")
    async def mail(delivery: Delivery) -> None:
        others[delivery.queue] += 1

    @failing.router.on(OrderPlaced)
    async def bill(order: OrderPlaced, delivery: Delivery) -> None:
        others[delivery.queue] += 1

    async with Bus(rabbit_url, failing.router, plugins=[Grave(), Retry(wait=wait_fixed(0.5), inline_below=0)]) as bus:
        await bus.publish_many([OrderPlaced(f"o-{n}") for n in range(20)])
        await eventually(lambda: sum(failing.effects.values()) == 80, "all attempts", 30)

    assert set(failing.effects.values()) == {4}
    assert others == {"shop.mail": 20, "shop.bill": 20}


async def test_a_failing_event_is_in_nobodys_way(rabbit_url: str, rabbit_node: RabbitNode) -> None:
    failing = Failing(lambda order, delivery: int(order.order_id) < 50, concurrency=1, prefetch=1)
    orders = [OrderPlaced(str(n)) for n in range(200)]

    retry = Retry(stop=stop_after_attempt(2), wait=wait_fixed(5))
    async with Bus(rabbit_url, failing.router, plugins=[Grave(), retry]) as bus:
        await bus.publish_many(orders)
        await eventually(lambda: len(failing.order) >= 200, "all of them, once", 30)
        first = failing.order[:200]
        waiting = await rabbit_node.aqueue_counts("delay.5000", rabbit_url)
        while_waiting = await rabbit_node.aqueue_counts("shop.record", rabbit_url)
        await buried(50, rabbit_node, rabbit_url)

    assert len(set(first)) == 200  # each of them before any came back
    assert while_waiting.ready == 0
    assert while_waiting.unacked <= 1  # the last one, whose settlement is on its way
    assert waiting.ready == 50
    assert sorted(failing.order[200:], key=int) == [str(n) for n in range(50)]


async def test_many_laps_through_the_same_waiting_queue_lose_nothing_whatever_the_headers_say(
    rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    failing = Failing(always)
    forged: list[dict[str, HeaderValue]] = [
        {},
        {"x-death": [{"count": 999, "reason": "expired", "queue": "delay.500", "exchange": "delay.500"}]},
        {
            "x-death": [{"count": 999, "reason": "rejected", "queue": "shop.record"}],
            "x-first-death-queue": "shop.record",
        },
        {"x-death": "nonsense", "x-last-death-exchange": "delay.due", "x-delivery-count": 10_000},
        {"attempt": 0, "retry-since": 2**62, "retry-waited": -1},
        {"attempt": -5},
        {"attempt": "eight"},
        {"CC": ["shop.other"], "BCC": ["shop.other"], "attempt": 1},
    ]

    @failing.router.on("never.published")
    async def other(delivery: Delivery) -> None:
        raise Fatal("it is not for me")

    def order(number: int, headers: dict[str, HeaderValue]) -> Message:
        properties = Properties(
            message_id=f"m-{number}", type="order.placed", content_type="application/json", headers=headers
        )
        return Message(
            exchange="", routing_key="shop.record", body=b'{"order_id":"o-%d"}' % number, properties=properties
        )

    retry = Retry(stop=stop_after_attempt(6), wait=wait_fixed(0.5), inline_below=0)
    async with Bus(rabbit_url, failing.router, plugins=[Grave(), retry], delivery_limit=2) as bus:
        for number in range(80):
            await bus.send(order(number, forged[number % len(forged)]))
        await buried(80, rabbit_node, rabbit_url)
        await eventually(lambda: rabbit_node.queue_counts("shop.other.dead", rabbit_url).ready == 10, "the copies", 20)

    # The broker obeys CC at the first publish, which is the forger's own; the copies do not carry it.
    assert failing.effects == {f"o-{number}": 6 for number in range(80)}


@pytest.mark.timeout(180)
async def test_nothing_is_lost_when_connections_break_and_the_node_is_killed_in_the_middle_of_retries(
    own_node: NodeFactory,
) -> None:
    node = await own_node()
    failing, dice = Failing(lambda order, delivery: delivery.attempt < 5), random.Random(11)
    orders = [OrderPlaced(f"o-{n}") for n in range(300)]
    retry = Retry(stop=stop_after_attempt(50), wait=MIXED, inline_below=0.4)

    def finished() -> int:
        return sum(5 in said for said in failing.said.values())

    async with Bus(node.url, failing.router, plugins=[Grave(), retry]) as bus:
        await bus.publish_many(orders)
        for _ in range(4):
            await asyncio.sleep(dice.uniform(0.1, 0.5))
            await node.aclose_all_connections()
        await node.asettle()
        await node.akill()
        await node.astart()
        await eventually(lambda: finished() == 300, "the last attempt of all", 60)
        dead = await node.aqueue_counts("shop.record.dead")

    twice = sum(len(said) - len(set(said)) for said in failing.said.values())
    print(f"\n300 events through 4 broken connections and a kill -9 of the node: 0 lost, {twice} attempts made twice")
    assert set(failing.effects) == {order.order_id for order in orders}
    assert dead.ready == 0
