"""Health: red when something does not work, green again after, and what an orchestrator is answered."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.routing import Mount

from rabbitevents import Bus, Check, ConfigurationError, Health, Plugin, Router, health
from rabbitevents.asgi import health_app
from rabbitevents.health import HEAD_LIMIT, MOST_CONNECTIONS, HealthServer, answer
from rabbitevents.testing import EmbeddedBroker, running
from tests.bed.fixtures import NodeFactory
from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.shop import Effects, OrderPlaced, eventually, recording

RED_WITHIN = 10.0
"""Seconds: what is promised."""

ALL_WELL = Health((Check("bus", True), Check("connection", True)))
HELD = Health((Check("bus", True), Check("subscription shop.record", False, "1 held", degraded=True)))
STUCK = Health((Check("bus", True), Check("subscription shop.record", False, "1 running on past the timeout")))
STOPPED = Health((Check("bus", False, "stopped"),))
STARTING = Health((Check("bus", False, "starting"), Check("connection", False, "nobody listens there")))


class Ailing(Plugin):
    """Says what it is told to say of itself."""

    def __init__(self) -> None:
        self.check = Check("store", True)

    def health(self) -> list[Check]:
        return [self.check]


async def turns(bus: Bus, colour: str, seconds: float = RED_WITHIN) -> list[str]:
    """Wait until the bus's health is red or green; return what is the matter then."""
    await eventually(lambda: bus.health().ok is (colour == "green"), f"{colour}: {bus.health()}", seconds)
    return [f"{check.name}: {check.detail}" for check in bus.health().problems]


async def looked_at(bus: Bus, seconds: float) -> list[Health]:
    """Look at a bus's health twenty times a second; return what was seen."""
    seen = list[Health]()
    for _ in range(round(20 * seconds)):
        seen.append(bus.health())
        await asyncio.sleep(0.05)
    return seen


# --- red within ten seconds, and green again -----------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["killed", "suspended"])
async def test_health_is_red_while_the_broker_is_gone(own_node: NodeFactory, how: str) -> None:
    node = await own_node()
    async with Bus(node.url, recording(Effects())) as bus:
        await node.asettle()
        assert await turns(bus, "green") == []

        await (asyncio.to_thread(node.suspend) if how == "suspended" else node.akill())
        problems = await turns(bus, "red")

        assert any("connection" in problem for problem in problems)
        assert not bus.health().ready
        await (asyncio.to_thread(node.resume) if how == "suspended" else node.astart())
        assert await turns(bus, "green", 60) == []


@pytest.mark.timeout(180)
async def test_health_is_red_when_nothing_comes_from_the_broker_though_the_connection_stands(
    rabbit_url: str, proxy: Callable[[str], Awaitable[Proxy]]
) -> None:
    through = await proxy(rabbit_url)
    async with Bus(through.url_for(rabbit_url), recording(Effects())) as bus:
        through.stall(to_server=False)

        problems = await turns(bus, "red")
        through.restore()

        assert any("nothing came from the broker" in problem for problem in problems)
        assert await turns(bus, "green") == []
        assert through.accepted == 2  # it was not broken off


async def test_a_quiet_evening_is_no_reason_to_turn_red(rabbit_url: str) -> None:
    async with Bus(rabbit_url, recording(Effects()), heartbeat=2) as bus:
        seen = await looked_at(bus, 6)  # three heartbeats, in which nothing else is said

    assert [each.problems for each in seen if not each.ok] == []


async def test_health_is_red_as_long_as_a_cancelled_consumer_is_not_back(
    rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)) as bus:
        rabbit_node.set_permissions(rabbit_url, configure="")  # the queue cannot be declared again
        await rabbit_node.adelete_queue("shop.record", rabbit_url)

        problems = await turns(bus, "red")
        still = await looked_at(bus, 2)
        rabbit_node.set_permissions(rabbit_url)

        assert any(problem.startswith("consumer shop.record") for problem in problems)
        assert not any(each.ok for each in still)
        assert not bus.health().ready
        assert await turns(bus, "green", 30) == []
        await bus.publish(OrderPlaced("after"))
        await effects.until(1)


class Handlers:
    """Handlers that do not end before they are let go, each in its own way."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.cancelled = 0
        self.began = 0

    def in_a_thread(self, order: OrderPlaced) -> None:
        self.began += 1
        self.let_go.wait(60)

    async def swallowing(self, order: OrderPlaced) -> None:
        self.began += 1
        while not self.let_go.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    async def waiting(self, order: OrderPlaced) -> None:
        self.began += 1
        await asyncio.to_thread(self.let_go.wait, 60)


@pytest.mark.parametrize("way", ["in_a_thread", "swallowing"])
async def test_health_is_red_while_a_handler_runs_on_past_its_timeout(way: str) -> None:
    handlers, router = Handlers(), Router("shop")
    router.on(OrderPlaced, name="record", timeout=0.5)(getattr(handlers, way))
    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("o"))
        await eventually(lambda: handlers.began == 1, "the handler")
        assert probe.bus.health().ok

        problems = await turns(probe.bus, "red", 0.5 + RED_WITHIN)

        assert problems == ["subscription shop.record: 1 running on past the timeout"]
        assert not probe.bus.health().ready
        handlers.let_go.set()
        await eventually(lambda: "past" not in str(probe.bus.health()), "the end of the handler")
        await turns(probe.bus, "green")


async def test_a_handler_that_ends_soon_after_its_timeout_turns_nothing_red() -> None:
    handlers, router = Handlers(), Router("shop")
    router.on(OrderPlaced, name="record", timeout=0.2)(handlers.in_a_thread)
    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("o"))
        seen = await looked_at(probe.bus, 1)
        handlers.let_go.set()

    assert [each.problems for each in seen if not each.ok] == []


@pytest.mark.parametrize("way", ["in_a_thread", "waiting"])
async def test_health_is_red_while_a_handler_without_a_timeout_nears_the_brokers(way: str) -> None:
    handlers, router = Handlers(), Router("shop")
    router.on(OrderPlaced, name="record")(getattr(handlers, way))
    async with running(Bus("memory://", router, consumer_timeout=timedelta(seconds=2))) as probe:
        await probe.bus.publish(OrderPlaced("o"))
        await eventually(lambda: handlers.began == 1, "the handler")
        assert probe.bus.health().ok

        problems = await turns(probe.bus, "red", 1 + RED_WITHIN)

        assert problems == ["subscription shop.record: 1 running for more than half of the consumer timeout"]
        assert not probe.bus.health().ready
        handlers.let_go.set()
        assert await turns(probe.bus, "green") == []


async def test_one_held_event_is_a_problem_and_no_reason_to_take_the_service_away() -> None:
    effects, router = Effects(), Router("shop")
    fail = True

    @router.on(OrderPlaced, prefetch=4, concurrency=4)
    async def record(order: OrderPlaced) -> None:
        if order.order_id == "bad" and fail:
            raise LookupError
        effects.done[order.order_id] += 1

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("bad"))
        await turns(probe.bus, "red")
        assert (probe.bus.health().ok, probe.bus.health().ready) == (False, True)

        await probe.bus.publish(OrderPlaced("bad"))
        await eventually(lambda: probe.bus.load["shop.record"].held == 2, "half of the window")
        assert (probe.bus.health().ok, probe.bus.health().ready) == (False, False)

        fail = False
        assert await turns(probe.bus, "green") == []


async def test_a_paused_subscription_is_not_ready() -> None:
    async with running(Bus("memory://", recording(Effects()))) as probe:
        await probe.bus.pause("shop.record")
        assert not probe.bus.health().ready

        await probe.bus.resume("shop.record")
        assert probe.bus.health().ready


# --- what is answered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "live", "ready", "whole"),
    [
        (ALL_WELL, 200, 200, 200),
        (HELD, 200, 200, 503),
        (STUCK, 200, 503, 503),
        (STARTING, 200, 503, 503),
        (STOPPED, 503, 503, 503),
    ],
    ids=["well", "held", "stuck", "starting", "stopped"],
)
def test_live_ready_and_health_differ_in_what_they_ask(state: Health, live: int, ready: int, whole: int) -> None:
    answers = {path: answer(lambda: state, path) for path in ("/live", "/ready", "/health")}

    assert [found.status.value for found in answers.values()] == [live, ready, whole]
    assert {json.loads(found.body)["status"] for found in answers.values() if found.status == 200} <= {"ok"}
    assert json.loads(answers["/health"].body)["checks"] == [
        {"name": c.name, "ok": c.ok, "detail": c.detail, "degraded": c.degraded}
        | ({} if c.held is None else {"held": c.held})
        for c in state.checks
    ]


def test_ready_names_only_what_keeps_it_from_being_ready() -> None:
    found = answer(lambda: Health((*HELD.checks, *STUCK.checks)), "/ready")

    assert [check["detail"] for check in json.loads(found.body)["checks"]] == ["1 running on past the timeout"]


def test_what_a_brokers_text_has_in_it_cannot_keep_health_from_being_said() -> None:
    found = answer(lambda: Health((Check("queue \udc80\n", False, "é\x00"),)), "/health")

    assert json.loads(found.body)["checks"][0]["name"] == "queue \udc80\n"


# --- as a server ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncGenerator[HealthServer]:
    async with HealthServer(lambda: HELD, 0, LOOPBACK) as server:
        yield server


async def raw(server: HealthServer, request: bytes) -> bytes:
    """Send bytes, and return all that comes until the connection is closed."""
    reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_it_answers_as_curl_and_kubelet_ask(server: HealthServer) -> None:
    async with httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{server.port}") as client:
        ready = await client.get("/ready", headers={"User-Agent": "kube-probe/1.30"})
        whole = await client.get("/health?verbose")
        head = await client.head("/live")
        lost = await client.get("/nowhere")
        post = await client.post("/live", content=b"{}")

    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "checks": []})
    assert ready.headers["content-type"] == "application/json"
    assert ready.headers["connection"] == "close"
    assert (whole.status_code, whole.json()["status"]) == (503, "failing")
    assert (head.status_code, head.content) == (200, b"")
    assert lost.status_code == 404
    assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /live HTTP/1.0\r\n\r\n", b"200"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /live HTTP/2\r\n\r\n", b"400"),
        (b"\xff\xfe \xff \r\n\r\n", b"400"),
        (b"GET /" + b"x" * HEAD_LIMIT + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /live HTTP/1.1\r\nX: " + b"x" * 10 * HEAD_LIMIT, b"431"),
    ],
    ids=["1.0", "nonsense", "2", "binary", "long path", "long header"],
)
async def test_whatever_is_asked_is_answered_and_the_connection_closed(
    server: HealthServer, request_: bytes, status: bytes
) -> None:
    response = await raw(server, request_)

    assert response.split(b" ", 2)[1] == status
    assert b"\r\nConnection: close\r\n" in response


async def test_what_is_asked_by_head_is_answered_without_a_body(server: HealthServer) -> None:
    whole, head = [await raw(server, method + b" /health HTTP/1.1\r\n\r\n") for method in (b"GET", b"HEAD")]

    assert head == whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


async def test_who_asks_slowly_or_not_at_all_is_left_at_the_deadline(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "DEADLINE", 0.3)

    silent, slow = await asyncio.gather(raw(server, b""), raw(server, b"GET /live HT"))

    assert (silent, slow) == (b"", b"")
    assert (await raw(server, b"GET /live HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_who_says_nothing_cannot_keep_others_from_asking(server: HealthServer) -> None:
    crowd = [await asyncio.open_connection(LOOPBACK, server.port) for _ in range(MOST_CONNECTIONS + 3)]

    answers = [await raw(server, b"GET /live HTTP/1.1\r\n\r\n") for _ in range(3)]

    oldest, newest = crowd[0], crowd[-1]
    with suppress(ConnectionError):
        assert await oldest[0].read() == b""
    newest[1].write(b"GET /live HTTP/1.1\r\n\r\n")
    assert b"200 OK" in await newest[0].read()
    assert all(b"200 OK" in each for each in answers)
    for _, writer in crowd:
        writer.close()


async def test_who_has_begun_to_ask_and_does_not_go_on_gives_way_too(server: HealthServer) -> None:
    crowd = [await asyncio.open_connection(LOOPBACK, server.port) for _ in range(MOST_CONNECTIONS)]
    for _, writer in crowd:
        writer.write(b"GET /live HT")

    assert b"200 OK" in await raw(server, b"GET /live HTTP/1.1\r\n\r\n")

    for _, writer in crowd:
        writer.close()


async def test_no_more_connections_than_that_are_kept_though_all_have_asked() -> None:
    async def never() -> bytes:
        await asyncio.Event().wait()
        return b""

    async with HealthServer(lambda: ALL_WELL, 0, LOOPBACK, measured=never) as server:
        crowd = [await asyncio.open_connection(LOOPBACK, server.port) for _ in range(MOST_CONNECTIONS)]
        for _, writer in crowd:
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        inside: Any = server
        await eventually(lambda: len(inside._open) == MOST_CONNECTIONS and not inside._silent, "all to have asked")

        with suppress(ConnectionError):
            assert await raw(server, b"GET /live HTTP/1.1\r\n\r\n") == b""
        for _, writer in crowd:
            writer.close()


async def test_leaving_ends_the_connections_that_are_open() -> None:
    async with HealthServer(lambda: ALL_WELL, 0, LOOPBACK) as server:
        reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
        began = time.monotonic()

    with suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    assert time.monotonic() - began < 2
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(LOOPBACK, server.port)


@pytest.mark.parametrize("port", ["taken", 70_000])
async def test_a_port_that_cannot_be_had_is_named(server: HealthServer, port: int | str) -> None:
    wanted = server.port if port == "taken" else int(port)

    with pytest.raises(ConfigurationError, match=f"health cannot be served on {LOOPBACK}:{wanted}"):
        async with HealthServer(lambda: ALL_WELL, wanted, LOOPBACK):
            pass


async def test_a_free_port_is_the_same_for_every_address_of_the_machine() -> None:
    async with HealthServer(lambda: ALL_WELL, 0) as server:
        reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
        writer.write(b"GET /live HTTP/1.1\r\n\r\n")
        answers = [await reader.read()]
        writer.close()
        with suppress(OSError):  # a machine without IPv6
            reader, writer = await asyncio.open_connection("::1", server.port)
            writer.write(b"GET /live HTTP/1.1\r\n\r\n")
            answers.append(await reader.read())
            writer.close()

    assert all(b"200 OK" in each for each in answers)


async def test_a_service_is_live_but_not_ready_while_it_looks_for_its_broker_and_while_it_stops() -> None:
    port, let_go = free_port(), asyncio.Event()
    effects = Effects()

    async def before(_: Any) -> None:
        await let_go.wait()

    bus = Bus(f"amqp://{LOOPBACK}:{port}/", recording(effects, before=before))
    async with HealthServer(bus.health, 0, LOOPBACK) as server, httpx.AsyncClient() as client:

        async def statuses(of: Bus) -> list[int]:
            server_of = f"http://{LOOPBACK}:{server.port}"
            return [(await client.get(f"{server_of}/{question}")).status_code for question in ("live", "ready")]

        serving = asyncio.create_task(bus.serve())
        await eventually(lambda: "starting" in str(bus.health()), "the start")
        assert await statuses(bus) == [200, 503]
        bus.ask_to_stop()
        await serving

    there = EmbeddedBroker()
    bus = Bus(there.client(), recording(effects, before=before))
    async with HealthServer(bus.health, 0, LOOPBACK) as server, httpx.AsyncClient() as client:
        serving = asyncio.create_task(bus.serve())
        await eventually(lambda: bus.health().ok, "the bus")
        assert await statuses(bus) == [200, 200]
        await bus.publish(OrderPlaced("o"))
        await eventually(lambda: effects.running == 1, "the handler")

        bus.ask_to_stop()
        await eventually(lambda: "stopping" in str(bus.health()), "the stop")
        assert await statuses(bus) == [200, 503]
        let_go.set()
        await serving
        assert await statuses(bus) == [503, 503]


# --- as an application ---------------------------------------------------------------------------------------------


def mounted_in(framework: str, bus: Bus) -> Any:
    """An application of a framework with the health of ``bus`` below /bus."""
    if framework == "none":
        return health_app(bus)
    if framework == "starlette":
        return Starlette(routes=[Mount("/bus", app=health_app(bus))])
    if framework == "litestar":
        return Litestar([asgi("/bus", is_mount=True, copy_scope=True)(health_app(bus))])
    app = FastAPI()
    app.mount("/bus", health_app(bus))
    return app


@pytest.mark.parametrize("framework", ["none", "starlette", "fastapi", "litestar"])
async def test_it_is_mounted_in_an_application(framework: str) -> None:
    ailing = Ailing()
    bus = Bus("memory://", plugins=[ailing])
    transport = httpx.ASGITransport(mounted_in(framework, bus))
    async with bus, httpx.AsyncClient(transport=transport, base_url="http://service/bus") as client:
        well = [(await client.get(path)).status_code for path in ("/live", "/ready", "/health", "/health/")]
        ailing.check = Check("store", False, "is away")
        ill = [await client.get(path) for path in ("/live", "/ready", "/health")]
        other = [(await client.head("/live")).status_code, (await client.post("/live")).status_code]

    assert well == [200, 200, 200, 200]
    assert [each.status_code for each in ill] == [200, 503, 503]
    assert ill[1].json()["checks"] == [{"name": "store", "ok": False, "detail": "is away", "degraded": False}]
    assert other == [200, 405]


async def test_a_bus_that_the_lifespan_makes_is_asked_for_at_each_request() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with Bus("memory://") as app.state.bus:
            yield

    app = Starlette(lifespan=lifespan, routes=[Mount("/bus", app=health_app(lambda: app.state.bus))])
    statuses = list[int]()

    for _ in range(2):  # an application is started many times in tests
        transport = httpx.ASGITransport(app)
        async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            statuses.append((await client.get("/bus/ready")).status_code)

    assert statuses == [200, 200]


async def test_the_application_answers_head_without_a_body() -> None:
    sent = list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    await health_app(Bus("memory://"))({"type": "http", "method": "HEAD", "path": "/health"}, receive, send)

    assert [sent[0]["status"], sent[1]["body"]] == [503, b""]


async def test_what_is_not_http_is_refused_as_asgi_asks_for() -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises(NotImplementedError, match="websocket"):
        await health_app(Bus("memory://"))({"type": "websocket"}, nothing, nothing)


async def test_a_function_that_returns_no_bus_is_named_when_health_is_asked_for() -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError

    def missing() -> Any:
        return None

    with pytest.raises(ConfigurationError, match="a function that returned None, and no Bus: the lifespan has to make"):
        await health_app(missing)({"type": "http", "method": "GET", "path": "/ready"}, nothing, nothing)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with app.state.bus:
        yield


async def test_it_is_served_beside_a_bus_that_runs_in_the_lifespan() -> None:
    app = FastAPI(lifespan=lifespan)
    app.state.bus = Bus("memory://", recording(Effects()))
    app.mount("/bus", health_app(app.state.bus))

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        before = (await client.get("/bus/ready")).status_code
        async with lifespan(app):
            during = (await client.get("/bus/ready")).status_code

    assert (before, during) == (503, 200)
