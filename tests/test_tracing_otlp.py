"""The exporter of our own: what it writes is what the SDK's exporter writes, and what a collector's trouble costs is said."""

from __future__ import annotations

import gzip
import logging
import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from rabbitevents import Bus, ConfigurationError
from rabbitevents.testing import running
from rabbitevents_tracing import Tracing
from rabbitevents_tracing.otlp import OtlpExporter
from rabbitevents_tracing.protobuf import Encoder
from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.otlp import Collector
from tests.test_tracing import OrderPlaced, Traces, inventory
from tests.test_tracing_conventions import everything_that_can_happen


def same(spans: Sequence[ReadableSpan], encoder: Encoder) -> None:
    """Check that we write of these spans what the SDK's own exporters do."""
    ours = ExportTraceServiceRequest.FromString(encoder.request(spans))

    assert ours == encode_spans(spans)


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [False, True])
async def test_all_that_tracing_says_is_written_as_the_sdk_writes_it(link: bool) -> None:
    traces = Traces()
    await everything_that_can_happen(traces, link=link, error_text=True)

    same(traces.spans, encoder := Encoder())
    same(traces.spans, encoder)  # now by what it knows


plain = st.one_of(
    st.text(max_size=100),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=20),
)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=2),
    max_leaves=3,
)
attributes = st.dictionaries(st.text(min_size=1, max_size=20), values, max_size=3)
contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.builds(TraceFlags, st.integers(0, 255)),
    st.sampled_from([TraceState(), TraceState([("vendor", "x"), ("other", "y")])]),
)
ENCODER = Encoder()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # much is made up here, and slowly
@given(attributes, attributes, attributes, contexts, st.sampled_from(SpanKind), st.sampled_from(StatusCode), st.text())
def test_whatever_a_span_says_is_written_as_the_sdk_writes_it(
    said: Mapping[str, Any],
    more: Mapping[str, Any],
    resource: Mapping[str, Any],
    parent: SpanContext,
    kind: SpanKind,
    code: StatusCode,
    name: str,
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource(resource, "https://example.org/1"), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("a scope", "1", "https://example.org/2", more)
    context = set_span_in_context(NonRecordingSpan(parent))
    span = tracer.start_span(name, context, kind, said, [Link(parent, more), Link(parent)])
    span.add_event(name, more)
    span.set_status(Status(code, name if code is StatusCode.ERROR else None))
    tracer.start_span("a root").end()
    span.end()
    provider.get_tracer("another scope").start_span("alone").end()
    spans = [each for each in exporter.get_finished_spans() if each.context and each.context.is_valid]

    same(spans, ENCODER)


def test_true_one_and_one_point_nought_stay_what_they_are() -> None:
    traces, encoder = Traces(), Encoder()
    tracer = traces.provider.get_tracer("test")
    for value in (True, 1, 1.0, "1", "True", False, 0, 0.0, "", -1):
        tracer.start_span("same", attributes={"value": value}).end()

    same(traces.spans, encoder)


@pytest.mark.parametrize(
    "odd",
    [
        {"text": "a \ud800 b"},
        {"number": 2**64},
        {"number": -(2**63) - 1},
        {"nothing": None},
        {"number": math.nan},
        {"\udcff": "name"},
    ],
)
def test_an_odd_value_spoils_no_other_span(odd: dict[str, Any]) -> None:
    traces = Traces()
    tracer = traces.provider.get_tracer("test")
    tracer.start_span("odd", attributes={**odd, "good": 1}).end()
    tracer.start_span("good \ud800").end(2**70)
    tracer.start_span("centuries ago", start_time=-1).end()

    request = ExportTraceServiceRequest.FromString(Encoder().request(traces.spans))

    (resource,) = request.resource_spans
    names = [span.name for span in resource.scope_spans[0].spans]
    assert names == ["centuries ago", "odd", "good ?"]
    assert resource.scope_spans[0].spans[1].attributes[-1].value.int_value == 1


def test_what_is_known_is_bounded() -> None:
    traces, encoder = Traces(), Encoder()
    tracer = traces.provider.get_tracer("test")
    for number in range(1000):
        said = {f"{number} {each}": f"{number} {each}" for each in range(30)}
        tracer.start_span("many", attributes={**said, "long": "x" * 1000}).end()

    same(traces.spans, encoder)

    assert 10_000 < len(pickle.dumps(encoder)) < 1_000_000  # 1,700,000 if all were kept


# --- the collector ---------------------------------------------------------------------------------------------------


def some_spans() -> list[ReadableSpan]:
    traces = Traces()
    traces.provider.get_tracer("test").start_span("one").end()
    return traces.spans


@pytest.mark.parametrize("compress", [False, True])
async def test_a_collector_gets_the_spans(compress: bool) -> None:
    with Collector() as collector:
        exporter = OtlpExporter(f"{collector.endpoint}/v1/traces", compress=compress)
        provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        async with running(Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=provider)])) as probe:
            await probe.bus.publish(OrderPlaced("o-1"))
            await probe.settled()
        provider.shutdown()

    assert "process events:order.placed:inventory.reserve" in [span.name for span in collector.spans]
    assert {span.service for span in collector.spans} == {"shop"}


@pytest.fixture
def answering() -> Iterator[Callable[[list[int]], tuple[str, list[dict[str, str]]]]]:
    """Start a collector that answers one code after the other; it notes each request's headers, and its body."""
    servers: list[HTTPServer] = []

    def start(codes: list[int]) -> tuple[str, list[dict[str, str]]]:
        asked: list[dict[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                asked.append({**self.headers, "path": self.path, "size": str(len(body))})
                code = codes[min(len(asked), len(codes)) - 1]
                if code == 0:
                    self.close_connection = True  # without an answer
                    return
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        servers.append(HTTPServer((LOOPBACK, 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://{LOOPBACK}:{servers[-1].server_port}/v1/traces?tenant=north", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def exporting() -> Iterator[Callable[..., OtlpExporter]]:
    """Make exporters, and shut them down."""
    made: list[OtlpExporter] = []

    def make(url: str, **said: Any) -> OtlpExporter:
        made.append(OtlpExporter(url, **said))
        return made[-1]

    yield make
    for exporter in made:
        exporter.shutdown()


Exporting = Callable[..., OtlpExporter]
Answering = Callable[[list[int]], tuple[str, list[dict[str, str]]]]


def test_a_request_says_what_it_was_told_to(answering: Answering, exporting: Exporting) -> None:
    url, asked = answering([200])

    result = exporting(url, headers={"Authorization": "Bearer x"}).export(some_spans())

    assert result is SpanExportResult.SUCCESS
    assert asked[0]["path"] == "/v1/traces?tenant=north"
    assert asked[0]["Content-Type"] == "application/x-protobuf"
    assert asked[0]["Authorization"] == "Bearer x"


@pytest.mark.parametrize("trouble", [503, 429, 0])
def test_a_collector_that_is_busy_or_gone_is_asked_again(
    answering: Answering, exporting: Exporting, trouble: int
) -> None:
    url, asked = answering([200, trouble, 200])
    exporter = exporting(url)
    exporter.export(some_spans())

    result = exporter.export(some_spans())

    assert result is SpanExportResult.SUCCESS
    assert len(asked) == 3


def test_a_collector_that_refuses_is_not_asked_again_and_it_is_said(
    answering: Answering, exporting: Exporting, caplog: pytest.LogCaptureFixture
) -> None:
    url, asked = answering([400])

    with caplog.at_level(logging.WARNING):
        result = exporting(url, headers={"Authorization": "Bearer secret"}).export(some_spans())

    assert result is SpanExportResult.FAILURE
    assert len(asked) == 1
    assert "1 spans are lost: the collector at 127.0.0.1:" in caplog.text
    assert "HTTP 400" in caplog.text
    assert "secret" not in caplog.text


def test_a_collector_that_is_away_costs_no_more_time_than_was_given(caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()

    with caplog.at_level(logging.WARNING):
        result = OtlpExporter(f"http://{LOOPBACK}:{free_port()}/v1/traces", timeout=0.5).export(some_spans())

    assert result is SpanExportResult.FAILURE
    assert time.monotonic() - began < 5
    assert "ConnectionRefusedError" in caplog.text


def test_shutting_down_ends_the_waiting() -> None:
    exporter = OtlpExporter(f"http://{LOOPBACK}:{free_port()}/v1/traces", timeout=60)
    thread = threading.Thread(target=exporter.export, args=[some_spans()])
    thread.start()
    began = time.monotonic()

    exporter.shutdown()
    thread.join(60)

    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"endpoint": "localhost:4318"}, "OtlpExporter: endpoint is text: say a URL such as http://localhost:4318"),
        ({"endpoint": "http://keeper:secret@localhost/"}, "OtlpExporter: endpoint is text: say a URL"),
        ({"endpoint": None}, "OtlpExporter: endpoint=None: say a URL"),
        ({"timeout": 0}, "OtlpExporter: timeout=0"),
        ({"compress": "gzip"}, "OtlpExporter: compress is text: say True or False"),
        ({"ssl": True}, "OtlpExporter: ssl=True: say an SSLContext"),
    ],
)
def test_what_is_written_wrong_is_refused_by_name(written: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        OtlpExporter(**written)

    assert said in str(refused.value)
    assert "secret" not in str(refused.value)
