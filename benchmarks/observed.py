"""What is observed, and how: ours and FastStream's plugins and middlewares, and collectors that they export to.

Nothing here runs by itself; `seeing.py` does. The exporter over gRPC is measured where it is installed.
"""

import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import CollectorRegistry

from benchmarks.field import ENVIRONMENT, ROOT
from benchmarks.workload import Contender, Told
from rabbitevents import Plugin
from rabbitevents_metrics import Metrics
from rabbitevents_tracing import Tracing


class Discarding(SpanExporter):
    """What is exported goes nowhere: what is left is the cost of making spans, and of handing them over in batches."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to close."""


class Counting(SpanExporter, SpanProcessor):
    """Counts spans, and what another exporter has sent of them: a batch processor drops what it has no room for."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.made = self.exported = 0

    def on_end(self, span: ReadableSpan) -> None:
        self.made += 1

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.exported += len(spans)
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


COUNTED: list[Counting] = []
"""The exporters of this process."""


def over_grpc(port: int) -> SpanExporter:
    module = import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")  # an extra that few need
    exporter: SpanExporter = module.OTLPSpanExporter(f"127.0.0.1:{port}", insecure=True)
    return exporter


EXPORTERS: Final[dict[str, Callable[[int], SpanExporter]]] = {
    "SDK, HTTP": lambda port: OTLPSpanExporter(f"http://127.0.0.1:{port}/v1/traces"),
    "SDK, gRPC": over_grpc,
}


def tracer(share: float, exporter: SpanExporter | None = None, **settings: Any) -> TracerProvider:
    """Return a provider that samples this share of the traces; ``settings`` are the batch processor's."""
    COUNTED.append(Counting(exporter or Discarding()))
    resource = Resource.create({"service.name": "bench", "host.name": "bench"})
    provider = TracerProvider(ParentBased(TraceIdRatioBased(share)), resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(COUNTED[-1], **settings))
    if exporter is not None:
        provider.add_span_processor(COUNTED[-1])
    return provider


def meter() -> MeterProvider:
    """Return a provider whose metrics Prometheus could read."""
    return MeterProvider([PrometheusMetricReader(registry=CollectorRegistry())], shutdown_on_exit=False)


SHARES: Final = {"all": 1.0, "1 in 100": 0.01, "none": 0.0}


def parts(name: str, port: int) -> tuple[TracerProvider | None, bool]:
    """Return how a contender traces, and whether it measures, by its name: ``ours, tracing all, metrics, to SDK, HTTP``."""
    how, _, exporter = name.partition(", to ")
    share = next((share for text, share in SHARES.items() if f"tracing {text}" in how), None)
    made = EXPORTERS[exporter](port) if exporter else None
    return None if share is None else tracer(share, made), "metrics" in how


def plugins(name: str, port: int) -> list[Plugin]:
    """Return our plugins."""
    provider, measures = parts(name, port)
    tracing: list[Plugin] = [Tracing(tracer_provider=provider)] if provider else []
    return [*tracing, Metrics(meter_provider=meter())] if measures else tracing


def middlewares(name: str, port: int) -> list[Any]:
    """Return FastStream's middlewares."""
    from faststream.rabbit.opentelemetry import RabbitTelemetryMiddleware
    from faststream.rabbit.prometheus import RabbitPrometheusMiddleware

    provider, measures = parts(name, port)
    tracing = [RabbitTelemetryMiddleware(tracer_provider=provider)] if provider else []
    return [*tracing, RabbitPrometheusMiddleware(registry=CollectorRegistry())] if measures else tracing


# --- contenders ------------------------------------------------------------------------------------------------------


def contender(name: str, port: int, told: Told) -> Contender:
    """Make a contender; each library is imported only where it is one."""
    if name.startswith("rabbitevents"):
        from benchmarks.contenders.python.rabbitevents_ import RabbitEvents

        return RabbitEvents(told, plugins(name, port))
    from benchmarks.contenders.python.faststream_pydantic import FastStreamPydantic

    return FastStreamPydantic(told, middlewares(name, port))


# --- the collector ---------------------------------------------------------------------------------------------------


class Receiver(BaseHTTPRequestHandler):
    """Takes whatever is exported."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def receive(kind: str) -> None:
    """Be a collector, on a port that is said on stdout."""
    if kind == "grpc":
        _receive_grpc()
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def _receive_grpc() -> None:
    grpc = import_module("grpc")
    service = "opentelemetry.proto.collector.trace.v1.TraceService"

    def take(request: bytes, context: object) -> bytes:
        return b""

    takes = grpc.unary_unary_rpc_method_handler(take)
    server = grpc.server(ThreadPoolExecutor(4), [grpc.method_handlers_generic_handler(service, {"Export": takes})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


@contextmanager
def collector(name: str) -> Generator[int]:
    """Run the collector that a contender needs, in a process of its own; yield its port, 0 for none."""
    if ", to " not in name:
        yield 0
        return
    words = [sys.executable, "-m", "benchmarks.seeing", "--receive", "grpc" if "gRPC" in name else "http"]
    with subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield int(running.stdout.readline())
        finally:
            running.kill()
