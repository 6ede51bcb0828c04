"""Another team's exchange: queues are bound to it, events are published to it, and it is theirs to declare."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from attrs import frozen

from rabbitevents import (
    Bus,
    ConfigurationError,
    Delivery,
    Event,
    Exchange,
    Message,
    Properties,
    RefusedError,
    Router,
    SyncBus,
    TopologyError,
    UnroutableError,
    event,
)
from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.cli.process import story_of
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents.topology import Kind
from rabbitevents_retry import Retry
from tests.shop import eventually


@event("flight.booked", version=2, oldest=2)
@frozen
class Booked:
    seat: int


@event("flight.cancelled")
@frozen
class Cancelled:
    seat: int


HEADERS: Any = "headers"


def sent(seat: int, key: str = "booking.made", exchange: str = "partner", **properties: Any) -> Message:
    body = b'{"seat": %d}' % seat
    headers = {"event-version": 2}
    return Message(exchange=exchange, routing_key=key, body=body, properties=Properties(headers=headers, **properties))


def seating(*events: Any, **options: Any) -> tuple[Router, list[tuple[int, str]]]:
    """A router with one handler, and the seats and types that it gets."""
    router, seats = Router("desk"), list[tuple[int, str]]()

    @router.on(*(events or (Booked,)), **options)
    async def seat(booked: Event[Booked]) -> None:
        seats.append((booked.payload.seat, booked.type))

    return router, seats


# --- bound ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["topic", "direct", "fanout"])
@pytest.mark.parametrize("key", ["booking.made", "", ["booking.made", "booking.moved"], None], ids=str)
@pytest.mark.parametrize("on", ["memory", "rabbitmq"])
async def test_what_comes_by_the_binding_is_read_as_the_class_where_its_type_says_nothing_known(
    kind: Kind, key: str | list[str] | None, on: str, request: pytest.FixtureRequest
) -> None:
    router, seats = seating(exchange=Exchange("partner", kind), key=key)
    keys = [key] if isinstance(key, str) else key or ["flight.booked"]
    url = "memory://" if on == "memory" else request.getfixturevalue("rabbit_url")

    async with Bus(url, router) as bus:
        for seat, each in enumerate(keys):
            await bus.send(sent(seat, each))
            await bus.send(sent(seat, each, type="Com.Partner.Booked"))
            await bus.send(sent(seat, each, type="flight.booked"))
        await eventually(lambda: len(seats) == 3 * len(keys), "every message")

        assert bus.health().ok
    types = [kind for each in keys for kind in (each, "Com.Partner.Booked", "flight.booked")]
    assert sorted(kind for _, kind in seats) == sorted(types)


async def test_a_fanout_exchange_brings_whatever_the_key(rabbit_url: str) -> None:
    router, seats = seating(exchange=Exchange("partner", "fanout"))

    async with Bus(rabbit_url, router) as bus:
        await bus.send(sent(1, ""))
        await bus.send(sent(2, "any.thing"))
        await eventually(lambda: len(seats) == 2, "both")

    assert sorted(seats) == [(1, ""), (2, "any.thing")]


async def test_a_pattern_is_what_the_queue_is_bound_by() -> None:
    router, types = Router("desk"), list[tuple[str, Any]]()

    @router.on("booking.#", exchange=Exchange("partner", "topic"))
    async def note(booking: Event) -> None:
        types.append((booking.type, booking.payload))

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(sent(1, "booking.made.twice"))
        await probe.bus.publish(Booked(2))
        await probe.settled()

    assert types == [("booking.made.twice", {"seat": 1})]


async def test_a_key_without_an_exchange_binds_to_the_bus_s_own_also_for_what_is_delayed() -> None:
    router, seats = seating(key="legacy.*")

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(sent(1, "legacy.booking", "events"))
        await probe.bus.publish(Booked(2), key="legacy.delayed", delay=timedelta(seconds=1))
        await probe.bus.publish(Booked(3))
        await probe.settled()
        await probe.advance(timedelta(seconds=2))

    assert seats == [(1, "legacy.booking"), (2, "flight.booked")]


async def test_the_bus_s_own_exchange_by_its_name_is_the_bus_s_own() -> None:
    router, seats = seating(exchange="events")

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(Booked(1), delay=timedelta(seconds=1))
        await probe.settled()
        await probe.advance(timedelta(seconds=2))

    assert seats == [(1, "flight.booked")]


async def test_on_a_shared_queue_the_type_decides_and_then_where_it_came_from() -> None:
    router, got = Router("desk"), list[tuple[str, int]]()

    @router.on(Booked, queue="all", exchange=Exchange("partner", "topic"), key="#")
    async def booked(event: Booked) -> None:
        got.append(("booked", event.seat))

    @router.on(Cancelled, queue="all", exchange=Exchange("airline", "fanout"), key="")
    async def cancelled(event: Cancelled) -> None:
        got.append(("cancelled", event.seat))

    @router.on("any.#", queue="all")
    async def anything(delivery: Delivery) -> None:
        got.append(("anything", len(delivery.body)))

    async with running(Bus("memory://", router)) as probe:
        for message in (
            sent(0, "any.thing", "events"),
            sent(1, "any.thing"),
            sent(2, "any.thing", "airline"),
            sent(3, "any.thing", "events"),
            sent(4, "x", "airline", type="flight.booked"),
            sent(5, "x", type="flight.cancelled"),
        ):
            await probe.bus.send(message)
        await probe.settled()

        assert probe.bus.health().ok
    assert got == [("anything", 11), ("booked", 1), ("cancelled", 2), ("anything", 11), ("booked", 4), ("cancelled", 5)]


async def test_what_fails_comes_back_as_from_the_same_exchange() -> None:
    router, seen = Router("desk"), list[tuple[int, str, str]]()

    @router.on(Booked, exchange=Exchange("partner", "fanout"))
    async def seat(booked: Booked, delivery: Delivery) -> None:
        seen.append((delivery.attempt, delivery.exchange, delivery.routing_key))
        if delivery.attempt == 1:
            raise OSError

    async with running(Bus("memory://", router, plugins=[Retry(inline_below=0)])) as probe:
        await probe.bus.send(sent(1, "k"))
        await probe.settled()
        await probe.advance(timedelta(hours=1))

        assert probe.bus.health().ok
    assert seen == [(1, "partner", "k"), (2, "partner", "k")]


# --- missing ------------------------------------------------------------------------------------------------------------


async def declared_there(url: str, exchange: str) -> None:
    """Declare an exchange as another team would."""
    connection = await Connection.open(Address(url), name="partner", heartbeat=0, context=None, timeout=10)
    channel = await connection.channel()
    await channel.exchange_declare(exchange, exchange_type="topic", durable=True)
    await connection.close()


async def test_an_exchange_that_is_not_there_stops_that_subscription_alone_until_it_is(
    rabbit_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    router, seats = seating(exchange="partner", key="booking.#")
    cancelled = list[int]()

    @router.on(Cancelled)
    async def note(event: Cancelled) -> None:
        cancelled.append(event.seat)

    async with Bus(rabbit_url, router) as bus:
        await bus.publish(Cancelled(7))
        await eventually(lambda: cancelled == [7], "the other subscription")
        problems = [f"{check.name}: {check.detail}" for check in bus.health().problems]
        await declared_there(rabbit_url, "partner")
        await eventually(lambda: bus.health().ok, "the exchange to be found")
        await bus.send(sent(1))
        await eventually(lambda: seats == [(1, "booking.made")], "a booking")

    assert len(problems) == 1
    for said in (problems[0], caplog.text):
        assert "exchange 'partner' does not exist" in said
        assert "Exchange('partner', 'topic')" in said
        assert "desk.seat" in said


async def test_the_same_on_the_embedded_broker() -> None:
    router, seats = seating(exchange="partner", key="booking.#")
    broker = EmbeddedBroker()

    async with running(Bus("memory://", router), broker=broker) as probe:
        problems = [check.detail for check in probe.bus.health().problems]
        broker.declare_all([Exchange("partner", "topic")], passive=False)
        await probe.bus.send(sent(1))
        await probe.settled()

        assert probe.bus.health().ok
    assert seats == [(1, "booking.made")]
    assert len(problems) == 1
    assert "exchange 'partner' does not exist" in problems[0]


async def test_an_exchange_is_looked_for_and_never_declared(rabbit_url: str) -> None:
    router, _ = seating(exchange="partner", key="booking.#")
    await declared_there(rabbit_url, "partner")

    async with Bus(rabbit_url, router, declare="active") as bus:
        assert bus.health().ok


async def test_an_exchange_that_is_of_another_kind_is_said_with_both(rabbit_url: str) -> None:
    await declared_there(rabbit_url, "partner")
    router, _ = seating(exchange=Exchange("partner", "fanout"))

    with pytest.raises(TopologyError, match=r"is 'topic', and this bus wants 'fanout'.*its name alone"):
        await Bus(rabbit_url, router).start()


async def test_a_type_that_says_nothing_is_no_class_where_there_are_two() -> None:
    router = Router("desk")

    @router.on(Booked, Cancelled, exchange=Exchange("partner", "fanout"))
    async def either(event: Booked | Cancelled) -> None: ...

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(sent(1, type="Com.Partner.Booked"))
        await eventually(lambda: not probe.bus.health().ok, "the one that nobody can tell")
        (problem,) = probe.bus.health().problems

    assert "knows no event type 'Com.Partner.Booked'; a handler of one class" in problem.detail


@pytest.mark.parametrize("there", [True, False])
async def test_declared_passively_a_missing_exchange_is_said(
    there: bool, rabbit_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    router, _ = seating(exchange=Exchange("partner", "topic"), key="booking.#")
    looking, _ = seating(exchange="partner" if there else "nowhere", key="booking.#")
    async with Bus(rabbit_url, router):
        pass

    async with Bus(rabbit_url, looking, declare="passive") as bus:
        assert bus.health().ok

    assert ("exchange 'nowhere' does not exist" in caplog.text) is not there
    assert "exchange 'partner' does not exist" not in caplog.text


def test_the_story_of_a_bus_says_where_its_events_come_from() -> None:
    router, _ = seating(exchange="partner", key=["booking.#", ""])
    router.on(Cancelled, name="own", key="x")(print)
    router.on(Cancelled, name="plain")(print)

    told = list(story_of(Bus("memory://", router), in_short=False))[1:]

    assert told == [
        "queue desk.seat feeds seat (flight.booked from exchange partner by 'booking.#' '')",
        "queue desk.own feeds own (flight.cancelled from the bus's exchange by 'x')",
        "queue desk.plain feeds plain (flight.cancelled)",
    ]


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exchange": ""}, "default exchange"),
        ({"exchange": 5}, "exchange= is of type int"),
        ({"exchange": "x" * 256}, "longer name than 255 bytes"),
        ({"exchange": Exchange("x", HEADERS)}, "topic, direct, fanout"),
        ({"key": []}, "key= is empty"),
        ({"key": 5}, "key= is of type int"),
        ({"key": b"booking.made"}, "key= is of type bytes"),
        ({"key": ["a", None]}, "key= has one of type NoneType"),
        ({"key": "x" * 256}, "longer than 255 bytes"),
        ({"key": "booking*"}, "would match nothing"),
        ({"exchange": Exchange("p", "topic"), "key": "booking..x"}, "no topic pattern"),
        ({"exchange": Exchange("p", "direct"), "key": "booking.#"}, "direct, and has no patterns"),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_is_written(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Router("desk").on(Booked, **options)


def test_a_pattern_on_a_direct_exchange_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="say key="):
        Router("desk").on("booking.#", exchange=Exchange("p", "direct"))


def test_handlers_that_share_a_queue_may_have_the_same_key_on_two_exchanges_but_not_on_one() -> None:
    router = Router("desk")
    router.on(Booked, name="one", queue="q", exchange="partner", key="#")(print)
    router.on(Cancelled, name="two", queue="q", exchange="airline", key="#")(print)

    with pytest.raises(ConfigurationError, match="exactly one handler"):
        router.on("else.*", name="three", queue="q", exchange="airline", key="x.y")(print)


# --- published --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["topic", "direct", "fanout"])
@pytest.mark.parametrize("key", ["booking.made", None])
async def test_an_event_is_published_to_another_team_s_exchange(kind: Kind, key: str | None, rabbit_url: str) -> None:
    router, seats = seating(exchange=Exchange("partner", kind), key=key)

    async with Bus(rabbit_url, router) as there, Bus(rabbit_url, name="here", unroutable="raise") as bus:
        published = await bus.publish(Booked(1), exchange="partner", key=key)
        await bus.publish(published, exchange="partner", key=key)
        await eventually(lambda: len(seats) == 2, "both")

        assert there.health().ok
    assert seats == [(1, "flight.booked")] * 2


async def test_what_no_queue_is_bound_for_is_as_the_bus_says_there_too(caplog: pytest.LogCaptureFixture) -> None:
    broker = EmbeddedBroker()
    broker.declare_all([Exchange("partner", "topic")], passive=False)

    async with running(Bus("memory://", unroutable="warn"), broker=broker) as probe:
        await probe.bus.publish(Booked(1), exchange="partner")
        await probe.bus.publish(Booked(2), exchange="partner", key="else")
        assert probe.bus.unroutable == {"flight.booked": 2}
    async with running(Bus("memory://", unroutable="raise"), broker=broker) as probe:
        with pytest.raises(UnroutableError, match="to exchange 'partner'"):
            await probe.bus.publish(Booked(1), exchange="partner")
    async with running(Bus("memory://", unroutable="ignore"), broker=broker) as probe:
        await probe.bus.publish(Booked(1), exchange="partner")

    assert caplog.text.count("to exchange 'partner': no queue is bound for it") == 1


async def test_the_default_exchange_leads_to_one_queue_which_must_be_there() -> None:
    router, seats = seating()

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(Booked(1), exchange="", key="desk.seat")
        await probe.settled()
        with pytest.raises(UnroutableError, match="to queue 'nobody'"):
            await probe.bus.publish(Booked(1), exchange="", key="nobody")

    assert seats == [(1, "flight.booked")]


@pytest.mark.parametrize("on", ["memory", "rabbitmq"])
async def test_publishing_to_an_exchange_that_is_not_there_fails_alone(on: str, request: pytest.FixtureRequest) -> None:
    url = "memory://" if on == "memory" else request.getfixturevalue("rabbit_url")
    router, seats = seating()

    async with Bus(url, router) as bus:
        results = await asyncio.gather(
            *(bus.publish(Booked(seat)) for seat in range(5)),
            bus.publish(Booked(99), exchange="nowhere"),
            return_exceptions=True,
        )
        await eventually(lambda: len(set(seats)) == 5, "the others")

    assert isinstance(results[-1], RefusedError)
    assert "'nowhere'" in str(results[-1])
    assert all(isinstance(result, Event) for result in results[:-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exchange": "partner", "delay": timedelta(seconds=1)}, "only what goes to the bus's own exchange 'events'"),
        ({"exchange": "", "key": "queue", "delay": timedelta(seconds=1)}, "only what goes to the bus's own exchange"),
        ({"exchange": ""}, "needs key="),
        ({"exchange": "x" * 256}, "at most 255 bytes"),
        ({"key": "é" * 128}, "at most 255 bytes"),
        ({"key": "\udcff"}, "UTF-8"),
        ({"exchange": 5}, "exchange=...\\) is of type int"),
        ({"key": 5}, "key=...\\) is of type int"),
    ],
)
async def test_what_cannot_be_published_there_is_refused(options: dict[str, Any], said: str) -> None:
    async with running(Bus("memory://", name="here")) as probe:
        with pytest.raises(ConfigurationError, match=said):
            await probe.bus.publish(Booked(1), **options)


async def test_the_same_event_for_two_exchanges_is_two_whatever_the_order() -> None:
    broker = EmbeddedBroker()
    broker.declare_all([Exchange("partner", "topic")], passive=False)
    router, ids = Router("desk"), list[dict[str, str]]()

    @router.on(Cancelled)
    async def rebook(event: Cancelled, bus: Bus) -> None:
        places: list[str | None] = [None, "partner"] if not ids else ["partner", None]
        ids.append({str(place): str((await bus.publish(Booked(1), exchange=place)).id) for place in places})

    async with running(Bus("memory://", router), broker=broker) as probe:
        cancelled = await probe.bus.publish(Cancelled(1))
        await probe.settled()
        await probe.bus.publish(cancelled)
        await probe.settled()

    assert ids[0] == ids[1]
    assert len(set(ids[0].values())) == 2


def test_a_sync_bus_publishes_there_too(rabbit_url: str) -> None:
    with SyncBus(rabbit_url, name="here") as bus, pytest.raises(RefusedError, match="'partner'"):
        bus.publish(Booked(1), exchange="partner", key="k")
