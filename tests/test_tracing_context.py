"""What travels with an event: whether it is sampled, propagators' headers, and baggage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from rabbitevents import (
    Bus,
    Delivery,
    Router,
)
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_tracing import Tracing
from tests.test_tracing import (
    OrderPlaced,
    StockReserved,
    Traces,
    inventory,
    traces,
)

__all__ = ["traces"]


async def test_an_event_that_is_not_sampled_leaves_no_span_and_stays_so_downstream() -> None:
    traces = Traces(TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False))
    everything = Traces()
    sampled = list[bool]()
    router = Router("inventory")

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> None:
        sampled.append(trace.get_current_span().get_span_context().trace_flags.sampled)
        raise LookupError

    broker = EmbeddedBroker()
    theirs = Bus(broker.client(), plugins=[Tracing(tracer_provider=traces.provider)])
    plugins = [DeadLetter(), Tracing(tracer_provider=everything.provider)]
    async with running(Bus("memory://", router, plugins=plugins), broker=broker) as probe, theirs:
        await theirs.publish(OrderPlaced("o-1"))
        await probe.settled()
        dead = probe.messages[-1]

    assert sampled == [False]
    assert traces.spans == everything.spans == []
    assert "previous-traceparent" not in dead.headers


class Odd(TextMapPropagator):
    """A propagator with a header of its own."""

    KEY = context.create_key("odd")

    def extract(
        self, carrier: CarrierT, context: context.Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> context.Context:
        from opentelemetry.context import set_value

        found = getter.get(carrier, "x-odd")
        return set_value(self.KEY, found[0] if found else None, context)

    def inject(
        self, carrier: CarrierT, context: context.Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        setter.set(carrier, "x-odd", "yes")

    @property
    def fields(self) -> set[str]:
        return {"x-odd"}


@pytest.fixture
def odd_propagator() -> Iterator[None]:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(CompositePropagator([before, Odd()]))
    yield
    propagate.set_global_textmap(before)


@pytest.mark.usefixtures("odd_propagator")
async def test_context_travels_by_the_propagators_that_are_configured_globally(traces: Traces) -> None:
    router, seen = Router("inventory"), list[object]()

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced, delivery: Delivery) -> None:
        seen.extend([delivery.headers["x-odd"], context.get_value(Odd.KEY)])

    async with running(Bus("memory://", router, plugins=[Tracing(tracer_provider=traces.provider)])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert seen == ["yes", "yes"]


async def test_baggage_reaches_the_handler_and_what_it_publishes(traces: Traces) -> None:
    router, seen = Router("inventory"), list[object]()

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> StockReserved:
        seen.append(baggage.get_baggage("tenant"))
        return StockReserved(order.order_id)

    @router.on(StockReserved)
    async def pack(stock: StockReserved) -> None:
        seen.append(baggage.get_baggage("tenant"))

    async with running(Bus("memory://", router, plugins=[Tracing(tracer_provider=traces.provider)])) as probe:
        token = context.attach(baggage.set_baggage("tenant", "north"))
        await probe.bus.publish(OrderPlaced("o-1"))
        context.detach(token)
        await probe.settled()

    assert seen == ["north", "north"]


async def test_without_a_provider_nothing_is_traced_and_nothing_is_sent_along() -> None:
    async with running(Bus("memory://", inventory(), plugins=[Tracing()])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert not {"traceparent", "tracestate", "baggage"} & set(probe.messages[0].headers)
