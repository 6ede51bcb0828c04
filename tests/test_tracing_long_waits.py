"""Traces of what lay for long: where they end, where the next one begins, and how the two know of each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import ReadableSpan
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, ConfigurationError, Delivery, Event, Message, Metadata, Plugin, Properties, Router
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from rabbitevents_tracing import Tracing
from rabbitevents_tracing.carrier import is_idle
from tests.test_tracing import (
    PROCESS,
    PUBLISH,
    OrderPlaced,
    Traces,
    id_of,
    inventory,
    linked,
    parent_of,
    replay,
    says,
    trace_of,
    traces,
)

__all__ = ["traces"]

RETRY, WAIT, REPLAY = "retry inventory.reserve", "wait inventory.reserve", "replay inventory.reserve"
RESERVED = "publish events:stock.reserved"
HOUR, NINE_MINUTES = timedelta(hours=1), timedelta(minutes=9)


class Aged(Plugin):
    """Let copies look as if they had been made some time ago, the first ``number`` of them."""

    def __init__(self, by: timedelta, number: int = 1) -> None:
        self._by = by
        self._left = number

    def forward(self, delivery: Delivery, message: Message) -> Message:
        self._left -= 1
        if self._left < 0:
            return message
        return message.replace(headers={"forwarded-at": (datetime.now(UTC) - self._by).isoformat()})


def placed_before(ago: timedelta) -> Event[OrderPlaced]:
    time, id = datetime.now(UTC) - ago, uuid4()
    return Event(id, "order.placed", 1, "order", "o-1", time, OrderPlaced("o-1"), Metadata(correlation_id=str(id)))


def flags_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_flags)


def service(traces: Traces, aged: Aged, *, fail: int, attempts: int = 5, link: Any = None) -> Bus:
    tracing = (
        Tracing(tracer_provider=traces.provider)
        if link is None
        else Tracing(tracer_provider=traces.provider, link=link)
    )
    retry = Retry(stop=stop_after_attempt(attempts), wait=wait_fixed(30))
    return Bus("memory://", inventory(fail=fail), plugins=[aged, DeadLetter(), retry, tracing])


async def test_a_retry_after_an_hour_begins_a_trace_that_is_linked_to_the_one_before(traces: Traces) -> None:
    async with running(service(traces, Aged(HOUR), fail=1)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=5))

    first, second = traces.all(PROCESS)
    placed = traces.one(PUBLISH)
    assert trace_of(first) == trace_of(placed) != trace_of(second)
    assert parent_of(second) is None
    assert linked(second, "producer") == [id_of(placed)]
    assert linked(second, "previous attempt") == [id_of(first)]
    assert 3600 <= float(str(says(second, "rabbitevents.wait"))) < 3700
    assert says(second, "rabbitevents.entity.id") == "o-1"
    assert says(second, "rabbitevents.source") == "inventory"
    assert trace_of(traces.one(RESERVED)) == trace_of(second)
    assert traces.all(WAIT) == []


@pytest.mark.parametrize(("by", "link"), [(NINE_MINUTES, None), (HOUR, False), (HOUR, timedelta(hours=2))])
async def test_a_retry_after_a_shorter_wait_than_that_is_a_child(traces: Traces, by: timedelta, link: Any) -> None:
    async with running(service(traces, Aged(by), fail=1, link=link)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=5))

    placed, (_, second) = traces.one(PUBLISH), traces.all(PROCESS)
    assert parent_of(second) == parent_of(traces.one(WAIT)) == id_of(placed)
    assert linked(second, "producer") == []


async def test_what_comes_after_a_long_wait_goes_on_in_the_trace_that_began_then(traces: Traces) -> None:
    async with running(service(traces, Aged(HOUR), fail=3)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=5))

    first, second, third, fourth = traces.all(PROCESS)
    assert {trace_of(span) for span in (second, third, fourth)} == {trace_of(second)} != {trace_of(first)}
    assert [parent_of(span) for span in (second, third, fourth)] == [None, id_of(second), id_of(second)]
    assert [parent_of(span) for span in traces.all(WAIT)] == [id_of(second)] * 2
    assert [linked(span, "previous attempt") for span in (third, fourth)] == [[id_of(second)], [id_of(third)]]
    assert [linked(span, "producer") for span in (third, fourth)] == [[], []]


async def test_a_second_long_wait_begins_a_third_trace(traces: Traces) -> None:
    async with running(service(traces, Aged(HOUR, 2), fail=2)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=5))

    first, second, third = traces.all(PROCESS)
    assert len({trace_of(span) for span in (first, second, third)}) == 3
    assert linked(third, "producer") == linked(third, "previous attempt") == [id_of(second)]


async def test_a_replay_of_what_lay_dead_for_long_begins_a_trace_and_its_attempt_stands_below_it(
    traces: Traces,
) -> None:
    async with running(service(traces, Aged(HOUR), fail=1, attempts=1)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await replay(probe.bus, "inventory.reserve")
        await probe.settled()

    placed, (first, second), back = traces.one(PUBLISH), traces.all(PROCESS), traces.one(REPLAY)
    assert parent_of(back) is None
    assert trace_of(back) == trace_of(second) != trace_of(first)
    assert parent_of(second) == id_of(back)
    for span in (back, second):
        assert linked(span, "producer") == [id_of(placed)]
        assert linked(span, "previous attempt") == [id_of(first)]
        assert says(span, "rabbitevents.entity.id") == "o-1"
        assert 3600 <= float(str(says(span, "rabbitevents.dead_for"))) < 3700
    assert (back.start_time or 0) <= (back.end_time or 0) == (second.start_time or 0)
    assert says(back, "rabbitevents.wait") is None


@pytest.mark.parametrize(("ago", "roots"), [(timedelta(minutes=11), 1), (NINE_MINUTES, 0)])
async def test_an_event_that_nobody_took_for_long_begins_a_trace_too(
    traces: Traces, ago: timedelta, roots: int
) -> None:
    async with running(service(traces, Aged(HOUR, 0), fail=0)) as probe:
        await probe.bus.publish(placed_before(ago))
        await probe.settled()

    attempt = traces.one(PROCESS)
    assert [parent_of(attempt), linked(attempt, "producer")].count([id_of(traces.one(PUBLISH))]) == roots
    assert (parent_of(attempt) is None) == bool(roots)


async def test_a_retry_in_the_process_stays_in_the_trace_that_began_after_a_long_wait(traces: Traces) -> None:
    retry = Retry(stop=stop_after_attempt(5), wait=wait_fixed(0.01))
    plugins = [retry, Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", inventory(fail=2), plugins=plugins)) as probe:
        await probe.bus.publish(placed_before(HOUR))
        await probe.settled()

    attempts = traces.all(PROCESS)
    assert len(attempts) == 3
    assert len({trace_of(span) for span in (*attempts, *traces.all(RETRY), *traces.all(WAIT))}) == 1
    assert trace_of(attempts[0]) != trace_of(traces.one(PUBLISH))
    assert [linked(span, "previous attempt") for span in attempts[1:]] == [[id_of(span)] for span in attempts[:2]]


async def test_a_wait_in_the_process_that_is_long_begins_a_trace_too(traces: Traces) -> None:
    retry = Retry(stop=stop_after_attempt(5), wait=wait_fixed(0.1))
    tracing = Tracing(tracer_provider=traces.provider, link=timedelta(milliseconds=50))
    async with running(Bus("memory://", inventory(fail=1), plugins=[retry, tracing])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    first, second = traces.all(PROCESS)
    assert trace_of(first) != trace_of(second)
    assert parent_of(second) is None
    assert linked(second, "previous attempt") == [id_of(first)]
    assert traces.all(WAIT) == []


async def test_the_state_of_a_trace_stays_with_it(traces: Traces) -> None:
    seen: list[object] = []
    router = Router("inventory")

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced, delivery: Delivery) -> None:
        seen.append((delivery.headers["traceparent"], delivery.headers.get("tracestate")))
        if len(seen) < 3:
            raise LookupError

    placed = f"00-{'a' * 32}-{'b' * 16}-01"
    foreign = Message(
        exchange="events",
        routing_key="order.placed",
        body=b'{"order_id":"o-1"}',
        properties=Properties(
            type="order.placed",
            content_type="application/json",
            headers={"traceparent": placed, "tracestate": "vendor=1"},
        ),
    )
    retry = Retry(stop=stop_after_attempt(5), wait=wait_fixed(30))
    plugins = [Aged(HOUR), retry, Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        await probe.bus.send(foreign)
        await probe.advance(timedelta(minutes=5))

    assert seen[:2] == [(placed, "vendor=1")] * 2
    _, second, _ = traces.all(PROCESS)
    assert seen[2] == (f"00-{trace_of(second):032x}-{id_of(second):016x}-{flags_of(second):02x}", None)


async def test_an_event_that_came_without_a_trace_is_one_trace_with_all_its_attempts(traces: Traces) -> None:
    foreign = Message(
        exchange="events",
        routing_key="order.placed",
        body=b'{"order_id":"o-1"}',
        properties=Properties(type="order.placed", content_type="application/json"),
    )
    async with running(service(traces, Aged(HOUR, 0), fail=2)) as probe:
        await probe.bus.send(foreign)
        await probe.advance(timedelta(minutes=5))

    attempts = traces.all(PROCESS)
    assert len(attempts) == 3
    assert {trace_of(span) for span in traces.spans} == {trace_of(attempts[0])}
    assert [parent_of(span) for span in attempts] == [None, id_of(attempts[0]), id_of(attempts[0])]


async def test_baggage_outlives_a_long_wait(traces: Traces) -> None:
    seen: list[object] = []
    router = Router("inventory")

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> None:
        seen.append(baggage.get_baggage("tenant"))
        if len(seen) < 3:
            raise LookupError

    retry = Retry(stop=stop_after_attempt(5), wait=wait_fixed(30))
    plugins = [Aged(HOUR), retry, Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        token = context.attach(baggage.set_baggage("tenant", "t-1"))
        try:
            await probe.bus.publish(OrderPlaced("o-1"))
        finally:
            context.detach(token)
        await probe.advance(timedelta(minutes=5))

    assert seen == ["t-1"] * 3


# --- the rule ------------------------------------------------------------------------------------------------------

NOW = 1_800_000_000_000_000_000
times = st.one_of(st.none(), st.text(max_size=40), st.integers(), st.datetimes().map(datetime.isoformat))


@given(
    st.dictionaries(st.sampled_from(["forwarded-at", "event-time", "replay-at"]), times), st.integers(-(2**63), 2**63)
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_a_stranger_says_of_times_there_is_an_answer(headers: dict[str, Any], sent_at: int) -> None:
    assert is_idle(headers, sent_at, NOW, float("inf")) is False
    assert is_idle(headers, sent_at, NOW, 6e11) in (True, False)


@pytest.mark.parametrize(
    ("headers", "sent_at", "late"),
    [
        ({}, None, False),
        ({}, NOW // 10**9 - 599, False),
        ({}, NOW // 10**9 - 601, True),
        ({}, 0, False),
        ({}, NOW // 10**9 + 3600, False),
        ({"forwarded-at": "2027-01-15T07:59:59+00:00"}, NOW // 10**9 - 86_400, False),
        ({"forwarded-at": "2027-01-15T07:49:00+00:00"}, NOW // 10**9 - 86_400, True),
        ({"forwarded-at": "soon"}, NOW // 10**9 - 86_400, True),
        ({"event-time": "2027-01-15T07:59:59+00:00"}, NOW // 10**9 - 86_400, False),
        ({"event-time": "1987-01-15T07:59:59+00:00"}, None, False),
    ],
)
def test_it_counts_from_the_last_attempt_or_from_the_event_s_time(
    headers: dict[str, Any], sent_at: int | None, late: bool
) -> None:
    assert is_idle(headers, sent_at, NOW, 600e9) is late


@pytest.mark.parametrize("link", [None, 600, "always", timedelta(seconds=-1)])
def test_what_is_no_answer_to_when_to_link_is_refused(link: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Tracing: link.*say True .always., False .never."):
        Tracing(link=link)
