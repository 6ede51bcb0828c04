"""What Watermill's universal Pub/Sub suite checks (github.com/ThreeDotsLabs/watermill, pubsub/tests)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import chain, repeat

from rabbitevents.brokers import Verdict
from rabbitevents.message import Delivery
from rabbitevents.testing.bench import Bench, Collector, deadline, declare_queue, eventually, message, names, publish


class TestingPubSub:
    """What Watermill's universal suite checks, in its order."""

    __test__ = False

    async def test_everything_published_is_received_as_it_was(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        sent = [message(i, queue, headers={"n": i, "text": "ü", "nested": {"a": [1, "b", None]}}) for i in range(100)]

        await publish(broker, sent)
        reader = await Collector().consume(broker, queue)
        await reader.got(100)

        received = {d.body: d.properties for d in reader.deliveries}
        assert {m.body: m.properties for m in sent} == received

    async def test_fifty_publishers_and_ten_subscribers_lose_nothing(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        readers = [await Collector().consume(broker, queue) for _ in range(10)]

        async def publisher(first: int) -> None:
            for i in range(first, first + 100):
                assert await broker.publish(message(i, queue), deadline())

        await asyncio.gather(*(publisher(first) for first in range(0, 5000, 100)))
        await eventually(lambda: len({b for r in readers for b in r.bodies}) == 5000, "5,000 distinct bodies")

        assert sum((r.counts for r in readers), Counter[str]()) == Counter(map(str, range(5000)))

    async def test_twenty_topics_in_parallel_are_each_complete(self, bench: Bench) -> None:
        broker, (exchange, prefix) = await bench.connect(), names("x", "q")
        readers: list[Collector] = []
        for topic in range(20):
            await declare_queue(broker, f"{prefix}.{topic}", (exchange, f"topic.{topic}"))
            readers.append(await Collector().consume(broker, f"{prefix}.{topic}"))

        await publish(
            broker, [message(f"{t}-{i}", f"topic.{t}", exchange=exchange) for t in range(20) for i in range(100)]
        )
        await asyncio.gather(*(reader.got(100) for reader in readers))

        assert all(r.counts == Counter(f"{t}-{i}" for i in range(100)) for t, r in enumerate(readers))

    async def test_what_was_given_back_comes_again(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        given_back: list[Delivery] = []

        def first_two_back(delivery: Delivery) -> Verdict:
            if len(given_back) < 2 and not delivery.redelivered:
                given_back.append(delivery)
                return Verdict.REQUEUE
            return Verdict.ACK

        await publish(broker, [message(i, queue) for i in range(100)])
        reader = await Collector(first_two_back).consume(broker, queue)
        await reader.got(102)

        assert Counter(reader.bodies) == Counter([*map(str, range(100)), *(d.body.decode() for d in given_back)])

    async def test_no_second_delivery_before_the_first_is_settled(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(i, queue) for i in range(2)])

        reader = await Collector(lambda _: None).consume(broker, queue, prefetch=1)
        await reader.got(1)
        await asyncio.sleep(0.1)  # Watermill's own: nothing more may come in this time
        before = list(reader.bodies)
        reader.settle(reader.deliveries[0])
        await reader.got(2)

        assert (before, reader.bodies) == (["0"], ["0", "1"])

    async def test_subscribers_one_after_the_other_see_everything(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(i, queue) for i in range(1000)])
        seen: set[str] = set()

        for _ in range(5):
            reader = await Collector(_hundred_acks()).consume(broker, queue, prefetch=20)
            await reader.got(120)
            await reader.close()
            seen.update(reader.bodies[:100])
        last = await Collector().consume(broker, queue)
        await last.got(500)

        assert seen | set(last.bodies) == set(map(str, range(1000)))

    async def test_ten_clients_stop_at_once_and_the_next_one_works(self, bench: Bench) -> None:
        clients, (queue,) = [await bench.connect() for _ in range(10)], names("q")
        await declare_queue(clients[0], queue)
        for client in clients:
            await Collector().consume(client, queue)

        await asyncio.gather(*(client.stop(deadline(5)) for client in clients))
        broker = await bench.connect()
        await publish(broker, [message(i, queue) for i in range(50)])
        reader = await Collector().consume(broker, queue)
        await reader.got(50)

        assert reader.counts == Counter(map(str, range(50)))

    async def test_many_failures_lose_nothing(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(i, queue) for i in range(50)])

        for _ in range(3):
            failing = await Collector(lambda _: Verdict.REQUEUE).consume(broker, queue, prefetch=10)
            await failing.got(100)
            await failing.close()
        reader = await Collector().consume(broker, queue)
        await reader.got(50)

        assert reader.counts == Counter(map(str, range(50)))

    async def test_one_worker_receives_in_order(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)

        for i in range(0, 1000, 100):
            await publish(broker, [message(j, queue) for j in range(i, i + 100)])
        reader = await Collector().consume(broker, queue, prefetch=50)
        await reader.got(1000)

        assert reader.bodies == list(map(str, range(1000)))

    async def test_what_was_published_before_stopping_is_stored(self, bench: Bench) -> None:
        publisher, (queue,) = await bench.connect(), names("q")
        await declare_queue(publisher, queue)

        await publish(publisher, [message(i, queue) for i in range(10_000)])
        await publisher.stop(deadline(5))
        reader = await Collector().consume(await bench.connect(), queue, prefetch=500)
        await reader.got(10_000, distinct=True)

        assert reader.counts == Counter(map(str, range(10_000)))

    async def test_topics_are_isolated(self, bench: Bench) -> None:
        broker, (exchange, one, other) = await bench.connect(), names("x", "one", "other")
        await declare_queue(broker, one, (exchange, "one"))
        await declare_queue(broker, other, (exchange, "other"))
        readers = [await Collector().consume(broker, one), await Collector().consume(broker, other)]

        await publish(broker, [message(key, key, exchange=exchange) for key in ("one", "other")])
        await asyncio.gather(*(reader.got(1) for reader in readers))

        assert [r.bodies for r in readers] == [["one"], ["other"]]

    async def test_what_a_closed_subscriber_left_unsettled_comes_to_the_next(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(i, queue) for i in range(20)])
        leaving = await Collector(lambda _: None).consume(broker, queue)
        await leaving.got(20)

        await leaving.close()
        reader = await Collector().consume(broker, queue)
        await reader.got(20)

        assert reader.counts == Counter(map(str, range(20)))
        assert all(d.redelivered for d in reader.deliveries)

    async def test_a_new_subscriber_receives_what_was_there_before_it(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(i, queue) for i in range(100)])

        reader = await Collector().consume(broker, queue)
        await reader.got(100)

        assert reader.bodies == list(map(str, range(100)))

    async def test_broken_connections_lose_nothing_that_was_confirmed(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        reader = await Collector().consume(broker, queue)

        async def publisher(first: int) -> None:
            for i in range(first, first + 100):
                assert await broker.publish(message(i, queue), deadline(60))

        publishers = asyncio.gather(*(publisher(first) for first in range(0, 10_000, 100)))
        for third in (3_000, 6_000):
            await reader.got(third, distinct=True, seconds=60)
            await bench.break_connections()
        await publishers
        await reader.got(10_000, distinct=True, seconds=60)

        assert set(reader.counts) == set(map(str, range(10_000)))

    async def test_each_group_receives_everything(self, bench: Bench) -> None:
        broker, (exchange, one, other) = await bench.connect(), names("x", "one", "other")
        await declare_queue(broker, one, (exchange, "#"))
        await declare_queue(broker, other, (exchange, "#"))
        readers = [await Collector().consume(broker, one), await Collector().consume(broker, other)]

        await publish(broker, [message(i, "any.key", exchange=exchange) for i in range(50)])
        await asyncio.gather(*(reader.got(50) for reader in readers))

        assert all(r.counts == Counter(map(str, range(50))) for r in readers)


def _hundred_acks() -> Callable[[Delivery], Verdict | None]:
    """Return what acknowledges a hundred deliveries, and settles no more."""
    verdicts = chain([Verdict.ACK] * 100, repeat(None))
    return lambda _: next(verdicts)
