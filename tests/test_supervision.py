"""What is wanted of a broker and what there is come together, whoever is cut off where and whatever is not answered.

On both event loops that services run on: asyncio's own and uvloop's.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from pamqp import commands
from pamqp.base import Frame

from rabbitevents import (
    BrokerUnavailableError,
    Bus,
    ConfigurationError,
    EncodeError,
    Host,
    Message,
    NotSentError,
    OutcomeUnknownError,
    Plugin,
    Properties,
    PublishError,
    RefusedError,
    Router,
    facts,
)
from rabbitevents.brokers import Settings
from rabbitevents.brokers.rabbitmq import broker as broker_room
from rabbitevents.brokers.rabbitmq import calls, connection, link, publisher, subscriber, transport
from rabbitevents.brokers.rabbitmq.broker import RabbitMQ
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.errors import BrokerError
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents.topology import Queue, Topology
from tests.bed.fake_broker import FakeBroker
from tests.bed.fake_connection import FakeConnection, Published
from tests.bed.fixtures import NodeFactory
from tests.bed.rabbitmq import RabbitNode
from tests.shop import Effects, OrderPlaced, eventually, nothing_left_running, recording

BODY = b'{"order_id": "o-1"}'


BOTH_LOOPS = True


def inside(of: Any) -> Any:
    """Return the same, to look at what no user sees."""
    return of


def of(body: bytes = BODY) -> commands.Basic.Properties:
    return commands.Basic.Properties(
        content_type="application/json", message_type="order.placed", headers={"event-version": 1}, message_id="m-1"
    )


async def consumed(broker: FakeBroker, number: int = 1) -> tuple[FakeConnection, int, str]:
    """Return connection, channel and tag of the ``number``th consumer that was registered."""
    found = await broker.received(commands.Basic.Consume, number)
    return found.connection, found.channel, found.frame.consumer_tag


async def opened(broker: FakeBroker) -> tuple[FakeConnection, int, str]:
    """Have the window opened by a first delivery; return where its successors go."""
    where, channel, tag = await consumed(broker)
    where.deliver(channel, tag, 1, BODY, of(), exchange="events", routing_key="order.placed")
    return await consumed(broker, 2)


def sent_on(broker: FakeBroker, channel: int, since: int) -> list[str]:
    """Return the methods that the client sent on a channel from frame number ``since`` on."""
    return [
        type(each.frame).__qualname__
        for each in broker.frames[since:]
        if each.channel == channel and isinstance(each.frame, Frame)
    ]


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_a_broker_slow_to_cancel_gets_the_acks_of_what_ended_meanwhile(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "CANCEL_DEADLINE", 0.1)
    effects, release = Effects(), asyncio.Event()

    async def wait(_: object) -> None:
        await release.wait()

    loop = asyncio.get_running_loop()
    bus = Bus(fake_broker.url, recording(effects, before=wait), grace=10)
    await bus.start()
    _, channel, _ = await opened(fake_broker)
    await eventually(lambda: effects.running == 1, "the handler")
    fake_broker.on(commands.Basic.Cancel, lambda c, ch, f: void(loop.call_later(0.4, fake_broker.answer, c, ch, f)))
    since = len(fake_broker.frames)
    loop.call_later(0.6, release.set)

    await bus.stop()

    assert sent_on(fake_broker, channel, since) == ["Basic.Cancel", "Basic.Ack", "Channel.Close"]


def void(_: object) -> None:
    """Return nothing."""


async def test_a_cancel_that_is_never_answered_ends_the_lane_before_the_channel(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "CANCEL_DEADLINE", 0.1)
    monkeypatch.setattr("rabbitevents.brokers.rabbitmq.registration.RPC_DEADLINE", 0.2)
    effects, release = Effects(), asyncio.Event()

    async def wait(_: object) -> None:
        await release.wait()

    bus = Bus(fake_broker.url, recording(effects, before=wait), grace=2)
    await bus.start()
    _, channel, _ = await opened(fake_broker)
    await eventually(lambda: effects.running == 1, "the handler")
    fake_broker.ignore(commands.Basic.Cancel)
    since = len(fake_broker.frames)
    pausing = asyncio.create_task(bus.pause("shop.record"))
    await fake_broker.until(lambda: "Channel.Close" in sent_on(fake_broker, channel, since), what="the close")
    release.set()
    await pausing
    await bus.stop()

    sent = sent_on(fake_broker, channel, since)
    assert sent[: sent.index("Channel.Close") + 1] == ["Basic.Cancel", "Channel.Close"]
    assert "Basic.Ack" not in sent


async def test_paused_then_stopped_no_effect_is_repeated(rabbit_url: str) -> None:
    effects, release = Effects(), asyncio.Event()

    async def wait(_: object) -> None:
        await release.wait()

    async with Bus(rabbit_url, recording(effects, before=wait, concurrency=10), grace=10) as bus:
        await bus.publish_many([OrderPlaced(f"o-{i}") for i in range(10)])
        await eventually(lambda: effects.running == 10, "ten handlers")
        await bus.pause("shop.record")
        asyncio.get_running_loop().call_later(0.3, release.set)

    async with Bus(rabbit_url, recording(effects)) as bus:
        await bus.publish(OrderPlaced("the last"))
        await eventually(lambda: "the last" in effects.done, "the order after it")

    assert set(effects.done.values()) == {1}


async def test_stopping_ends_publishes_though_the_broker_says_nothing(fake_broker: FakeBroker) -> None:
    bus = Bus(fake_broker.url, name="x", grace=0.2)
    await bus.start()
    fake_broker.on(commands.Queue.Declare, lambda c, ch, f: c.send(ch, commands.Queue.DeclareOk(f.queue, 5, 0)))
    look = bus.browse("q")
    await look.__aenter__()
    fake_broker.mute = True
    publish = asyncio.create_task(bus.publish(OrderPlaced("o"), timeout=60))
    await asyncio.sleep(0)

    await bus.stop()
    await asyncio.wait({publish}, timeout=1)

    assert isinstance(publish.exception(), OutcomeUnknownError)
    with pytest.raises(NotSentError, match="the bus has stopped"):
        await bus.publish(OrderPlaced("later"), timeout=60)


async def test_a_stop_ends_a_start_that_is_under_way_and_leaves_nothing_open(fake_broker: FakeBroker) -> None:
    before = asyncio.all_tasks()

    class Slow(Plugin):
        @asynccontextmanager
        async def lifespan(self, host: Host) -> AsyncGenerator[None]:
            await asyncio.Event().wait()
            yield

    bus = Bus(fake_broker.url, name="x", plugins=[Slow()])
    starting = asyncio.create_task(bus.start())
    await fake_broker.received(commands.Exchange.Declare)

    await bus.stop()
    await asyncio.wait({starting}, timeout=1)

    assert isinstance(starting.exception(), ConfigurationError)
    await eventually(lambda: not any(each.open for each in fake_broker.connections), "no connection")
    await eventually(lambda: not ours(asyncio.all_tasks() - before - {starting}), "no task", 3)


async def test_a_stop_at_the_very_end_of_a_start_leaves_nothing_open() -> None:
    for turns in range(30):
        server = EmbeddedBroker()
        bus = Bus(server.client(), recording(Effects()))
        starting = asyncio.create_task(bus.start())
        for _ in range(turns):
            await asyncio.sleep(0)

        await bus.stop()
        await asyncio.wait({starting})

        assert server.clients == [] or (turns == 0 and starting.exception() is None)
        assert bus.stopping or turns == 0
        await bus.stop()


def ours(tasks: set[asyncio.Task[Any]]) -> list[str]:
    return [task.get_name() for task in tasks if "rabbitevents" in task.get_name()]


@pytest.mark.parametrize("after", [0.0, 0.1, 0.3])
async def test_a_start_that_is_cut_off_leaves_no_connection(
    after: float, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def slow(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.2)
        return await real(*args, **kwargs)

    monkeypatch.setattr(transport, "_resolve", slow)
    bus = Bus(fake_broker.url, name="x")
    starting = asyncio.create_task(bus.start())
    await asyncio.wait({starting}, timeout=after)
    starting.cancel()
    await asyncio.wait({starting})
    await bus.stop()

    await eventually(lambda: not any(each.open for each in fake_broker.connections), "no connection", 3)


async def test_stop_and_resume_from_inside_a_handler_are_refused_by_name() -> None:
    router, refused = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced, bus: Bus) -> None:
        for call in (bus.stop(), bus.resume("shop.record")):
            with pytest.raises(ConfigurationError) as error:
                await call
            refused.append(str(error.value))

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("o"))
        await probe.settled()

        assert probe.bus.health().ok
    assert "ask_to_stop()" in refused[0]
    assert "'shop.record'" in refused[1]


async def test_a_handler_can_pause_and_resume_another_subscription() -> None:
    router, handled = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        handled.append(order.order_id)

    @router.on("control.*")
    async def control(bus: Bus) -> None:
        await bus.pause("shop.record")
        await bus.resume("shop.record")

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(Message(exchange="events", routing_key="control.go", body=b"{}", properties=Properties()))
        await probe.bus.publish(OrderPlaced("o"))
        await probe.settled()

    assert handled == ["o"]


# --- consuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0.0, 0.001, 0.05])
async def test_a_resume_that_is_cut_off_consumes_all_the_same(cut: float, rabbit_url: str) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)) as bus:
        await bus.publish(OrderPlaced("before"))
        await effects.until(1)
        await bus.pause("shop.record")
        try:
            async with asyncio.timeout(cut):
                await bus.resume("shop.record")
        except TimeoutError:
            pass
        await bus.publish(OrderPlaced("after"))
        await eventually(lambda: "after" in effects.done, "the order after the resume", 5)
        await eventually(lambda: bus.health().ok, "health", 5)


async def test_a_resume_waits_for_nobody_and_repeats_nothing(rabbit_url: str) -> None:
    effects, release = Effects(), asyncio.Event()

    async def wait(delivery: Any) -> None:
        if not effects.done and effects.running == 1:
            await release.wait()

    async with Bus(rabbit_url, recording(effects, before=wait)) as bus:
        await bus.publish(OrderPlaced("slow"))
        await eventually(lambda: effects.running == 1, "the slow handler")
        await bus.pause("shop.record")
        await bus.resume("shop.record")
        await bus.publish(OrderPlaced("quick"))
        await eventually(lambda: "quick" in effects.done, "the next one", 5)
        release.set()
        await eventually(lambda: "slow" in effects.done, "the slow one")
        await bus.pause("shop.record")

    assert effects.done == {"slow": 1, "quick": 1}


async def test_a_consumer_that_is_refused_gets_a_fresh_channel(fake_broker: FakeBroker) -> None:
    effects = Effects()
    refusals = 2

    def refuse(where: FakeConnection, channel: int, frame: commands.Basic.Consume) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            where.close_channel(channel, 405, "RESOURCE_LOCKED - for a moment", frame)
        else:
            fake_broker.answer(where, channel, frame)

    fake_broker.on(commands.Basic.Consume, refuse)
    async with Bus(fake_broker.url, recording(effects), grace=1) as bus:
        await eventually(lambda: bus.health().ok, "the consumer", 5)
        channels = [each.channel for each in fake_broker.all(commands.Basic.Consume)]
        where, channel, tag = await consumed(fake_broker, 3)
        where.deliver(channel, tag, 1, BODY, of(), exchange="events", routing_key="order.placed")
        await effects.until(1)

    assert len(channels) == 3
    assert len({each.frame.consumer_tag for each in fake_broker.all(commands.Basic.Consume)}) >= 3


async def test_the_window_s_second_consume_refused_a_fresh_channel_follows(fake_broker: FakeBroker) -> None:
    effects, seen = Effects(), list[int]()

    def refuse_the_second(where: FakeConnection, channel: int, frame: commands.Basic.Consume) -> None:
        seen.append(channel)
        if len(seen) == 2:
            where.close_channel(channel, 541, "INTERNAL_ERROR - once", frame)
        else:
            fake_broker.answer(where, channel, frame)

    fake_broker.on(commands.Basic.Consume, refuse_the_second)
    async with Bus(fake_broker.url, recording(effects), grace=1) as bus:
        await opened(fake_broker)
        where, channel, tag = await consumed(fake_broker, 3)
        await eventually(lambda: bus.health().ok, "the consumer", 5)
        where.deliver(channel, tag, 1, BODY, of(), exchange="events", routing_key="order.placed")
        await effects.until(1)

    assert effects.done == {"o-1": 1}


async def test_health_is_green_while_the_window_opens(fake_broker: FakeBroker) -> None:
    async with Bus(fake_broker.url, recording(Effects()), grace=1) as bus:
        await eventually(lambda: bus.health().ok, "the consumer")
        seen = list[bool]()

        def look(where: FakeConnection, channel: int, frame: commands.Basic.Cancel) -> None:
            seen.append(bus.health().ok)
            fake_broker.answer(where, channel, frame)

        fake_broker.on(commands.Basic.Cancel, look)
        await opened(fake_broker)

        assert seen == [True]
        assert bus.health().ok


async def test_one_undecodable_event_that_came_back_often_stalls_nobody(rabbit_url: str) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects), consumer_timeout=timedelta(minutes=30)) as bus:
        await bus.pause("shop.record")
        bad = Message(
            exchange="",
            routing_key="shop.record",
            body=b"{not json",
            properties=Properties(content_type="application/json", type="order.placed", headers={"event-version": 1}),
        )
        await bus.send(bad)
        for _ in range(4):  # RabbitMQ counts what a lost channel gives back
            async with bus.browse("shop.record") as look:
                async for _each in look:
                    break
        await bus.resume("shop.record")
        await bus.publish_many([OrderPlaced(f"o-{i}") for i in range(20)])
        await eventually(lambda: len(effects.done) == 20, "the others", 10)

        assert bus.load["shop.record"].held == 1
        assert bus.health().ready


@pytest.mark.parametrize("broker", ["memory", "rabbitmq"])
async def test_a_publisher_s_own_count_makes_nobody_a_suspect(broker: str, rabbit_url: str) -> None:
    effects, most, release = Effects(), 0, asyncio.Event()

    async def wait(_: object) -> None:
        nonlocal most
        most = max(most, effects.running)
        if effects.running == 10:
            release.set()
        await release.wait()

    forged = Message(
        exchange="",
        routing_key="shop.record",
        body=b'{"order_id": "o"}',
        properties=Properties(
            content_type="application/json", type="order.placed", headers={"event-version": 1, "x-delivery-count": 9}
        ),
    )
    where: Any = EmbeddedBroker().client() if broker == "memory" else rabbit_url
    async with Bus(where, recording(effects, before=wait, concurrency=10)) as bus:
        await asyncio.gather(*(bus.send(forged) for _ in range(10)))
        await eventually(release.is_set, "ten handlers at a time", 5)

    assert most == 10


# --- declaring and asking --------------------------------------------------------------------------------------------


async def test_each_thing_is_declared_once_at_start(fake_broker: FakeBroker) -> None:
    router = Router("shop")
    for number in range(20):

        @router.on(OrderPlaced, name=f"handler{number}")
        async def record(order: OrderPlaced) -> None: ...

    async with Bus(fake_broker.url, router, grace=1):
        asked = Counter[tuple[str, str]]()
        for each in fake_broker.frames:
            match each.frame:
                case commands.Queue.Declare(queue=name, passive=False):
                    asked["queue", name] += 1
                case commands.Exchange.Declare(exchange=name, passive=False):
                    asked["exchange", name] += 1
                case commands.Queue.Bind(queue=queue, exchange=exchange, routing_key=key):
                    asked["binding", f"{queue} {exchange} {key}"] += 1
                case _:
                    pass

    assert set(asked.values()) == {1}
    assert sum(kind == "queue" for kind, _ in asked) == 20 * 2 + 1


async def test_a_queue_that_is_gone_is_declared_again_with_all_that_it_needs_and_nothing_else(
    fake_broker: FakeBroker,
) -> None:
    router = Router("shop")
    for name in ("kept", "gone"):

        @router.on(OrderPlaced, name=name)
        async def record(order: OrderPlaced) -> None: ...

    async with Bus(fake_broker.url, router, grace=1) as bus:
        where, tag = next((c, t) for c in fake_broker.connections for t, (_, q) in c.consumers.items() if "gone" in q)
        since = len(fake_broker.frames)
        where.cancel(tag)
        await eventually(lambda: not bus.health().ok, "the loss")
        await eventually(lambda: bus.health().ok, "the consumer")

    asked = [each.frame for each in fake_broker.frames[since:]]
    queues = [each.queue for each in asked if isinstance(each, commands.Queue.Declare) and not each.passive]
    bindings = [(each.exchange, each.routing_key) for each in asked if isinstance(each, commands.Queue.Bind)]
    assert queues == ["shop.gone.dead", "shop.gone"]
    assert bindings == [
        ("events.dead", "shop.gone"),
        ("delay.due", "shop.gone"),
        ("events", "order.placed"),
        ("events.due", "order.placed"),
    ]


async def test_a_consumer_whose_queue_is_not_there_is_back_only_once_the_queue_is(fake_broker: FakeBroker) -> None:
    seen = list[facts.Fact]()

    class Notes(Plugin):
        def observe(self, fact: facts.Fact) -> None:
            seen.append(fact)

    fake_broker.fail(commands.Basic.Consume, times=1, code=404)
    async with Bus(fake_broker.url, recording(Effects()), plugins=[Notes()], grace=1) as bus:
        at_start = [check.detail for check in bus.health().problems]
        await eventually(lambda: bus.health().ok, "the consumer")

    declared = [each.frame.queue for each in fake_broker.all(commands.Queue.Declare) if not each.frame.passive]
    assert len(at_start) == 1
    assert "NOT_FOUND" in at_start[0]
    assert declared.count("shop.record") == 2
    assert [type(each) for each in seen if isinstance(each, facts.ConsumerRestored)] == [facts.ConsumerRestored]


async def test_a_bus_that_may_publish_and_not_consume_does_not_start(fake_broker: FakeBroker) -> None:
    def one_only(where: FakeConnection, channel: int, frame: commands.Connection.Open) -> None:
        if where.number == 1:
            fake_broker.answer(where, channel, frame)
        else:
            where.close(530, "NOT_ALLOWED - vhost / not found")

    fake_broker.on(commands.Connection.Open, one_only)

    async with asyncio.timeout(5):
        with pytest.raises(BrokerUnavailableError, match="NOT_ALLOWED"):
            await Bus(fake_broker.url, recording(Effects()), declare="none").start()


async def test_a_bus_that_declares_nothing_consumes(fake_broker: FakeBroker) -> None:
    effects = Effects()
    async with Bus(fake_broker.url, recording(effects), declare="none", grace=1):
        where, channel, tag = await consumed(fake_broker)
        where.deliver(channel, tag, 1, BODY, of(), exchange="events", routing_key="order.placed")
        await effects.until(1)

    assert not fake_broker.all(commands.Queue.Declare)
    assert not [each for each in fake_broker.all(commands.Exchange.Declare) if not each.frame.passive]


async def test_one_queue_s_declaration_without_an_answer_stops_no_publishing(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RPC_DEADLINE", 0.3)
    async with Bus(fake_broker.url, recording(Effects()), grace=1, publish_timeout=5) as bus:
        await bus.publish(OrderPlaced("before"))

        def not_the_dead_ones(where: FakeConnection, channel: int, frame: commands.Queue.Declare) -> None:
            if not frame.queue.endswith(".dead"):
                fake_broker.answer(where, channel, frame)

        fake_broker.on(commands.Queue.Declare, not_the_dead_ones)
        for each in list(fake_broker.connections):
            each.drop()
        for number in range(3):
            await bus.publish(OrderPlaced(f"o-{number}"))
        await fake_broker.received(commands.Basic.Consume, 2, timeout=10)


@pytest.mark.parametrize("unanswered", [{"q1"}, {"q0", "q2", "q4", "q6"}, {"q1", "q2", "q3", "q4", "q5"}])
async def test_queues_without_an_answer_are_their_own_trouble_unless_none_gets_one(
    unanswered: set[str], fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RPC_DEADLINE", 0.1)

    silent = set(unanswered)

    def answer(where: FakeConnection, channel: int, frame: commands.Queue.Declare) -> None:
        if frame.queue not in silent:
            fake_broker.answer(where, channel, frame)

    fake_broker.on(commands.Queue.Declare, answer)
    broker = RabbitMQ(fake_broker.url)
    await broker.start(Settings(name="x"), None)
    wanted = Topology(tuple(Queue(f"q{number}") for number in range(7)))

    refused = await broker.declare(wanted)
    silent |= set(wanted.queues)
    with pytest.raises(BrokerError, match="no answer"):
        await broker.declare(wanted)
    await broker.stop(asyncio.get_running_loop().time() + 1)

    assert refused.keys() == unanswered


async def test_of_many_that_are_published_together_each_has_its_own_outcome(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_REFUSED_PAUSES", (0.01,))

    def judge(where: FakeConnection, published: Published) -> None:
        verdict = commands.Basic.Nack if published.routing_key == "refused" else commands.Basic.Ack
        where.send(published.channel, verdict(published.delivery_tag))

    fake_broker.on_publish(judge)
    broker, now = RabbitMQ(fake_broker.url), asyncio.get_running_loop().time
    await broker.start(Settings(name="x"), None)
    keys = ["taken", "refused", "k" * 256, "taken", "refused"]
    messages = [Message(exchange="e", routing_key=key, body=BODY, properties=Properties()) for key in keys]

    outcomes = await broker.publish_many(messages, now() + 5)
    await broker.stop(now() + 1)

    assert [type(outcome) for outcome in outcomes] == [bool, RefusedError, EncodeError, bool, RefusedError]
    assert outcomes[0] is outcomes[3] is True
    assert [each.message for each in outcomes if isinstance(each, RefusedError)] == [messages[1], messages[4]]


@pytest.mark.parametrize("in_flight", [1, 2, 20])
async def test_an_exchange_that_was_deleted_is_declared_again_for_one_publish_as_for_many(
    in_flight: int, rabbit_url: str
) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)) as bus:
        await bus.publish(OrderPlaced("before"))
        await delete_exchange(rabbit_url, "events")

        await asyncio.gather(*(bus.publish(OrderPlaced(f"o-{i}")) for i in range(in_flight)))
        await eventually(lambda: len(effects.done) == in_flight + 1, "what was bound to it gets it", 5)

        with pytest.raises(RefusedError):
            await bus.send(Message(exchange="nobody.s", routing_key="x", body=b"", properties=Properties()))


async def delete_exchange(url: str, name: str) -> None:
    broker = RabbitMQ(url)
    await broker.start(Settings(), None)
    there: Connection = inside(broker)._publishing.connection
    await there.ask(lambda channel: channel.exchange_delete(name), "deleting an exchange")
    await broker.stop(asyncio.get_running_loop().time() + 2)


async def test_a_plugin_can_publish_as_it_is_entered_at_a_broker_that_has_nothing_yet(rabbit_url: str) -> None:
    class Announces(Plugin):
        @asynccontextmanager
        async def lifespan(self, host: Host) -> AsyncGenerator[None]:
            await host.publish(OrderPlaced("announced"))
            yield

    async with Bus(rabbit_url, name="x", exchange="brand.new", plugins=[Announces()]) as bus:
        assert bus.unroutable == {"order.placed": 1}


@pytest.mark.timeout(180)
async def test_looks_are_answered_during_an_alarm_and_leave_nothing(own_node: NodeFactory) -> None:
    node: RabbitNode = await own_node()
    async with Bus(node.url, recording(Effects())) as bus:
        await bus.publish(OrderPlaced("o"))
        await bus.depth("shop.record")
        there: Any = inside(bus)._broker._consuming.connection
        client: Any = there._connection.transport.connection
        channels, watchers = len(client.channels), len(client._closing._callbacks or ())
        await node.aset_memory_alarm(True)
        with pytest.raises(PublishError):
            await bus.publish(OrderPlaced("blocked"), timeout=0.5)

        async with asyncio.timeout(10):
            for _ in range(100):
                assert await bus.depth("shop.record") is not None
                assert await bus.depth("shop.nothing") is None
        await node.aset_memory_alarm(False)

        await eventually(lambda: len(client.channels) <= channels, "no channel more")
        assert len(client._closing._callbacks or ()) <= watchers


# --- connecting ------------------------------------------------------------------------------------------------------


async def test_a_name_with_several_addresses_is_tried_at_each(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = fake_broker.address

    async def several(*_: object, **__: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(transport, "_resolve", several)
    async with Bus(fake_broker.url, name="x", start_timeout=5) as bus:
        await bus.publish(OrderPlaced("o"))


def noting_sockets(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Return the sockets that are made for connections from now on."""
    made = list[socket.socket]()

    class Noted(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(transport, "socket", SimpleNamespace(**{**vars(socket), "socket": Noted}))
    return made


async def test_an_address_that_refuses_leaves_no_socket_open(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = noting_sockets(monkeypatch)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))

        async def several(*_: object, **__: object) -> Any:
            there = (nobody.getsockname(), fake_broker.address)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where) for where in there]

        monkeypatch.setattr(transport, "_resolve", several)
        async with Bus(fake_broker.url, name="x", start_timeout=5):
            still_open = [each.fileno() != -1 for each in made]

    assert still_open == [False, True]


async def test_a_start_that_is_cut_off_while_no_address_answers_leaves_no_socket_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = noting_sockets(monkeypatch)
    with ExitStack() as opened_here:
        full = opened_here.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):  # what its backlog has no place for gets no answer
            waits = opened_here.enter_context(socket.socket())
            waits.setblocking(False)
            waits.connect_ex(full.getsockname())
        starting = asyncio.create_task(Bus(f"amqp://127.0.0.1:{full.getsockname()[1]}", name="x").start())
        await eventually(lambda: bool(made), "a socket")
        starting.cancel()
        await asyncio.wait({starting})

        await eventually(lambda: all(each.fileno() == -1 for each in made), "no socket", 3)
    assert starting.cancelled()


async def test_a_broker_is_given_up_after_two_and_a_half_silent_heartbeats_and_no_sooner(
    fake_broker: FakeBroker,
) -> None:
    broker, now = RabbitMQ(fake_broker.url, heartbeat=10), asyncio.get_running_loop().time
    await broker.start(Settings(name="x"), None)
    there: Connection = inside(broker)._publishing.connection

    there.watch(now() + 7)
    quiet = [there.quiet]
    there.watch(now() + 24)
    quiet.append(there.quiet)
    stands = not there.lost.done()
    there.watch(now() + 26)
    await broker.stop(now() + 1)

    assert quiet == ["", "nothing came from the broker for 24 s"]
    assert stands
    assert there.lost.result() == "nothing came from the broker for 26 s"


async def test_a_publish_that_fails_says_what_the_broker_does(fake_broker: FakeBroker) -> None:
    async with Bus(fake_broker.url, name="x", grace=1, publish_timeout=0.1) as bus:
        fake_broker.on_publish(lambda where, published: None)
        with pytest.raises(OutcomeUnknownError, match=r"the deadline passed before the broker answered$"):
            await bus.publish(OrderPlaced("o"))

        fake_broker.connection.block("low on memory")
        await eventually(lambda: any("low on memory" in each.detail for each in bus.health().problems), "the alarm")
        with pytest.raises(NotSentError, match=r"the deadline passed; the broker blocks publishers: low on memory$"):
            await bus.publish(OrderPlaced("o"))


@pytest.mark.parametrize("blocked", [False, True])
async def test_a_connection_is_closed_politely_unless_its_broker_does_not_read(
    blocked: bool, fake_broker: FakeBroker
) -> None:
    seen = list[facts.Fact]()

    class Notes(Plugin):
        def observe(self, fact: facts.Fact) -> None:
            seen.append(fact)

    async with Bus(fake_broker.url, name="x", plugins=[Notes()], grace=1):
        if blocked:
            fake_broker.connection.block()
            await eventually(lambda: bool([each for each in seen if isinstance(each, facts.Blocked)]), "the alarm")

    assert len(fake_broker.all(commands.Connection.Close)) == (0 if blocked else 1)


async def test_a_start_ends_when_its_consumers_are_registered(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_room, "REGISTER_TIMEOUT", 60)

    async with asyncio.timeout(5), Bus(fake_broker.url, recording(Effects()), grace=1) as bus:
        assert bus.health().ok


async def test_who_is_cut_off_while_a_consumer_is_registered_leaves_none(fake_broker: FakeBroker) -> None:
    broker, now = RabbitMQ(fake_broker.url), asyncio.get_running_loop().time
    await broker.start(Settings(name="x"), None)
    fake_broker.ignore(commands.Basic.Consume)
    consuming = asyncio.create_task(broker.consume("q", prefetch=1, deliver=lambda _: None, trusted=None))
    await fake_broker.received(commands.Basic.Consume)

    consuming.cancel()
    await asyncio.wait({consuming}, timeout=1)
    names = [check.name for check in broker.health()]
    await broker.stop(now() + 1)

    assert consuming.cancelled()
    assert "consumer q" not in names


async def test_observers_learn_what_happens_to_the_connections_and_the_consumers(fake_broker: FakeBroker) -> None:
    seen = list[facts.Fact]()

    class Notes(Plugin):
        def observe(self, fact: facts.Fact) -> None:
            seen.append(fact)

    def kinds() -> Counter[type[facts.Fact]]:
        return Counter(map(type, seen))

    async with Bus(fake_broker.url, recording(Effects()), plugins=[Notes()], grace=1) as bus:
        where, _, tag = await consumed(fake_broker)
        where.cancel(tag)
        await consumed(fake_broker, 2)
        fake_broker.connections[0].block("low on memory")
        fake_broker.connections[0].unblock()
        await eventually(lambda: facts.Unblocked() in seen, "the end of the alarm")
        fake_broker.connections[0].drop()
        await eventually(lambda: kinds()[facts.Connected] == 3, "a connection in the place of the one that was lost", 5)
        assert bus.health().ok

    assert facts.Blocked("low on memory") in seen
    assert kinds()[facts.ConsumerLost] == 1
    assert kinds()[facts.ConsumerRestored] == 2
    assert kinds()[facts.ConnectionLost] == 1
    assert kinds()[facts.Connected] == 3


async def test_an_address_that_accepts_and_says_nothing_keeps_nobody_from_the_next_one(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RPC_DEADLINE", 0.3)
    silent = await FakeBroker(mute=True).start()
    ports = [silent.address[1], fake_broker.address[1]]

    async def several(*_: object, **__: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(transport, "_resolve", several)
    async with Bus(fake_broker.url, name="x", start_timeout=10) as bus:
        await bus.publish(OrderPlaced("o"))
    await silent.stop()


async def test_a_limit_of_connections_that_is_reached_is_waited_out(fake_broker: FakeBroker) -> None:
    full = 2

    def refuse(where: FakeConnection, channel: int, frame: commands.Connection.Open) -> None:
        nonlocal full
        if full:
            full -= 1
            where.close(
                530, "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (1) is reached"
            )
        else:
            fake_broker.answer(where, channel, frame)

    fake_broker.on(commands.Connection.Open, refuse)
    async with Bus(fake_broker.url, name="x", start_timeout=10) as bus:
        assert bus.health().ok


async def test_the_broker_that_served_well_is_asked_first_unless_it_fell_silent() -> None:
    async with (
        FakeBroker(heartbeat=1) as one,
        FakeBroker(heartbeat=1) as other,
        Bus([one.url, other.url], heartbeat=1, name="x", publish_timeout=10) as bus,
    ):
        one.connection.drop()
        await eventually(lambda: len(one.connections) == 2, "the first one again", 5)
        asked_other = len(other.connections)
        await eventually(lambda: bus.health().ok, "health", 5)

        one.mute = True
        await eventually(lambda: len(other.connections) == 1, "the other one", 10)
        await bus.publish(OrderPlaced("o"))

    assert asked_other == 0


@pytest.mark.parametrize("how", ["fails", "is cut off"])
async def test_a_restore_that_does_not_come_to_its_end_leaves_no_connection(
    how: str, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RPC_DEADLINE", 0.2)
    fake_broker.ignore(commands.Channel.Open)
    bus = Bus(fake_broker.url, name="x", start_timeout=0.7)
    starting = asyncio.create_task(bus.start())
    await fake_broker.received(commands.Channel.Open)
    if how == "is cut off":
        starting.cancel()
    await asyncio.wait({starting}, timeout=8)

    assert starting.done()
    assert starting.cancelled() or starting.exception() is not None
    await eventually(lambda: not any(each.open for each in fake_broker.connections), "no connection", 5)


async def test_a_publishing_channel_that_cannot_be_opened_is_tried_with_growing_pauses_and_health_says_why(
    fake_broker: FakeBroker,
) -> None:
    async with Bus(fake_broker.url, name="x", grace=1) as bus:
        fake_broker.fail(commands.Confirm.Select, times=4)
        now, tries = asyncio.get_running_loop().time, list[float]()
        channel = fake_broker.all(commands.Confirm.Select)[0].channel
        fake_broker.connection.close_channel(channel, 406, "PRECONDITION_FAILED - as it likes")

        def count() -> bool:
            seen = len(fake_broker.all(commands.Confirm.Select)) - 1
            tries.extend([now()] * (seen - len(tries)))
            return seen >= 5

        await eventually(lambda: count() or not bus.health().ok, "the trouble")
        problem = bus.health().problems[0].detail
        await eventually(count, "five tries", 10)
        await eventually(lambda: bus.health().ok, "the channel", 5)
        await bus.publish(OrderPlaced("o"))

    pauses = [later - sooner for sooner, later in pairwise(tries)]
    assert "PRECONDITION_FAILED" in problem or "opening a channel" in problem
    assert pauses[-1] > 2 * pauses[0]


async def test_a_pause_and_a_resume_end_when_the_broker_has_answered(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "CANCEL_DEADLINE", 60)
    async with Bus(fake_broker.url, recording(Effects()), grace=1) as bus:
        await opened(fake_broker)

        async with asyncio.timeout(5):
            await bus.pause("shop.record")
            cancelled = len(fake_broker.all(commands.Basic.Cancel))
            await bus.resume("shop.record")
            consumers = len(fake_broker.all(commands.Basic.Consume))

        assert (cancelled, consumers) == (2, 3)  # the window was opened by the first of the cancels


async def test_a_stop_ends_in_time_though_a_publish_has_time_left_and_no_answer(fake_broker: FakeBroker) -> None:
    broker, now = RabbitMQ(fake_broker.url), asyncio.get_running_loop().time
    await broker.start(Settings(name="x"), None)
    fake_broker.on_publish(lambda where, published: None)
    message = Message(exchange="events", routing_key="order.placed", body=BODY, properties=Properties())
    publish = asyncio.ensure_future(broker.publish(message, now() + 60))
    await fake_broker.until(lambda: bool(fake_broker.published), what="the publish")

    async with asyncio.timeout(5):
        await broker.stop(now() + 1.5)
    await asyncio.wait({publish}, timeout=1)

    assert isinstance(publish.exception(), OutcomeUnknownError)


def test_a_sibling_keeps_every_setting() -> None:
    context = ssl.create_default_context()
    bus = Bus("amqps://a", name="x", ssl_context=context, heartbeat=3, grace=7, in_flight=5)

    sibling = bus.sibling("amqps://b", grace=8)

    kept, told = sibling.configuration, bus.configuration
    assert (kept.ssl_context, kept.heartbeat, kept.in_flight, kept.grace) == (context, 3, 5, 8)
    assert told.grace == 7
    assert inside(sibling)._broker._heartbeat == 3


@pytest.mark.parametrize("url", ["memory", "rabbitmq"])
async def test_a_bus_on_another_event_loop_or_thread_gets_one_clear_error(url: str, rabbit_url: str) -> None:
    effects = Effects()
    async with Bus("memory://" if url == "memory" else rabbit_url, recording(effects)) as bus:

        def elsewhere(call: Any) -> str:
            with pytest.raises(ConfigurationError) as error:
                asyncio.run(awaited(call))
            return str(error.value)

        async def awaited(call: Any) -> None:
            await call()

        said = [
            await asyncio.to_thread(elsewhere, call)
            for call in (
                lambda: bus.publish(OrderPlaced("o")),
                lambda: bus.depth("q"),
                lambda: bus.pause("shop.record"),
            )
        ]
        await bus.publish(OrderPlaced("here"))
        await effects.until(1)

    assert all("run_coroutine_threadsafe" in each for each in said)
    assert effects.done == {"here": 1}


async def test_a_question_that_fails_when_nobody_waits_any_more_is_no_unhandled_error() -> None:
    unhandled, release = list[dict[str, Any]](), asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    async def fails() -> None:
        try:
            await release.wait()
        finally:
            raise OSError

    cut_off = asyncio.create_task(calls.within(5, fails(), "asking"))
    await asyncio.sleep(0)
    cut_off.cancel()
    unanswered = asyncio.create_task(calls.within(0.01, fails(), "asking"))
    await asyncio.wait({cut_off, unanswered})
    release.set()
    await nothing_left_running(set())
    ends = (cut_off.cancelled(), type(unanswered.exception()))
    del cut_off, unanswered
    gc.collect()

    assert ends == (True, BrokerError)
    assert unhandled == []


def test_deadlines_are_what_is_promised() -> None:
    assert calls.RPC_DEADLINE <= 10
    assert subscriber.CANCEL_DEADLINE + 1 < 5
