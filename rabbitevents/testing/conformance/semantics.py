"""What RabbitMQ promises besides, and the house relies on: windows, dead letters, confirms, delays, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from functools import partial

import msgspec
import pytest

from rabbitevents.brokers import Broker, Verdict
from rabbitevents.errors import EncodeError, RefusedError
from rabbitevents.message import Delivery, Message
from rabbitevents.publishing.delay import Delays
from rabbitevents.states import Depth
from rabbitevents.testing.bench import Bench, Collector, deadline, declare_queue, eventually, message, names, publish
from rabbitevents.topology import DELAY_DUE, Binding, Exchange, Queue, Topology, base, due_exchange, quorum


class TestingSemantics:
    """What RabbitMQ promises besides, and the house relies on."""

    __test__ = False

    async def test_a_confirm_means_stored(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)

        assert await broker.publish(message(1, queue), deadline())
        await bench.break_connections()
        reader = await Collector().consume(await bench.connect(), queue)
        await reader.got(1)

        assert reader.bodies == ["1"]

    async def test_what_no_queue_is_bound_for_is_returned(self, bench: Bench) -> None:
        broker, (exchange, queue) = await bench.connect(), names("x", "q")
        await declare_queue(broker, queue, (exchange, "bound"))

        keys = ["bound", "free"] * 50
        routed = await asyncio.gather(
            *(broker.publish(message("same", k, exchange=exchange), deadline()) for k in keys)
        )

        assert routed == [key == "bound" for key in keys]

    async def test_a_redelivery_is_marked_and_counted(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(1, queue)])
        leaving = await Collector(lambda _: None).consume(broker, queue)
        await leaving.got(1)

        await leaving.close()
        reader = await Collector().consume(broker, queue)
        await reader.got(1)

        first, again = leaving.deliveries[0], reader.deliveries[0]
        assert (first.redelivered, first.delivery_count) == (False, 0)
        assert (again.redelivered, again.delivery_count) == (True, 1)

    async def test_the_window_is_respected_and_moves_on(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message("opens the window", queue)])
        reader = await Collector(lambda _: None).consume(broker, queue, prefetch=7)
        await reader.got(1)
        await asyncio.sleep(0.1)  # for the window to open
        reader.settle(reader.deliveries[0])

        await publish(broker, [message(i, queue) for i in range(100)])
        await reader.got(8)
        await asyncio.sleep(0.1)  # nothing more may come in this time
        window = len(reader.deliveries) - 1
        for delivery in list(reader.deliveries[1:4]):
            reader.settle(delivery)
        await reader.got(11)
        await asyncio.sleep(0.1)

        assert (window, len(reader.deliveries) - 1) == (7, 10)

    async def test_the_window_is_one_wide_until_a_delivery_is_trusted(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(i, queue) for i in range(20)])

        def from_the_third(delivery: Delivery) -> bool:
            return delivery.body == b"2"

        reader = await Collector(lambda _: None).consume(broker, queue, prefetch=10, trusted=from_the_third)
        for expected in (1, 2):
            await reader.got(expected)
            await asyncio.sleep(0.1)  # nothing more may come in this time
            assert len(reader.deliveries) == expected
            reader.settle(reader.deliveries[-1])
        await reader.got(12)

        assert reader.bodies[:12] == list(map(str, range(12)))

    async def test_competing_consumers_share_and_none_is_served_twice(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        readers = [await Collector(lambda _: None).consume(broker, queue, prefetch=10) for _ in range(3)]

        await publish(broker, [message(i, queue) for i in range(30)])
        await eventually(lambda: sum(len(reader.deliveries) for reader in readers) >= 30, "30 deliveries")

        assert sorted(int(b) for r in readers for b in r.bodies) == list(range(30))

    async def test_acknowledged_out_of_order_nothing_comes_twice(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(i, queue) for i in range(100)])
        reader = await Collector(lambda _: None).consume(broker, queue)
        await reader.got(100)

        order = [*reader.deliveries[1::2], *reversed(reader.deliveries[0::2])]
        for number, delivery in enumerate(order):
            assert reader.settle(delivery)
            if number % 10 == 0:
                await asyncio.sleep(0)
        await reader.close()
        await publish(broker, [message("last", queue)])
        after = await Collector().consume(broker, queue)
        await after.got(1)

        assert after.bodies == ["last"]

    async def test_what_waited_too_long_is_dead_lettered_by_key(self, bench: Bench) -> None:
        broker, (dead, queue, grave, other) = await bench.connect(), names("x", "q", "grave", "other")
        await _with_graves(broker, dead, {queue: grave, other: f"{grave}.other"})
        await declare_queue(broker, queue, **_dying(dead, queue), message_ttl=200)

        await publish(broker, [message(1, queue)])
        reader = await Collector().consume(broker, grave)
        await reader.got(1)

        assert reader.bodies == ["1"]
        assert reader.deliveries[0].headers["x-first-death-reason"] == "expired"

    async def test_what_was_rejected_is_dead_lettered_by_key(self, bench: Bench) -> None:
        broker, (dead, queue, grave, other) = await bench.connect(), names("x", "q", "grave", "other")
        await _with_graves(broker, dead, {queue: grave, other: f"{grave}.other"})
        await declare_queue(broker, queue, **_dying(dead, queue))
        await publish(broker, [message(1, queue)])

        await Collector(lambda _: Verdict.REJECT).consume(broker, queue)
        reader = await Collector().consume(broker, grave)
        elsewhere = await Collector().consume(broker, f"{grave}.other")
        await reader.got(1)

        assert (reader.bodies, elsewhere.bodies) == (["1"], [])
        assert reader.deliveries[0].headers["x-first-death-reason"] == "rejected"

    async def test_what_came_back_too_often_is_dead_lettered(self, bench: Bench) -> None:
        broker, (dead, queue, grave) = await bench.connect(), names("x", "q", "grave")
        await _with_graves(broker, dead, {queue: grave})
        await declare_queue(broker, queue, **_dying(dead, queue), delivery_limit=3)
        await publish(broker, [message(1, queue)])
        rounds = 0

        reader = await Collector().consume(broker, grave)
        while not reader.deliveries and rounds < 10:
            holding = await Collector(lambda _: None).consume(broker, queue)
            either = (holding, reader)
            await eventually(partial(_any_delivery, either), "a delivery or a dead letter")
            rounds += bool(holding.deliveries)
            await holding.close()
            if rounds >= 4:
                await reader.got(1)

        assert (rounds, reader.bodies) == (4, ["1"])
        assert reader.deliveries[0].headers["x-first-death-reason"] == "delivery_limit"

    async def test_a_full_queue_refuses(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue, max_length=1, overflow="reject-publish")

        publishes = [broker.publish(message(i, queue), deadline()) for i in range(50)]
        results = await asyncio.gather(*publishes, return_exceptions=True)
        after = await asyncio.gather(
            *(broker.publish(message(i, queue), deadline()) for i in range(20)), return_exceptions=True
        )

        assert {type(result) for result in results} <= {bool, RefusedError}  # RabbitMQ lets in what is on its way
        assert {type(result) for result in after} == {RefusedError}

    async def test_stale_settlements_do_nothing(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(1, queue)])
        reader = await Collector(lambda _: None).consume(broker, queue)
        await reader.got(1)
        stale, consumer = reader.deliveries[0], reader.consumer
        assert consumer is not None

        await bench.break_connections()
        await reader.got(2)

        assert stale.stale
        assert not reader.settle(stale)
        assert not reader.deliveries[1].stale
        assert reader.settle(reader.deliveries[1])

    async def test_a_cancelled_consumption_settles_what_it_has_and_can_resume(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(1, queue)])
        reader = await Collector(lambda _: None).consume(broker, queue)
        await reader.got(1)
        assert reader.consumer is not None

        await reader.consumer.cancel()
        await publish(broker, [message(2, queue)])
        assert reader.settle(reader.deliveries[0])
        await asyncio.sleep(0.1)  # nothing may come in this time
        while_cancelled = list(reader.bodies)
        await reader.consumer.resume()
        await reader.got(2)

        assert (while_cancelled, reader.bodies) == (["1"], ["1", "2"])

    async def test_an_alternate_exchange_takes_what_nobody_is_bound_for(self, bench: Bench) -> None:
        broker, (main, spare, queue) = await bench.connect(), names("main", "spare", "q")
        parts = (
            Exchange(spare, "fanout"),
            Queue(queue, quorum(delivery_limit=100)),
            Binding(spare, queue, ""),
            Exchange(main, "direct", {"alternate-exchange": spare}),
        )
        assert not await broker.declare(Topology(parts))

        await publish(broker, [message(1, "nobody", exchange=main)])
        reader = await Collector().consume(broker, queue)
        await reader.got(1)

        assert reader.bodies == ["1"]

    async def test_declaring_again_changes_nothing_and_otherwise_is_refused_by_name(self, bench: Bench) -> None:
        broker, (queue, missing) = await bench.connect(), names("q", "missing")
        await declare_queue(broker, queue, delivery_limit=5)

        again = await broker.declare(Topology((Queue(queue, quorum(delivery_limit=5)),)))
        otherwise = await broker.declare(Topology((Queue(queue, quorum(delivery_limit=6)),)))
        looked = await broker.declare(Topology((Queue(queue), Queue(missing))), passive=True)

        assert again == {}
        assert (list(otherwise), otherwise[queue].code) == ([queue], 406)
        assert (list(looked), looked[missing].code) == ([missing], 404)

    async def test_a_look_says_how_many_are_ready_and_how_many_consume(self, bench: Bench) -> None:
        broker, (queue, missing) = await bench.connect(), names("q", "missing")
        await declare_queue(broker, queue)
        await publish(broker, [message(i, queue) for i in range(10)])

        await _has(broker, queue, Depth(10, 0))
        reader = await Collector().consume(broker, queue)
        await reader.got(10)
        await _has(broker, queue, Depth(0, 1))

        assert await broker.depth(missing) is None

    async def test_one_bad_publish_is_refused_and_its_neighbours_are_confirmed(self, bench: Bench) -> None:
        broker, (queue, missing) = await bench.connect(), names("q", "missing")
        await declare_queue(broker, queue)
        bad = broker.publish(message("bad", "key", exchange=missing), deadline())
        good = [broker.publish(message(i, queue), deadline()) for i in range(100)]

        results = await asyncio.gather(*good[:50], bad, *good[50:], return_exceptions=True)
        reader = await Collector().consume(broker, queue)
        await reader.got(100, distinct=True)

        assert isinstance(results.pop(50), RefusedError)
        assert results == [True] * 100

    async def test_what_cannot_be_sent_is_refused_before_anything_is_written(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        too_large = msgspec.structs.replace(message(1, queue), body=bytes(1_048_577))

        for hopeless in (too_large, message(1, "k" * 256), message(1, queue, headers={"h": "x" * 70_000})):
            with pytest.raises(EncodeError):
                await broker.publish(hopeless, deadline())
        assert await broker.publish(message(2, queue), deadline())

    async def test_a_large_body_arrives_whole(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        body = bytes(range(256)) * 4000  # eight frames

        await publish(
            broker, [msgspec.structs.replace(message(i, queue), body=body[: len(body) // (i + 1)]) for i in range(3)]
        )
        reader = await Collector().consume(broker, queue)
        await reader.got(3)

        assert [d.body for d in reader.deliveries] == [body, body[: len(body) // 2], body[: len(body) // 3]]

    async def test_an_empty_body_arrives(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)

        await publish(broker, [msgspec.structs.replace(message(i, queue), body=b"") for i in range(3)])
        reader = await Collector().consume(broker, queue)
        await reader.got(3)

        assert [(d.body, d.properties.message_id) for d in reader.deliveries] == [(b"", "0"), (b"", "1"), (b"", "2")]

    async def test_an_exchange_of_somebody_else_s_is_looked_for_and_never_declared(self, bench: Bench) -> None:
        broker, (queue, exchange) = await bench.connect(), names("q", "x")
        wanted = Topology((Queue(queue), Exchange(exchange, None), Binding(exchange, queue, "k")))

        missing = await broker.declare(wanted)
        theirs = await bench.connect()
        await theirs.declare(Topology((Exchange(exchange, "direct"),)))
        found = await broker.declare(wanted)

        assert {name: error.code for name, error in missing.items()} == {exchange: 404, queue: 404}
        assert all(repr(exchange) in str(error) for error in missing.values())
        assert found == {}
        assert await broker.publish(message(1, "k", exchange=exchange), deadline())

    async def test_a_copy_that_waits_comes_back_to_its_queue_in_time(self, bench: Bench) -> None:
        broker, (exchange, queue) = await bench.connect(), names("x", "q")
        delays = await _with_delays(broker, exchange, queue)
        started = asyncio.get_running_loop().time()

        waiting = msgspec.structs.replace(message(1, queue), after=timedelta(seconds=0.9))
        assert await delays.publish(waiting, deadline())
        reader = await Collector().consume(broker, queue)
        await reader.got(1)

        took = asyncio.get_running_loop().time() - started
        assert reader.bodies == ["1"]
        assert 0.9 <= took <= 0.9 * 1.1 + 1

    async def test_a_delayed_event_goes_to_whoever_is_bound(self, bench: Bench) -> None:
        broker, (exchange, queue) = await bench.connect(), names("x", "q")
        delays = await _with_delays(broker, exchange, queue, "later.*")

        for key in ("later.on", "nobody.cares"):
            assert await delays.publish(
                msgspec.structs.replace(message(key, key, exchange=exchange), after=timedelta(seconds=0.5)), deadline()
            )
        reader = await Collector().consume(broker, queue)
        lost = await Collector().consume(broker, "delay.lost")
        await reader.got(1)
        await lost.got(1)

        assert (reader.bodies, lost.bodies) == (["later.on"], ["nobody.cares"])

    async def test_a_vanished_queue_wedges_no_other_copies(self, bench: Bench) -> None:
        broker, (exchange, queue, gone) = await bench.connect(), names("x", "q", "gone")
        delays = await _with_delays(broker, exchange, queue)

        def waits(number: int | str, for_queue: str) -> Message:
            return msgspec.structs.replace(message(number, for_queue), after=timedelta(seconds=0.5))

        await asyncio.gather(*(delays.publish(waits(f"lost {i}", gone), deadline()) for i in range(40)))
        await delays.publish(waits("found", queue), deadline())
        reader = await Collector().consume(broker, queue)
        await reader.got(1)

        assert reader.bodies == ["found"]


def _any_delivery(readers: Iterable[Collector]) -> bool:
    return any(reader.deliveries for reader in readers)


def _dying(exchange: str, key: str) -> dict[str, str]:
    return {
        "dead_letter_exchange": exchange,
        "dead_letter_routing_key": key,
        "dead_letter_strategy": "at-least-once",
        "overflow": "reject-publish",
    }


async def _with_graves(broker: Broker, exchange: str, graves: dict[str, str]) -> None:
    """Declare a direct dead letter exchange, and a queue for the dead letters of each key."""
    parts: list[Exchange | Queue | Binding] = [Exchange(exchange, "direct")]
    for key, grave in graves.items():
        parts += [Queue(grave, quorum(delivery_limit=1_000_000)), Binding(exchange, grave, key)]
    assert not await broker.declare(Topology(tuple(parts)))


async def _with_delays(broker: Broker, exchange: str, queue: str, pattern: str = "unused") -> Delays:
    """Declare what delays need for one consumer queue."""
    assert not await broker.declare(base(exchange))
    await declare_queue(broker, queue)
    assert not await broker.declare(
        Topology((Binding(DELAY_DUE, queue, queue), Binding(due_exchange(exchange), queue, pattern)))
    )
    return Delays(broker, exchange, passive=False)


async def _has(broker: Broker, queue: str, wanted: Depth) -> None:
    """Wait until a look at a queue says so: what was confirmed may be counted a moment later."""
    async with asyncio.timeout(10):
        seen = await broker.depth(queue)
        while seen != wanted:
            await asyncio.sleep(0.01)
            seen = await broker.depth(queue)
