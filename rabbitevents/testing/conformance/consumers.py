"""What the seam promises of a consumer: what is wanted and what the broker has agree soon, whoever was cut off where."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from rabbitevents.brokers import Broker, Consumer, Verdict
from rabbitevents.brokers.home import Home
from rabbitevents.browsing import Browsing
from rabbitevents.testing.bench import (
    Bench,
    Collector,
    deadline,
    declare_queue,
    eventually,
    message,
    names,
    publish,
    until_depth,
)

SOON = 5.0
"""Seconds within which the broker must have what is wanted."""

CUTS = (0, 1, 2, 3, 4, 6, 9, 0.002, 0.01, 0.05, 0.12)
"""Where a caller is cut off: after so many turns of the loop, or so many seconds."""


class TestingConsumers:
    """Cancelling, resuming and closing, in any order, also by callers that are cut off, and looks that leave nothing."""

    __test__ = False

    async def test_what_a_consumer_had_can_be_settled_though_it_is_cancelled_twice(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 10)

        await consumer.cancel()
        await consumer.cancel()
        settled = [reader.settle(delivery) for delivery in reader.deliveries]
        await consumer.close()

        assert settled == [True] * 10
        assert await _left_in(broker, queue) == []

    async def test_paused_then_stopped_what_was_settled_stays_and_the_rest_comes_back_once(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 10)

        await consumer.cancel()
        settled = [reader.settle(delivery) for delivery in reader.deliveries[:5]]
        await consumer.cancel()
        await consumer.close()
        left = await _left_in(broker, queue)

        assert settled == [True] * 5
        assert left == [(str(i), 1) for i in range(5, 10)]

    async def test_what_is_settled_while_a_cancel_is_under_way_counts(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 10)

        cancelling = asyncio.ensure_future(consumer.cancel())
        settled: list[bool] = []
        for delivery in reader.deliveries:
            settled.append(reader.settle(delivery))
            await asyncio.sleep(0)
        await cancelling
        await consumer.close()

        assert settled == [True] * 10
        assert await _left_in(broker, queue) == []

    async def test_a_cancel_leaves_the_other_consumers_alone(self, bench: Bench) -> None:
        broker, _, reader, consumer = await _holding(bench, 1)
        (other,) = names("other")
        await declare_queue(broker, other)
        await publish(broker, [message(1, other)])
        neighbour = await Collector(lambda _: None).consume(broker, other)
        await neighbour.got(1)

        await consumer.cancel()
        await consumer.close()

        assert reader.deliveries[0].stale
        assert not neighbour.deliveries[0].stale
        assert neighbour.settle(neighbour.deliveries[0])

    async def test_a_resume_that_is_cut_off_anywhere_is_done_all_the_same(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 1)

        for number, cut in enumerate(CUTS, start=2):
            await consumer.cancel()
            await _cut_off(consumer.resume(), cut)
            await _agree(broker, queue, consumer, wanted=True)
            await publish(broker, [message(number, queue)])
            await _comes(reader, number, f"a delivery after a resume that was cut off at {cut}")

    async def test_a_cancel_that_is_cut_off_anywhere_is_done_all_the_same(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 0)

        for number, cut in enumerate(CUTS):
            await _cut_off(consumer.cancel(), cut)
            await _agree(broker, queue, consumer, wanted=False)
            await publish(broker, [message(number, queue)])
            await _ready(broker, queue, 1)
            assert str(number) not in reader.counts, f"delivered after a cancel that was cut off at {cut}"
            await consumer.resume()
            await _agree(broker, queue, consumer, wanted=True)
            await _comes(reader, number, "the delivery after the resume")
            assert reader.settle(reader.deliveries[-1])

    async def test_what_was_said_last_holds_whether_or_not_what_was_said_before_is_done(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 1)
        await consumer.cancel()

        for say in (_one_after_the_other, _all_at_once):
            await say(consumer.resume, consumer.cancel, consumer.resume)
            await _agree(broker, queue, consumer, wanted=True)
            await say(consumer.cancel, consumer.resume, consumer.cancel)
            await _agree(broker, queue, consumer, wanted=False)
        await consumer.resume()
        before = len(reader.deliveries)
        await publish(broker, [message("after all", queue)])

        await eventually(lambda: "after all" in reader.bodies[before - 1 :], "the delivery after all", SOON)

    async def test_a_resume_without_a_cancel_changes_nothing(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 3)

        await consumer.resume()
        await _all_at_once(consumer.resume, consumer.resume)
        settled = [reader.settle(delivery) for delivery in reader.deliveries[:3]]
        await consumer.close()

        assert settled == [True] * 3
        assert reader.bodies == ["0", "1", "2"]
        assert await _left_in(broker, queue) == []

    async def test_what_a_consumer_had_can_be_settled_after_it_was_cancelled_and_resumed(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 10)

        await consumer.cancel()
        settled = [reader.settle(delivery) for delivery in reader.deliveries[:5]]
        await consumer.resume()
        await publish(broker, [message("later", queue)])
        await eventually(lambda: "later" in reader.bodies, "a delivery after the resume", SOON)
        settled += [reader.settle(delivery) for delivery in reader.deliveries[5:]]
        await consumer.close()

        assert settled == [True] * 11
        assert len(reader.deliveries) == 11
        assert await _left_in(broker, queue) == []

    async def test_a_resumed_consumer_begins_with_one_as_at_first(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        trusting = [True]
        await publish(broker, [message(number, queue) for number in range(20)])
        reader = await Collector(lambda _: None).consume(broker, queue, prefetch=10, trusted=lambda _: trusting[0])
        await reader.got(10)
        assert reader.consumer is not None

        await reader.consumer.cancel()
        before = len(reader.deliveries)
        trusting[0] = False
        await reader.consumer.resume()
        await reader.got(before + 1)
        await asyncio.sleep(0.1)  # no second one may come in this time
        while_careful = len(reader.deliveries)
        trusting[0] = True
        settled = [reader.settle(delivery) for delivery in reader.deliveries]
        await reader.got(20)
        settled += [reader.settle(delivery) for delivery in reader.deliveries[while_careful:]]
        await reader.consumer.close()

        assert while_careful == before + 1
        assert settled == [True] * 20
        assert await _left_in(broker, queue) == []

    async def test_a_delivery_of_an_earlier_channel_is_stale_for_good(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 1)

        await bench.break_connections()
        await eventually(lambda: len(reader.deliveries) == 2, "the delivery that came back")
        await bench.break_connections()
        await eventually(lambda: len(reader.deliveries) == 3, "the delivery that came back again")
        first, second, last = reader.deliveries

        assert (first.stale, second.stale, last.stale) == (True, True, False)
        assert [reader.settle(first), reader.settle(second), reader.settle(last)] == [False, False, True]
        assert (first.stale, second.stale) == (True, True)
        await consumer.close()
        assert await _left_in(broker, queue) == []

    async def test_a_delivery_is_settled_once(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 2)

        for delivery in reader.deliveries:
            assert reader.settle(delivery, Verdict.ACK)
            reader.settle(delivery, Verdict.REQUEUE)
        await asyncio.sleep(0.1)  # nothing may come back in this time
        await consumer.close()

        assert reader.bodies == ["0", "1"]
        assert await _left_in(broker, queue) == []

    async def test_a_closed_consumer_stays_closed_whatever_is_called_after_it(self, bench: Bench) -> None:
        broker, queue, reader, consumer = await _holding(bench, 2)

        await consumer.close()
        await consumer.resume()
        await consumer.cancel()
        await consumer.resume()
        await consumer.close()
        await bench.break_connections()
        await consumer.resume()
        await _agree(broker, queue, consumer, wanted=False)

        assert [reader.settle(delivery) for delivery in reader.deliveries] == [False, False]
        assert [delivery.stale for delivery in reader.deliveries] == [True, True]
        assert reader.bodies == ["0", "1"]
        assert sorted(await _left_in(broker, queue)) == [("0", 1), ("1", 1)]

    async def test_a_close_that_is_cut_off_anywhere_leaves_no_consumer(self, bench: Bench) -> None:
        broker, queue, _, first = await _holding(bench, 0)
        await first.close()
        lines = _health(broker)

        for cut in CUTS:
            consumer = (await Collector().consume(broker, queue)).consumer
            assert consumer is not None
            await _cut_off(consumer.close(), cut)
            await _agree(broker, queue, consumer, wanted=False)
            await eventually(
                lambda: _health(broker) == lines, f"nothing left of a close that was cut off at {cut}", SOON
            )

    async def test_consuming_that_is_cut_off_anywhere_leaves_no_consumer(self, bench: Bench) -> None:
        broker, queue, _, first = await _holding(bench, 0)
        await first.close()
        lines = _health(broker)

        for cut in CUTS:
            reader = Collector()
            if await _cut_off(reader.consume(broker, queue), cut) and reader.consumer is not None:
                await reader.consumer.close()
            await _consumers(broker, queue, 0)
            await eventually(lambda: _health(broker) == lines, f"nothing left of what was cut off at {cut}", SOON)

    @pytest.mark.parametrize("seed", range(6))
    async def test_what_is_wanted_and_what_the_broker_has_agree_after_anything(self, bench: Bench, seed: int) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        reader = await Collector().consume(broker, queue)
        assert reader.consumer is not None
        fate, published = random.Random(seed), 0  # a failure can be had again by its seed

        for _ in range(3):
            wanted, story = True, list[str]()
            for _ in range(fate.randint(1, 6)):
                step = fate.choice(["resume", "cancel", "resume, cut off", "cancel, cut off", "loss", "publish"])
                story.append(step)
                if step == "loss":
                    await bench.break_connections()
                elif step == "publish":
                    await _published(broker, queue, published)
                    published += 1
                else:
                    wanted = step.startswith("resume")
                    await _say(reader.consumer, step, fate)
                if fate.random() < 0.3:
                    await asyncio.sleep(fate.choice([0, 0.005, 0.1]))
            await _settled_on(broker, queue, reader.consumer, wanted=wanted, story=story)
            await reader.consumer.resume()
        await _settled_on(broker, queue, reader.consumer, wanted=True, story=["at last"])
        await _published(broker, queue, published)

        await eventually(
            lambda: set(reader.bodies) == set(map(str, range(published + 1))), "everything published", SOON
        )

    async def test_a_hundred_looks_leave_nothing_behind(self, bench: Bench) -> None:
        broker, queue, _, first = await _holding(bench, 2)
        await first.close()
        await _ready(broker, queue, 2)
        lines = _health(broker)

        for number in range(100):
            assert await broker.depth(queue) is not None
            async with Browsing(broker, queue, 10, Home()) as look:
                if number % 10 == 0:
                    assert len([delivery async for delivery in look]) == 2

        await _consumers(broker, queue, 0)
        assert _health(broker) == lines
        assert sorted(body for body, _ in await _left_in(broker, queue)) == ["0", "1"]

    async def test_a_look_that_is_cut_off_anywhere_leaves_nothing_behind(self, bench: Bench) -> None:
        broker, queue, _, first = await _holding(bench, 2)
        await first.close()
        lines = _health(broker)

        async def look() -> None:
            async with Browsing(broker, queue, 10, Home()) as entered:
                async for _ in entered:
                    await asyncio.sleep(0)
                await asyncio.sleep(0)

        for cut in CUTS:
            await _cut_off(look(), cut)
            await _consumers(broker, queue, 0)
            await eventually(lambda: _health(broker) == lines, f"nothing left of a look cut off at {cut}", SOON)

        await _ready(broker, queue, 2)


# --- what the tests are written with ---


async def _holding(bench: Bench, number: int) -> tuple[Broker, str, Collector, Consumer]:
    """Return a consumer of a new queue that holds ``number`` deliveries, unsettled."""
    broker, (queue,) = await bench.connect(), names("q")
    await declare_queue(broker, queue)
    await publish(broker, [message(i, queue) for i in range(number)])
    reader = await Collector(lambda _: None).consume(broker, queue)
    await reader.got(number)
    assert reader.consumer is not None
    return broker, queue, reader, reader.consumer


async def _left_in(broker: Broker, queue: str) -> list[tuple[str, int]]:
    """Empty a queue; return what came of it, and how often the broker says that each came back."""
    assert await broker.publish(message("the last", queue), deadline())
    reader = await Collector().consume(broker, queue)
    await eventually(lambda: "the last" in reader.bodies, "the last message")
    await reader.close()
    return [(each.body.decode(), each.delivery_count) for each in reader.deliveries if each.body != b"the last"]


async def _comes(reader: Collector, number: int, what: str) -> None:
    await eventually(lambda: str(number) in reader.counts, what, SOON)


async def _cut_off(call: Coroutine[Any, Any, object], at: float) -> bool:
    """Await ``call`` in a task, and cancel that ``at`` so many turns of the loop later, or seconds; True if it was done."""
    begun = asyncio.Event()

    async def caller() -> None:
        begun.set()
        await call

    task = asyncio.create_task(caller())
    await begun.wait()
    if isinstance(at, int):
        for _ in range(at):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(at)
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    return not task.cancelled()


async def _one_after_the_other(*calls: Callable[[], Awaitable[None]]) -> None:
    for call in calls:
        await call()


async def _all_at_once(*calls: Callable[[], Awaitable[None]]) -> None:
    """Begin them in this order, without waiting for one before the next."""
    await asyncio.gather(*(call() for call in calls))


async def _say(consumer: Consumer, step: str, fate: random.Random) -> None:
    call = consumer.resume() if step.startswith("resume") else consumer.cancel()
    if step.endswith("cut off"):
        await _cut_off(call, fate.choice(CUTS))
    else:
        await call


async def _published(broker: Broker, queue: str, number: int) -> None:
    assert await broker.publish(message(number, queue), deadline())


async def _agree(broker: Broker, queue: str, consumer: Consumer, *, wanted: bool) -> None:
    """Wait until the queue has its consumer, or none, and the consumer knows it.

    (RabbitMQ counts one that was cancelled for as long as something that it was delivered is unsettled.)
    """
    await eventually(lambda: consumer.running is wanted, f"the consumer says that it runs: {wanted}", SOON)
    if wanted:
        await until_depth(broker, queue, lambda depth: depth.consumers >= 1, "a consumer", SOON)


async def _settled_on(broker: Broker, queue: str, consumer: Consumer, *, wanted: bool, story: list[str]) -> None:
    try:
        await _agree(broker, queue, consumer, wanted=wanted)
    except AssertionError as error:
        raise AssertionError(f"{error}; after {', '.join(story)}") from None


async def _consumers(broker: Broker, queue: str, number: int) -> None:
    await until_depth(broker, queue, lambda depth: depth.consumers == number, f"{number} consumers", SOON)


async def _ready(broker: Broker, queue: str, number: int) -> None:
    await until_depth(broker, queue, lambda depth: depth.ready == number, f"{number} messages ready", SOON)


def _health(broker: Broker) -> list[str]:
    return sorted(check.name for check in broker.health() if check.name.startswith("consumer "))
