"""Tracing, one attempt after the other: retried, held, given up on, replayed, and what is said in between."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import (
    ACK,
    Bus,
    Consume,
    Delivery,
    Message,
    Plugin,
    Properties,
    Router,
    Settlement,
    facts,
    forward,
)
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry, on
from rabbitevents_tracing import Tracing
from tests.shop import eventually
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
    story_of,
    traces,
)

__all__ = ["traces"]

WAIT = "wait inventory.reserve"


def began(span: ReadableSpan) -> int:
    return span.start_time or 0


@pytest.mark.parametrize("link", [False, True])
async def test_a_retry_by_way_of_the_broker_links_each_attempt_to_the_one_before(traces: Traces, link: bool) -> None:
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(5), wait=wait_fixed(30)),
        Tracing(tracer_provider=traces.provider, link=link),
    ]
    async with running(Bus("memory://", inventory(fail=2), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=5))

    first, second, third = traces.all(PROCESS)
    assert story_of(traces) == ["process", "retry", "wait", "process", "retry", "wait", "process"]
    assert [says(span, "rabbitevents.attempt") for span in (first, second, third)] == [1, 2, 3]
    assert [linked(span, "previous attempt") for span in (first, second, third)] == [
        [],
        [id_of(first)],
        [id_of(second)],
    ]
    producer = id_of(traces.one(PUBLISH))
    assert [linked(span, "producer") for span in (first, second, third)] == [[producer] if link else []] * 3
    assert [parent_of(span) for span in (first, second, third)] == [None if link else producer] * 3
    for attempt, retry in zip((first, second), traces.all("retry inventory.reserve"), strict=True):
        assert parent_of(retry) == id_of(attempt)
        assert not retry.events
        assert says(retry, "rabbitevents.delay") == 30.0
        assert says(retry, "error.type") is None
        assert retry.kind is SpanKind.INTERNAL
    for wait, before, after in zip(traces.all(WAIT), (first, second), (second, third), strict=True):
        assert parent_of(wait) == (id_of(before) if link else producer)
        assert says(wait, "rabbitevents.attempt") == says(after, "rabbitevents.attempt")
        assert began(before) < began(wait) < (wait.end_time or 0) == began(after)


@pytest.mark.parametrize("link", [False, True])
async def test_everything_of_an_event_is_found_by_its_ids(traces: Traces, link: bool) -> None:
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(30)),
        Tracing(tracer_provider=traces.provider, link=link),
    ]
    async with running(Bus("memory://", inventory(fail=2), plugins=plugins)) as probe:
        told = await probe.bus.publish(OrderPlaced("o-1"), correlation_id="c-1")
        await probe.advance(timedelta(minutes=5))
        await replay(probe.bus, "inventory.reserve")
        await probe.settled()

    names = ("process", "retry", "wait", "process", "dead-letter", "replay", "process")
    found = [span for span in traces.spans if says(span, "rabbitevents.queue") == "inventory.reserve"]
    assert [span.name.split()[0] for span in found] == [*names]
    for span in found:
        assert says(span, "rabbitevents.event.type") == "order.placed"
        assert says(span, "rabbitevents.entity.type") == "order"
        assert says(span, "rabbitevents.entity.id") == "o-1"
        assert says(span, "messaging.message.id") == str(told.id)
        assert says(span, "messaging.message.conversation_id") == "c-1"


async def test_a_wait_for_an_event_that_nobody_published_in_a_trace_stands_below_its_last_attempt(
    traces: Traces,
) -> None:
    plugins = [Retry(stop=stop_after_attempt(2), wait=wait_fixed(30)), Tracing(tracer_provider=traces.provider)]
    foreign = Message(
        exchange="events",
        routing_key="order.placed",
        body=b'{"order_id":"o-1"}',
        properties=Properties(type="order.placed", content_type="application/json"),
    )
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.send(foreign)
        await probe.advance(timedelta(minutes=1))

    assert parent_of(traces.one(WAIT)) == id_of(traces.all(PROCESS)[0])


async def test_a_retry_in_the_process_links_each_attempt_to_the_one_before(traces: Traces) -> None:
    plugins = [Retry(stop=stop_after_attempt(5), wait=wait_fixed(0.01)), Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", inventory(fail=2), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    attempts = traces.all(PROCESS)
    assert story_of(traces) == ["process", "retry", "wait", "process", "retry", "wait", "process"]
    assert [says(span, "rabbitevents.attempt") for span in attempts] == [1, 2, 3]
    assert [linked(span, "previous attempt") for span in attempts] == [[], [id_of(attempts[0])], [id_of(attempts[1])]]
    assert [parent_of(retry) for retry in traces.all("retry inventory.reserve")] == [id_of(a) for a in attempts[:2]]
    assert [says(span, "rabbitevents.wait") is None for span in attempts] == [False, True, True]


async def test_what_the_core_holds_links_each_attempt_to_the_one_before(traces: Traces) -> None:
    async with running(
        Bus("memory://", inventory(fail=1), plugins=[Tracing(tracer_provider=traces.provider)])
    ) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: len(traces.all(PROCESS)) == 2, "the second attempt")
        await probe.settled()

    first, second = traces.all(PROCESS)
    assert story_of(traces) == ["process", "hold", "wait", "process"]
    assert linked(second, "previous attempt") == [id_of(first)]
    assert parent_of(traces.one("hold inventory.reserve")) == id_of(first)
    assert says(traces.one("hold inventory.reserve"), "rabbitevents.delay") == 1.0
    assert 0.9e9 < (traces.one(WAIT).end_time or 0) - began(traces.one(WAIT)) < 30e9


async def test_giving_up_is_told_once(traces: Traces) -> None:
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(30)),
        Tracing(tracer_provider=traces.provider),
    ]
    async with running(Bus("memory://", inventory(fail=9), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=5))

    told = traces.one("dead-letter inventory.reserve.dead")
    assert story_of(traces) == ["process", "retry", "wait", "process", "dead-letter"]
    assert parent_of(told) == id_of(traces.all(PROCESS)[1])
    assert (told.status.status_code, told.status.description) == (StatusCode.ERROR, "dead-lettered")
    assert says(told, "rabbitevents.attempt") == 2


async def test_what_the_broker_s_own_dead_lettering_takes_is_told_too(traces: Traces) -> None:
    broker = EmbeddedBroker()
    plugins = [DeadLetter(), Tracing(tracer_provider=traces.provider)]
    bus = Bus("memory://", inventory(), plugins=plugins)
    async with running(bus, broker=broker) as probe:
        unreadable = Message(
            exchange="events",
            routing_key="order.placed",
            body=b"x" * 2_000_000,
            properties=Properties(type="order.placed"),
        )
        broker.take(unreadable)
        await probe.settled()

    assert story_of(traces) == ["process", "dead-letter"]


async def test_a_replay_is_told_and_its_attempt_is_linked_to_the_last_one(traces: Traces) -> None:
    plugins = [DeadLetter(), Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await replay(probe.bus, "inventory.reserve")
        await probe.settled()

    first, second = traces.all(PROCESS)
    told = traces.one("replay inventory.reserve")
    producer = id_of(traces.one(PUBLISH))
    assert story_of(traces) == ["process", "dead-letter", "replay", "process"]
    assert (parent_of(first), parent_of(told), parent_of(second)) == (producer, producer, producer)
    assert linked(told, "previous attempt") == linked(second, "previous attempt") == [id_of(first)]
    assert [says(span, "rabbitevents.replays") for span in (first, told, second)] == [None, 1, 1]
    assert [says(span, "rabbitevents.dead_for") is None for span in (first, told, second)] == [True, False, False]
    assert began(told) < (told.end_time or 0) == began(second)


async def test_a_copy_whose_headers_are_full_goes_on_without_ours(traces: Traces) -> None:
    plugins = [Retry(stop=stop_after_attempt(2), wait=wait_fixed(30)), Tracing(tracer_provider=traces.provider)]
    full = Message(
        exchange="events",
        routing_key="order.placed",
        body=b'{"order_id":"o-1"}',
        properties=Properties(
            type="order.placed", content_type="application/json", headers={"meta-note": "x" * 65_230}
        ),
    )
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.send(full)
        await probe.advance(timedelta(minutes=1))
        load = probe.bus.load["inventory.reserve"]

    assert load.held == 0
    assert story_of(traces) == ["process", "retry", "process"]
    assert not traces.all(PROCESS)[1].links


async def test_what_is_postponed_here_is_told_with_its_wait(traces: Traces) -> None:
    plugins = [Retry(on(LookupError).postpone(lambda error: 0.05)), Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", inventory(fail=1), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert story_of(traces) == ["process", "postpone", "wait", "process"]
    assert [says(span, "rabbitevents.attempt") for span in traces.all(PROCESS)] == [1, 1]


async def test_a_copy_that_waits_for_another_reason_is_no_retry(traces: Traces) -> None:
    class Busy(Plugin):
        asked = 0

        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            self.asked += 1
            if self.asked == 1:
                return forward(delivery.replace(attempt=delivery.attempt, after=timedelta(seconds=5)))
            return await proceed(delivery)

    plugins = [Tracing(tracer_provider=traces.provider), Busy()]
    async with running(Bus("memory://", inventory(), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=1))

    first, second = traces.all(PROCESS)
    assert story_of(traces) == ["process", "postpone", "wait", "process"]
    assert says(traces.one("postpone inventory.reserve"), "rabbitevents.delay") == 5.0
    assert (says(first, "rabbitevents.outcome"), says(second, "rabbitevents.outcome")) == ("forward", "ack")
    assert linked(second, "previous attempt") == [id_of(first)]


async def test_what_is_decided_further_out_than_tracing_is_still_told_in_the_event_s_trace(traces: Traces) -> None:
    class Elsewhere(Plugin):
        role: ClassVar[str] = "retry"

        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            if delivery.attempt == 1:
                return forward(delivery.replace(attempt=2))
            return await proceed(delivery)

    plugins = [Elsewhere(), Tracing(tracer_provider=traces.provider)]
    async with running(Bus("memory://", inventory(), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert story_of(traces) == ["retry", "wait", "process"]
    assert parent_of(traces.one("retry inventory.reserve")) == id_of(traces.one(PUBLISH))
    assert not traces.one(PROCESS).links


async def test_a_duplicate_says_that_it_was_handled_before(traces: Traces) -> None:
    class Once(Plugin):
        def __init__(self) -> None:
            self.bus: Bus | None = None

        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            assert self.bus is not None
            self.bus.report(facts.Duplicate(delivery.queue, delivery.type, str(delivery.id)))
            return ACK

    once = Once()
    bus = Bus("memory://", inventory(), plugins=[Tracing(tracer_provider=traces.provider), once])
    async with running(bus) as probe:
        once.bus = probe.bus
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert says(traces.one(PROCESS), "rabbitevents.duplicate") is True


async def test_a_handler_with_tracing_of_its_own_is_traced_by_that_alone(traces: Traces) -> None:
    router = Router("inventory")

    @router.on(OrderPlaced, plugins=[Tracing(tracer_provider=traces.provider, link=True)])
    async def reserve(order: OrderPlaced) -> None:
        raise LookupError

    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.01)),
        Tracing(tracer_provider=traces.provider),
    ]
    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert story_of(traces) == ["process", "retry", "wait", "process", "dead-letter"]
    assert [span.parent for span in traces.all(PROCESS)] == [None, None]
