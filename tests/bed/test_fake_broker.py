"""The fake broker follows its script, and a real client believes it."""

import asyncio
import struct

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection
from aio_pika.exceptions import AMQPConnectionError, ChannelNotFoundEntity, PublishError
from pamqp import commands as spec
from pamqp import frame as wire
from pamqp.heartbeat import Heartbeat

from tests.bed.fake_broker import FakeBroker
from tests.bed.fake_connection import FakeConnection, Published, Undecodable


async def test_a_client_is_granted_all_it_asks(fake_broker: FakeBroker) -> None:
    async with await aio_pika.connect(fake_broker.url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=7)
        exchange = await channel.declare_exchange("events", "topic", durable=True)
        queue = await channel.declare_queue("orders", durable=True)
        await queue.bind(exchange, "order.*")
        await queue.purge()
        assert await queue.get(fail=False) is None
        await queue.delete()

    assert (await fake_broker.received(spec.Basic.Qos)).frame.prefetch_count == 7
    assert (await fake_broker.received(spec.Queue.Bind)).frame.routing_key == "order.*"
    assert (await fake_broker.received(spec.Connection.Close)).channel == 0


async def test_a_publish_is_put_together_and_confirmed(fake_broker: FakeBroker) -> None:
    body = bytes(300_000)
    async with await aio_pika.connect(fake_broker.url) as connection:
        channel = await connection.channel()
        for part in (body, b""):
            message = aio_pika.Message(part, message_id="17")
            await channel.default_exchange.publish(message, "orders", mandatory=True)

    published = await fake_broker.publication()
    assert (published.exchange, published.routing_key, published.mandatory) == ("", "orders", True)
    assert published.properties is not None
    assert (published.properties.message_id, published.body, published.delivery_tag) == ("17", body, 1)
    assert (await fake_broker.publication(2)).delivery_tag == 2


async def test_a_publish_can_be_nacked_returned_or_left_alone(fake_broker: FakeBroker) -> None:
    def react(connection: FakeConnection, published: Published) -> None:
        if published.body == b"nack":
            connection.send(published.channel, spec.Basic.Nack(published.delivery_tag))
        elif published.body == b"return":
            connection.give_back(published)
            connection.send(published.channel, spec.Basic.Ack(published.delivery_tag))

    fake_broker.on_publish(react)
    async with await aio_pika.connect(fake_broker.url) as connection:
        channel = await connection.channel(on_return_raises=True)
        publish = channel.default_exchange.publish
        with pytest.raises(aio_pika.exceptions.DeliveryError):
            await publish(aio_pika.Message(b"nack"), "orders")
        with pytest.raises(PublishError):
            await publish(aio_pika.Message(b"return"), "orders")
        with pytest.raises(TimeoutError):
            await publish(aio_pika.Message(b"silence"), "orders", timeout=0.1)


async def _consume(url: str) -> tuple[AbstractRobustConnection, "asyncio.Queue[AbstractIncomingMessage]"]:
    connection = await aio_pika.connect_robust(url, reconnect_interval=0.05, fail_fast=False)
    queue = await (await connection.channel()).declare_queue("orders")
    came: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await queue.consume(came.put)
    return connection, came


async def test_a_consumer_gets_what_is_delivered(fake_broker: FakeBroker) -> None:
    connection, came = await _consume(fake_broker.url)
    consume = await fake_broker.received(spec.Basic.Consume)
    tag = consume.frame.consumer_tag
    body = bytes(300_000)

    consume.connection.deliver(
        consume.channel, tag, 1, body, spec.Basic.Properties(message_type="paid"), routing_key="k", redelivered=True
    )

    message = await asyncio.wait_for(came.get(), 5)
    assert (message.body, message.type, message.routing_key, message.redelivered) == (body, "paid", "k", True)
    await message.ack()
    assert (await fake_broker.received(spec.Basic.Ack)).frame.delivery_tag == 1
    await connection.close()


async def test_properties_that_cannot_be_decoded_are_sent_as_they_are(fake_broker: FakeBroker) -> None:
    connection, _ = await _consume(fake_broker.url)
    consume = await fake_broker.received(spec.Basic.Consume)
    not_utf8 = struct.pack(">HB", spec.Basic.Properties.flags["message_type"], 2) + b"\xff\xfe"

    consume.connection.deliver(consume.channel, consume.frame.consumer_tag, 1, b"x", not_utf8)

    await fake_broker.until(lambda: len(fake_broker.connections) == 2 or not consume.connection.open)
    await connection.close()


async def test_a_frame_that_cannot_be_decoded_is_recorded(fake_broker: FakeBroker) -> None:
    reader, writer = await asyncio.open_connection(*fake_broker.address)
    writer.write(b"AMQP\x00\x00\x09\x01" + struct.pack(">BHI", 1, 0, 4) + b"\xff\xff\xff\xff\xce")

    undecodable = await fake_broker.received(Undecodable)

    assert undecodable.frame == Undecodable(1, b"\xff\xff\xff\xff")
    assert (await reader.readexactly(11))[7:] == b"\x00\x0a\x00\x0a"
    writer.close()


async def test_a_method_fails_as_often_as_told(fake_broker: FakeBroker) -> None:
    fake_broker.fail(spec.Queue.Declare, times=2)
    async with await aio_pika.connect(fake_broker.url) as connection:
        for _ in range(2):
            with pytest.raises(ChannelNotFoundEntity):
                await (await connection.channel()).declare_queue("orders")

        await (await connection.channel()).declare_queue("orders")

    assert len(fake_broker.all(spec.Channel.CloseOk)) == 2


async def test_a_hard_failure_ends_the_connection(fake_broker: FakeBroker) -> None:
    fake_broker.fail(spec.Queue.Declare, code=541, text="INTERNAL_ERROR", hard=True)
    connection = await aio_pika.connect(fake_broker.url)

    with pytest.raises(AMQPConnectionError):
        await (await connection.channel()).declare_queue("orders")

    await fake_broker.received(spec.Connection.CloseOk)
    await connection.close()


async def test_a_reaction_may_answer_late(fake_broker: FakeBroker) -> None:
    async def answer_late(connection: FakeConnection, channel: int, frame: spec.Queue.Declare) -> None:
        await asyncio.sleep(0.1)
        fake_broker.answer(connection, channel, frame)

    def answer_beside(connection: FakeConnection, channel: int, frame: spec.Queue.Declare) -> None:
        connection.spawn(answer_late(connection, channel, frame))

    fake_broker.on(spec.Queue.Declare, answer_beside)
    async with await aio_pika.connect(fake_broker.url) as connection:
        first, second = await connection.channel(), await connection.channel()
        declare = asyncio.ensure_future(first.declare_queue("orders"))

        await second.set_qos(1)

        assert not declare.done()
        assert (await asyncio.wait_for(declare, 5)).name == "orders"


async def test_a_method_can_stay_unanswered(fake_broker: FakeBroker) -> None:
    fake_broker.ignore(spec.Channel.Open)
    connection = await aio_pika.connect(fake_broker.url)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.channel(), 0.1)

    await connection.close()


@pytest.mark.parametrize("reset", [True, False])
async def test_a_dropped_client_comes_back_and_consumes_again(fake_broker: FakeBroker, reset: bool) -> None:
    connection, _ = await _consume(fake_broker.url)

    fake_broker.connection.drop(reset=reset)

    again = await fake_broker.received(spec.Basic.Consume, number=2)
    assert again.connection is fake_broker.connections[1]
    await connection.close()


async def test_a_consumer_can_be_cancelled_by_the_broker(fake_broker: FakeBroker) -> None:
    connection, _ = await _consume(fake_broker.url)
    (tag,) = fake_broker.connection.consumers

    fake_broker.connection.cancel(tag)

    assert fake_broker.connection.consumers == {}
    await connection.close()


async def _frame_size(reader: asyncio.StreamReader) -> int:
    _, _, size = struct.unpack(">BHI", await reader.readexactly(7))
    await reader.readexactly(size + 1)
    return int(size)


async def test_a_bare_client_is_blocked_unblocked_and_kept_alive() -> None:
    async with FakeBroker(heartbeat=1) as broker:
        reader, writer = await asyncio.open_connection(*broker.address)
        writer.write(b"AMQP\x00\x00\x09\x01" + wire.marshal(spec.Connection.StartOk(response="x"), 0))
        writer.write(wire.marshal(spec.Connection.TuneOk(2047, 131_072, 1), 0))
        await broker.received(spec.Connection.TuneOk)

        broker.connection.deliver(1, "tag", 1, bytes(300_000))
        sizes = [await _frame_size(reader) for _ in range(7)]
        assert sizes[4:] == [131_064, 131_064, 300_000 - 2 * 131_064]
        broker.connection.block("low on disk")
        await reader.readuntil(b"low on disk\xce")
        broker.connection.unblock()
        await reader.readuntil(wire.marshal(spec.Connection.Unblocked(), 0))
        await asyncio.wait_for(reader.readuntil(Heartbeat.value), 2)
        broker.beating = False
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 1.2)
        writer.close()


async def test_a_mute_broker_accepts_and_says_nothing() -> None:
    async with FakeBroker(mute=True) as broker:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(aio_pika.connect(broker.url), 0.1)

        assert len(broker.connections) == 1


async def test_a_broken_reaction_fails_the_test() -> None:
    def fail(_connection: FakeConnection, _channel: int, _frame: spec.Channel.Open) -> None:
        raise ZeroDivisionError

    broker = await FakeBroker().start()
    broker.on(spec.Channel.Open, fail)
    connection = await aio_pika.connect(broker.url)
    with pytest.raises(AMQPConnectionError):
        await connection.channel()
    await connection.close()

    with pytest.raises(ZeroDivisionError):
        await broker.stop()


async def test_a_timeout_tells_what_came(fake_broker: FakeBroker) -> None:
    async with await aio_pika.connect(fake_broker.url):
        with pytest.raises(TimeoutError, match=r"no Basic\.Consume number 1 .*Connection\.Open"):
            await fake_broker.received(spec.Basic.Consume, timeout=0.05)
