"""A broker is used on the event loop that started it; whoever calls from another one is told so, and nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from timeit import timeit

import pytest

from rabbitevents import Bus
from rabbitevents.brokers import Broker, Settings
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.brokers.embedded.client import MemoryClient
from rabbitevents.brokers.home import Home
from rabbitevents.errors import ConfigurationError
from rabbitevents.message import Delivery, Message
from rabbitevents.properties import Properties
from rabbitevents.testing.bench import eventually
from rabbitevents.topology import Argument, Binding, Exchange, Queue, Topology
from tests.bed.fake_broker import FakeBroker

CALLS: dict[str, Callable[[Broker], Awaitable[object]]] = {
    "publish": lambda broker: broker.publish(to_queue(), 1e12),
    "declare": lambda broker: broker.declare(Topology((Queue("other"),))),
    "consume": lambda broker: broker.consume("q", prefetch=1, deliver=nothing, trusted=None),
    "depth": lambda broker: broker.depth("q"),
}


def to_queue() -> Message:
    return Message(exchange="", routing_key="q", body=b"", properties=Properties())


def nothing(batch: list[Delivery]) -> None:
    """Take nothing."""


async def started(server: EmbeddedBroker) -> MemoryClient:
    client = server.client()
    await client.start(Settings(), None)
    await client.declare(Topology((Exchange("x", "topic"), Queue("q"), Binding("x", "q", "#"))))
    return client


async def stop(client: MemoryClient) -> None:
    await client.stop(asyncio.get_running_loop().time() + 1)


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_from_another_thread_is_refused_and_says_what_to_do(call: str) -> None:
    server = EmbeddedBroker()
    client = await started(server)

    def elsewhere() -> str:
        with pytest.raises(ConfigurationError) as refused:
            asyncio.run(_awaited(CALLS[call](client)))
        return str(refused.value)

    said = await asyncio.to_thread(elsewhere)

    assert "run_coroutine_threadsafe" in said
    assert "SyncBus" in said
    assert (list(server.queues), server.queues["q"].ready, server.queues["q"].readers) == (["q"], 0, 0)
    assert await client.publish(to_queue(), 1e12)
    await stop(client)


async def _awaited(call: Awaitable[object]) -> None:
    await call


async def test_a_second_bus_on_another_event_loop_cannot_join() -> None:
    server = EmbeddedBroker()
    client = await started(server)

    with pytest.raises(ConfigurationError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(_awaited(server.client().start(Settings(), None))))

    assert server.clients == [client]
    await stop(client)


def test_once_everybody_has_left_the_next_loop_takes_over_with_what_waits() -> None:
    server = EmbeddedBroker()
    arguments: dict[str, Argument] = {
        "x-message-ttl": 50,
        "x-dead-letter-exchange": "x",
        "x-dead-letter-routing-key": "late",
    }

    async def first() -> None:
        client = await started(server)
        await client.declare(Topology((Queue("waiting", arguments),)))
        assert await client.publish(
            Message(exchange="", routing_key="waiting", body=b"", properties=Properties()), 1e12
        )
        await stop(client)

    async def second() -> None:
        client = await started(server)
        await eventually(lambda: server.queues["q"].ready == 1, "what waited to fall due")
        await stop(client)

    asyncio.run(first())
    asyncio.run(second())


async def test_before_the_start_and_at_home_nothing_is_refused() -> None:
    home = Home()

    home.check()
    home.settle()
    home.check()


async def test_the_check_costs_little_more_than_asking_for_the_loop() -> None:
    home = Home()
    home.settle()

    def best(call: Callable[[], object]) -> float:
        return min(timeit(call, number=10_000) for _ in range(5))

    assert best(home.check) < 5 * best(asyncio.get_running_loop)  # 1.3 times as much


async def _look(bus: Bus) -> None:
    async with bus.browse("q"):
        """Not reached."""


@pytest.mark.parametrize("call", [_look, Bus.stop])
async def test_a_bus_refuses_another_event_loop(
    call: Callable[[Bus], Awaitable[object]], fake_broker: FakeBroker
) -> None:
    async with Bus(fake_broker.url, name="x", grace=1) as bus:
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(_awaited(call(bus))))

        assert bus.health().ok
