"""An OTLP receiver: what exporters send over HTTP, read as the real protobuf messages, kept, and asked for as values.

It stands where a collector would. It can be slow, refuse, and be away.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.bed.loopback import LOOPBACK, free_port

Value = Any
"""What an attribute may be: text, number, truth value, or a list of them."""


@dataclass(frozen=True)
class Link:
    """A span's link: to which span, and what it says of that."""

    trace: str
    span: str
    attributes: dict[str, Value]


@dataclass(frozen=True)
class Span:
    """A span as it came over the wire. Ids are hexadecimal; times nanoseconds since 1970."""

    service: str
    scope: str
    schema: str
    trace: str
    id: str
    parent: str
    name: str
    kind: str
    start: int
    end: int
    failed: bool
    status: str
    attributes: dict[str, Value]
    events: dict[str, dict[str, Value]]
    links: list[Link]


@dataclass(frozen=True)
class Point:
    """A data point of a metric: a number, or a histogram's count, with its bucket boundaries."""

    service: str
    metric: str
    unit: str
    kind: str
    attributes: dict[str, Value]
    value: float
    bounds: tuple[float, ...] = ()


@dataclass
class Collector:
    """Listens on `endpoint` while it is entered. ``delay`` is how many seconds each answer takes."""

    delay: float = 0.0
    port: int = field(default_factory=free_port)
    spans: list[Span] = field(default_factory=list[Span])
    points: list[Point] = field(default_factory=list[Point])
    requests: list[bytes] = field(default_factory=list[bytes])
    """Every request's body, unpacked: to look for what must not be there."""

    def __post_init__(self) -> None:
        self._changed = Condition()
        self._server: ThreadingHTTPServer | None = None

    @property
    def endpoint(self) -> str:
        """The base URL: what `OTEL_EXPORTER_OTLP_ENDPOINT` takes."""
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                time.sleep(collector.delay)
                answer = collector.take(self.path, body)
                self.send_response(HTTPStatus.NOT_FOUND if answer is None else HTTPStatus.OK)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer or b"")))
                self.end_headers()
                self.wfile.write(answer or b"")

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer((LOOPBACK, self.port), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def take(self, path: str, body: bytes) -> bytes | None:
        """Read one request; None for a path that is not OTLP's."""
        spans = list(_spans(body)) if path == "/v1/traces" else []
        points = list(_points(body)) if path == "/v1/metrics" else []
        answers: dict[str, ExportTraceServiceResponse | ExportMetricsServiceResponse] = {
            "/v1/traces": ExportTraceServiceResponse(),
            "/v1/metrics": ExportMetricsServiceResponse(),
        }
        if path not in answers:
            return None
        with self._changed:
            self.requests.append(body)
            self.spans += spans
            self.points += points
            self._changed.notify_all()
        return bytes(answers[path].SerializeToString())

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """Wait until ``condition`` holds; fail, saying ``what`` was waited for and what came, after ``seconds``."""
        with self._changed:
            there = self._changed.wait_for(condition, seconds)
        assert there, f"{what}: not within {seconds:g} s; spans {[s.name for s in self.spans]}"

    def named(self, name: str) -> list[Span]:
        """Return the spans of this name, in the order in which they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)


def _spans(body: bytes) -> Iterable[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    for resource in request.resource_spans:
        service = str(_values(resource.resource.attributes).get("service.name", ""))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _span(span, service, scope.scope.name, scope.schema_url)


def _span(span: SpanMessage, service: str, scope: str, schema: str) -> Span:
    return Span(
        service=service,
        scope=scope,
        schema=schema,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        kind=SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        status=span.status.message,
        attributes=_values(span.attributes),
        events={event.name: _values(event.attributes) for event in span.events},
        links=[Link(link.trace_id.hex(), link.span_id.hex(), _values(link.attributes)) for link in span.links],
    )


def _points(body: bytes) -> Iterable[Point]:
    request = ExportMetricsServiceRequest.FromString(body)
    for resource in request.resource_metrics:
        service = str(_values(resource.resource.attributes).get("service.name", ""))
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from _of_metric(metric, service)


def _of_metric(metric: Metric, service: str) -> Iterable[Point]:
    kind = metric.WhichOneof("data") or ""
    if kind == "histogram":
        for point in metric.histogram.data_points:
            bounds = tuple(point.explicit_bounds)
            yield Point(service, metric.name, metric.unit, kind, _values(point.attributes), point.count, bounds)
        return
    for number in (metric.sum if kind == "sum" else metric.gauge).data_points:
        value = number.as_int if number.WhichOneof("value") == "as_int" else number.as_double
        yield Point(service, metric.name, metric.unit, kind, _values(number.attributes), value)


def _values(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind is not None else None
