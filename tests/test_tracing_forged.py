"""Whatever strangers write, each span can be exported: one that cannot takes a whole batch of other events' with it."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, DecodeError, Delivery, Message, Properties, Router, Timestamp
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from rabbitevents_tracing import Tracing
from tests.test_tracing import OrderPlaced, Traces, inventory, replay

ID = "0193a1b2-7c1a-7e3b-9f00-0123456789ab"
TRACED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
LONGEST = 1000 + 255 + 2
"""Characters of the longest text in a span: an error's name and text."""


def forged(headers: dict[str, Any], **properties: Any) -> Message:
    known: dict[str, Any] = {
        "content_type": "application/json",
        "message_id": ID,
        "type": "order.placed",
        "headers": headers,
    }
    return Message(
        exchange="events",
        routing_key="order.placed",
        body=b'{"order_id":"o-1"}',
        properties=Properties(**{**known, **properties}),
    )


async def spans_of(message: Message, *, fail: int, link: bool | timedelta = False) -> Traces:
    """Let an event pass, fail, be retried, dead-lettered and replayed."""
    traces = Traces()
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(30)),
        Tracing(tracer_provider=traces.provider, link=link, error_text=True),
    ]
    async with running(Bus("memory://", inventory(fail=fail), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("good"))
        await probe.bus.send(message)
        await probe.advance(timedelta(minutes=5))
        await replay(probe.bus, "inventory.reserve")
        await probe.settled()
    return traces


def check(traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
    """All of it can be encoded, nothing was left out on the way, and no text is long or hides anything."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        encode_spans(traces.spans)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []
    for span in traces.spans:
        said = [span.name, span.status.description or "", *(span.attributes or {}).values()]
        texts = [text for text in said if isinstance(text, str)]
        assert all(text.isprintable() for text in texts)
        assert max(map(len, texts)) <= LONGEST
        assert 0 < (span.start_time or 0) <= (span.end_time or 0)


OLD, NEW = "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"

TIMES = ("replay-at", "forwarded-at", "event-time")
NUMBERS = ("attempt", "replay-count", "x-delivery-count")
TEXTS = ("traceparent", "previous-traceparent", "tracestate", "baggage")
NO_TEXTS = (b"\xff", 17, [1, ["x"]], {"a": {"b": None}}, float("nan"))

FORGERIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("plain", {}, {}),
    *((f"{name} {value[:4]}", {name: value}, {}) for name in TIMES for value in (OLD, NEW)),
    *((f"{name} {n!r}", {name: n}, {}) for name in NUMBERS for n in (2**62, -(2**62), True, Timestamp(2**62))),
    *((f"{name} that is no text", {name: value}, {}) for name in TEXTS for value in NO_TEXTS),
    ("an attempt of 64 bits", {"attempt": Timestamp(2**64 - 1), "x-delivery-count": Timestamp(2**64 - 1)}, {}),
    ("a long tracestate", {**TRACED, "tracestate": ",".join(f"v{n}={'x' * 200}" for n in range(200))}, {}),
    ("a tracestate of surrogates", {**TRACED, "tracestate": "vendor=\udcff"}, {}),
    ("baggage of surrogates", {**TRACED, "baggage": "a=\udcff,b=1"}, {}),
    ("an entity of surrogates", {"entity-id": "\udcff" * 300, "entity-type": "\x00"}, {}),
    ("an entity of control signs", {"entity-id": "a\x00b\x1b[2J\n" * 100}, {}),
    ("an origin of surrogates", {"origin-exchange": "\udcff" * 300, "origin-routing-key": "\x1b" * 300}, {}),
    ("ids of surrogates", {"causation-id": "\udcff"}, {"correlation_id": "\udcff", "app_id": "\udcff\x00"}),
    ("a type of surrogates", {}, {"type": "order.\udcff"}),
    ("a message id of surrogates", {}, {"message_id": "\udcff\x00"}),
    ("a timestamp out of range", {}, {"timestamp": 2**64 - 1}),
    ("another timestamp out of range", {}, {"timestamp": 253402300800}),
]  # fmt: skip


@pytest.mark.parametrize(("traced", "link"), [(False, False), (True, True), (True, timedelta(0))])
@pytest.mark.parametrize(("headers", "more"), [each[1:] for each in FORGERIES], ids=[each[0] for each in FORGERIES])
async def test_a_forged_header_costs_no_span_of_another_event(
    headers: dict[str, Any],
    more: dict[str, Any],
    traced: bool,
    link: bool | timedelta,
    caplog: pytest.LogCaptureFixture,
) -> None:
    traces = await spans_of(forged({**(TRACED if traced else {}), **headers}, **more), fail=9, link=link)

    check(traces, caplog)
    assert len([span for span in traces.spans if span.name.startswith("process")]) >= 3


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=20),
    st.text(st.characters(), max_size=20),
    st.sampled_from(["\udcff", "\x00", "x" * 5000, OLD, NEW, "2026-11-26T05:00:00Z", *TRACED.values()]),
    st.datetimes().map(lambda moment: moment.isoformat()),
)
names = st.sampled_from(
    ["traceparent", "previous-traceparent", "tracestate", "baggage", "replay-at", "forwarded-at", "event-time", "attempt",
     "replay-count", "x-delivery-count", "entity-id", "entity-type", "causation-id", "origin-exchange", "origin-routing-key"]
)  # fmt: skip


@given(
    st.dictionaries(names, values),
    st.dictionaries(st.sampled_from(["type", "message_id", "correlation_id", "app_id"]), st.text(max_size=20)),
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=200
)
def test_whatever_a_delivery_says_its_span_can_be_exported(
    caplog: pytest.LogCaptureFixture, headers: dict[str, Any], properties: dict[str, str]
) -> None:
    traces = Traces()
    tracing = Tracing(tracer_provider=traces.provider, error_text=True)
    message = forged(headers, **properties)
    delivery = Delivery("q", 1, 1, False, "events", "k", message.body, message.properties)

    async def fail(_: Delivery) -> Any:
        raise DecodeError(f"it is {properties} and {headers}")

    async def both_ways() -> None:
        with pytest.raises(DecodeError):
            await tracing.consume(fail, delivery)
        await tracing.publish(lambda _: asyncio.sleep(0), message)
        tracing.forward(delivery, delivery.replace(attempt=2))

    asyncio.run(both_ways())

    check(traces, caplog)


async def test_an_exception_whose_text_is_no_utf_8_can_be_exported(caplog: pytest.LogCaptureFixture) -> None:
    router = Router("inventory")

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> None:
        raise type("Odd\udcff", (ValueError,), {})("\udcff\x00" * 5000)

    traces = Traces()
    plugins = [DeadLetter(), Tracing(tracer_provider=traces.provider, error_text=True)]
    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    caplog.clear()
    encode_spans(traces.spans)
    assert caplog.records == []


async def test_an_exception_deep_down_shows_its_innermost_frames() -> None:
    def dig(depth: int) -> None:
        if depth:
            dig(depth - 1)
        else:
            raise LookupError

    router = Router("inventory")

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> None:
        dig(300)

    traces = Traces()
    plugins = [DeadLetter(), Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    (failed,) = [span for span in traces.spans if span.name.startswith("process")]
    stack = str((failed.events[0].attributes or {})["exception.stacktrace"])
    assert stack.count("\n") == 39
    assert stack.count("in test_an_exception_deep_down_shows_its_innermost_frames.<locals>.dig") == 40
