"""What is written wrong gets a clear error that names the thing and the way out, and nothing is lost."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from attrs import frozen

from rabbitevents import (
    Binding,
    BrokerUnavailableError,
    Bus,
    ConfigurationError,
    EncodeError,
    Limits,
    Queue,
    Router,
    Topology,
    event,
    upcast,
)
from rabbitevents.brokers import Settings
from rabbitevents.brokers.rabbitmq.broker import RabbitMQ
from tests.bed.fixtures import NodeFactory
from tests.bed.loopback import free_port
from tests.bed.rabbitmq import RabbitNode
from tests.shop import Effects, OrderPlaced, eventually, recording


@event("note.taken")
@frozen
class NoteTaken:
    text: str


@event("old.thing", version=3)
@frozen
class OldThing:
    text: str


@upcast(OldThing, from_version=1)
def first_step(document: dict[str, object]) -> dict[str, object]:
    return document


class Database:
    """What nobody provides."""


@frozen
class Cabinet:
    """Where notes are filed."""

    lengths: list[int]


async def starting(bus: Bus) -> str:
    """Start a bus that must not start; return what it says."""
    with pytest.raises(ConfigurationError) as refused:
        async with bus:
            pass
    return str(refused.value)


async def test_a_parameter_that_nobody_can_serve_is_refused_by_name() -> None:
    router = Router("shop")

    @router.on(NoteTaken)
    async def file_it(note: NoteTaken, db: Database) -> None: ...

    said = await starting(Bus("memory://", router))

    assert "shop.file_it" in said
    assert "db: Database" in said
    assert "bus.provide" in said


async def test_a_missing_upcaster_is_refused_with_the_missing_step() -> None:
    router = Router("shop")

    @router.on(OldThing)
    async def read_it(thing: OldThing) -> None: ...

    said = await starting(Bus("memory://", router))

    assert "OldThing" in said
    assert "2 to 3" in said
    assert "@upcast(OldThing, from_version=2)" in said


async def test_registering_after_the_start_is_refused() -> None:
    router = Router("shop")

    @router.on(NoteTaken)
    async def file_it(note: NoteTaken) -> None: ...

    async with Bus("memory://", router):
        with pytest.raises(ConfigurationError, match="has started"):
            router.on(OrderPlaced)(file_it)


async def test_a_bus_that_is_not_started_says_so() -> None:
    bus = Bus("memory://")

    with pytest.raises(ConfigurationError, match="async with bus"):
        await bus.publish(NoteTaken("x"))


async def test_what_cannot_be_published_raises_at_the_caller_and_harms_nothing(rabbit_url: str) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects), limits=Limits(body=10_000, headers=5_000)) as bus:
        with pytest.raises(EncodeError, match="OrderPlaced"):
            await bus.publish(OrderPlaced(object()))  # type: ignore[arg-type]
        with pytest.raises(EncodeError, match=r"10,\d+ bytes, over the limit of 10,000"):
            await bus.publish(OrderPlaced("x" * 10_000))
        with pytest.raises(EncodeError, match="headers"):
            await bus.publish(OrderPlaced("x"), metadata={"note": "x" * 6_000})
        with pytest.raises(ConfigurationError, match="no event"):
            await bus.publish("a string")
        with pytest.raises(ConfigurationError, match="at most 255"):
            event("x" * 256)
        await bus.publish(OrderPlaced("good"))
        await effects.until(1)

        assert effects.done == {"good": 1}
        assert bus.health().ok


async def test_a_wrong_port_says_where_it_looked_and_what_was_there() -> None:
    port = free_port()

    with pytest.raises(BrokerUnavailableError) as refused:
        async with Bus(f"amqp://user:secret@127.0.0.1:{port}/", start_timeout=1):
            pass

    assert f"127.0.0.1:{port}" in str(refused.value)
    assert "nobody listens there" in str(refused.value)
    assert "secret" not in str(refused.value) + repr(refused.value)


async def test_a_wrong_password_is_said_at_once_and_never_shown(rabbit_url: str) -> None:
    wrong = rabbit_url.replace("guest:guest", "guest:hunter2")
    started = asyncio.get_running_loop().time()

    with pytest.raises(BrokerUnavailableError) as refused:
        async with Bus(wrong, start_timeout=20):
            pass

    assert asyncio.get_running_loop().time() - started < 10
    assert "guest@" in str(refused.value)
    assert "login" in str(refused.value).lower() or "access_refused" in str(refused.value).lower()
    assert "hunter2" not in str(refused.value)


async def test_a_virtual_host_that_is_not_there_is_said_at_once(rabbit_url: str) -> None:
    with pytest.raises(BrokerUnavailableError, match="nowhere"):
        async with Bus(rabbit_url.rpartition("/")[0] + "/nowhere", start_timeout=20):
            pass


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost", "amqp://", "amqps://localhost?no_verify_ssl=1", "redis://x"]
)
def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Bus(url)


async def test_a_queue_with_other_arguments_stops_only_itself_and_both_sides_are_shown(rabbit_url: str) -> None:
    other = RabbitMQ(rabbit_url)
    await other.start(Settings(), None)
    await other.declare(Topology((Queue("shop.record", {"x-queue-type": "quorum", "x-delivery-limit": 7}),)))
    effects, router = Effects(), Router("other")

    @router.on("#")
    async def everything() -> None:
        effects.done["everything"] += 1

    async with Bus(rabbit_url, recording(effects), router) as bus:
        await bus.publish(OrderPlaced("o"))
        await eventually(lambda: effects.done["everything"] == 1, "the sibling")
        problems = {check.name: check.detail for check in bus.health().problems}

    await other.stop(asyncio.get_running_loop().time() + 2)
    assert effects.done == {"everything": 1}
    assert list(problems) == ["consumer shop.record"]
    assert "queue 'shop.record' exists with other arguments" in problems["consumer shop.record"]
    assert "is '7'" in problems["consumer shop.record"] or "is none" in problems["consumer shop.record"]
    assert "wants" in problems["consumer shop.record"]


async def test_declaring_passively_needs_what_is_not_there(rabbit_url: str) -> None:
    effects = Effects()

    with pytest.raises(ConfigurationError, match="does not exist"):
        async with Bus(rabbit_url, recording(effects), declare="passive"):
            pass
    async with Bus(rabbit_url, recording(effects)):
        pass
    async with Bus(rabbit_url, recording(effects), declare="passive") as bus:
        await bus.publish(OrderPlaced("o"))
        await effects.until(1)


async def test_a_user_who_may_not_configure_runs_passively(rabbit_url: str, rabbit_node: RabbitNode) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)):
        pass
    limited = rabbit_node.add_user(rabbit_url, "limited", "pw")
    rabbit_node.set_permissions(rabbit_url, "^$", ".*", ".*", user="limited")

    async with Bus(limited, recording(effects), declare="passive") as bus:
        await bus.publish(OrderPlaced("o"))
        await effects.until(1)

        assert bus.health().ok


async def test_tls_is_spoken_and_a_strange_certificate_refused(own_node: NodeFactory) -> None:
    import ssl

    node = await own_node(tls=True)
    effects = Effects()
    context = ssl.create_default_context(cafile=str(node.ca_file))

    async with Bus(node.tls_url, recording(effects), ssl_context=context) as bus:
        await bus.publish_many([OrderPlaced(f"o-{i}") for i in range(200)])
        await effects.until(200)
    with pytest.raises(BrokerUnavailableError, match="certificate"):
        async with Bus(node.tls_url, start_timeout=20):
            pass


async def test_of_several_urls_the_one_that_answers_is_used(rabbit_url: str) -> None:
    effects = Effects()

    async with Bus([f"amqp://127.0.0.1:{free_port()}/", rabbit_url], recording(effects)) as bus:
        await bus.publish(OrderPlaced("o"))
        await effects.until(1)

        assert effects.done == {"o": 1}


def test_bindings_are_values() -> None:
    assert Binding("x", "q", "k") == Binding("x", "q", "k")


async def test_a_broker_with_larger_frames_and_one_with_smaller_ones_both_serve(own_node: NodeFactory) -> None:
    large, small = await own_node(config={"frame_max": "4194304"}), await own_node(config={"frame_max": "8192"})
    for node in (large, small):
        router, filed = Router("shop"), list[int]()

        @router.on(NoteTaken)
        async def file_it(note: NoteTaken, cabinet: Cabinet) -> None:
            cabinet.lengths.append(len(note.text))

        bus = Bus(node.url, router, limits=Limits(body=4_000_000))
        bus.provide(Cabinet, Cabinet(filed))
        async with bus:
            await bus.publish(NoteTaken("x" * 2_500_000))
            if node is small:
                with pytest.raises(EncodeError, match="frames hold"):
                    await bus.publish(NoteTaken("y"), metadata={"note": "z" * 20_000})
            await bus.publish(NoteTaken("after"))
            await eventually(partial(sorted_is, filed, [5, 2_500_000]), "both notes")

            assert bus.health().ok


def sorted_is(found: list[int], expected: list[int]) -> bool:
    return sorted(found) == expected
