"""Traces of the shop: into files of the run, to be told in the terminal, or to a collector. It needs the extra ``otel``."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from socket import gethostname
from typing import Final
from uuid import uuid4

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from yarl import URL

from rabbitevents.cli import out
from rabbitevents.demo.journal import append, finished_lines
from rabbitevents.demo.settings import Settings
from rabbitevents_tracing import Step, Tracing, story

TIMEOUT: Final = 2.0
"""Seconds that a collector has to take a batch."""

PAUSE: Final = 5.0
"""Seconds in which nothing is sent to a collector that has not taken a batch."""

FLUSH: Final = 5.0
"""Seconds that a collector has for what is left at the end."""

QUEUED: Final = 20_000
"""Spans that wait to be sent, at most: a shop at work makes tens of thousands a second."""

HERE: Final = {"host.name": gethostname(), "ip": "127.0.0.1"}
"""Which machine it is. Jaeger's page knows machines by ``ip``, its newer API by ``host.name``: the clocks of those it cannot
tell apart are one, and of others it warns wherever an attempt begins after its publish has ended."""

_decode = msgspec.json.Decoder(Step).decode


class Traces:
    """Where the spans of one process go. ``say`` hears of a collector that does not take them, once."""

    def __init__(self, settings: Settings, folder: Path, name: str, say: Callable[[str], object]) -> None:
        self._processors: list[SpanProcessor] = []
        self._sending: Sending | None = None
        if settings.trace:
            self._processors.append(SimpleSpanProcessor(Pages(folder / f"{name}.steps")))
        if settings.otlp is not None:
            self._sending = Sending(settings.otlp, say)
            self._processors.append(BatchSpanProcessor(self._sending, QUEUED, 500, 512))

    def plugin(self, service: str) -> Tracing:
        """Return the plugin that traces a service."""
        which = {"service.name": f"shop.{service}", "service.instance.id": str(uuid4()), **HERE}
        provider = TracerProvider(ALWAYS_ON, Resource.create(which), shutdown_on_exit=False)
        for processor in self._processors:
            provider.add_span_processor(processor)
        return Tracing(tracer_provider=provider)

    async def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        if self._sending is not None:
            self._sending.end_within(FLUSH)
        for processor in self._processors:
            await asyncio.to_thread(processor.shutdown)


class Pages(SpanExporter):
    """Writes each span down as a line that another process can read, and that a kill does not take back."""

    def __init__(self, path: Path) -> None:
        finished_lines(path)
        self._file = path.open("ab", buffering=0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write spans."""
        append(self._file.fileno(), b"".join(msgspec.json.encode(Step.of(span)) + b"\n" for span in spans))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


class Sending(SpanExporter):
    """Sends spans to a collector. The shop does not wait for one that is away, and goes on without."""

    def __init__(self, url: str, say: Callable[[str], object]) -> None:
        self._name = str(URL(url).with_user(None))
        self._say = say
        self._has_said = False
        self._pause_until = 0.0
        self._end = math.inf
        self._exporter: SpanExporter = OTLPSpanExporter(endpoint(url), timeout=TIMEOUT)

    def end_within(self, seconds: float) -> None:
        """Send nothing any more after so many seconds."""
        self._end = time.monotonic() + seconds

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, unless the last ones were not taken a moment ago."""
        now = time.monotonic()
        if now > self._end:
            return self._failed("is slow: the last spans were not sent")
        if now < self._pause_until:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            return result
        self._pause_until = time.monotonic() + PAUSE
        return self._failed("takes no traces: the shop goes on without")

    def _failed(self, how: str) -> SpanExportResult:
        if not self._has_said:
            self._has_said = True
            self._say(f"the collector at {self._name} {how}")
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Let go of the connection."""
        self._exporter.shutdown()


def endpoint(url: str) -> str:
    """Return where a collector takes traces (OTLP/HTTP)."""
    base = url.rstrip("/")
    return base if base.endswith("/v1/traces") else f"{base}/v1/traces"


# --- telling one ---------------------------------------------------------------------------------------------------


def told(folder: Path, event: str) -> str:
    """Return as text the trace that began with ``event``, from what all processes have written, as the terminal is wide."""
    traces = {step.trace for step in _steps_with(folder, event) if step.attributes.get("messaging.message.id") == event}
    return story((step for trace in traces for step in _steps_with(folder, trace) if step.trace == trace), out.width)


def _steps_with(folder: Path, text: str) -> Iterator[Step]:
    """Read the steps that have ``text`` in them; a last line that a killed process did not finish is none."""
    wanted = text.encode()
    for path in sorted(folder.glob("*.steps")):
        with path.open("rb") as file:
            yield from (_decode(line) for line in file if wanted in line and line.endswith(b"\n"))
