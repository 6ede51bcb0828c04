"""The embedded broker: a broker, not a mock, for tests and first steps.

It routes, stores, delivers, redelivers and dead-letters as RabbitMQ does, and passes the same conformance suite. Its
clock can be moved, and it can be told to fail. It lives in this process's memory, and is gone with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from rabbitevents.brokers import Deliver, Settings, Trusted, Verdict
from rabbitevents.brokers.embedded.queues import MemoryQueue, Reader
from rabbitevents.brokers.embedded.routes import Routes
from rabbitevents.errors import (
    BrokerError,
    BrokerUnavailableError,
    EncodeError,
    NotSentError,
    OutcomeUnknownError,
    PublishError,
    RefusedError,
    TopologyError,
)
from rabbitevents.facts import Blocked, Connected, ConnectionLost, Report, Unblocked
from rabbitevents.message import Delivery, Message
from rabbitevents.properties import decode_properties, encode_properties, short
from rabbitevents.states import Check, Depth
from rabbitevents.topology import Topology

Failure = Literal["refuse", "return", "lose"]
"""How a publish fails: the broker says no; finds no queue; or takes it, and breaks the connection before it says so."""


class Fault(msgspec.Struct):
    """A failure that waits for its message."""

    failure: Failure
    when: Callable[[Message], bool]
    times: int


class EmbeddedBroker(Routes):
    """Exchanges, queues and bindings in memory. `client` connects a bus to it; several may share it.

    ``await broker.advance(...)`` is for tests, by way of `rabbitevents.testing`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.witnesses: list[Callable[[Message], None]] = []
        """Told of every message that reaches the broker, as it was published, also where no queue is bound for it."""
        self.clients: list[MemoryClient] = []
        self.down: str | None = None
        self.blocked: str | None = None
        self._faults: list[Fault] = []

    def client(self) -> MemoryClient:
        """Return a connection to this broker, for one bus."""
        return MemoryClient(self)

    # --- being told to fail ---

    def fail(self, failure: Failure, *, when: Callable[[Message], bool] = lambda _: True, times: int = 1) -> None:
        """Let the next ``times`` publishes fail for which ``when`` is true."""
        self._faults.append(Fault(failure, when, times))

    def drop_connections(self) -> None:
        """Break every connection: what is unsettled goes back, counted. Clients come back at once."""
        for client in list(self.clients):
            client.lose("the broker was told to drop connections")
            client.come_back()

    def go_down(self) -> None:
        """Break every connection, and take no new ones until `come_up`. What is stored stays."""
        self.down = "the broker was told to go down"
        for client in list(self.clients):
            client.lose(self.down)

    def come_up(self) -> None:
        """Take connections again; clients are back at once."""
        self.down = None
        for client in list(self.clients):
            client.come_back()

    def block(self, reason: str = "low on memory") -> None:
        """Take nothing more from publishers, as RabbitMQ does when it runs short of memory."""
        self.blocked = reason
        for client in self.clients:
            client.block(reason)

    def unblock(self) -> None:
        """Take from publishers again."""
        self.blocked = None
        for client in self.clients:
            client.block(None)

    # --- what is done to it ---

    def delete_queue(self, name: str) -> None:
        """Delete a queue with all that is in it; its consumers are cancelled, and register again."""
        queue = self.queues.pop(name)
        self.bindings[:] = [binding for binding in self.bindings if binding.queue != name]
        for client in self.clients:
            client.queue_deleted(queue)

    # --- messages ---

    def take(self, message: Message) -> bool:
        """Take a published message; False when no queue is bound for it. Raises `RefusedError`."""
        if message.exchange and message.exchange not in self.exchanges:
            raise RefusedError(message, f"there is no exchange {message.exchange!r}")
        failure = self._fault(message)
        if failure == "refuse":
            raise RefusedError(message, "the broker was told to refuse it")
        for witness in self.witnesses:
            witness(message)
        queues = [] if failure == "return" else self.route(message.exchange, message.routing_key)
        if not queues:
            return False
        refusing = [queue.name for queue in queues if queue.full]
        for queue in queues:
            if queue.name not in refusing:
                self.store(queue, message)
        if refusing:
            raise RefusedError(message, f"queue {', '.join(refusing)} is full")
        if failure == "lose":
            self.drop_connections()
            raise OutcomeUnknownError(message, "the broker was told to break the connection")
        return True

    def _fault(self, message: Message) -> Failure | None:
        for fault in self._faults:
            if fault.times > 0 and fault.when(message):
                fault.times -= 1
                return fault.failure
        return None


class MemoryConsumption:
    """A queue being consumed, across broken connections."""

    def __init__(
        self, client: MemoryClient, queue: str, prefetch: int, deliver: Deliver, trusted: Trusted | None
    ) -> None:
        self.queue = queue
        self._client = client
        self._prefetch = prefetch
        self._deliver = deliver
        self._trusted = trusted
        self._generation = 0
        self._reader: Reader | None = None
        self._cancelled = False

    @property
    def running(self) -> bool:
        """Whether the broker has our consumer at this moment."""
        return (
            self._reader is not None
            and self._reader.has_room | bool(self._reader.unsettled)
            and not self._reader.closed
        )

    def register(self) -> None:
        """Read from the queue, as a new consumer."""
        queue = self._client.server.queues.get(self.queue)
        if queue is not None and not self._cancelled:
            self._generation += 1
            self._reader = self._client.server_reader(
                queue, self._generation, self._prefetch, self._deliver, self._trusted
            )
            queue.read(self._reader)

    def drop(self) -> None:
        """Lose the channel."""
        if self._reader is not None:
            self._reader.close()

    def is_stale(self, delivery: Delivery) -> bool:
        """Whether the channel that brought ``delivery`` is gone."""
        reader = self._reader
        return reader is None or reader.closed or delivery.generation != reader.generation

    def settle(self, delivery: Delivery, verdict: Verdict) -> bool:
        """Settle, unless the delivery is stale."""
        reader = self._reader
        return not self.is_stale(delivery) and reader is not None and reader.settle(delivery.tag, verdict)

    def clear(self, delivery: Delivery) -> None:
        """Let one more come."""
        if self._reader is not None:
            self._reader.clear()

    async def cancel(self) -> None:
        """Have nothing more delivered."""
        self._cancelled = True
        if self._reader is not None:
            self._reader.cancelled = True

    async def resume(self) -> None:
        """Have deliveries again."""
        self._cancelled = False
        self.drop()
        self.register()

    async def close(self) -> None:
        """Give back what is not settled."""
        self._cancelled = True
        self.drop()


class MemoryClient:
    """A bus's connection to an `EmbeddedBroker`."""

    def __init__(self, server: EmbeddedBroker) -> None:
        self.server = server
        self._settings = Settings()
        self._report: Report | None = None
        self._consumptions: list[MemoryConsumption] = []
        self._topology = Topology()
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
        self._settings, self._report, self._lost = settings, report, self.server.down
        self.server.clients.append(self)
        self._blocked = self.server.blocked
        if self._lost is None:
            self.come_back()
            return
        why = self._lost
        try:
            async with asyncio.timeout(settings.start_timeout):
                await self._connected.wait()
        except TimeoutError as error:
            self.server.clients.remove(self)
            raise BrokerUnavailableError(
                f"no broker could be used within {settings.start_timeout:g} s: {why}"
            ) from error

    async def declare(self, topology: Topology, *, passive: bool = False) -> Mapping[str, TopologyError]:
        """Declare now, and again when a queue has been deleted."""
        self._topology += topology
        return self._declare(topology, passive)

    def _declare(self, topology: Topology, passive: bool) -> dict[str, TopologyError]:
        found = (self.server.declare(item, passive=passive) for item in topology.items)
        refused = {error.name: error for error in found if error is not None}
        self._refused.update(refused)
        return refused

    async def publish(self, message: Message, deadline: float) -> bool:
        """Publish; a lost answer is tried again with the same id, as on RabbitMQ."""
        encoded = encode_properties(message.properties)
        self._settings.limits.check(message.body, encoded, message.type)
        message = msgspec.structs.replace(message, properties=decode_properties(encoded))  # as it comes off the wire
        short(message.routing_key, f"the routing key of {message.type[:40]}")
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
        """Publish one after the other."""
        results: list[bool | Exception] = []
        for message in messages:
            try:
                results.append(await self.publish(message, deadline))
            except (PublishError, EncodeError) as error:
                results.append(error)
        return results

    async def _until_ready(self, message: Message, deadline: float, left: bool) -> None:
        if self._ready.is_set():
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._ready.wait()
        except TimeoutError:
            why = self._lost or f"the broker blocks publishers: {self._blocked}"
            raise (OutcomeUnknownError if left else NotSentError)(message, why) from None

    async def consume(
        self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None
    ) -> MemoryConsumption:
        """Consume from a queue."""
        consumption = MemoryConsumption(self, queue, prefetch, deliver, trusted)
        self._consumptions.append(consumption)
        if self._lost is None and queue not in self._refused:
            consumption.register()
        return consumption

    async def depth(self, queue: str) -> Depth | None:
        """Look at a queue."""
        if self._lost is not None:
            raise BrokerError(f"looking at queue {queue!r}: {self._lost}")
        there = self.server.queues.get(queue)
        return Depth(there.ready, there.readers) if there is not None else None

    def server_reader(
        self, queue: MemoryQueue, generation: int, prefetch: int, deliver: Deliver, trusted: Trusted | None
    ) -> Reader:
        """Make what reads from a queue for this client."""
        return Reader(queue, generation, prefetch, deliver, trusted)

    def health(self) -> Iterable[Check]:
        """Say how the connection and the consumers are."""
        yield Check("connection", self._lost is None and self._blocked is None, self._lost or self._blocked or "")
        for consumption in self._consumptions:
            refused = self._refused.get(consumption.queue)
            ok = consumption.queue in self.server.queues and self._lost is None and refused is None
            yield Check(f"consumer {consumption.queue}", ok, str(refused or self._lost or "") if not ok else "")

    async def stop(self, deadline: float) -> None:
        """Disconnect."""
        for consumption in self._consumptions:
            await consumption.close()
        self._consumptions.clear()
        self._lost = "closed"
        self._ready.clear()
        if self in self.server.clients:
            self.server.clients.remove(self)

    # --- what the server does to it ---

    def lose(self, reason: str) -> None:
        """Lose the connection."""
        self._lost = reason
        self._connected.clear()
        self._ready.clear()
        for consumption in self._consumptions:
            consumption.drop()
        if self._report is not None:
            self._report(ConnectionLost("memory", "memory://", reason))

    def come_back(self) -> None:
        """Connect again."""
        self._lost = None
        self._connected.set()
        if self._blocked is None:
            self._ready.set()
        for consumption in self._consumptions:
            consumption.register()
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

    def queue_deleted(self, queue: MemoryQueue) -> None:
        """Have a queue that was deleted declared again, and read from it."""
        self._declare(self._topology, passive=False)
        for consumption in self._consumptions:
            if consumption.queue == queue.name:
                consumption.drop()
                consumption.register()
