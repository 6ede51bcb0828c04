"""Traces to Jaeger, metrics for Prometheus. Where, and under which name, says OpenTelemetry's own environment."""

from platform import node

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def set_up() -> None:
    """Observe this process: OTEL_SERVICE_NAME is what it is called, OTEL_EXPORTER_OTLP_ENDPOINT where traces go."""
    # Containers are machines to Jaeger, which warns of their clocks; these are kept in step, and so are one.
    resource = Resource.create({"host.name": node(), "host.id": "shop", "ip": "shop"})
    tracing = TracerProvider(resource=resource)
    tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()], resource))
