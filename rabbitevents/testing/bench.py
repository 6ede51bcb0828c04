"""What the conformance suite asks of a broker's author, and the tools that its tests are written with."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol
from uuid import uuid4

from rabbitevents.brokers import Broker, Consumer, Trusted, Verdict
from rabbitevents.errors import BrokerError
from rabbitevents.message import Delivery, Message
from rabbitevents.properties import Headers, Properties
from rabbitevents.states import Depth
from rabbitevents.topology import Argument, Binding, Exchange, Queue, Topology, quorum

PATIENCE = 15.0
"""Seconds that a test waits for what must come. Watermill's universal suite has the same default."""


class Bench(Protocol):
    """A broker under test, as its author provides it to the suite."""

    async def connect(self) -> Broker:
        """Return a started client. The bench stops all of them when the test ends."""
        ...

    async def break_connections(self) -> None:
        """Break every client's connections as a network does; the broker goes on, and clients come back by themselves."""
        ...


def names(*labels: str) -> tuple[str, ...]:
    """Return names that no other test uses."""
    unique = uuid4().hex[:8]
    return tuple(f"conformance.{label}.{unique}" for label in labels)


def message(number: int | str, routing_key: str, *, exchange: str = "", headers: Headers | None = None) -> Message:
    """Return a message whose body and id are ``number``."""
    properties = Properties(message_id=str(number), type="test.event", content_type="text/plain", headers=headers or {})
    return Message(exchange=exchange, routing_key=routing_key, body=str(number).encode(), properties=properties)


def deadline(seconds: float = PATIENCE) -> float:
    """Return a moment on the event loop's clock."""
    return asyncio.get_running_loop().time() + seconds


async def publish(broker: Broker, messages: Sequence[Message]) -> None:
    """Publish all of them, in flight together; each must be confirmed and routed."""
    routed = await asyncio.gather(*(broker.publish(each, deadline()) for each in messages))
    assert all(routed), f"{routed.count(False)} of {len(routed)} messages reached no queue"


async def declare_queue(broker: Broker, name: str, *bindings: tuple[str, str], **arguments: Argument) -> None:
    """Declare a quorum queue, the topic exchanges of ``bindings``, and those (exchange, routing key)."""
    exchanges = [Exchange(exchange, "topic") for exchange in dict.fromkeys(exchange for exchange, _ in bindings)]
    bound = [Binding(exchange, name, key) for exchange, key in bindings]
    arguments.setdefault("delivery_limit", 1_000_000)
    refused = await broker.declare(Topology((*exchanges, Queue(name, quorum(**arguments)), *bound)))
    assert not refused, refused


async def eventually(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until ``condition`` holds; fail, saying ``what`` was waited for, after ``seconds``."""
    end = deadline(seconds)
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.005)


async def until_depth(
    broker: Broker, queue: str, fits: Callable[[Depth], bool], what: str, seconds: float = PATIENCE
) -> None:
    """Wait until what is seen of ``queue`` fits; a look that fails, because a connection was cut, is repeated."""
    end, seen = deadline(seconds), Depth(0, 0)
    while True:
        with suppress(BrokerError):
            seen = await broker.depth(queue) or seen
            if fits(seen):
                return
        assert asyncio.get_running_loop().time() < end, f"{what}: {seen} after {seconds:g} s"
        await asyncio.sleep(0.01)


class Collector:
    """A consumer for tests: keeps what is delivered, and settles it as it is told."""

    def __init__(self, settle: Callable[[Delivery], Verdict | None] = lambda _: Verdict.ACK) -> None:
        self.deliveries: list[Delivery] = []
        self.batches: list[int] = []
        self.consumer: Consumer | None = None
        self._settle = settle
        self._early: list[Delivery] = []

    async def consume(
        self, broker: Broker, queue: str, prefetch: int = 100, trusted: Trusted = lambda _: True
    ) -> Collector:
        """Begin to consume."""
        self.consumer = await broker.consume(queue, prefetch=prefetch, deliver=self._deliver, trusted=trusted)
        early, self._early = self._early, []
        self._take(early)
        return self

    def _deliver(self, batch: list[Delivery]) -> None:
        self.batches.append(len(batch))
        if self.consumer is None:
            self._early.extend(batch)
        else:
            self._take(batch)

    def _take(self, batch: list[Delivery]) -> None:
        for delivery in batch:
            self.deliveries.append(delivery)
            verdict = self._settle(delivery)
            if verdict is not None:
                self.settle(delivery, verdict)

    def settle(self, delivery: Delivery, verdict: Verdict = Verdict.ACK) -> bool:
        """Settle one delivery."""
        assert self.consumer is not None
        return self.consumer.settle(delivery, verdict)

    @property
    def bodies(self) -> list[str]:
        """What was delivered, in order."""
        return [delivery.body.decode() for delivery in self.deliveries]

    @property
    def counts(self) -> Counter[str]:
        """How often each body was delivered."""
        return Counter(self.bodies)

    async def got(self, number: int, *, distinct: bool = False, seconds: float = PATIENCE) -> None:
        """Wait until ``number`` deliveries (or distinct bodies) have come."""

        def there() -> int:
            return len(self.counts) if distinct else len(self.deliveries)

        await eventually(lambda: there() >= number, f"{number} deliveries (got {there()})", seconds)

    async def close(self) -> None:
        """Leave the queue."""
        if self.consumer is not None:
            await self.consumer.close()
