"""Looking into a queue: everything goes back, in its place, but what was acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from rabbitevents import BrokerError, Bus, ConfigurationError, Depth, Message, browsing
from rabbitevents.brokers import Deliver, Trusted
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.brokers.embedded.client import MemoryClient
from rabbitevents.brokers.embedded.consumer import MemoryConsumer
from rabbitevents.properties import Properties
from tests.bed.proxy import Proxy
from tests.shop import Effects, eventually, recording

QUEUE = "shop.record.dead"


async def fill(bus: Bus, number: int) -> None:
    messages = [
        Message(exchange="", routing_key=QUEUE, body=str(i).encode(), properties=Properties(message_id=str(i)))
        for i in range(number)
    ]
    await asyncio.gather(*map(bus.send, messages))


@pytest.fixture(params=["embedded", "rabbitmq"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """A bus without handlers, and the empty queue for the dead letters of a service that is not running."""
    server = EmbeddedBroker()
    url: str | None = request.getfixturevalue("rabbit_url") if request.param == "rabbitmq" else None
    async with Bus(url or server.client(), recording(Effects())):
        pass
    async with Bus(url or server.client(), declare="none") as bus:
        yield bus


async def bodies(bus: Bus, *, hold: int = 1000) -> list[str]:
    async with bus.browse(QUEUE, hold=hold) as look:
        return [delivery.body.decode() async for delivery in look]


async def test_a_look_sees_everything_in_order_and_gives_everything_back(bus: Bus) -> None:
    await fill(bus, 300)

    first, second = await bodies(bus), await bodies(bus)

    assert first == second == [str(i) for i in range(300)]


async def test_what_is_acknowledged_is_gone_and_the_rest_keeps_its_place(bus: Bus) -> None:
    await fill(bus, 20)

    async with bus.browse(QUEUE) as look:
        async for delivery in look:
            if int(delivery.body) % 2:
                look.acknowledge(delivery)

    assert await bodies(bus) == [str(i) for i in range(0, 20, 2)]


async def test_a_look_ends_at_as_many_as_it_may_keep(bus: Bus) -> None:
    await fill(bus, 20)

    async with bus.browse(QUEUE, hold=5) as look:
        seen = [delivery async for delivery in look]

        assert (len(seen), look.full, look.depth) == (5, True, 20)
    assert len(await bodies(bus)) == 20


async def test_a_look_reaches_further_than_it_may_keep_when_what_it_saw_is_acknowledged(bus: Bus) -> None:
    await fill(bus, 20)

    async with bus.browse(QUEUE, hold=5) as look:
        async for delivery in look:
            look.acknowledge(delivery)

    assert await bus.depth(QUEUE) == Depth(0, 0)


async def test_a_look_ends_at_what_was_there_when_it_began(bus: Bus) -> None:
    await fill(bus, 5)

    seen = 0
    async with bus.browse(QUEUE) as look:
        async for delivery in look:
            seen += 1
            await fill(bus, 1)  # what comes of replaying: it is back before the look ends
            look.acknowledge(delivery)

    assert seen == 5
    await eventually_ready(bus, 5)


async def eventually_ready(bus: Bus, number: int) -> None:
    """Wait until as many are ready: what is published is routed before it is confirmed, but counted later."""
    end = asyncio.get_running_loop().time() + 10
    while (await bus.depth(QUEUE)) != Depth(number, 0):
        assert asyncio.get_running_loop().time() < end


async def test_an_empty_queue_is_seen_at_once_and_a_missing_one_is_named(bus: Bus) -> None:
    assert await bodies(bus) == []
    with pytest.raises(ConfigurationError, match=r"there is no queue 'nobody\.dead'"):
        await bus.browse("nobody.dead").__aenter__()


async def test_another_consumers_messages_are_not_waited_for_for_ever(bus: Bus) -> None:
    await fill(bus, 10)

    async with bus.browse(QUEUE, hold=4) as other:
        taken = [delivery async for delivery in other]
        async with bus.browse(QUEUE) as look:
            seen = [delivery async for delivery in look]

    assert (len(taken), len(seen)) == (4, 6)


async def test_a_look_that_lost_its_connection_says_so_and_loses_nothing(rabbit_url: str) -> None:
    async with Bus(rabbit_url, recording(Effects())):
        pass
    async with Proxy.before(rabbit_url) as proxy, Bus(proxy.url_for(rabbit_url), declare="none") as bus:
        await fill(bus, 10)

        async def take_all() -> None:
            async with bus.browse(QUEUE) as look:
                async for delivery in look:
                    if delivery.body == b"3":
                        proxy.cut()
                        await eventually(lambda: not bus.health().ok, "the loss to be noticed")
                    look.acknowledge(delivery)

        with pytest.raises(BrokerError, match="look again"):
            await take_all()

        await eventually(lambda: bus.health().ok, "the connection to be back")
        left = await bodies(bus)
        assert left[-7:] == [str(i) for i in range(3, 10)]
        assert len(left) <= 10


async def test_looks_that_are_left_are_forgotten(bus: Bus) -> None:
    await fill(bus, 2)
    before = {check.name for check in bus.health().checks}

    for _ in range(5):
        assert await bodies(bus) == ["0", "1"]
    async with bus.browse(QUEUE) as look:
        async for _ in look:
            break  # cut off by the one who iterates

    after = {check.name for check in bus.health().checks}
    assert not [name for name in after - before if name.startswith("consumer")]
    assert await bus.depth(QUEUE) == Depth(2, 0)


class Slow(MemoryConsumer):
    """A consumer of a broker that takes its time, and is asked in the middle of it."""

    async def cancel(self) -> None:
        await asyncio.sleep(0.02)
        await super().cancel()
        await asyncio.sleep(0.02)

    async def close(self) -> None:
        await asyncio.sleep(0.02)
        await super().close()
        await asyncio.sleep(0.02)


class SlowClient(MemoryClient):
    """A client with slow consumers."""

    async def consume(self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None) -> MemoryConsumer:
        consumer = Slow(self.server, queue, prefetch, deliver, trusted, left=self._consumers.remove)
        self._consumers.append(consumer)
        consumer.register()
        return consumer


@pytest.fixture
async def slow() -> AsyncIterator[tuple[EmbeddedBroker, Bus]]:
    """A broker that takes its time, and a bus on it; there are 3 messages in the queue."""
    server = EmbeddedBroker()
    async with Bus(server.client(), recording(Effects())):
        pass
    async with Bus(SlowClient(server), declare="none") as bus:
        await fill(bus, 3)
        yield server, bus


@pytest.mark.parametrize("after", [0, 0.01, 0.03, 0.05, 0.07])
async def test_leaving_that_is_cut_off_leaves_all_the_same_before_it_ends(
    slow: tuple[EmbeddedBroker, Bus], after: float
) -> None:
    server, bus = slow
    leaving = asyncio.Event()

    async def look() -> None:
        async with bus.browse(QUEUE) as entered:
            async for _ in entered:
                pass
            leaving.set()

    task = asyncio.create_task(look())
    await leaving.wait()
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert (server.queues[QUEUE].ready, server.queues[QUEUE].readers) == (3, 0)


async def test_leaving_that_is_cut_off_again_and_again_leaves_all_the_same(slow: tuple[EmbeddedBroker, Bus]) -> None:
    server, bus = slow

    async def look() -> None:
        async with bus.browse(QUEUE) as entered:
            async for _ in entered:
                await asyncio.sleep(1)

    task = asyncio.create_task(look())
    await eventually(lambda: not server.queues[QUEUE].ready, "the look to have begun")
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)

    await eventually(lambda: server.queues[QUEUE].ready == 3, "what was kept to be back")
    assert server.queues[QUEUE].readers == 0


async def test_a_look_is_entered_once(bus: Bus) -> None:
    await fill(bus, 1)

    async with bus.browse(QUEUE) as look:
        with pytest.raises(ConfigurationError, match="ask the bus for another"):
            await look.__aenter__()

    assert await bus.depth(QUEUE) == Depth(1, 0)


def test_more_than_a_quorum_queue_allows_is_not_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="say 1 to 2000"):
        Bus("memory://").browse(QUEUE, hold=5000)


def test_siblings_on_one_broker_may_run_one_after_the_other_each_on_its_own_loop(rabbit_url: str) -> None:
    async def prepare() -> None:
        async with Bus(rabbit_url, recording(Effects())):
            pass
        async with Bus(rabbit_url, declare="none") as bus:
            await fill(bus, 3)

    async def look(bus: Bus) -> list[str]:
        async with bus.sibling() as sibling:
            return await bodies(sibling)

    asyncio.run(prepare())
    bus = Bus(rabbit_url, declare="none")

    assert [asyncio.run(look(bus)), asyncio.run(look(bus))] == [["0", "1", "2"]] * 2


@pytest.mark.parametrize(("hold", "channel"), [(7, 10_000), (300, 10_000), (7, 50), (300, 1)])
async def test_a_look_that_passes_over_what_it_keeps_sees_all_of_a_queue_and_leaves_its_order(
    hold: int, channel: int, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browsing, "CHANNEL", channel)
    await fill(bus, 1_000)
    seen: list[str] = []

    async with bus.browse(QUEUE, hold=hold) as look:
        while len(seen) < look.depth:
            async for delivery in look:
                seen.append(delivery.body.decode())
                if int(delivery.body) % 10 == 3:
                    look.acknowledge(delivery)
            await look.pass_over()

    assert seen == [str(i) for i in range(1_000)]
    assert await bodies(bus) == [str(i) for i in range(1_000) if i % 10 != 3]


@pytest.mark.parametrize("channel", [1, 10_000])
async def test_a_look_goes_through_all_however_little_it_keeps(
    channel: int, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browsing, "CHANNEL", channel)
    await fill(bus, 10)

    async with bus.browse(QUEUE, hold=4) as look:
        seen = [int(delivery.body) async for delivery in look.through()]

    assert seen == list(range(10))
    assert await bodies(bus) == [str(i) for i in range(10)]


@pytest.mark.parametrize("channel", [1, 10_000])
async def test_what_was_passed_over_can_still_be_acknowledged(
    channel: int, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browsing, "CHANNEL", channel)
    await fill(bus, 10)

    async with bus.browse(QUEUE, hold=4) as look:
        first = [delivery async for delivery in look]
        await look.pass_over()
        second = [delivery async for delivery in look]
        look.acknowledge(first[1])

    assert [delivery.body for delivery in first + second] == [b"%d" % i for i in range(8)]
    assert await bodies(bus) == ["0", *(str(i) for i in range(2, 10))]


async def test_a_look_knows_how_many_others_read_from_the_queue(bus: Bus) -> None:
    await fill(bus, 10)

    async with bus.browse(QUEUE, hold=4) as first, bus.browse(QUEUE, hold=4) as second:
        others = (first.others, second.others)

    assert others == (0, 1)


async def test_a_look_that_lost_its_connection_after_passing_over_says_so() -> None:
    server = EmbeddedBroker()
    async with Bus(server.client(), recording(Effects())):
        pass
    async with Bus(server.client(), declare="none") as bus:
        await fill(bus, 10)
        await _broken_off_after_passing_over(bus, server)


async def _broken_off_after_passing_over(bus: Bus, server: EmbeddedBroker) -> None:
    async with bus.browse(QUEUE, hold=4) as look:
        _ = [delivery async for delivery in look]
        await look.pass_over()
        server.drop_connections()
        with pytest.raises(BrokerError, match="broken off"):
            _ = [delivery async for delivery in look]


@pytest.mark.parametrize("channel", [1, 10_000])
async def test_a_look_that_is_cut_off_while_it_passes_over_leaves_nothing_behind(
    channel: int, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browsing, "CHANNEL", channel)
    await fill(bus, 60)

    async def look_through() -> None:
        async with bus.browse(QUEUE, hold=4) as look:
            for _ in range(15):
                _ = [delivery async for delivery in look]
                await look.pass_over()

    await bus.depth(QUEUE)  # the connection stands
    for milliseconds in range(0, 60, 3):
        looking = asyncio.ensure_future(look_through())
        await asyncio.wait({looking}, timeout=milliseconds / 1000)
        looking.cancel()
        await asyncio.wait({looking})

    await eventually_ready(bus, 60)
    assert sorted(map(int, await bodies(bus))) == list(range(60))
