"""What the tests of idempotency share: a service, a store with a switch, and a look at the queues."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import msgspec

from rabbitevents import (
    Bus,
    Consume,
    Delivery,
    Event,
    Fact,
    Message,
    Plugin,
    Router,
    Settlement,
)
from rabbitevents.properties import Properties
from rabbitevents.testing import Probe, running
from rabbitevents_idempotency import (
    Claim,
    Idempotency,
    MemoryStore,
    Store,
    StoreUnavailableError,
)
from tests.bed.node import NodeError
from tests.bed.rabbitmq import QueueCounts, RabbitNode
from tests.shop import OrderPlaced

T = TypeVar("T")
LEASE = timedelta(seconds=30)
KEEP = timedelta(days=7)


class Switched:
    """A memory store for each key, which can be lost; out of reach as a whole, or for some steps, when told so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.memories: defaultdict[str, MemoryStore] = defaultdict(lambda: MemoryStore(clock=lambda: self.now))
        self.away: set[str] = set()
        self.warnings: Sequence[str] = ()
        self.asked: Counter[str] = Counter()

    def _ask(self, step: str) -> None:
        self.asked[step] += 1
        if step in self.away or "all" in self.away:
            raise StoreUnavailableError("switched off")

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True, digest: str = "") -> Claim:
        self._ask("claim")
        return await self.memories[key].claim(key, owner, lease, takeover=takeover, digest=digest)

    async def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        self._ask("renew")
        return await self.memories[key].renew(key, owner, lease)

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        self._ask("complete")
        return await self.memories[key].complete(key, owner, keep)

    async def release(self, key: str, owner: str, *, forget: bool = False) -> bool:
        self._ask("release")
        return await self.memories[key].release(key, owner, forget=forget)

    async def look(self) -> Sequence[str]:
        self._ask("look")
        return self.warnings


class Again(Plugin):
    """Tries again at once, up to three times: what a retry does, in its shortest form."""

    role: ClassVar[str] = "retry"

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        for attempt in range(1, 3):
            try:
                return await proceed(delivery.marked(attempt=attempt))
            except ValueError:
                continue
        return await proceed(delivery.marked(attempt=3))


class Observing(Plugin):
    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)

    def of(self, *kinds: type[Fact]) -> list[Fact]:
        return [fact for fact in self.facts if isinstance(fact, kinds)]


Work = Callable[[OrderPlaced, Delivery], Awaitable[Any]]


class Shop:
    """A bus with one handler, ``shop.record``, that does what it is told, and notes what it did."""

    def __init__(self, store: Store, *, work: Work | None = None, outer: Sequence[Plugin] = (), **told: Any) -> None:
        self.store = store
        self.starts: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()
        self.deliveries: list[Delivery] = []
        self.observing = Observing()
        self.plugin = Idempotency(store, **told)
        self.router = Router("shop")
        self.bus_options: dict[str, Any] = {}
        self.plugins: list[Plugin] = [self.observing, *outer, self.plugin]

        @self.router.on(OrderPlaced)
        async def record(order: OrderPlaced, delivery: Delivery) -> Any:
            self.starts[order.order_id] += 1
            self.deliveries.append(delivery)
            result = await work(order, delivery) if work is not None else None
            self.effects[order.order_id] += 1
            return result

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Probe]:
        bus = Bus("memory://", self.router, plugins=self.plugins, **self.bus_options)
        async with running(bus) as probe:
            yield probe


async def once_it_answers(step: Callable[[], Awaitable[T]]) -> T:
    """Take a step again until the store answers: for a moment after it failed, it is not asked."""
    end = asyncio.get_running_loop().time() + 5
    while True:
        try:
            return await step()
        except StoreUnavailableError:
            assert asyncio.get_running_loop().time() < end, "it does not answer"
            await asyncio.sleep(0.02)


async def twice(bus: Bus, order: str) -> Event[OrderPlaced]:
    """Publish an event, and a copy of it."""
    envelope = await bus.publish(OrderPlaced(order))
    return await bus.publish(envelope)


def key_of(envelope: Event[OrderPlaced]) -> str:
    return f"shop.record:{envelope.id}"


def plain_message(message_id: str | None, order: str) -> Message:
    body = msgspec.json.encode({"order_id": order})
    properties = Properties(message_id=message_id, type="order.placed", content_type="application/json")
    return Message(exchange="", routing_key="shop.record", body=body, properties=properties)


def uuid_of(message: Message) -> str:
    return str(Delivery("", 0, 0, False, "", "", b"", message.properties).id)


class Queues:
    """What is left in the queues of a virtual host of a test node."""

    def __init__(self, node: RabbitNode, url: str) -> None:
        self._node = node
        self._url = url

    def counts(self, queue: str) -> QueueCounts:
        """What a queue holds; nothing if it was never needed."""
        try:
            return self._node.queue_counts(queue, self._url)
        except NodeError:
            return QueueCounts(0, 0, 0)

    def is_consumed(self) -> bool:
        return self.counts("shop.record").consumers > 0

    def is_quiet(self) -> bool:
        """Nothing is left, nor waits to come back: what found a claim busy, for 3 seconds at most."""
        waiting = [f"delay.{tier}" for tier in range(500, 3501, 500)]
        counts = map(self.counts, [*waiting, "shop.record", *waiting])
        return not any(each.ready + each.unacked for each in counts)

    async def quiet(self, seconds: float = 60) -> None:
        """Wait until it is quiet."""
        end = asyncio.get_running_loop().time() + seconds
        while not await asyncio.to_thread(self.is_quiet):
            assert asyncio.get_running_loop().time() < end, "it does not become quiet"
            await asyncio.sleep(0.1)
