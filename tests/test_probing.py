"""What a view has published, seen by a test without a broker: through a `SyncBus`, or the bus of an application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import cast

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rabbitevents import (
    Bus,
    ConfigurationError,
    Delivery,
    Health,
    Message,
    RefusedError,
    Router,
    SyncBus,
    UnroutableError,
)
from rabbitevents.asgi import health_app
from rabbitevents.health import HealthServer
from rabbitevents.logs import Form, configure, log_handler
from rabbitevents.properties import Properties
from rabbitevents.testing import EmbeddedBroker, Witness, probing, running
from rabbitevents.testing.bench import eventually
from tests.bed.loopback import free_port
from tests.shop import OrderPlaced

JSON = Properties(content_type="application/json")
AWAY = "amqp://guest:guest@127.0.0.1:{port}/"


@pytest.fixture
def away() -> str:
    """The URL of a broker that is not there."""
    return AWAY.format(port=free_port())


# --- SyncBus -------------------------------------------------------------------------------------------------------


def test_what_a_sync_bus_publishes_is_seen_and_no_broker_is_needed(away: str) -> None:
    bus = SyncBus(away, start_timeout=1)

    with probing(bus) as probe:
        bus.publish(OrderPlaced("o-1"), metadata={"tenant": "t"})
        bus.publish_many([OrderPlaced("o-2"), OrderPlaced("o-3")])
        bus.publish(OrderPlaced("later"), delay=timedelta(days=1))

        assert probe.published(OrderPlaced) == [OrderPlaced(f"o-{i}") for i in (1, 2, 3)] + [OrderPlaced("later")]
        assert probe.messages[0].headers["meta-tenant"] == "t"


def test_each_test_sees_its_own_and_the_bus_is_on_its_own_broker_afterwards(away: str) -> None:
    bus = SyncBus(away, start_timeout=1, publish_timeout=1)

    for order in ("o-1", "o-2"):
        with probing(bus) as probe:
            bus.publish(OrderPlaced(order))
            assert probe.published(OrderPlaced) == [OrderPlaced(order)]

    assert [check.detail for check in bus.health().checks] == ["connects at the first publish in this process"]
    with pytest.raises(Exception, match=away.rpartition(":")[2].rstrip("/")):
        bus.publish(OrderPlaced("o-3"))
    bus.close()


def test_one_that_was_closed_or_open_before_is_so_afterwards() -> None:
    bus = SyncBus("memory://", unroutable="ignore")
    bus.close()

    with probing(bus) as probe:
        bus.publish(OrderPlaced("o-1"))

    assert probe.published(OrderPlaced) == [OrderPlaced("o-1")]
    with pytest.raises(ConfigurationError, match=r"closed; start\(\) opens it again"):
        bus.publish(OrderPlaced("o-2"))


def test_that_nobody_is_bound_is_no_error_but_on_a_broker_of_ones_own() -> None:
    bus = SyncBus("amqp://localhost", unroutable="raise")

    with probing(bus) as probe:
        bus.publish(OrderPlaced("o-1"))
    with probing(bus, broker=EmbeddedBroker()), pytest.raises(UnroutableError):
        bus.publish(OrderPlaced("o-2"))

    assert probe.published(OrderPlaced) == [OrderPlaced("o-1")]


def test_the_broker_can_be_told_to_fail() -> None:
    bus, broker = SyncBus("amqp://localhost"), EmbeddedBroker()
    broker.fail("refuse")

    with probing(bus, broker=broker) as probe, pytest.raises(RefusedError):
        bus.publish(OrderPlaced("o-1"))

    assert probe.published(OrderPlaced) == []


async def test_where_an_event_loop_runs_it_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="event loop"), probing(SyncBus("memory://")):
        pass


# --- an application's bus ------------------------------------------------------------------------------------------


def application(bus: Bus) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with bus:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders/{order_id}")
    async def place(order_id: str) -> None:
        await bus.publish(OrderPlaced(order_id))

    return app


def test_the_bus_of_an_application_is_moved_before_it_starts(away: str) -> None:
    handled, router = list[str](), Router("shop")

    @router.on(OrderPlaced)
    async def pack(order: OrderPlaced) -> None:
        handled.append(order.order_id)

    bus = Bus(away, router)

    with probing(bus) as probe, TestClient(application(bus)) as client:
        client.post("/orders/o-1").raise_for_status()

        assert probe.published(OrderPlaced) == [OrderPlaced("o-1")]
        assert bus.address == "memory://"


def test_one_that_runs_on_memory_already_is_seen() -> None:
    bus = Bus("memory://", name="shop")

    with TestClient(application(bus)) as client, probing(bus) as probe:
        client.post("/orders/o-1").raise_for_status()

        assert probe.published(OrderPlaced) == [OrderPlaced("o-1")]


def test_one_that_was_not_started_has_its_broker_back(away: str) -> None:
    bus = Bus(away, name="shop")
    before = bus.address

    with probing(bus):
        assert bus.address == "memory://"

    assert bus.address == before


async def test_one_that_runs_on_another_broker_is_refused_with_the_way_out(rabbit_url: str) -> None:
    async with Bus(rabbit_url, name="shop") as bus:
        with pytest.raises(ConfigurationError, match=r"running on amqp://.*on memory://") as refused, probing(bus):
            pass

    assert "guest:guest" not in str(refused.value)


async def test_a_running_one_cannot_be_moved_to_another_embedded_broker() -> None:
    async with Bus("memory://", name="shop") as bus:
        with pytest.raises(ConfigurationError, match="Enter probing"), probing(bus, broker=EmbeddedBroker()):
            pass


async def test_what_handlers_publish_is_seen_too() -> None:
    router = Router("shop")

    @router.on("cart.ordered")
    async def order(cart: Delivery) -> OrderPlaced:
        return OrderPlaced("o-1")

    bus = Bus("amqp://localhost", router)
    with probing(bus) as probe:
        async with bus:
            await bus.send(Message(exchange="events", routing_key="cart.ordered", body=b"{}", properties=JSON))
            await eventually(lambda: bool(probe.published(OrderPlaced)), "the order to be published")

    assert [message.type for message in probe.messages] == ["cart.ordered", "order.placed"]


# --- written wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: probing(cast("Bus", Router("shop"))).__enter__(), "takes the Bus or the SyncBus .*, not a Router"),
        (lambda: probing(cast("Bus", "amqp://u:secret@h")).__enter__(), "takes the Bus or the SyncBus .*, not a str"),
        (
            lambda: Witness().published(cast("type[OrderPlaced]", OrderPlaced("o-1"))),
            r"published\(OrderPlaced\) returns its events",
        ),
        (lambda: Witness().published(int), "int is no event"),
        (lambda: health_app(cast("Bus", SyncBus("memory://"))), "app.state.bus.*this is SyncBus"),
        (lambda: health_app(cast("Bus", Bus)), "app.state.bus.*this is Bus"),
        (lambda: SyncBus("memory://").elsewhere("http://x").__enter__(), "write amqp://"),
        (lambda: HealthServer(lambda: Health(()), 99_999), "port 99999.*0 .* to 65535"),
        (lambda: HealthServer(lambda: Health(()), cast("int", "8080")), "port '8080'"),
        (lambda: log_handler(cast("Form", "JSON")), "no form 'JSON': say \"text\""),
        (lambda: configure(cast("Form", "xml")), "no form 'xml': say \"text\""),
    ],
)
def test_what_is_written_wrong_is_said_with_the_way_out(wrong: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        wrong()

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("bus", "broker", "said"),
    [
        (SyncBus("memory://"), "memory://", "probing"),
        (Router("shop"), "memory://", "bus is a Router: it runs a sibling of a Bus"),
        (Bus("memory://"), "amqp://localhost", "bus.sibling"),
    ],
)
async def test_running_says_what_it_is_for(bus: object, broker: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        async with running(cast("Bus", bus), broker=broker):
            pass
