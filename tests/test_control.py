"""Questions to the broker: each is answered, refused or given up by itself, and none leaves anything behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pamqp import commands

from rabbitevents import Bus, Event, Router
from rabbitevents.brokers.rabbitmq import connection as connection_room
from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.connection import AT_ONCE, Connection
from rabbitevents.errors import BrokerError
from rabbitevents.topology import Binding, Topology
from tests.bed.fake_broker import FakeBroker
from tests.bed.fake_connection import FakeConnection

QUESTIONS = 100


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Connection]:
    there = await Connection.open(Address(url), name="asks", heartbeat=0, context=None, timeout=10)
    try:
        yield there
    finally:
        await there.close()


async def look(there: Connection, name: str) -> int:
    """Look at a queue, and return the broker's code for what is not there."""
    try:
        await there.ask(lambda channel: channel.queue_declare(name, passive=True), f"looking at {name!r}")
    except BrokerError as error:
        return error.code
    return 0


def refuse_those_that_are_missing(broker: FakeBroker) -> None:
    def answer(where: FakeConnection, channel: int, frame: commands.Queue.Declare) -> None:
        if frame.queue.startswith("missing"):
            where.close_channel(channel, 404, f"NOT_FOUND - no queue '{frame.queue}'", frame)
        else:
            where.send(channel, commands.Queue.DeclareOk(frame.queue, 0, 0))

    broker.on(commands.Queue.Declare, answer)


async def test_each_of_many_questions_gets_its_own_answer_and_one_channel_is_left(fake_broker: FakeBroker) -> None:
    refuse_those_that_are_missing(fake_broker)
    names = [f"{'missing' if number % 3 else 'there'}-{number}" for number in range(QUESTIONS)]

    async with connected(fake_broker.url) as there:
        codes = await asyncio.gather(*(look(there, name) for name in names))
        again = await look(there, "there")
        await fake_broker.until(lambda: len(there.tap.lanes) == 1, what="one channel that is left")

    assert codes == [404 if name.startswith("missing") else 0 for name in names]
    assert again == 0
    asked = {received.channel for received in fake_broker.all(commands.Queue.Declare)}
    assert len(asked) <= 2 * AT_ONCE, "a number is another channel's once the broker has closed it"


async def test_a_question_opens_its_channel_without_waiting_for_the_broker_s_agreement(fake_broker: FakeBroker) -> None:
    fake_broker.ignore(commands.Channel.Open)

    async with connected(fake_broker.url) as there:
        assert await look(there, "there") == 0


async def test_a_question_without_an_answer_is_given_up_and_its_late_answer_is_nobody_s(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_room, "RPC_DEADLINE", 0.2)
    fake_broker.ignore(commands.Queue.Declare)

    async with connected(fake_broker.url) as there:
        with pytest.raises(BrokerError, match=r"looking at 'slow': no answer within 0\.2 s"):
            await there.ask(lambda channel: channel.queue_declare("slow", passive=True), "looking at 'slow'")
        asked = await fake_broker.received(commands.Queue.Declare)
        asked.connection.send(asked.channel, commands.Queue.DeclareOk("slow", 7, 0))
        fake_broker.behave(commands.Queue.Declare)

        assert await look(there, "there") == 0
        assert not there.lost.done()


async def test_an_answer_to_another_question_ends_the_connection(fake_broker: FakeBroker) -> None:
    fake_broker.on(commands.Queue.Declare, lambda where, channel, _: where.send(channel, commands.Queue.BindOk()))

    async with connected(fake_broker.url) as there:
        with pytest.raises(BrokerError, match=r"Queue\.BindOk in answer to Queue\.Declare"):
            await there.ask(lambda channel: channel.queue_declare("q", passive=True), "looking at 'q'")
        assert there.lost.done()


async def test_what_cannot_be_asked_is_said_and_costs_nobody_else_anything(fake_broker: FakeBroker) -> None:
    async with connected(fake_broker.url) as there:
        with pytest.raises(BrokerError, match="looking at a long name"):
            await there.ask(lambda channel: channel.queue_declare("q" * 300, passive=True), "looking at a long name")

        assert await look(there, "there") == 0
        assert not there.lost.done()


async def test_questions_that_are_under_way_when_the_connection_is_lost_say_so_at_once(fake_broker: FakeBroker) -> None:
    fake_broker.ignore(commands.Queue.Declare)

    async with connected(fake_broker.url) as there:
        asking = [
            asyncio.ensure_future(there.ask(lambda channel: channel.queue_declare("q", passive=True), "looking at 'q'"))
            for _ in range(AT_ONCE + 4)
        ]
        await fake_broker.received(commands.Queue.Declare, AT_ONCE)
        there.tap.abort("the network is gone")
        outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 2)

    assert [str(each) for each in outcomes[:AT_ONCE]] == ["looking at 'q': the network is gone"] * AT_ONCE
    assert [str(each) for each in outcomes[AT_ONCE:]] == ["the connection is lost"] * 4


def needed_by(topology: Topology, queue: str) -> Topology:
    """Search through everything."""
    items = topology.items
    wanted = {queue, *(item.queue for item in items if isinstance(item, Binding) and item.routing_key == queue)}
    wanted |= {item.exchange for item in items if isinstance(item, Binding) and item.queue in wanted}
    return Topology(tuple(item for item in items if (item.queue if isinstance(item, Binding) else item.name) in wanted))


def test_a_queue_s_part_of_a_topology_is_what_a_search_through_everything_finds() -> None:
    router = Router("shop")
    for number in range(20):

        async def handle(event: Event[Any]) -> None: ...

        router.on(f"thing.kind{number}", f"*.other{number % 3}", name=f"handler{number}")(handle)

    topology = Bus("memory://", router).topology

    for queue in (*topology.queues, "nobody.s"):
        assert topology.part(queue) == needed_by(topology, queue)
