"""What a publisher, or a mistake, can send and declare: it harms nobody else, and is answered as RabbitMQ does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from rabbitevents.brokers import Broker, Verdict
from rabbitevents.errors import RefusedError
from rabbitevents.message import Message
from rabbitevents.properties import HeaderValue
from rabbitevents.testing.bench import Bench, Collector, deadline, declare_queue, message, names, publish, until_depth
from rabbitevents.topology import Argument, Binding, Exchange, Queue, Topology, quorum


class TestingHostility:
    """Forged headers, properties that mean nothing, circles, and arguments that no queue can have."""

    __test__ = False

    @pytest.mark.parametrize("forged", ["text", 5, True, None, {}, {"queue": "q"}, [], [{}], [{"queue": 5}]], ids=repr)
    async def test_a_forged_history_of_deaths_does_not_keep_a_message_from_dying(
        self, bench: Bench, forged: HeaderValue
    ) -> None:
        broker, (exchange, queue, grave) = await bench.connect(), names("x", "q", "grave")
        await _mortal(broker, exchange, queue, grave)

        await publish(broker, [message(1, queue, headers={"x-death": forged})])
        reader = await Collector().consume(broker, grave)
        await reader.got(1)

        deaths = reader.deliveries[0].headers["x-death"]
        assert isinstance(deaths, Sequence)
        assert isinstance(deaths[0], dict)
        assert (deaths[0]["queue"], deaths[0]["reason"], deaths[0]["count"]) == (queue, "expired", 1)

    @pytest.mark.parametrize("forged", [9, "nine", -4])
    async def test_a_forged_delivery_count_is_the_brokers_own_from_the_second_delivery_on(
        self, bench: Bench, forged: HeaderValue
    ) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        await publish(broker, [message(1, queue, headers={"x-delivery-count": forged})])

        reader = await Collector(lambda _: None).consume(broker, queue)
        await reader.got(1)
        await bench.break_connections()  # what every version counts: from 4.3 on, it does not count a give-back
        await reader.got(2)

        assert [each.redelivered for each in reader.deliveries] == [False, True]
        assert reader.deliveries[1].headers["x-delivery-count"] == 1

    @pytest.mark.parametrize("expiration", ["soon", "", "-1", "5.0", " 5", "5 ", "1_0", "٣", "315360000001", "9" * 40])
    async def test_an_expiration_that_is_no_time_is_refused_and_its_neighbours_are_confirmed(
        self, bench: Bench, expiration: str
    ) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)

        results = await asyncio.gather(
            broker.publish(message("before", queue), deadline()),
            broker.publish(_expiring(queue, expiration), deadline()),
            broker.publish(message("after", queue), deadline()),
            return_exceptions=True,
        )

        assert (results[0], results[2]) == (True, True)
        assert isinstance(results[1], RefusedError)
        assert "406" in str(results[1])

    @pytest.mark.parametrize("expiration", ["0", "-0", "+5", "007"])
    async def test_an_expiration_is_a_whole_number_as_the_broker_reads_one(self, bench: Bench, expiration: str) -> None:
        broker, (exchange, queue, grave) = await bench.connect(), names("x", "q", "grave")
        await _mortal(broker, exchange, queue, grave, message_ttl=600_000)

        assert await broker.publish(_expiring(queue, expiration), deadline())
        reader = await Collector().consume(broker, grave)
        await reader.got(1)

        assert reader.deliveries[0].properties.expiration is None

    async def test_text_that_is_not_utf_8_arrives_as_it_was(self, bench: Bench) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)
        odd = message(1, queue, headers={"odd": "\udcff", "\udcfe": "name", "bytes": b"\xff"})
        odd = msgspec.structs.replace(odd, properties=msgspec.structs.replace(odd.properties, correlation_id="\udcff"))

        await publish(broker, [odd])
        reader = await Collector().consume(broker, queue)
        await reader.got(1)

        assert reader.deliveries[0].properties == odd.properties

    async def test_dead_letters_that_nobody_rejects_go_round_once(self, bench: Bench) -> None:
        broker, (exchange, one, other) = await bench.connect(), names("x", "one", "other")
        await _circle(broker, exchange, one, other, ttl=100)

        await publish(broker, [message(1, one)])
        await until_depth(broker, other, lambda depth: depth.ready == 1, "the first half of the round")
        await asyncio.sleep(0.4)  # more than enough for another round

        assert await _ready(broker, one, other) == (0, 0)

    async def test_dead_letters_that_somebody_rejects_go_round_for_ever(self, bench: Bench) -> None:
        broker, (exchange, one, other) = await bench.connect(), names("x", "one", "other")
        await _circle(broker, exchange, one, other, ttl=50)

        await publish(broker, [message(1, one)])
        reader = await Collector(lambda _: Verdict.REJECT).consume(broker, other)
        await reader.got(4)
        await reader.close()

        assert set(reader.bodies) == {"1"}

    async def test_alternate_exchanges_that_lead_round_in_a_circle_lead_nowhere(self, bench: Bench) -> None:
        broker, (one, other, itself) = await bench.connect(), names("one", "other", "itself")
        circle = (
            Exchange(one, "topic", {"alternate-exchange": other}),
            Exchange(other, "topic", {"alternate-exchange": one}),
            Exchange(itself, "topic", {"alternate-exchange": itself}),
        )
        assert not await broker.declare(Topology(circle))

        routed = [await broker.publish(message(1, "key", exchange=each), deadline()) for each in (one, other, itself)]

        assert routed == [False, False, False]

    async def test_further_routing_keys_are_followed_and_the_blind_ones_are_hidden(self, bench: Bench) -> None:
        broker, (queue, seen, blind) = await bench.connect(), names("q", "seen", "blind")
        for each in (queue, seen, blind):
            await declare_queue(broker, each)

        await publish(broker, [message(1, queue, headers={"CC": [seen, 5, seen, queue], "BCC": [blind]})])
        readers = [await Collector().consume(broker, each) for each in (queue, seen, blind)]
        await asyncio.gather(*(reader.got(1) for reader in readers))

        assert [reader.bodies for reader in readers] == [["1"]] * 3
        assert [list(reader.deliveries[0].headers) for reader in readers] == [["CC"]] * 3

    async def test_a_dead_letter_takes_its_further_keys_along_unless_its_queue_says_the_key(self, bench: Bench) -> None:
        broker, (exchange, one, keyed, copy) = await bench.connect(), names("x", "one", "keyed", "copy")
        mortal: dict[str, Argument] = {"message_ttl": 30, "dead_letter_exchange": exchange}
        parts: tuple[Exchange | Queue | Binding, ...] = (
            Exchange(exchange, "direct"),
            *(Queue(f"{each}.dead", quorum()) for each in (one, keyed, copy)),
            *(Binding(exchange, f"{each}.dead", each) for each in (one, keyed, copy)),
            Queue(one, quorum(**mortal)),
            Queue(keyed, quorum(**mortal, dead_letter_routing_key=keyed)),
        )
        assert not await broker.declare(Topology(parts))
        readers = [await Collector().consume(broker, f"{each}.dead") for each in (one, keyed, copy)]

        await publish(broker, [message(f"from {each}", each, headers={"CC": [copy]}) for each in (one, keyed)])
        await asyncio.gather(*(reader.got(1) for reader in readers))

        assert [reader.bodies for reader in readers] == [[f"from {one}"], [f"from {keyed}"], [f"from {one}"]]
        kept = ["CC" in reader.deliveries[0].headers for reader in readers]
        assert (kept[0], kept[2]) == (True, True)  # by its queue's key, 3.10 leaves them out, 4.0 and 4.3 do not

    @pytest.mark.parametrize("name", ["CC", "BCC"])
    @pytest.mark.parametrize("keys", ["text", 5, None, {}], ids=repr)
    async def test_further_routing_keys_that_are_no_array_are_refused(
        self, bench: Bench, name: str, keys: HeaderValue
    ) -> None:
        broker, (queue,) = await bench.connect(), names("q")
        await declare_queue(broker, queue)

        with pytest.raises(RefusedError, match="406"):
            await broker.publish(message(1, queue, headers={name: keys}), deadline())
        assert await broker.publish(message(2, queue), deadline())

    async def test_a_queue_that_cannot_be_is_refused_by_name_and_the_others_are_declared(self, bench: Bench) -> None:
        broker, (bad, good) = await bench.connect(), names("bad", "good")
        wrong: list[dict[str, Argument]] = [
            {"message_ttl": -1},
            {"message_ttl": "soon"},
            {"max_length": "5"},
            {"overflow": "drop-tail"},
            {"dead_letter_exchange": 5},
            {"dead_letter_routing_key": "a key and no exchange"},
            {"dead_letter_strategy": "sometimes"},
        ]
        queues = [Queue(f"{bad}.{number}", quorum(**arguments)) for number, arguments in enumerate(wrong)]

        refused = await broker.declare(Topology((*queues, Queue("amq.mine", quorum()), Queue(good, quorum()))))

        assert {name: error.code for name, error in refused.items()} == {
            **{queue.name: 406 for queue in queues},
            "amq.mine": 403,
        }
        assert await broker.depth(good) is not None


def _expiring(queue: str, expiration: str) -> Message:
    each = message("expiring", queue)
    return msgspec.structs.replace(each, properties=msgspec.structs.replace(each.properties, expiration=expiration))


async def _mortal(broker: Broker, exchange: str, queue: str, grave: str, *, message_ttl: int = 50) -> None:
    """Declare a queue whose messages die after ``message_ttl`` ms, and the place that they go to."""
    assert not await broker.declare(
        Topology((Exchange(exchange, "fanout"), Queue(grave, quorum()), Binding(exchange, grave, "")))
    )
    await declare_queue(broker, queue, message_ttl=message_ttl, dead_letter_exchange=exchange)


async def _circle(broker: Broker, exchange: str, one: str, other: str, *, ttl: int) -> None:
    """Declare two queues whose dead letters go to each other."""
    parts: list[Exchange | Queue | Binding] = [Exchange(exchange, "direct")]
    for here, there in ((one, other), (other, one)):
        arguments = quorum(message_ttl=ttl, dead_letter_exchange=exchange, dead_letter_routing_key=there)
        parts += [Queue(here, arguments), Binding(exchange, here, here)]
    assert not await broker.declare(Topology(tuple(parts)))


async def _ready(broker: Broker, *queues: str) -> tuple[int, ...]:
    depths = [await broker.depth(queue) for queue in queues]
    return tuple(depth.ready for depth in depths if depth is not None)
