"""What the broker takes away comes back, and health says so in between."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from pamqp import commands

from rabbitevents import (
    Bus,
    Fact,
    Host,
    Message,
    NotSentError,
    OutcomeUnknownError,
    Plugin,
    PublishError,
    RefusedError,
)
from rabbitevents.brokers.rabbitmq import subscriber
from rabbitevents.brokers.rabbitmq.transport import Transport
from rabbitevents.facts import ConnectionLost, ConsumerLost, ConsumerRestored
from rabbitevents.properties import Properties
from tests.bed.fake_broker import FakeBroker
from tests.bed.fake_connection import FakeConnection
from tests.bed.fixtures import NodeFactory
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.shop import Effects, OrderPlaced, eventually, recording


class Observed(Plugin):
    """What happened, and whether health said so at that moment."""

    def __init__(self) -> None:
        self.kinds: list[type[Fact]] = []
        self.healthy_when_lost = False
        self._host: Any = None

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        self._host = host
        yield

    def observe(self, fact: Fact) -> None:
        self.kinds.append(type(fact))
        if isinstance(fact, ConsumerLost):
            self.healthy_when_lost |= self._host.health().ok


def to_nowhere() -> Message:
    return Message(exchange="no.such.exchange", routing_key="x", body=b"{}", properties=Properties(message_id="bad"))


async def test_a_queue_deleted_under_its_consumer_is_declared_again_and_consumed(
    rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    effects, observed = Effects(), Observed()
    async with Bus(rabbit_url, recording(effects), plugins=[observed]) as bus:
        await bus.publish(OrderPlaced("before"))
        await effects.until(1)

        await rabbit_node.adelete_queue("shop.record", rabbit_url)
        await eventually(lambda: observed.kinds.count(ConsumerRestored) == 2, "the consumer", 10)
        await bus.publish(OrderPlaced("after"))
        await effects.until(2)

        assert observed.kinds.count(ConsumerLost) == 1
        assert not observed.healthy_when_lost
        assert bus.health().ok
        assert not bus.unroutable


@pytest.mark.timeout(240)
async def test_after_a_consumer_timeout_the_consumer_is_back_and_the_effect_happens_once(own_node: NodeFactory) -> None:
    look_every_second = "[{rabbit, [{channel_tick_interval, 1000}]}]"  # once a minute, if nothing is said
    node = await own_node(config={"consumer_timeout": "1000"}, advanced=look_every_second)
    effects = Effects()
    seen: list[bool] = []
    timed_out = asyncio.Event()

    async def slow_the_first_time(delivery: Any) -> None:
        seen.append(delivery.redelivered)
        if len(seen) == 1:
            await timed_out.wait()

    observed = Observed()
    bus = Bus(node.url, recording(effects, before=slow_the_first_time, concurrency=2), plugins=[observed])
    async with bus:
        await bus.publish(OrderPlaced("slow"))
        await eventually(lambda: ConsumerLost in observed.kinds, "the consumer timeout", 150)
        await eventually(lambda: bus.health().ok, "the consumer", 10)
        await eventually(lambda: len(seen) == 2, "the redelivery", 10)
        timed_out.set()
        await bus.publish(OrderPlaced("next"))
        await effects.until(2)

        assert seen[:2] == [False, True]
        assert all(check.ok for check in bus.health().checks)


async def test_nothing_stays_of_attempts_to_connect_that_were_refused(own_node: NodeFactory) -> None:
    def attempts() -> int:
        gc.collect()
        return sum(type(each) is Transport for each in gc.get_objects())

    node = await own_node()
    async with Bus(node.url, recording(Effects())) as bus:
        before = attempts()

        node.set_password("guest", "another")
        await node.aclose_all_connections()
        await eventually(lambda: "ACCESS_REFUSED" in str(bus.health().problems), "the refusal", 20)
        node.set_password("guest", "guest")
        await eventually(lambda: bus.health().ok, "the connections", 20)

        await eventually(lambda: attempts() == before, "the end of what was refused", 10)


async def test_one_bad_publish_with_500_in_flight_is_refused_alone(rabbit_url: str) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)) as bus:
        orders = [f"o-{i}" for i in range(500)]
        publishes = [bus.publish(OrderPlaced(order)) for order in orders]
        publishes.insert(250, bus.send(to_nowhere()))  # type: ignore[arg-type]

        results = await asyncio.gather(*publishes, return_exceptions=True)
        bad = results.pop(250)
        await effects.until(500)

        assert isinstance(bad, RefusedError)
        assert "no.such.exchange" in str(bad)
        assert not [r for r in results if isinstance(r, BaseException)]
        assert set(effects.done) == set(orders)
        assert bus.health().ok


@pytest.mark.parametrize("times", [1, 5, 50])
async def test_a_restore_that_fails_is_tried_until_it_succeeds(
    times: int, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "_RETRY_PAUSE_MAX", 0.2)  # fifty tries in ten seconds instead of in two minutes
    effects = Effects()
    async with Bus(fake_broker.url, recording(effects), grace=1) as bus:
        first = await fake_broker.received(commands.Basic.Consume)

        fake_broker.fail(commands.Basic.Consume, times=times, code=404, text="NOT_FOUND - no queue 'shop.record'")
        first.connection.cancel(first.frame.consumer_tag)
        await eventually(lambda: not bus.health().ok, "health to say so")
        await eventually(lambda: bus.health().ok, f"the consumer after {times} failures", 60)
        consumes = fake_broker.all(commands.Basic.Consume)
        tags = [each.frame.consumer_tag for each in consumes]

        assert len(tags) == times + 2
        assert len(set(tags)) == len(tags), "a tag that was cancelled must not be used again"


async def test_a_cancel_by_the_broker_leads_to_a_fresh_channel_and_nothing_is_settled_on_the_old_one(
    fake_broker: FakeBroker,
) -> None:
    release, effects = asyncio.Event(), Effects()

    async def wait(_: object) -> None:
        await release.wait()

    async with Bus(fake_broker.url, recording(effects, before=wait, prefetch=1), grace=1):
        first = await fake_broker.received(commands.Basic.Consume)
        first.connection.deliver(
            first.channel,
            first.frame.consumer_tag,
            1,
            b'{"order_id": "o"}',
            exchange="events",
            routing_key="order.placed",
        )
        await eventually(lambda: effects.running == 1, "the handler")

        first.connection.cancel(first.frame.consumer_tag)
        second = await fake_broker.received(commands.Basic.Consume, 2)
        release.set()
        await effects.until(1)

        assert effects.done == {"o": 1}
        assert second.frame.consumer_tag != first.frame.consumer_tag
        assert not [a for a in fake_broker.all(commands.Basic.Ack) if a.channel == first.channel]


async def test_a_silent_broker_is_given_up_and_every_call_ends(rabbit_url: str) -> None:
    effects = Effects()
    async with (
        Proxy.before(rabbit_url) as proxy,
        Bus(proxy.url_for(rabbit_url), recording(effects), heartbeat=1) as bus,
    ):
        await bus.publish(OrderPlaced("before"))
        await effects.until(1)

        proxy.stall()
        with pytest.raises(PublishError):
            await bus.publish(OrderPlaced("unheard"), timeout=1)
        await eventually(lambda: not bus.health().ok, "health to say so", 10)
        proxy.cut()
        proxy.restore()
        await eventually(lambda: bus.health().ok, "the connections", 15)
        await bus.publish(OrderPlaced("after"))
        await eventually(lambda: "after" in effects.done, "the order after it")


async def test_a_busy_connection_is_not_called_stuck(rabbit_url: str) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects), heartbeat=1) as bus:
        deadline = asyncio.get_running_loop().time() + 6
        number = 0
        while asyncio.get_running_loop().time() < deadline:
            await bus.publish_many([OrderPlaced(f"o-{number + i}") for i in range(50)])
            number += 50
        await effects.until(number)

        assert set(effects.done.values()) == {1}
        assert bus.health().ok


async def test_a_handler_that_blocks_the_loop_longer_than_the_heartbeat_does_not_make_the_broker_suspect(
    rabbit_url: str,
) -> None:
    import time

    effects = Effects()

    async def block(_: object) -> None:
        if not effects.done:
            time.sleep(1.6)  # noqa: ASYNC251 - what a bad handler does is the point

    observed = Observed()
    router = recording(effects, before=block, concurrency=1)
    async with Bus(rabbit_url, router, plugins=[observed], heartbeat=1) as bus:
        await bus.publish_many([OrderPlaced(f"o-{i}") for i in range(3)])
        await effects.until(3)

        await eventually(lambda: bus.health().ok, "health", 10)
        assert set(effects.done) == {"o-0", "o-1", "o-2"}
        assert ConnectionLost not in observed.kinds


async def test_a_delayed_publish_waits_for_the_connection_like_any_other(rabbit_url: str) -> None:
    effects = Effects()
    async with Proxy.before(rabbit_url) as proxy, Bus(proxy.url_for(rabbit_url), recording(effects)) as bus:
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not bus.health().ok, "the cut")

        with pytest.raises(NotSentError):
            await bus.publish(OrderPlaced("too late"), delay=timedelta(seconds=0.5), timeout=0.5)
        waiting = asyncio.create_task(bus.publish(OrderPlaced("in time"), delay=timedelta(seconds=0.5)))
        await asyncio.sleep(0.3)
        await proxy.accept()
        await waiting
        await effects.until(1)

        assert effects.done == {"in time": 1}


async def test_publishing_after_the_stop_ends_at_once(rabbit_url: str) -> None:
    async with Bus(rabbit_url) as bus:
        await bus.stop()

        with pytest.raises(NotSentError):
            await asyncio.wait_for(bus.publish(OrderPlaced("o"), timeout=5), 2)


async def test_a_window_full_of_unanswered_publishes_is_said_and_left(fake_broker: FakeBroker) -> None:
    fake_broker.on_publish(lambda connection, published: None)
    async with Bus(fake_broker.url, in_flight=20, grace=1) as bus:
        unanswered = [bus.publish(OrderPlaced(f"o-{i}"), timeout=0.3) for i in range(19)]
        results = await asyncio.gather(*unanswered, return_exceptions=True)
        problems = [check.detail for check in bus.health().problems]
        with pytest.raises(OutcomeUnknownError):
            await bus.publish(OrderPlaced("the last"), timeout=0.3)
        fake_broker.behave()
        await bus.publish(OrderPlaced("later"), timeout=10)

        assert all(isinstance(result, OutcomeUnknownError) for result in results)
        assert problems == ["19 publishes are unanswered past their deadlines"]
        assert bus.health().ok


async def test_a_channel_that_ends_right_after_each_consume_does_not_spin(fake_broker: FakeBroker) -> None:
    effects = Effects()

    def consume_and_close(connection: FakeConnection, channel: int, frame: commands.Basic.Consume) -> None:
        fake_broker.answer(connection, channel, frame)
        connection.close_channel(channel, 406, "PRECONDITION_FAILED - as it likes")

    fake_broker.on(commands.Basic.Consume, consume_and_close)
    async with Bus(fake_broker.url, recording(effects), grace=1):
        await asyncio.sleep(2)

        assert 2 <= len(fake_broker.all(commands.Basic.Consume)) < 10


async def test_cancelled_callers_of_delayed_publishes_harm_nobody(rabbit_url: str) -> None:
    dice = random.Random(3)
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)) as bus:
        lost = Observed()
        for number in range(60):
            publish = asyncio.create_task(
                bus.publish(OrderPlaced(f"later {number}"), delay=timedelta(seconds=3600 + 600 * number))
            )
            await asyncio.sleep(dice.random() * 0.02)
            publish.cancel()
            await bus.publish(OrderPlaced(f"now {number}"))
        await effects.until(60)

        assert lost.kinds == []
        assert bus.health().ok


@pytest.mark.timeout(180)
async def test_behind_a_black_hole_stopping_ends_in_time_and_leaves_no_task(rabbit_url: str) -> None:
    effects, never = Effects(), asyncio.Event()
    before = asyncio.all_tasks()

    async def hang(_: object) -> None:
        await never.wait()

    async with Proxy.before(rabbit_url) as proxy:
        bus = Bus(proxy.url_for(rabbit_url), recording(effects, before=hang), grace=1)
        await bus.start()
        await bus.publish_many([OrderPlaced(f"o-{i}") for i in range(20)])
        await eventually(lambda: effects.running == 20, "handlers")

        proxy.black_hole()
        started = asyncio.get_running_loop().time()
        await bus.stop()
        took = asyncio.get_running_loop().time() - started

        await eventually(
            lambda: not any("worker" in t.get_name() for t in asyncio.all_tasks() - before), "workers to end"
        )
        assert took < 1 + 5
        assert effects.running == 0


@pytest.mark.parametrize("seconds", [3, 8])
@pytest.mark.timeout(120)
@pytest.mark.sampled
async def test_a_suspended_broker_is_survived_and_every_call_ends(seconds: int, own_node: NodeFactory) -> None:
    node, effects = await own_node(), Effects()
    async with Bus(node.url, recording(effects), heartbeat=2) as bus:
        await bus.publish(OrderPlaced("before"))
        await effects.until(1)

        node.suspend()
        started = asyncio.get_running_loop().time()
        with pytest.raises(PublishError):
            await bus.publish(OrderPlaced("unheard"), timeout=1)
        assert asyncio.get_running_loop().time() - started < 2
        await asyncio.sleep(seconds)
        node.resume()
        await eventually(lambda: bus.health().ok, "health", 20)
        await bus.publish(OrderPlaced("after"))
        await eventually(lambda: "after" in effects.done, "the order after it")
