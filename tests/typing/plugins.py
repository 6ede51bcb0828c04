"""Plugins as their authors write them: one or two methods, with the types that the base class has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from time import perf_counter
from typing import ClassVar, assert_type

from rabbitevents import (
    ACK,
    Binding,
    Bus,
    Check,
    Consume,
    Delivery,
    Event,
    Exchange,
    Fact,
    Host,
    Message,
    Plugin,
    Publish,
    Queue,
    Settlement,
    Subscription,
    Topology,
    forward,
)


class Timing(Plugin):
    """Record how long each delivery takes, by event type."""

    role: ClassVar[str] = "time"
    inside: ClassVar[frozenset[str]] = frozenset({"retry"})

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        started = perf_counter()
        try:
            return await proceed(delivery)
        finally:
            self.seconds[delivery.type] = perf_counter() - started


class Signed(Plugin):
    async def publish(self, proceed: Publish, message: Message) -> None:
        await proceed(message.replace(headers={"meta-signed": "yes"}))


class Counted(Fact, frozen=True):
    number: int


class Whole(Plugin):
    """Uses every hook, and all of its host."""

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        host.provide(Timing, Timing())
        host.provide(Signed, factory=lambda delivery: Signed())
        host.report(Counted(5))
        assert_type(host.name, str)
        for subscription in host.subscriptions:
            assert_type(subscription, Subscription)
            await host.pause(subscription.name)
            await host.resume(subscription.name)
        yield

    def topology(self, topology: Topology, subscription: Subscription) -> Topology:
        parked = f"{subscription.queue}.parked"
        return topology + Topology((Exchange("parking", "direct"), Queue(parked), Binding("parking", parked, "p")))

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        try:
            settlement = await proceed(delivery)
        except ValueError as error:
            return forward(delivery.replace(attempt=delivery.attempt + 1, after=timedelta(seconds=5)), error=error)
        assert_type(settlement, Settlement)
        return ACK

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, Counted):
            assert_type(fact.number, int)

    def health(self) -> Iterable[Check]:
        yield Check("whole", True)


class Wrong(Plugin):
    async def consume(self, delivery: Delivery) -> Settlement:  # type: ignore[override]
        return ACK


async def relay(host: Host, kept: Event[str], message: Message) -> None:
    assert_type(await host.publish(kept), "Event")
    await host.send(message)


def a_bus_is_a_host(bus: Bus) -> Host:
    return bus


bus = Bus("memory://", plugins=[Timing(), Signed(), Whole()])
Bus("memory://", plugins=[Timing])  # type: ignore[list-item]
