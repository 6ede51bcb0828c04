"""Promises of the core that a small change would break, and that no other test holds."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from pamqp import commands

from rabbitevents import (
    Bus,
    Delivery,
    Fact,
    Message,
    Plugin,
    Properties,
    Publish,
    PublishError,
    RefusedError,
    Router,
    facts,
)
from rabbitevents.consuming import holding
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents.testing.bench import eventually
from tests.bed.fake_broker import FakeBroker
from tests.jobs import WORK, JobDone, JobGiven
from tests.shop import Effects, OrderPlaced, recording

UNREADABLE = b"\x20\x00\x00\x00\x00\x04\x01kZ\x00"
"""Properties whose one header is of a type that nobody knows."""


class Notes(Plugin):
    """Counts what happened."""

    def __init__(self) -> None:
        self.kinds = Counter[type[Fact]]()

    def observe(self, fact: Fact) -> None:
        self.kinds[type(fact)] += 1


def inside(of: Any) -> Any:
    """Return the same, to look at what no user sees."""
    return of


def unreadable() -> Message:
    properties = Properties(content_type="application/json", type="job.given", headers={"event-version": 1})
    return Message(exchange="", routing_key=WORK, body=b"{no json", properties=properties)


def listening() -> tuple[Router, list[int]]:
    router, done = Router("work"), list[int]()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        done.append(job.number)

    return router, done


# --- what is held ----------------------------------------------------------------------------------------------------


async def test_what_an_earlier_channel_brought_is_held_no_longer_when_it_comes_again() -> None:
    router, _ = listening()
    server = EmbeddedBroker()
    async with running(Bus(server.client(), router), broker=server) as probe:
        await probe.bus.send(unreadable())
        for _ in range(3):
            await eventually(lambda: probe.bus.load[WORK].held == 1, "the held one")
            server.drop_connections()
            await probe.settled()

        assert probe.bus.load[WORK].held == 1


async def test_half_a_window_that_is_held_is_said_once_and_its_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(holding, "LONGEST_PAUSE", 0.02)
    router, broken, notes = Router("work"), [True], Notes()

    @router.on(JobGiven, prefetch=6, concurrency=1)
    async def do(job: JobGiven) -> None:
        if broken[0]:
            raise OSError

    async with running(Bus("memory://", router, plugins=[notes])) as probe:
        await probe.bus.publish_many([JobGiven(number) for number in range(3)])
        await eventually(lambda: notes.kinds[facts.Held] >= 6, "each held twice")
        broken[0] = False
        await probe.settled()
        await eventually(lambda: probe.bus.load[WORK].held == 0, "nobody held")

    assert (notes.kinds[facts.Paused], notes.kinds[facts.Resumed]) == (1, 1)
    assert notes.kinds[facts.Released] == 3


async def test_a_worker_that_ends_by_a_defect_is_replaced_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    router, done = Router("work"), list[int]()

    @router.on(JobGiven, concurrency=1)
    async def do(job: JobGiven) -> None:
        if job.number == 0:
            raise OSError
        done.append(job.number)

    def defect(*_: object) -> None:
        raise RuntimeError("a defect")

    async with running(Bus("memory://", router)) as probe:
        monkeypatch.setattr(holding.Holding, "hold", defect)
        await probe.bus.publish(JobGiven(0))
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: done == [1], "the next one")

    assert [r.levelno for r in caplog.records if "another one takes its place" in r.message] == [logging.CRITICAL]


# --- consuming -------------------------------------------------------------------------------------------------------


async def test_properties_that_cannot_be_read_make_nobody_a_suspect(fake_broker: FakeBroker) -> None:
    async with Bus(fake_broker.url, recording(Effects()), grace=1):
        there = await fake_broker.received(commands.Basic.Consume)
        there.connection.deliver(there.channel, there.frame.consumer_tag, 1, b"", UNREADABLE, redelivered=True)

        again = await fake_broker.received(commands.Basic.Consume, 2)
        windows = [each.frame.prefetch_count for each in fake_broker.all(commands.Basic.Qos)]

    assert again.channel == there.channel
    assert (windows[0], windows[-1] > 1) == (1, True)


@pytest.mark.parametrize("place", ["memory", "rabbitmq"])
async def test_what_is_paused_stays_so_over_a_reconnection_and_health_is_green(place: str, rabbit_url: str) -> None:
    server, notes, effects = EmbeddedBroker(), Notes(), Effects()
    bus = Bus(server.client() if place == "memory" else rabbit_url, recording(effects), plugins=[notes])
    async with bus:
        await bus.pause("shop.record")
        if place == "memory":
            server.drop_connections()
        else:
            inside(bus)._broker._consuming.connection.tap.abort("cut off")
        await eventually(lambda: notes.kinds[facts.Connected] >= (2 if place == "memory" else 3), "the connection")
        await bus.publish(OrderPlaced("o"))
        consumers = [check for check in bus.health().checks if check.name.startswith("consumer")]
        depth = await bus.depth("shop.record")

        assert all(check.ok for check in consumers)
        assert depth is not None
        assert (depth.ready, depth.consumers) == (1, 0)
        await bus.resume("shop.record")
        await effects.until(1)


# --- publishing ------------------------------------------------------------------------------------------------------


async def test_a_correlation_id_that_is_said_in_a_handler_is_kept() -> None:
    router = Router("work")
    seen = list[str | None]()

    @router.on(JobGiven)
    async def do(job: JobGiven, bus: Bus) -> None:
        for said in ("mine", None):
            seen.append((await bus.publish(JobDone(job.number), correlation_id=said)).metadata.correlation_id)

    async with running(Bus("memory://", router, unroutable="ignore")) as probe:
        await probe.bus.publish(JobGiven(1), correlation_id="theirs")
        await probe.settled()

    assert seen == ["mine", "theirs"]


async def test_a_plugin_may_leave_a_publish_to_its_parent() -> None:
    class Leaves(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            await super().publish(proceed, message)

    router, done = listening()
    async with running(Bus("memory://", router, plugins=[Leaves()])) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.bus.publish_many([JobGiven(2), JobGiven(3)])
        await probe.settled()

    assert sorted(done) == [1, 2, 3]


async def test_a_waiting_queue_that_refuses_is_its_caller_s_error_and_one_that_is_gone_is_declared_again() -> None:
    router, done = listening()
    server = EmbeddedBroker()
    later = timedelta(seconds=1)
    async with running(Bus(server.client(), router), broker=server) as probe:
        await probe.bus.publish(JobGiven(1), delay=later)
        server.fail("refuse", when=lambda message: message.exchange == "events.delay.1000")
        with pytest.raises(RefusedError):
            await probe.bus.publish(JobGiven(2), delay=later)
        await probe.bus.publish(JobGiven(5), delay=later)
        del server.exchanges["events.delay.1000"]
        with pytest.raises(RefusedError):
            await probe.bus.publish(JobGiven(3), delay=later)
        await probe.bus.publish(JobGiven(4), delay=later)
        await probe.advance(timedelta(seconds=2))

    assert sorted(done) == [1, 4, 5]


async def test_a_stop_does_not_wait_for_a_waiting_queue_s_declaration(fake_broker: FakeBroker) -> None:
    now = asyncio.get_running_loop().time
    bus = Bus(fake_broker.url, name="x", grace=0.2)
    await bus.start()
    fake_broker.ignore(commands.Queue.Declare)
    publish = asyncio.create_task(bus.publish(JobGiven(1), delay=timedelta(seconds=5)))
    await fake_broker.received(commands.Queue.Declare)
    began = now()

    await bus.stop()
    await asyncio.wait({publish}, timeout=1)

    assert now() - began < 0.2 + 5
    assert isinstance(publish.exception(), PublishError)


def test_a_delivery_without_a_channel_is_never_stale() -> None:
    delivery: Any = Delivery("q", 1, 1, False, "", "q", b"", Properties())

    assert not delivery.stale
