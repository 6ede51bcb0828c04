"""Metrics: what is measured, counted and looked at, under which names, and how many label sets there can be."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, MetricReader
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import (
    ACK,
    Bus,
    ConfigurationError,
    Consume,
    Delivery,
    Event,
    Message,
    Outcome,
    Plugin,
    Properties,
    Publish,
    RefusedError,
    Router,
    Settlement,
    facts,
)
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_flow import KillSwitch
from rabbitevents_metrics import Metrics
from rabbitevents_metrics.instruments import COUNTERS, GAUGES, HISTOGRAMS
from rabbitevents_retry import Retry, on
from tests.shop import eventually
from tests.test_tracing import OrderPlaced, inventory
from tests.test_tracing_conventions import METRICS, unconventional

ALL = {*COUNTERS, *GAUGES, *HISTOGRAMS}
"""The names of all instruments that there are."""

RESERVE = "inventory.reserve"


class Measured:
    """A provider whose metrics are read here, and by other readers too."""

    def __init__(self, *others: MetricReader) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader, *others], shutdown_on_exit=False)

    @property
    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        metric = self.metrics.get(name)
        points: Any = metric.data.data_points if metric is not None else ()
        return {frozenset(point.attributes.items()): point for point in points}

    def value(self, name: str, **said: object) -> float:
        """The sum over all label sets in which these are said (``_`` for ``.``); a histogram's count."""
        asked = {key.replace("__", "."): value for key, value in said.items()}
        found = [point for labels, point in self.points(name).items() if asked.items() <= dict(labels).items()]
        return sum(point.count if isinstance(point, HistogramDataPoint) else point.value for point in found)


@pytest.fixture
def measured() -> Iterator[Measured]:
    made = Measured()
    yield made
    made.provider.shutdown()


async def test_publishing_and_handling_are_counted_and_timed_under_the_conventions_names(measured: Measured) -> None:
    async with running(Bus("memory://", inventory(), plugins=[Metrics(meter_provider=measured.provider)])) as probe:
        for number in range(3):
            await probe.bus.publish(OrderPlaced(f"o-{number}"))
        await probe.settled()

    published = {"messaging__destination__name": "events:order.placed", "messaging__operation__type": "send"}
    processed = {"messaging__destination__name": "events:order.placed:inventory.reserve"}
    assert measured.value("messaging.client.sent.messages", **published) == 3
    assert measured.value("messaging.client.operation.duration", **published) == 3
    assert measured.value("messaging.client.consumed.messages", **processed) == 3
    assert measured.value("messaging.process.duration", messaging__operation__type="process", **processed) == 3
    assert measured.value("messaging.client.sent.messages") == 6
    assert measured.value("rabbitevents.settled", rabbitevents__outcome="ack", rabbitevents__subscription=RESERVE) == 3
    assert measured.value("rabbitevents.unroutable", rabbitevents__type="stock.reserved") == 3


async def test_a_failed_attempt_is_counted_under_its_error(measured: Measured) -> None:
    plugins = [DeadLetter(), Metrics(meter_provider=measured.provider)]
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert measured.value("messaging.process.duration", error__type="LookupError") == 1
    assert measured.value("messaging.client.consumed.messages", error__type="LookupError") == 1
    assert measured.value("messaging.client.consumed.messages") == 1
    assert measured.value("rabbitevents.settled", rabbitevents__outcome="forward") == 1
    assert measured.value("rabbitevents.settled", rabbitevents__outcome="ack") == 0
    assert measured.value("rabbitevents.dead_letters", rabbitevents__reason="LookupError") == 1


async def test_a_failed_publish_is_counted_under_its_error(measured: Measured) -> None:
    broker = EmbeddedBroker()
    async with Bus(broker.client(), plugins=[Metrics(meter_provider=measured.provider)]) as bus:
        broker.fail("refuse")
        with pytest.raises(RefusedError):
            await bus.publish(OrderPlaced("o-1"))

    assert measured.value("messaging.client.operation.duration", error__type="rabbitevents.RefusedError") == 1
    assert measured.value("messaging.client.sent.messages", error__type="rabbitevents.RefusedError") == 1
    assert measured.value("messaging.client.sent.messages") == 1


async def test_retries_are_counted_by_attempt(measured: Measured) -> None:
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(3), wait=wait_fixed(30)),
        Metrics(meter_provider=measured.provider),
    ]
    async with running(Bus("memory://", inventory(fail=9), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=5))

    assert [measured.value("rabbitevents.retries", rabbitevents__attempt=number) for number in (1, 2, 3)] == [1, 1, 0]
    assert measured.value("rabbitevents.retries", rabbitevents__inline=False) == 2
    assert measured.value("rabbitevents.dead_letters", rabbitevents__subscription=RESERVE) == 1


async def test_a_delivery_that_is_tried_again_here_is_one_message_and_several_attempts(measured: Measured) -> None:
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(4), wait=wait_fixed(0.01)),
        Metrics(meter_provider=measured.provider),
    ]
    async with running(Bus("memory://", inventory(fail=3), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.bus.publish(OrderPlaced("o-2"))
        await probe.settled()

    destination = {"messaging__destination__name": "events:order.placed:inventory.reserve"}
    attempts = measured.value("messaging.process.duration", **destination)
    assert measured.value("messaging.client.consumed.messages", **destination) == 2
    assert attempts == 5
    assert measured.value("messaging.process.duration", error__type="LookupError") == 3
    assert measured.value("rabbitevents.settled", rabbitevents__outcome="ack") == 2


async def test_a_delivery_that_the_core_holds_is_one_message(measured: Measured) -> None:
    plugins = [Metrics(meter_provider=measured.provider)]
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: measured.value("messaging.process.duration") == 2, "the second attempt")
        await probe.settled()

    assert measured.value("messaging.client.consumed.messages") == 1
    assert measured.value("messaging.client.consumed.messages", error__type="LookupError") == 1


async def test_a_delivery_that_is_postponed_here_is_one_message_and_the_next_one_is_another(measured: Measured) -> None:
    plugins = [
        Retry(on(LookupError).postpone(lambda error: 0.01)),
        Metrics(meter_provider=measured.provider),
    ]
    async with running(Bus("memory://", inventory(fail=2), plugins=plugins)) as probe:
        for number in range(3):
            await probe.bus.publish(OrderPlaced(f"o-{number}"))
        await probe.settled()

    assert measured.value("messaging.client.consumed.messages") == 3
    assert measured.value("messaging.process.duration") == 5
    assert measured.value("rabbitevents.postponed") == 2


async def test_a_kill_switch_that_trips_is_counted(measured: Measured) -> None:
    plugins = [DeadLetter(), KillSwitch(of=3, pause=60, longest=60), Metrics(meter_provider=measured.provider)]
    async with running(Bus("memory://", inventory(fail=9), plugins=plugins)) as probe:
        for number in range(5):
            await probe.bus.publish(OrderPlaced(f"o-{number}"))
        await eventually(lambda: not probe.bus.health().ok, "the switch")

    assert measured.value("rabbitevents.kill_switch.trips", rabbitevents__subscription="inventory.reserve") == 1


async def test_a_copy_that_comes_back_is_another_message(measured: Measured) -> None:
    plugins = [
        Retry(stop=stop_after_attempt(3), wait=wait_fixed(30)),
        Metrics(meter_provider=measured.provider),
    ]
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=5))

    assert measured.value("messaging.client.consumed.messages") == 2
    assert measured.value("messaging.client.consumed.messages", error__type="LookupError") == 1


async def test_what_is_read_is_what_has_happened_up_to_that_moment(measured: Measured) -> None:
    router, seen, go_on = Router("inventory"), list[tuple[float, float, float]](), asyncio.Event()

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> None:
        running_now = measured.value("rabbitevents.deliveries.running", rabbitevents__subscription=RESERVE)
        sent = measured.value("messaging.client.sent.messages", messaging__destination__name="events:order.placed")
        seen.append((running_now, sent, measured.value("messaging.client.consumed.messages")))
        go_on.set()

    async with running(Bus("memory://", router, plugins=[Metrics(meter_provider=measured.provider)])) as probe:
        for _ in range(3):
            await probe.bus.publish(OrderPlaced("o-1"))
            await go_on.wait()
            await probe.settled()
            go_on.clear()

    assert seen == [(1, 1, 0), (1, 2, 1), (1, 3, 2)]


async def test_what_is_under_way_may_be_read_in_another_thread_while_events_come_and_go(measured: Measured) -> None:
    router, wrong, ended = Router("inventory"), list[float](), threading.Event()

    @router.on(OrderPlaced, concurrency=16, prefetch=200)
    async def reserve(order: OrderPlaced) -> None:
        await asyncio.sleep(0)

    def read() -> None:
        while not ended.is_set():
            wrong.extend(n for n in (measured.value("rabbitevents.deliveries.running"),) if not 0 <= n <= 16)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        async with running(Bus("memory://", router, plugins=[Metrics(meter_provider=measured.provider)])) as probe:
            reading = asyncio.get_running_loop().run_in_executor(None, read)
            for number in range(1000):
                await probe.bus.publish(OrderPlaced(f"o-{number}"))
            await probe.settled(30)
            ended.set()
            await reading
    finally:
        sys.setswitchinterval(before)

    assert wrong == []
    assert measured.value("messaging.client.consumed.messages") == 1000


async def test_a_bus_that_has_ended_is_counted_on_by_the_next_one(measured: Measured) -> None:
    for number in range(2):
        async with Bus("memory://", name=f"bus-{number}", plugins=[Metrics(meter_provider=measured.provider)]) as bus:
            await bus.publish(OrderPlaced("o-1"))

    assert measured.value("messaging.client.sent.messages") == 2
    assert measured.points("rabbitevents.publishes") == {}


async def test_what_is_reported_is_counted(measured: Measured) -> None:
    async with Bus("memory://", inventory(), plugins=[Metrics(meter_provider=measured.provider)]) as bus:
        bus.report(facts.Duplicate(RESERVE, "order.placed", "1"))
        bus.report(facts.Stale(RESERVE, True))
        bus.report(facts.Held(RESERVE, "order.placed", "1", "LookupError", 1.0))
        bus.report(facts.ConsumerLost(RESERVE, "cancelled by the broker"))
        bus.report(facts.Retried(RESERVE, "order.placed", "1", 5000, 1.0, "LookupError", True))

    assert measured.value("rabbitevents.duplicates", rabbitevents__subscription=RESERVE) == 1
    assert measured.value("rabbitevents.stale", rabbitevents__queue=RESERVE, rabbitevents__started=True) == 1
    assert measured.value("rabbitevents.holds", rabbitevents__subscription=RESERVE) == 1
    assert measured.value("rabbitevents.consumers.lost", rabbitevents__queue=RESERVE) == 1
    assert measured.value("rabbitevents.retries", rabbitevents__attempt=20) == 1


async def test_what_an_inner_plugin_gives_back_or_rejects_is_counted(measured: Measured) -> None:
    class Rejecting(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            return Settlement(Outcome.REJECT)

    plugins = [Metrics(meter_provider=measured.provider), Rejecting()]
    async with running(Bus("memory://", inventory(), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert measured.value("rabbitevents.settled", rabbitevents__outcome="reject") == 1


async def test_a_reconnect_is_counted_and_the_first_connection_is_not(measured: Measured) -> None:
    broker = EmbeddedBroker()
    async with Bus(broker.client(), plugins=[Metrics(meter_provider=measured.provider)]) as bus:
        await eventually(lambda: bus.health().ok, "the first connection")
        broker.go_down()
        await eventually(lambda: not bus.health().ok, "the loss")
        broker.come_up()
        await eventually(lambda: bus.health().ok, "the second connection")

    assert measured.value("rabbitevents.reconnects") == 1


async def test_connections_that_are_down_or_blocked_are_gauges(measured: Measured) -> None:
    broker = EmbeddedBroker()

    def seen() -> tuple[float, float]:
        return measured.value("rabbitevents.connections.down"), measured.value("rabbitevents.connections.blocked")

    async with Bus(broker.client(), plugins=[Metrics(meter_provider=measured.provider)]) as bus:
        at_first = seen()
        bus.report(facts.Blocked("low on memory"))
        blocked = seen()
        broker.go_down()  # nobody says that it is not blocked any more
        await eventually(lambda: seen() == (1, 0), "the loss")
        broker.come_up()
        await eventually(lambda: seen() == (0, 0), "the connection")
        bus.report(facts.Blocked("low on memory"))
        bus.report(facts.ConnectionLost("consume", "amqp://localhost", "cut"))
        other = seen()
        bus.report(facts.Unblocked())
        at_last = seen()

    assert (at_first, blocked, other, at_last) == ((0, 0), (0, 1), (1, 1), (1, 0))
    assert measured.value("rabbitevents.reconnects") == 1


async def test_what_an_outbox_has_is_a_gauge_until_its_relay_is_silent(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> list[float]:
        names = [f"rabbitevents.outbox.{what}" for what in ("pending", "lag", "dead")]
        return [point.value for name in names for point in measured.points(name).values()]

    async with Bus("memory://", plugins=[Metrics(meter_provider=measured.provider)]) as bus:
        before = seen()
        bus.report(facts.Backlog("event_outbox", 30, 2.5, 0))
        bus.report(facts.Backlog("event_outbox", 40, 3.5, 1))
        there = seen()
        monkeypatch.setattr("rabbitevents_metrics.backlogs.LASTING", 0.0)  # as if it had said so long ago
        later = seen()

    assert (before, there, later) == ([], [40, 3.5, 1], [])


async def test_how_far_a_projection_is_is_a_gauge(measured: Measured) -> None:
    def seen() -> list[float]:
        names = [f"rabbitevents.projection.{what}" for what in ("behind", "stopped")]
        return [measured.value(name, rabbitevents__projection="order_summary") for name in names]

    async with Bus("memory://", plugins=[Metrics(meter_provider=measured.provider)]) as bus:
        bus.report(facts.Projected("order_summary", 500, stopped=False))
        there = seen()
        bus.report(facts.Projected("order_summary", 700, stopped=True))
        later = seen()

    assert (there, later) == ([500, 0], [700, 1])


async def test_what_is_under_way_is_looked_at(measured: Measured) -> None:
    router, go_on = Router("inventory"), asyncio.Event()

    @router.on(OrderPlaced, concurrency=2, prefetch=5)
    async def reserve(order: OrderPlaced) -> None:
        await go_on.wait()

    def now(name: str) -> Callable[[], float]:
        return lambda: measured.value(name, rabbitevents__subscription=RESERVE)

    plugins = [Metrics(meter_provider=measured.provider, interval=timedelta(seconds=1))]
    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        for number in range(8):
            await probe.bus.publish(OrderPlaced(f"o-{number}"))
        await eventually(lambda: now("rabbitevents.deliveries.running")() == 2, "two running")
        await eventually(lambda: now("rabbitevents.deliveries.queued")() == 3, "three queued")
        await eventually(lambda: measured.value("rabbitevents.queue.depth", rabbitevents__queue=RESERVE) == 3, "3 left")
        assert (
            measured.value("rabbitevents.consumers.running") == measured.value("rabbitevents.consumers.expected") == 1
        )
        assert measured.value("rabbitevents.queue.consumers", rabbitevents__queue=RESERVE) == 1
        assert measured.value("rabbitevents.queue.depth", rabbitevents__queue=f"{RESERVE}.dead") == 0
        assert measured.value("rabbitevents.event_loop.lag") > 0
        go_on.set()
        await probe.settled()

    assert measured.value("rabbitevents.deliveries.running") == measured.value("rabbitevents.consumers.running") == 0


async def test_what_is_being_published_is_looked_at(measured: Measured) -> None:
    go_on = asyncio.Event()

    class Slow(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            await go_on.wait()
            await proceed(message)

    plugins = [Metrics(meter_provider=measured.provider), Slow()]
    async with Bus("memory://", plugins=plugins) as bus:
        publishing = [asyncio.create_task(bus.publish(OrderPlaced(f"o-{number}"))) for number in range(3)]
        await eventually(lambda: measured.value("rabbitevents.publishes") == 3, "three under way")
        go_on.set()
        await asyncio.gather(*publishing)
        await eventually(lambda: measured.value("rabbitevents.publishes") == 0, "none under way")


async def test_a_blocked_event_loop_shows(measured: Measured) -> None:
    async with Bus("memory://", plugins=[Metrics(meter_provider=measured.provider)]):
        await eventually(lambda: measured.value("rabbitevents.event_loop.lag") > 0, "a look at the loop")
        block_the_loop(0.6)
        await eventually(lambda: longest_lag(measured) >= 0.3, "the lag")


def block_the_loop(seconds: float) -> None:
    time.sleep(seconds)


def longest_lag(measured: Measured) -> float:
    return max((point.max for point in measured.points("rabbitevents.event_loop.lag").values()), default=0.0)


async def test_a_look_that_fails_is_counted_and_the_next_one_is_taken(measured: Measured) -> None:
    broker = EmbeddedBroker()
    plugins = [Metrics(meter_provider=measured.provider, interval=timedelta(seconds=1))]
    async with running(Bus("memory://", inventory(), plugins=plugins), broker=broker):
        broker.go_down()
        await eventually(lambda: measured.value("rabbitevents.queue.looks.failed") >= 1, "a look that failed")
        before = len(measured.points("rabbitevents.queue.depth"))
        broker.come_up()
        await eventually(lambda: len(measured.points("rabbitevents.queue.depth")) == 3, "a look that did not")

    assert before <= 3


async def test_label_sets_do_not_grow_with_what_comes_over_the_wire(measured: Measured) -> None:
    router = Router("audit")

    @router.on("order.#", "payment.*")
    async def record(told: Event) -> None: ...

    @router.on("stock.*")
    async def count(told: Event) -> None: ...

    async with running(Bus("memory://", router, plugins=[Metrics(meter_provider=measured.provider)])) as probe:
        for number in range(300):
            for kind in ("order", "stock"):
                await probe.bus.send(foreign(f"{kind}.n{number}"))
        await probe.settled()

    names = {
        dict(labels).get("messaging.destination.name") or dict(labels)["messaging.destination.template"]
        for labels in measured.points("messaging.client.consumed.messages")
    }
    assert names == {"events:_OTHER:audit.record", "events:stock.*:audit.count"}
    assert measured.value("messaging.client.consumed.messages") == 600


async def test_the_types_that_a_bus_publishes_and_the_errors_it_meets_are_bounded_too(measured: Measured) -> None:
    metrics = Metrics(meter_provider=measured.provider)

    async def fail(_: object) -> Settlement:
        raise type(f"Error{number}", (LookupError,), {})

    async def sent(_: object) -> None: ...

    delivery = Delivery("q", 1, 1, False, "events", "k", b"", Properties())
    for number in range(500):
        with pytest.raises(LookupError):
            await metrics.consume(fail, delivery)
        await metrics.publish(sent, foreign(f"order.n{number}"))

    async def acknowledge(_: Delivery) -> Settlement:
        return ACK

    await metrics.consume(acknowledge, delivery)
    assert len(measured.points("messaging.process.duration")) <= 202
    assert len(measured.points("messaging.client.operation.duration")) <= 201


def foreign(kind: str) -> Message:
    properties = Properties(type=kind, content_type="application/json")
    return Message(exchange="events", routing_key=kind, body=b"{}", properties=properties)


@asynccontextmanager
async def everything(measured: Measured) -> AsyncGenerator[None]:
    """Let there be a point of every metric, as long as its bus runs."""
    broker = EmbeddedBroker()
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.01)),
        Metrics(meter_provider=measured.provider, interval=timedelta(seconds=1)),
    ]
    async with running(Bus("memory://", inventory(fail=3), plugins=plugins), broker=broker) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.bus.publish(OrderPlaced("o-2"))
        await probe.settled()
        for fact in (facts.Duplicate(RESERVE, "t", "1"), facts.Stale(RESERVE, False), facts.ConsumerLost(RESERVE, "")):
            probe.bus.report(fact)
        probe.bus.report(facts.Held(RESERVE, "t", "1", "E", None))
        probe.bus.report(facts.Postponed(RESERVE, "t", "1", 1, 5.0, "E", False))
        probe.bus.report(facts.Discarded(RESERVE, "t", "1", 1, "GoneError"))
        probe.bus.report(facts.Tripped(RESERVE, 10, 20, "ConnectionError"))
        probe.bus.report(facts.Backlog("event_outbox", 3, 1.5, 0))
        probe.bus.report(facts.Projected("order_summary", 3, stopped=False))
        await eventually(lambda: measured.value("rabbitevents.consumers.expected") == 1, "a look")
        broker.go_down()
        await eventually(lambda: measured.value("rabbitevents.queue.looks.failed") > 0, "a look that failed")
        broker.come_up()
        await eventually(lambda: measured.value("rabbitevents.reconnects") > 0, "the connection")
        await eventually(lambda: len(measured.points("rabbitevents.queue.depth")) == 3, "a look that did not")
        yield


async def test_every_metric_and_every_label_is_in_the_conventions_or_ours(measured: Measured) -> None:
    async with everything(measured):
        found = measured.metrics
        labels = {name for metric in found.values() for point in measured.points(metric.name) for name, _ in point}

    assert set(found) == ALL
    assert unconventional(labels) == []
    for metric in found.values():
        if metric.name.startswith("messaging."):
            said = METRICS[metric.name]
            assert f"Unit: {metric.unit}\n" in said
            kind = {"Sum": "counter", "Histogram": "histogram", "Gauge": "gauge"}[type(metric.data).__name__]
            assert f"Instrument: {kind}\n" in said
        else:
            assert metric.name.startswith("rabbitevents.")
        assert re.fullmatch(r"s|\{[a-z]+\}", metric.unit or "")
        assert (metric.description or "").endswith(".")


async def test_durations_have_the_buckets_that_the_conventions_recommend(measured: Measured) -> None:
    async with everything(measured):
        pass

    recommended = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    for name in ("messaging.process.duration", "messaging.client.operation.duration"):
        assert {point.explicit_bounds for point in measured.points(name).values()} == {recommended}


async def test_buses_of_one_process_share_the_instruments(measured: Measured) -> None:
    broker = EmbeddedBroker()
    buses = [
        Bus(broker.client(), name=name, plugins=[Metrics(meter_provider=measured.provider)]) for name in ("a", "b")
    ]
    async with buses[0], buses[1]:
        for bus in buses:
            await bus.publish(OrderPlaced("o-1"))
        there = {dict(labels)["rabbitevents.bus"] for labels in measured.points("rabbitevents.publishes")}

    assert measured.value("messaging.client.sent.messages") == 2
    assert there == {"a", "b"}


async def test_a_handler_with_metrics_of_its_own_is_counted_by_those_alone(measured: Measured) -> None:
    own, router = Measured(), Router("inventory")

    @router.on(OrderPlaced, plugins=[Metrics(meter_provider=own.provider)])
    async def reserve(order: OrderPlaced) -> None:
        raise LookupError

    @router.on(OrderPlaced)
    async def count(order: OrderPlaced) -> None:
        raise LookupError

    plugins = [DeadLetter(), Metrics(meter_provider=measured.provider)]
    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        probe.bus.report(facts.Returned("order.placed", "1"))
        looked_at = [len(there.points("rabbitevents.deliveries.running")) for there in (own, measured)]

    assert looked_at == [1, 1]
    for there, subscription in ((own, "inventory.reserve"), (measured, "inventory.count")):
        assert there.value("rabbitevents.dead_letters") == 1
        assert there.value("rabbitevents.dead_letters", rabbitevents__subscription=subscription) == 1
        assert there.value("rabbitevents.settled", rabbitevents__subscription=subscription) == 1
    assert (own.value("rabbitevents.unroutable"), measured.value("rabbitevents.unroutable")) == (0, 1)
    own.provider.shutdown()


def test_metrics_stand_inside_retry_and_dead_letters() -> None:
    with pytest.raises(ConfigurationError, match=r"write plugins=\[DeadLetter\(\), Retry\(\), Metrics\(\)\]"):
        Bus("memory://", plugins=[Metrics(), DeadLetter(), Retry()])


def test_an_interval_that_would_keep_the_broker_busy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="say seconds, 1 or more"):
        Metrics(interval=timedelta(milliseconds=10))


async def test_without_a_provider_nothing_is_measured_and_nothing_fails() -> None:
    async with running(Bus("memory://", inventory(), plugins=[Metrics()])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        assert probe.bus.health().problems == ()
