"""The embedded broker by itself: its ways, what dies in it, and what publishers forge. (Both brokers: the suite.)"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from decimal import Decimal
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rabbitevents.brokers import Settings, Verdict
from rabbitevents.brokers.embedded.bindings import Bindings
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.brokers.embedded.client import MemoryClient
from rabbitevents.brokers.embedded.deaths import after_death, death, history, is_cycle
from rabbitevents.errors import BrokerError, EncodeError
from rabbitevents.properties import Headers, HeaderValue, Properties, decode_properties, encode_properties
from rabbitevents.testing.bench import Collector, deadline, eventually, message
from rabbitevents.topics import matches
from rabbitevents.topology import Binding, Exchange, Queue, Topology
from rabbitevents.wire import Limits


@pytest.fixture
def server() -> EmbeddedBroker:
    return EmbeddedBroker()


@pytest.fixture
async def client(server: EmbeddedBroker) -> AsyncIterator[MemoryClient]:
    client = server.client()
    await client.start(Settings(), None)
    yield client
    await client.stop(deadline(1))
    server.clock.stop()


# --- where a message goes ---

WORDS = st.sampled_from(["a", "b", "*", "#", ""])
KEYS = st.lists(WORDS, max_size=4).map(".".join)
EXCHANGES = [Exchange("topic", "topic"), Exchange("direct", "direct"), Exchange("fanout", "fanout")]
BINDINGS = st.builds(Binding, st.sampled_from(["topic", "direct", "fanout"]), st.sampled_from("pqr"), KEYS)


def found_one_by_one(bindings: Iterable[Binding], exchange: Exchange, key: str) -> set[str]:
    fits: dict[str, Callable[[str], bool]] = {
        "topic": lambda bound: matches(bound, key),
        "direct": lambda bound: bound == key,
        "fanout": lambda _: True,
    }
    return {b.queue for b in bindings if b.exchange == exchange.name and fits[str(exchange.kind)](b.routing_key)}


@given(added=st.lists(BINDINGS, max_size=12), removed=st.sets(st.integers(0, 11)), key=KEYS)
@example(added=[Binding("fanout", "p", "a"), Binding("fanout", "p", "b")], removed={0}, key="c")
@example(added=[Binding("topic", "p", "a*")], removed=set(), key="ab")
def test_what_is_found_by_key_is_what_is_found_one_by_one(added: list[Binding], removed: set[int], key: str) -> None:
    bindings, by_name = Bindings(), {exchange.name: exchange for exchange in EXCHANGES}
    fresh = [bindings.add(binding, by_name[binding.exchange]) for binding in added]
    for binding in {added[number] for number in removed if number < len(added)}:
        bindings.remove(binding)

    assert sum(fresh) == len(set(added))
    for exchange in EXCHANGES:
        assert set(bindings.lead(exchange, key)) == found_one_by_one(bindings, exchange, key)


def seconds_of(routing: Callable[[], object], times: int = 300) -> float:
    best = float("inf")
    for _ in range(5):
        began = process_time()
        for _ in range(times):
            routing()
        best = min(best, process_time() - began)
    return best / times


@pytest.mark.parametrize("kind", ["topic", "direct"])
async def test_an_exact_key_costs_the_same_among_a_thousand(server: EmbeddedBroker, kind: str) -> None:
    server.declare(Exchange("x", "topic" if kind == "topic" else "direct"), passive=False)
    server.declare(Queue("q"), passive=False)
    server.declare(Binding("x", "q", "key.0"), passive=False)
    among_one = seconds_of(lambda: server.route("x", ["key.0"]))

    server.declare_all([Binding("x", "q", f"key.{number}") for number in range(5_000)], passive=False)
    among_thousands = seconds_of(lambda: server.route("x", ["key.0"]))

    assert among_thousands < 5 * among_one + 5e-6


async def test_declaring_costs_as_much_as_there_is_to_declare(client: MemoryClient, server: EmbeddedBroker) -> None:
    def parts(number: int) -> list[Exchange | Queue | Binding]:
        queues = [f"q.{i}" for i in range(number)]
        return [Exchange("x", "topic"), *map(Queue, queues), *(Binding("x", queue, queue) for queue in queues)]

    few, many = Topology(tuple(parts(100))), Topology(tuple(parts(5_000)))
    await client.declare(few)

    began = process_time()
    assert await client.declare(many) == {}
    first = process_time() - began
    assert await client.declare(many) == {}
    again = process_time() - began - first

    assert (len(server.queues), len(server.bindings)) == (5_000, 5_000)
    assert max(first, again) < 2  # 0.05 s where nothing else runs; looking for each in a list took 40 s


async def test_alternate_exchanges_are_followed_to_the_last(server: EmbeddedBroker) -> None:
    names = [f"x.{number}" for number in range(10)]
    ways = [Exchange(one, "topic", {"alternate-exchange": other}) for one, other in pairwise(names)]
    server.declare_all([*ways, Exchange(names[-1], "fanout"), Queue("q"), Binding(names[-1], "q", "")], passive=False)

    assert [queue.name for queue in server.route(names[0], ["key"])] == ["q"]


async def test_what_was_bound_to_a_queue_that_nobody_declares_again_leads_nowhere(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    server.declare_all(
        [Exchange("x", "topic"), Queue("q"), Binding("x", "q", "key"), Binding("x", "q", "#")], passive=False
    )

    server.delete_queue("q")

    assert not await client.publish(message(1, "key", exchange="x"), deadline())
    assert len(server.bindings) == 0


async def test_whoever_waits_for_a_queue_gets_it_once_somebody_declares_it(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    refused = await client.declare(Topology((Queue("q"),)), passive=True)
    reader = await Collector().consume(client, "q")
    waiting = [check.ok for check in client.health()]

    other = server.client()
    await other.start(Settings(), None)
    await other.declare(Topology((Queue("q"),)))
    await other.publish(message(1, "q"), deadline())
    await reader.got(1)

    assert (list(refused), waiting) == (["q"], [True, False])
    assert all(check.ok for check in client.health())
    await other.stop(deadline(1))


async def test_a_queue_that_is_otherwise_there_is_consumed_once_it_is_as_it_should_be(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    server.declare(Queue("q", {"x-max-length": 5}), passive=False)
    assert list(await client.declare(Topology((Queue("q"),)))) == ["q"]
    reader = await Collector().consume(client, "q")
    assert reader.consumer is not None
    server.drop_connections()
    mismatched = reader.consumer.running

    server.delete_queue("q")

    assert (mismatched, reader.consumer.running) == (False, True)
    assert all(check.ok for check in client.health())


async def test_what_is_wanted_while_the_broker_is_down_comes_with_the_broker(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    await client.declare(Topology((Queue("q"),)))
    consumer = (await Collector().consume(client, "q")).consumer
    assert consumer is not None

    server.go_down()
    await consumer.cancel()
    await consumer.resume()
    down = (consumer.running, server.queues["q"].readers)
    server.come_up()

    assert down == (False, 0)
    assert (consumer.running, server.queues["q"].readers) == (True, 1)


async def test_a_deleted_queue_takes_its_messages_and_bindings_with_it(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    parts = (
        Exchange("dx", "fanout"),
        Queue("grave"),
        Binding("dx", "grave", ""),
        Queue("q", {"x-message-ttl": 30, "x-dead-letter-exchange": "dx", "x-delivery-limit": 0}),
        Exchange("x", "topic"),
        Binding("x", "q", "key"),
        Binding("x", "q", "#"),
    )
    await client.declare(Topology(parts))
    reader = await Collector(lambda _: None).consume(client, "q", prefetch=1)
    for number in (1, 2):
        await client.publish(message(number, "q"), deadline())
    await reader.got(1)
    old = server.queues["q"]

    server.delete_queue("q")
    await asyncio.sleep(0.06)  # what waited would have died by now

    assert server.queues["grave"].ready == 0
    assert (old.ready, old.readers) == (0, 0)
    assert server.queues["q"] is not old  # the client has declared it again, and consumes
    assert await client.publish(message(3, "key", exchange="x"), deadline())
    await reader.got(2)
    assert (reader.bodies, reader.deliveries[0].stale) == (["1", "3"], True)


# --- what died before ---

NAMES = st.sampled_from(["q", "grave", "other"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.just(Decimal("1.5")),
    NAMES,
)
VALUES: st.SearchStrategy[HeaderValue] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
FORGED_DEATHS = st.fixed_dictionaries(
    {}, optional={"queue": NAMES | LEAVES, "reason": st.sampled_from(["expired", "rejected"]) | LEAVES, "count": VALUES}
)
FORGED = VALUES | st.lists(FORGED_DEATHS | VALUES, max_size=4)


def died(headers: Headers, queue: str = "q", reason: str = "expired") -> Headers:
    noted = death(queue, reason, exchange="", routing_keys=[queue], date=0, expiration=None)
    return after_death(headers, noted)


@given(forged=FORGED)
@example(forged=["x"])
@example(forged=[{"queue": "q", "reason": "expired", "count": "x"}])
@example(forged=[{"queue": "q", "reason": "expired", "count": 2**63 - 1}])
def test_whatever_a_publisher_forged_a_death_is_noted_and_can_be_sent(forged: HeaderValue) -> None:
    headers = died(died({"x-death": forged}), "other")

    assert [each.get("queue") for each in history(headers)][:2] == ["other", "q"] or is_cycle(headers, "q")
    assert len({repr((d.get("queue"), d.get("reason"))) for d in history(headers)[:2]}) == 2
    properties = Properties(headers=headers)
    assert decode_properties(encode_properties(properties)) == properties


@given(way=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["expired", "maxlen", "rejected"])), max_size=6))
def test_a_way_round_is_a_circle_where_nobody_rejected_on_it(way: list[tuple[str, str]]) -> None:
    headers: Headers = {}
    for queue, reason in way:
        headers = died(headers, queue, reason)
    since = {(queue, reason): number for number, (queue, reason) in enumerate(way)}

    for queue in "abc":
        visits = [number for (there, _), number in since.items() if there == queue]
        on_the_way = {reason for (_, reason), number in since.items() if visits and number >= max(visits)}
        assert is_cycle(headers, queue) is (bool(visits) and "rejected" not in on_the_way)


async def test_the_same_death_counts_and_another_one_is_put_first() -> None:
    headers = died(died(died({}), "other", "rejected"))

    assert [(each["queue"], each["reason"], each["count"]) for each in history(headers)] == [
        ("q", "expired", 2),
        ("other", "rejected", 1),
    ]
    assert (headers["x-first-death-queue"], headers["x-first-death-reason"]) == ("q", "expired")


def test_a_forged_first_death_stands_only_beside_a_forged_history() -> None:
    forged = {"x-first-death-reason": "forged"}

    assert died(forged)["x-first-death-reason"] == "expired"
    assert died({**forged, "x-death": "junk"})["x-first-death-reason"] == "forged"


CRASHING: list[HeaderValue] = [["x"], ["x", {"queue": "q", "reason": "expired", "count": "x"}], [["x"]], [5, None]]


@pytest.mark.parametrize("forged", CRASHING, ids=repr)
async def test_what_crashes_a_queue_of_310_is_dead_lettered_here(client: MemoryClient, forged: HeaderValue) -> None:
    mortal = Queue("q", {"x-message-ttl": 10, "x-dead-letter-exchange": "dx"})
    await client.declare(Topology((Exchange("dx", "fanout"), Queue("grave"), Binding("dx", "grave", ""), mortal)))

    await client.publish(message(1, "q", headers={"x-death": forged}), deadline())
    reader = await Collector().consume(client, "grave")
    await reader.got(1)

    assert [each["queue"] for each in history(reader.deliveries[0].headers)] == ["q"]


async def test_a_circle_of_dead_letters_ends_though_somebody_rejected_before_it(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    def leads_to(key: str) -> dict[str, str | int | bool]:
        return {"x-message-ttl": 20, "x-dead-letter-exchange": "dx", "x-dead-letter-routing-key": key}

    parts = (Queue("source", leads_to("one")), Queue("one", leads_to("other")), Queue("other", leads_to("one")))
    bound = tuple(Binding("dx", queue, queue) for queue in ("one", "other"))
    await client.declare(Topology((Exchange("dx", "direct"), *parts, *bound)))
    await client.publish(message(1, "source"), deadline())
    reader = await Collector(lambda _: Verdict.REJECT).consume(client, "source")
    await reader.got(1)

    await eventually(lambda: server.queues["other"].ready == 1, "the first half of the way round")
    await eventually(lambda: server.queues["other"].ready == 0, "the second half")

    assert server.queues["one"].ready == 0


async def test_at_least_once_a_dead_letter_in_a_circle_stays_where_it_died(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    arguments: dict[str, str | int | bool] = {
        "x-message-ttl": 10,
        "x-dead-letter-exchange": "dx",
        "x-dead-letter-strategy": "at-least-once",
    }
    await client.declare(Topology((Exchange("dx", "fanout"), Queue("q", arguments), Binding("dx", "q", ""))))

    await client.publish(message(1, "q"), deadline())
    await eventually(lambda: not server.queues["q"].ready, "it to die")

    assert len(server.queues["q"].stuck) == 1


async def test_dead_letters_that_had_nowhere_to_go_leave_when_there_is_a_binding(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    arguments: dict[str, str | int | bool] = {
        "x-message-ttl": 10,
        "x-dead-letter-exchange": "dx",
        "x-dead-letter-strategy": "at-least-once",
    }
    await client.declare(Topology((Exchange("dx", "fanout"), Queue("q", arguments), Queue("grave"))))
    await client.publish(message(1, "q"), deadline())
    await eventually(lambda: bool(server.queues["q"].stuck), "it to die")

    await client.declare(Topology((Binding("dx", "grave", ""),)))

    assert (server.queues["grave"].ready, server.queues["q"].stuck) == (1, [])


# --- what cannot be sent, or asked ---


async def test_headers_that_fit_no_frame_are_refused_whatever_the_limit() -> None:
    server = EmbeddedBroker()
    client = server.client()
    await client.start(Settings(limits=Limits(headers=10_000_000)), None)
    await client.declare(Topology((Queue("q"),)))

    with pytest.raises(EncodeError, match="frames hold"):
        await client.publish(message(1, "q", headers={"h": "x" * 131_072}), deadline())

    assert await client.publish(message(1, "q", headers={"h": "x" * 130_000}), deadline())
    await client.stop(deadline(1))


async def test_while_the_broker_is_down_nothing_can_be_declared_or_seen(
    client: MemoryClient, server: EmbeddedBroker
) -> None:
    server.go_down()

    for call in (client.declare(Topology((Queue("q"),))), client.depth("q")):
        with pytest.raises(BrokerError, match="told to go down"):
            await call

    server.come_up()
    assert await client.declare(Topology((Queue("q"),))) == {}


async def test_a_client_that_starts_again_begins_anew(server: EmbeddedBroker) -> None:
    client = server.client()
    await client.start(Settings(), None)
    server.declare(Queue("other", {"x-max-length": 5}), passive=False)
    await client.declare(Topology((Queue("q"), Queue("gone"), Queue("other"))))
    reader = await Collector().consume(client, "q")
    await client.stop(deadline(1))

    await client.start(Settings(), None)
    names = [check.name for check in client.health()]
    server.delete_queue("gone")
    other = (await Collector().consume(client, "other")).consumer

    assert names == ["connection"]
    assert "gone" not in server.queues
    assert other is not None
    assert other.running
    assert await client.publish(message(1, "q"), deadline())
    assert (reader.deliveries, server.queues["q"].ready) == ([], 1)
    await client.stop(deadline(1))
    assert server.clients == []


async def test_a_start_that_is_cut_off_while_the_broker_is_down_leaves_no_client(server: EmbeddedBroker) -> None:
    server.down = "not there yet"
    starting = asyncio.create_task(server.client().start(Settings(), None))
    await asyncio.sleep(0)

    starting.cancel()
    await asyncio.wait({starting})

    assert starting.cancelled()
    assert server.clients == []
