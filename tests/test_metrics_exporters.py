"""Metrics as exporters give them on: Prometheus's page, the dashboard that reads it, and OTLP."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from rabbitevents import Bus, Event, Router
from rabbitevents.testing import running
from rabbitevents_metrics import Metrics
from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.otlp import Collector
from tests.bed.proxy import Proxy
from tests.shop import eventually
from tests.test_metrics import ALL, Measured, everything, foreign
from tests.test_tracing import OrderPlaced, inventory
from tests.test_tracing_conventions import METRICS, unconventional

DASHBOARD = Path(__file__).parent.parent / "docs" / "grafana.json"
HOWTO = DASHBOARD.parent / "howto" / "metrics.md"


@dataclass
class Page:
    """What a Prometheus server would read."""

    url: str

    def text(self) -> str:
        with urllib.request.urlopen(self.url, timeout=5) as answer:
            return str(answer.read().decode())

    def samples(self) -> dict[str, set[str]]:
        """The names of all samples, and the labels that any of them has."""
        found = dict[str, set[str]]()
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found


@pytest.fixture
def prometheus() -> Iterator[tuple[Measured, Page]]:
    """A provider, and the page that shows its metrics."""
    registry = CollectorRegistry()
    measured = Measured(PrometheusMetricReader(registry=registry))
    port = free_port()
    server, thread = start_http_server(port, LOOPBACK, registry)
    yield measured, Page(f"http://{LOOPBACK}:{port}/metrics")
    server.shutdown()
    server.server_close()
    thread.join()
    measured.provider.shutdown()


async def test_every_query_of_the_dashboard_asks_for_metrics_and_labels_that_exist(
    prometheus: tuple[Measured, Page],
) -> None:
    measured, page = prometheus
    async with everything(measured):
        samples = await asyncio.to_thread(page.samples)

    asked = queries(json.loads(DASHBOARD.read_text()))

    assert len(asked) > 20
    assert [problem for query in asked for problem in problems(query, samples)] == []
    used = {re.sub("_(total|bucket|count|seconds)", "", name) for query in asked for name in names_in(query)}
    assert used == {name.replace(".", "_") for name in ALL}


def test_a_query_for_what_does_not_exist_is_found() -> None:
    samples = {"rabbitevents_queue_depth": {"rabbitevents_queue"}}

    assert problems('max by (rabbitevents_queue) (rabbitevents_queue_depth{job=~"$job"})', samples) == []
    assert problems('rabbitevents_queue_length{job=~"$job"}', samples) == ["there is no rabbitevents_queue_length"]
    assert problems('rabbitevents_queue_depth{queue="x"}', samples) == ["rabbitevents_queue_depth has no label queue"]
    assert problems("sum by (le) (rabbitevents_queue_depth)", samples) == ["rabbitevents_queue_depth has no label le"]


def queries(dashboard: dict[str, Any]) -> list[str]:
    """Return all that a dashboard asks Prometheus."""
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    variables = [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]
    return [*panels, *variables]


def names_in(query: str) -> list[str]:
    labels = "|".join(labels_in(query)) or "-"
    return [name for name in re.findall(r"\b(?:rabbitevents|messaging)_\w+", query) if not re.fullmatch(labels, name)]


def labels_in(query: str) -> list[str]:
    grouped = [re.split(r", ", group) for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", query)]
    return [*re.findall(r"(\w+)(?:=~|!~|!=|=)", query), *(label for labels in grouped for label in labels)]


def problems(query: str, samples: dict[str, set[str]]) -> list[str]:
    """Say what a query asks for that is not there."""
    given = {
        "job",
        "messaging_destination_template",
    }  # the server adds one; only subscriptions to patterns have the other
    missing = [f"there is no {name}" for name in names_in(query) if name not in samples]
    return missing or [
        f"{name} has no label {label}"
        for name in names_in(query)
        for label in labels_in(query)
        if label not in samples[name] | given
    ]


async def test_prometheus_may_ask_from_another_thread_while_events_pass(prometheus: tuple[Measured, Page]) -> None:
    measured, page = prometheus
    stop, pages = threading.Event(), list[str]()

    def ask() -> None:
        while not stop.is_set():
            pages.append(page.text())

    asking = threading.Thread(target=ask)
    async with running(Bus("memory://", inventory(), plugins=[Metrics(meter_provider=measured.provider)])) as probe:
        asking.start()
        while len(pages) < 5:
            await probe.bus.publish(OrderPlaced("o"))
            await asyncio.sleep(0)
        await probe.settled(30)
        stop.set()
        await eventually(lambda: not asking.is_alive(), "the last page")

    published = measured.value("messaging.client.sent.messages", messaging__destination__name="events:order.placed")
    assert published > 5
    assert measured.value("messaging.client.consumed.messages") == published
    assert "messaging_client_consumed_messages_total" in page.text()


async def test_metrics_reach_an_otlp_collector_by_their_names(otlp: Collector, rabbit_url: str) -> None:
    exporter = OTLPMetricExporter(f"{otlp.endpoint}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=200)
    provider = MeterProvider([reader], resource=Resource.create({"service.name": "inventory"}), shutdown_on_exit=False)
    metrics = Metrics(meter_provider=provider, interval=timedelta(seconds=1))

    def points(name: str) -> list[Any]:
        return [point for point in otlp.points if point.metric == name]

    async with Proxy.before(rabbit_url) as proxy, Bus(proxy.url_for(rabbit_url), inventory(), plugins=[metrics]) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: bool(points("rabbitevents.queue.depth")), "the depth of a queue")
        await eventually(lambda: running_now(points("rabbitevents.consumers.running")) == 1, "the consumer")
        proxy.cut()
        await eventually(lambda: bool(points("rabbitevents.reconnects")), "the reconnect")
    provider.shutdown()

    names = {point.metric for point in otlp.points}
    consumed = points("messaging.client.consumed.messages")[-1]
    assert names <= ALL
    assert {point.service for point in otlp.points} == {"inventory"}
    assert unconventional({name for point in otlp.points for name in point.attributes}) == []
    assert {name for name in names if name.startswith("messaging.")} <= set(METRICS)
    assert (consumed.kind, consumed.unit, consumed.value) == ("sum", "{message}", 1)
    assert consumed.attributes["server.port"] == proxy.port
    assert points("messaging.process.duration")[-1].bounds[0] == 0.005
    assert {p.attributes["rabbitevents.connection"] for p in points("rabbitevents.reconnects")} == {
        "publish",
        "consume",
    }


def running_now(points: list[Any]) -> float:
    return float(points[-1].value) if points else 0.0


def series(page: Page) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """All series of a page: a sample's name and its labels."""
    families = text_string_to_metric_families(page.text())
    return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}


async def test_entities_and_odd_types_add_no_series(prometheus: tuple[Measured, Page]) -> None:
    measured, page = prometheus
    audit = Router("audit")

    @audit.on("order.*", "payment.#")
    async def record(told: Event) -> None: ...

    routers = (inventory(), audit)
    async with running(Bus("memory://", *routers, plugins=[Metrics(meter_provider=measured.provider)])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.bus.send(foreign("order.odd"))
        await eventually(lambda: len(measured.points("rabbitevents.queue.depth")) == 5, "a look at the queues")
        await probe.settled()
        before = await asyncio.to_thread(series, page)
        for number in range(1000):
            await probe.bus.publish(OrderPlaced(f"entity-{number}"))
            await probe.bus.send(foreign(f"order.n{number}"))
            await probe.bus.send(foreign(f"payment.{'a.' * (number % 20)}\N{SNOWMAN}{number}"))
        await probe.settled(60)
        after = await asyncio.to_thread(series, page)

    assert after == before
    assert measured.value("messaging.client.consumed.messages") == 4003


async def test_there_are_as_many_series_as_the_page_says(prometheus: tuple[Measured, Page], rabbit_url: str) -> None:
    measured, page = prometheus
    rows = re.findall(r"^\| ([\w ]+) \| (\d+) \|", HOWTO.read_text(), re.MULTILINE)
    said = {of: int(number) for of, number in rows}
    at_rest = said["worker"] + said["subscription"]
    and_then = said["event type that a subscription names"] + 2 * said["event type that is published"]
    plugins = [Metrics(meter_provider=measured.provider, interval=timedelta(seconds=1))]

    async with Bus(rabbit_url, inventory(), plugins=plugins) as bus:
        await eventually(lambda: len(measured.points("rabbitevents.queue.depth")) == 3, "a look at the queues")
        await eventually(lambda: measured.value("rabbitevents.event_loop.lag") > 0, "a look at the loop")
        before = await asyncio.to_thread(series, page)
        await bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: measured.value("rabbitevents.settled") == 1, "the acknowledgement")
        after = await asyncio.to_thread(series, page)

    assert len(before) == at_rest
    assert len(after) == at_rest + and_then + 2  # an outcome, and a type that nobody is bound for
