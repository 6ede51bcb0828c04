"""Traces of what goes through an outbox: the time in its table is a part of the story."""

from __future__ import annotations

from time import time_ns
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from rabbitevents import Bus, Plugin, facts
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_outbox import Outbox
from rabbitevents_tracing import Tracing
from tests.shop import eventually
from tests.test_outbox import Noted
from tests.test_tracing import (
    PROCESS,
    PUBLISH,
    OrderPlaced,
    Traces,
    id_of,
    inventory,
    parent_of,
    says,
    trace_of,
    traces,
)

__all__ = ["traces"]

WAIT = "wait rabbitevents_outbox"

SLACK = 50_000_000
"""Nanoseconds between two readings of a clock, one of them the database's."""


def service(outbox: Outbox, *plugins: Plugin) -> Bus:
    return Bus("memory://", inventory(), plugins=[*plugins, outbox])


async def place(outbox: Outbox, engine: AsyncEngine, order: str) -> Any:
    async with async_sessionmaker(engine).begin() as session:
        return await outbox.publish(session, OrderPlaced(order))


async def test_the_time_in_the_table_is_a_wait_below_the_publish(engine: AsyncEngine, traces: Traces) -> None:
    outbox, broker = Outbox(engine), EmbeddedBroker()
    async with running(service(outbox, Tracing(tracer_provider=traces.provider)), broker=broker) as probe:
        broker.go_down()
        placed = await place(outbox, engine, "o-1")
        await eventually(
            lambda: any("nothing is sent" in check.detail for check in probe.bus.health().problems), "it", 20
        )
        came_up = time_ns()
        broker.come_up()
        await eventually(lambda: PROCESS in traces.names, "the handling", 30)

    publish, wait, process = traces.one(PUBLISH), traces.one(WAIT), traces.one(PROCESS)
    assert parent_of(wait) == parent_of(process) == id_of(publish)
    assert trace_of(wait) == trace_of(publish)
    assert (says(wait, "rabbitevents.entity.id"), says(wait, "messaging.message.id")) == ("o-1", str(placed.id))
    assert says(wait, "rabbitevents.event.type") == "order.placed"
    assert (publish.start_time or 0) - SLACK <= (wait.start_time or 0) < came_up < (wait.end_time or 0)


async def test_of_what_nobody_records_nothing_is_reported(engine: AsyncEngine) -> None:
    off = Traces(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    outbox, noted = Outbox(engine), Noted()
    async with running(service(outbox, noted, Tracing(tracer_provider=off.provider))) as probe:
        await place(outbox, engine, "o-1")
        await probe.settled()
        await eventually(lambda: not outbox.busy(), "the mark", 20)

    assert not [each for each in noted.facts if isinstance(each, facts.Relayed)]
    assert not off.spans


async def test_of_what_is_traced_it_is_reported_how_long_it_stood_there(engine: AsyncEngine, traces: Traces) -> None:
    outbox, noted = Outbox(engine), Noted()
    async with running(service(outbox, noted, Tracing(tracer_provider=traces.provider))) as probe:
        placed = await place(outbox, engine, "o-1")
        await probe.settled()

        def relayed() -> list[facts.Relayed]:
            return [each for each in noted.facts if isinstance(each, facts.Relayed)]

        await eventually(lambda: bool(relayed()), "the report", 20)

    (said,) = relayed()
    assert (said.outbox, said.type, said.id) == ("rabbitevents_outbox", "order.placed", str(placed.id))
    assert said.entity == "order/o-1"
    assert 0 <= said.waited < 20


@pytest.mark.parametrize("waited", [-1.0, 1e12])
async def test_a_clock_that_went_astray_makes_no_span(waited: float, traces: Traces) -> None:
    tracing = Tracing(tracer_provider=traces.provider)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    tracing.observe(facts.Relayed("rabbitevents_outbox", "order.placed", "1", None, waited, parent))

    assert not traces.spans
