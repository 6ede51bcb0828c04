"""What headers carry of a trace: bounded both ways, and never trusted."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rabbitevents.facts import Connected
from rabbitevents.topics import matches
from rabbitevents_tracing.carrier import (
    LONGEST,
    LONGEST_BAGGAGE,
    OLDEST,
    Headers,
    Times,
    left_behind,
    previous_attempt,
    read,
    seconds,
    written,
)
from rabbitevents_tracing.destinations import Destination, Destinations, fits

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

header_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.binary(),
    st.text(),
    st.lists(st.text()),
    st.just(GOOD),
    st.text(alphabet='0f-,=; %"\u00e9', max_size=80),
    st.builds("{}-{}-{}-{}".format, *(st.text(alphabet="0f", max_size=size) for size in (2, 32, 16, 2))),
)
header_names = st.sampled_from(["traceparent", "tracestate", "baggage", "previous-traceparent", "forwarded-at"])


def waited(headers: Headers, sent_at: int | None = None) -> float | None:
    now = time.time_ns()
    return seconds(Times.of(headers, sent_at, now).since, now)


def span_of(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


@given(st.dictionaries(header_names, header_values))
def test_whatever_headers_say_a_context_comes_of_it(headers: dict[str, Any]) -> None:
    context = read(headers)

    assert span_of(context).is_valid == span_of(read({"traceparent": headers.get("traceparent")})).is_valid
    assert previous_attempt(headers) is None or previous_attempt(headers) != span_of(Context())
    assert (waited(headers) or 0.0) >= 0


@pytest.mark.parametrize(
    "value",
    [
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        17,
        None,
        [GOOD],
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        GOOD + "-" + "0" * 1_000_000,
        "0" * 1_000_000,
    ],
)
def test_a_malformed_traceparent_is_ignored(value: object) -> None:
    assert not span_of(read({"traceparent": value})).is_valid
    assert previous_attempt({"previous-traceparent": value}) is None


def test_a_tracestate_that_is_too_long_is_cut_between_its_members() -> None:
    members = [f"vendor{number}={'x' * 100}" for number in range(9)]

    context = read({"traceparent": GOOD, "tracestate": ",".join(members)})

    assert span_of(context).is_valid
    assert list(span_of(context).trace_state) == ["vendor0", "vendor1", "vendor2", "vendor3"]


def test_baggage_that_is_too_long_is_cut_between_its_members() -> None:
    members = [f"key{number}={'x' * 1000}" for number in range(20)]

    context = read({"baggage": ",".join(members)})

    assert list(baggage.get_all(context)) == [f"key{number}" for number in range(8)]


def test_malformed_baggage_is_left_out_and_shown_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        context = read(
            {"baggage": "secret marker,tenant=north;note=x,=secret-marker,bad=secret marker,s\u00e9cret=1,x=1"}
        )
        long = read({"baggage": "secret-marker=" + "x" * 10_000})

    assert set(baggage.get_all(context)) == {"tenant", "x"}
    assert not baggage.get_all(long)
    assert "marker" not in caplog.text


def test_what_is_read_does_not_mix_with_what_is_current() -> None:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(W3CBaggagePropagator())
    current = attach(set_span_in_context(NonRecordingSpan(SpanContext(1, 2, False))))
    try:
        context = read({"baggage": "tenant=north"})
    finally:
        detach(current)
        propagate.set_global_textmap(before)

    assert not span_of(context).is_valid
    assert baggage.get_all(context) == {"tenant": "north"}


def test_what_is_sent_along_is_bounded() -> None:
    context = Context()
    for number in range(100):
        context = baggage.set_baggage(f"key{number}", "x" * 200, context)
    state = TraceState([(f"vendor{number}", "x" * 100) for number in range(9)])
    context = set_span_in_context(NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(1), state)), context)

    headers = written(context)

    assert 0 < len(headers["baggage"]) <= LONGEST_BAGGAGE
    assert 0 < len(headers["tracestate"]) <= LONGEST
    assert len(baggage.get_all(read(headers))) == headers["baggage"].count("=")


def test_a_copy_says_which_attempt_made_it_and_only_one_that_was_recorded() -> None:
    recorded = SpanContext(7, 8, True, TraceFlags(1))

    assert previous_attempt(left_behind(recorded)) == recorded
    assert left_behind(SpanContext(7, 8, True, TraceFlags(0)))["previous-traceparent"] is None
    assert left_behind(None)["previous-traceparent"] is None


sent = st.builds(
    SpanContext,
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.builds(TraceFlags, st.integers(0, 255)),
    st.sampled_from([TraceState(), TraceState([("vendor", "x")])]),
)


@given(sent, st.dictionaries(st.sampled_from(["tenant", "region"]), st.sampled_from(["north", "a b"])))
def test_what_is_written_and_read_without_the_propagators_is_what_they_would(
    span: SpanContext, carried: dict[str, str]
) -> None:
    context = set_span_in_context(NonRecordingSpan(span), Context())
    for key, value in carried.items():
        context = baggage.set_baggage(key, value, context)
    theirs: dict[str, str] = {}
    propagate.inject(theirs, context)

    headers = written(context)
    found, expected = read(headers), propagate.extract(theirs, Context())

    assert headers == theirs
    assert span_of(found) == span_of(expected)
    assert span_of(found).is_remote == span_of(expected).is_remote
    assert baggage.get_all(found) == baggage.get_all(expected)


traceparents = st.one_of(
    st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True),
    st.builds("{}-{}-{}-{}".format, *(st.text(alphabet="0f", max_size=size) for size in (2, 32, 16, 2))),
    st.text(alphabet="0f- ", max_size=60),
    st.sampled_from([f" {GOOD}", f"{GOOD}\n", f"{GOOD} ", f"{GOOD}-more", "01" + GOOD[2:], GOOD.replace("b7", "B7")]),
)


@given(traceparents)
def test_whatever_is_read_without_the_propagators_is_what_they_would(traceparent: str) -> None:
    headers = {"traceparent": traceparent}

    assert span_of(read(headers)) == span_of(propagate.extract(headers, Context()))


class Silent(TraceContextTextMapPropagator):
    """Someone's own, which sends nothing along, and believes nothing."""

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Say nothing."""

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        return Context() if context is None else context


@pytest.mark.parametrize("own", [Silent(), CompositePropagator([Silent(), W3CBaggagePropagator()])])
def test_a_propagator_of_somebody_s_own_has_the_word(own: TextMapPropagator) -> None:
    context = set_span_in_context(NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(1))), Context())
    before = propagate.get_global_textmap()
    usual = written(context)
    propagate.set_global_textmap(own)
    try:
        headers, found = written(context), read({"traceparent": GOOD})
    finally:
        propagate.set_global_textmap(before)

    assert headers == {}
    assert not span_of(found).is_valid
    assert written(context) == usual != {}


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


@pytest.mark.parametrize(
    ("headers", "long"),
    [
        (lambda: {"event-time": ago(minutes=5)}, 300),
        (lambda: {"event-time": ago(minutes=5), "forwarded-at": ago(minutes=1)}, 60),
        (lambda: {"event-time": ago(hours=5), "forwarded-at": ago(hours=1), "replay-at": ago(minutes=2)}, 120),
        (lambda: {"event-time": ago(hours=5), "forwarded-at": ago(minutes=1), "replay-at": ago(hours=2)}, 60),
        (lambda: {"event-time": datetime.now(UTC).replace(tzinfo=None).isoformat()}, 0),
        (lambda: {"event-time": ago(minutes=-5)}, None),
        (lambda: {"event-time": ago(days=500)}, None),
        (lambda: {"event-time": "0001-01-01T00:00:00+14:00"}, None),
        (lambda: {"event-time": "9999-12-31T23:59:59-14:00"}, None),
        (lambda: {"event-time": "yesterday"}, None),
        (lambda: {"event-time": "1" * 1_000_000}, None),
        (dict, None),
    ],
)
def test_an_event_has_waited_since_it_was_last_sent(headers: Callable[[], dict[str, str]], long: float | None) -> None:
    wait = waited(headers())

    assert wait == (None if long is None else pytest.approx(long, abs=60))


@pytest.mark.parametrize("name", ["forwarded-at", "replay-at", "event-time"])
@pytest.mark.parametrize("said", ["0001-01-01", "9999-12-31T23:59:59+00:00", "1969-12-31T23:59:59Z", 17, b"2026", True])
def test_a_time_at_which_no_span_can_have_begun_is_not_said(name: str, said: object) -> None:
    times = Times.of({name: said}, None, time.time_ns())

    assert times == (0, 0, 0)


@given(st.datetimes(timezones=st.timezones()), st.integers(OLDEST, 2**63))
def test_whatever_time_is_said_it_is_a_possible_one_or_none(moment: datetime, now: int) -> None:
    times = Times.of({"forwarded-at": moment.isoformat(), "replay-at": moment.isoformat()}, None, now)

    assert all(each == 0 or now - OLDEST < each <= now for each in times)


@pytest.mark.parametrize(("sent_at", "long"), [(100, 100), (-100, None), (-(2**64), None), (500 * 86_400, None)])
def test_an_event_without_a_time_of_its_own_has_waited_since_amqp_s_timestamp(sent_at: int, long: float | None) -> None:
    wait = waited({}, int(datetime.now(UTC).timestamp()) - sent_at)

    assert wait == (None if long is None else pytest.approx(long, abs=60))


# --- destinations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exchange", "routing_key", "name"),
    [("logs", "warning", "logs:warning"), ("logs", "", "logs"), ("", "warning", "warning"), ("", "", "amq.default")],
)
def test_a_publish_s_destination_is_named_by_the_convention(exchange: str, routing_key: str, name: str) -> None:
    assert Destinations().published(exchange, routing_key).attributes["messaging.destination.name"] == name


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queue", "name"),
    [
        ("logs", "warning", "mine", "logs:warning:mine"),
        ("logs", "mine", "mine", "logs:mine"),
        ("logs", "", "mine", "logs:mine"),
        ("", "mine", "mine", "mine"),
        ("", "other", "mine", "other:mine"),
    ],
)
def test_a_delivery_s_destination_is_named_by_the_convention(
    exchange: str, routing_key: str, queue: str, name: str
) -> None:
    assert Destinations().consumed(exchange, routing_key, queue).attributes["messaging.destination.name"] == name


def test_a_destination_says_where_the_broker_is() -> None:
    destinations = Destinations()
    destinations.connected("publish", Connected("publish", "amqp://keeper@broker.example:5672/shop", 0.0).server)
    destinations.connected("consume", Connected("consume", "amqps://[::1]:5671/", 0.0).server)

    published = destinations.published("events", "order.placed").attributes
    consumed = destinations.consumed("events", "order.placed", "inventory").attributes
    destinations.connected("publish", Connected("publish", "amqp://keeper@other.example:5673/shop", 0.0).server)

    assert (published["server.address"], published["server.port"]) == ("broker.example", 5672)
    assert (consumed["server.address"], consumed["server.port"]) == ("::1", 5671)
    assert destinations.published("events", "order.placed").attributes["server.address"] == "other.example"
    assert "keeper" not in str(destinations.published("events", "order.placed"))


def test_destinations_do_not_grow_with_what_comes_over_the_wire() -> None:
    destinations = Destinations()
    for number in range(5000):
        destinations.consumed("e" * 70_000, f"{number}." + "k" * 70_000, "queue")

    shown = destinations.consumed("e" * 70_000, "k" * 70_000, "queue")

    assert sum(issubclass(type(each), Destination) for each in gc.get_objects()) <= 1100
    assert len(shown.shown) < 600
    assert all(len(str(value)) < 600 for value in shown.attributes.values())


words = st.lists(st.sampled_from(["a", "b", "order"]), min_size=1, max_size=4).map(".".join)
patterns = st.lists(st.sampled_from(["a", "b", "*", "#", "order"]), min_size=1, max_size=4).map(".".join)


@given(patterns, words)
@settings(max_examples=1000)
def test_patterns_fit_as_the_broker_s_do(pattern: str, routing_key: str) -> None:
    assert fits(pattern, routing_key) == matches(pattern, routing_key)


def test_baggage_full_of_blanks_costs_no_more_than_its_length() -> None:
    def looked_at(size: int) -> float:
        def once() -> float:
            began = time.perf_counter()
            read({"baggage": "a=" + " " * size})
            return time.perf_counter() - began

        return min(once() for _ in range(5))

    assert looked_at(8_000) < 30 * looked_at(1_000)  # 64 times as long where each blank is tried at each place
