"""Traces that tell an event's whole story, on the OpenTelemetry API: add `Tracing` to a bus's plugins.

The API is all that is needed at run time; SDK and exporter are the application's choice (the extra ``otel`` has both).
"""

try:
    from rabbitevents_tracing.story import Step, story
    from rabbitevents_tracing.tracing import Tracing
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ModuleNotFoundError(
        "rabbitevents_tracing needs OpenTelemetry: pip install 'rabbitevents[otel]'", name=_error.name
    ) from _error

__all__ = ["Step", "Tracing", "story"]
