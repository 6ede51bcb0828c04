"""Delayed events on a real broker: never early, no later than promised, and not lost with the node."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest
from attrs import frozen

from rabbitevents import Bus, Delivery, Router, Settlement, event, forward
from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.plugin import Consume, Plugin
from rabbitevents.publishing.publishing import Unroutable
from rabbitevents.testing import EmbeddedBroker, running
from tests.bed.fixtures import NodeFactory
from tests.scale import WHOLE
from tests.shop import eventually

LONGEST = 120.0 if WHOLE else 45.0
"""Seconds that the last of 1,000 events waits."""

AGAIN = 5.0
"""Seconds after which RabbitMQ tries again what found no queue as it fell due, since that was not up yet: 180, if not told."""


@event("reminder.due")
@frozen
class ReminderDue:
    number: int
    wait: float


async def nothing() -> None:
    """Take what comes, as a handler that nobody publishes for."""


@pytest.mark.timeout(400)
async def test_1000_delayed_events_are_never_early_nor_later_than_promised_though_the_node_is_killed(
    own_node: NodeFactory,
) -> None:
    told = f"[{{rabbit, [{{dead_letter_worker_publisher_confirm_timeout, {AGAIN * 1000:.0f}}}]}}]"
    node = await own_node(advanced=told)
    now = asyncio.get_running_loop().time
    router, came, sent = Router("clock"), dict[int, float](), dict[int, tuple[float, float]]()
    dice = random.Random(7)

    @router.on(ReminderDue)
    async def remind(reminder: ReminderDue) -> None:
        came.setdefault(reminder.number, now())

    async with Bus(node.url, router) as bus:

        async def remind_later(number: int) -> None:
            wait = round(dice.uniform(1, LONGEST), 3)
            before = now()
            await bus.publish(ReminderDue(number, wait), delay=timedelta(seconds=wait))
            sent[number] = (before + wait, now() + wait * 1.1 + 1)

        await asyncio.gather(*(remind_later(n) for n in range(1000)))
        await node.asettle()
        await asyncio.sleep(LONGEST / 6)  # into the middle of the waiting
        await node.akill()
        killed = now()
        await node.astart()
        await eventually(lambda: bus.health().ok, "the bus", 15)
        down = (killed, now() + 1)
        await eventually(lambda: len(came) == 1000, "all of them", LONGEST + 30)

    early = [n for n, at in came.items() if at < sent[n][0]]
    up = down[1] + 2 * AGAIN + 1
    late = [n for n, at in came.items() if at > max(sent[n][1], up if up > sent[n][1] > down[0] else 0)]
    held_up = [n for n, at in came.items() if at > sent[n][1]]
    print(f"\n1,000 delayed, {len(early)} early, {len(late)} late, {len(held_up)} held up by the restart, "
          f"down for {down[1] - down[0]:.1f} s")  # fmt: skip
    assert not early
    assert not late


class Again(Plugin):
    """Handle each event a second time, two seconds later."""

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        settlement = await proceed(delivery)
        if delivery.attempt > 1:
            return settlement
        return forward(delivery.replace(attempt=2, after=timedelta(seconds=2)))


async def test_a_delivery_forwarded_with_a_delay_returns_to_the_one_queue_that_sent_it(rabbit_url: str) -> None:
    router, seen = Router("clock"), list[tuple[str, int, str, str]]()

    @router.on(ReminderDue, plugins=[Again()])
    async def twice(delivery: Delivery) -> None:
        seen.append(("twice", delivery.attempt, delivery.exchange, delivery.routing_key))

    @router.on("reminder.*")
    async def once(delivery: Delivery) -> None:
        seen.append(("once", delivery.attempt, delivery.exchange, delivery.routing_key))

    async with Bus(rabbit_url, router) as bus:
        await bus.publish(ReminderDue(1, 0))
        await eventually(lambda: len(seen) == 3, "three handlings")

    assert sorted(seen) == [
        ("once", 1, "events", "reminder.due"),
        ("twice", 1, "events", "reminder.due"),
        ("twice", 2, "events", "reminder.due"),
    ]


async def test_on_the_embedded_broker_hours_pass_in_milliseconds() -> None:
    router, seen = Router("clock"), list[int]()

    @router.on(ReminderDue)
    async def remind(reminder: ReminderDue) -> None:
        seen.append(reminder.number)

    async with running(Bus("amqp://nowhere", router)) as probe:
        for number, hours in enumerate((3, 1, 2)):
            await probe.bus.publish(ReminderDue(number, hours), delay=timedelta(hours=hours))
        await probe.settled()
        at_first = list(seen)
        await probe.advance(timedelta(hours=2.3))
        after_two = list(seen)
        await probe.advance(timedelta(hours=1.1))

    assert (at_first, after_two, seen) == ([], [1, 2], [1, 2, 0])


@pytest.mark.parametrize("unroutable", ["raise", "warn", "ignore"])
async def test_what_nobody_is_bound_for_when_it_falls_due_is_kept_and_said_at_the_next_start(
    unroutable: Unroutable, caplog: pytest.LogCaptureFixture
) -> None:
    broker, router = EmbeddedBroker(), Router("clock")
    router.on("else.#", name="other")(nothing)

    async with running(Bus("memory://", name="shop", unroutable="raise"), broker=broker) as probe:
        await probe.bus.publish(ReminderDue(1, 60), delay=timedelta(seconds=60))
        await probe.advance(timedelta(seconds=90))
    async with running(Bus("memory://", router, unroutable=unroutable), broker=broker) as probe:
        kept = probe.waiting("delay.lost")

    assert kept == 1
    assert ("1 delayed or retried messages are kept in queue 'delay.lost'" in caplog.text) is (unroutable != "ignore")


async def test_a_queue_of_another_program_sees_what_is_delayed_if_it_is_bound_to_both_exchanges(
    rabbit_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await Connection.open(Address(rabbit_url), name="theirs", heartbeat=0, context=None, timeout=10)
    channel = await connection.channel()
    router = Router("clock")
    router.on("else.#", name="other")(nothing)

    async with Bus(rabbit_url, router, unroutable="raise") as bus:
        for name, exchanges in {"both": ("events", "events.due"), "one": ("events",)}.items():
            await channel.queue_declare(name, durable=True)
            for exchange in exchanges:
                await channel.queue_bind(name, exchange, routing_key="reminder.#")
        await bus.publish(ReminderDue(1, 0))
        await bus.publish(ReminderDue(2, 0.5), delay=timedelta(seconds=0.5))
        both = None
        for _ in range(400):
            if (both := await bus.depth("both")) is not None and both.ready == 2:
                break
            await asyncio.sleep(0.05)
        one, lost = await bus.depth("one"), await bus.depth("delay.lost")

    await connection.close()
    assert both is not None
    assert both.ready == 2
    assert one is not None
    assert one.ready == 1
    assert lost is not None
    assert lost.ready == 0
    assert "kept in queue" not in caplog.text
