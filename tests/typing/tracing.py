"""Tracing and metrics as their users write them."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.trace import TracerProvider

from rabbitevents import Bus
from rabbitevents_deadletter import DeadLetter
from rabbitevents_metrics import Metrics
from rabbitevents_retry import Retry
from rabbitevents_tracing import Step, Tracing, story


def by_default() -> Bus:
    return Bus("memory://", plugins=[DeadLetter(), Retry(), Tracing(), Metrics()])


def with_providers(tracers: TracerProvider, meters: MeterProvider) -> Bus:
    tracing = Tracing(tracer_provider=tracers, link=True, error_text=True)
    Tracing(link=timedelta(hours=1))
    return Bus("memory://", plugins=[tracing, Metrics(meter_provider=meters, interval=timedelta(minutes=1))])


def with_the_sdk() -> Bus:
    tracing = Tracing(tracer_provider=SdkTracerProvider())
    return Bus("memory://", plugins=[tracing, Metrics(meter_provider=SdkMeterProvider(), interval=None)])


def told(spans: tuple[ReadableSpan, ...]) -> str:
    steps = [Step.of(span) for span in spans]
    assert_type(steps[0].start, float)
    return story(steps)


Tracing(tracer_provider="otlp")  # type: ignore[arg-type]
Metrics(interval="15")  # type: ignore[arg-type]
