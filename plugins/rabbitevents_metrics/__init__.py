"""Metrics of a bus, on the OpenTelemetry API: add `Metrics` to its plugins.

The API is all that is needed at run time; SDK and exporter (OTLP, Prometheus) are the application's choice, and the
extra ``otel`` has all of them.
"""

try:
    from rabbitevents_metrics.metrics import Metrics
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ModuleNotFoundError(
        "rabbitevents_metrics needs OpenTelemetry: pip install 'rabbitevents[otel]'", name=_error.name
    ) from _error

__all__ = ["Metrics"]
