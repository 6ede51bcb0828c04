"""A bus's connection to the embedded broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from rabbitevents.brokers import Deliver, Settings, Trusted
from rabbitevents.brokers.embedded.consumer import MemoryConsumer
from rabbitevents.brokers.embedded.server import Server
from rabbitevents.brokers.home import Home
from rabbitevents.errors import (
    BrokerError,
    BrokerUnavailableError,
    EncodeError,
    NotSentError,
    OutcomeUnknownError,
    PublishError,
    TopologyError,
)
from rabbitevents.facts import Blocked, Connected, ConnectionLost, Report, Unblocked
from rabbitevents.message import Message
from rabbitevents.properties import decode_properties, encode_properties, short
from rabbitevents.states import Check, Depth
from rabbitevents.topology import Binding, Exchange, Queue, Topology

FRAME = 131_072 - 8
"""Bytes that one frame holds at RabbitMQ's default ``frame_max``: properties must fit into one."""

_CONTENT_HEAD = 12
"""Bytes of a content header frame before the properties."""


class MemoryClient:
    """A bus's connection to an `EmbeddedBroker`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._home = Home()
        self._settings = Settings()
        self._report: Report | None = None
        self._consumers: list[MemoryConsumer] = []
        self._declared: dict[object, Exchange | Queue | Binding] = {}
        """What is to be declared again where it is gone, in order, by what it is."""
        self._refused: dict[str, TopologyError] = {}
        self._lost: str | None = "not started"
        self._blocked: str | None = None
        self._ready = asyncio.Event()
        self._connected = asyncio.Event()

    @property
    def address(self) -> str:
        """The embedded broker, which has no address."""
        return "memory://"

    async def start(self, settings: Settings, report: Report | None) -> None:
        """Connect. Raises `BrokerUnavailableError` when the broker stays down."""
        self.server.connect(self)
        self._home.settle()
        self._ready, self._connected = asyncio.Event(), asyncio.Event()
        self._settings, self._report = settings, report
        self._lost, self._blocked = self.server.down, self.server.blocked
        self._consumers.clear()
        self._declared.clear()
        self._refused.clear()
        if self._lost is None:
            self.come_back()
            return
        why = self._lost
        try:
            async with asyncio.timeout(settings.start_timeout):
                await self._connected.wait()
        except BaseException as error:
            self._leave()
            if isinstance(error, TimeoutError):
                text = f"no broker could be used within {settings.start_timeout:g} s: {why}"
                raise BrokerUnavailableError(text) from error
            raise

    async def declare(self, topology: Topology, *, passive: bool = False) -> Mapping[str, TopologyError]:
        """Declare now, and again when a queue has been deleted."""
        self._home.check()
        if self._lost is not None:
            raise BrokerError(f"declaring: {self._lost}")
        if not passive:
            self._declared.update((_identity(item), item) for item in topology.items)
        return self._declare(topology.items, passive=passive)

    def _declare(self, items: Iterable[Exchange | Queue | Binding], *, passive: bool) -> dict[str, TopologyError]:
        """Declare; what was refused before, and is not now, is refused no more."""
        items = list(items)
        refused = self.server.declare_all(items, passive=passive)
        for item in items:
            self._refused.pop(item.queue if isinstance(item, Binding) else item.name, None)
        self._refused.update(refused)
        self._register()
        return refused

    def _register(self) -> None:
        """Have every consumer that can read from its queue."""
        for consumer in self._consumers:
            if consumer.queue not in self._refused:
                consumer.register()

    async def publish(self, message: Message, deadline: float) -> bool:
        """Publish; a lost answer is tried again with the same id, as on RabbitMQ."""
        self._home.check()
        message = self._as_it_arrives(message)
        left = False
        while True:
            await self._until_ready(message, deadline, left)
            try:
                routed = self.server.take(message)
            except OutcomeUnknownError:
                left = True
                continue
            await asyncio.sleep(0)
            return routed

    async def publish_many(self, messages: Sequence[Message], deadline: float) -> list[bool | Exception]:
        """Publish one after the other; return for each what `publish` returns or raises."""
        results: list[bool | Exception] = []
        for message in messages:
            try:
                results.append(await self.publish(message, deadline))
            except (PublishError, EncodeError) as error:
                results.append(error)
        return results

    def _as_it_arrives(self, message: Message) -> Message:
        """Return the message as it comes off the wire. Raises `EncodeError` for one that cannot go onto it."""
        encoded = encode_properties(message.properties)
        self._settings.limits.check(message.body, encoded, message.type)
        short(message.routing_key, f"the routing key of {message.type[:40]}")
        if len(encoded) + _CONTENT_HEAD > FRAME:
            raise EncodeError(
                f"{message.type}: its headers are {len(encoded):,} bytes, and the broker's frames hold {FRAME:,}"
            )
        return msgspec.structs.replace(message, properties=decode_properties(encoded))

    async def _until_ready(self, message: Message, deadline: float, left: bool) -> None:
        if self._ready.is_set():
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._ready.wait()
        except TimeoutError:
            why = self._lost or f"the broker blocks publishers: {self._blocked}"
            raise (OutcomeUnknownError if left else NotSentError)(message, why) from None

    async def consume(self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None) -> MemoryConsumer:
        """Consume from a queue."""
        self._home.check()
        consumer = MemoryConsumer(self.server, queue, prefetch, deliver, trusted, left=self._consumers.remove)
        self._consumers.append(consumer)
        if self._lost is None:
            self._register()
        return consumer

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` in ``delay`` seconds of the embedded broker's clock."""
        clock = self.server.clock
        clock.call_at(clock.time() + delay, callback)

    async def depth(self, queue: str) -> Depth | None:
        """Look at a queue."""
        self._home.check()
        if self._lost is not None:
            raise BrokerError(f"looking at queue {queue!r}: {self._lost}")
        there = self.server.queues.get(queue)
        return Depth(there.ready, there.readers) if there is not None else None

    def health(self) -> Iterable[Check]:
        """Say how the connection and the consumers are."""
        yield Check("connection", self._lost is None and self._blocked is None, self._lost or self._blocked or "")
        for consumer in self._consumers:
            refused = self._refused.get(consumer.queue)
            ok = consumer.queue in self.server.queues and self._lost is None and refused is None
            yield Check(f"consumer {consumer.queue}", ok, str(refused or self._lost or "") if not ok else "")

    async def stop(self, deadline: float) -> None:
        """Disconnect."""
        for consumer in list(self._consumers):
            await consumer.close()
        self._leave()

    def _leave(self) -> None:
        self._lost = "closed"
        self._ready.clear()
        self.server.disconnect(self)

    # --- what the server does to it ---

    def lose(self, reason: str) -> None:
        """Lose the connection."""
        self._lost = reason
        self._connected.clear()
        self._ready.clear()
        for consumer in self._consumers:
            consumer.drop()
        if self._report is not None:
            self._report(ConnectionLost("memory", "memory://", reason))

    def come_back(self) -> None:
        """Connect again."""
        self._lost = None
        self._connected.set()
        if self._blocked is None:
            self._ready.set()
        self._register()
        if self._report is not None:
            self._report(Connected("memory", "memory://", 0.0))

    def block(self, reason: str | None) -> None:
        """Learn that the broker takes nothing from publishers, or does again."""
        self._blocked = reason
        if reason is not None:
            self._ready.clear()
        elif self._lost is None:
            self._ready.set()
        if self._report is not None:
            self._report(Blocked(reason) if reason is not None else Unblocked())

    def declared(self) -> None:
        """Declare what could not be, since something was missing, and read from queues that were."""
        missing = [name for name, error in self._refused.items() if error.code == 404]
        if self._lost is None and missing and self._declared:
            self._declare(self._declared.values(), passive=False)
            return
        for name in missing:
            if name in self.server.queues:
                del self._refused[name]
        if self._lost is None:
            self._register()

    def queue_deleted(self) -> None:
        """Have a queue that was deleted declared again, and read from it."""
        if self._lost is None:
            self._declare(self._declared.values(), passive=False)


def _identity(item: Exchange | Queue | Binding) -> object:
    """Return what tells an item from others, whatever its arguments: the latter word stands."""
    return item if isinstance(item, Binding) else (type(item), item.name)
