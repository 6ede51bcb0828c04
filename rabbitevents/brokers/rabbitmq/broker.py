"""RabbitMQ: a connection to publish on, one to consume on, and a watch over both.

They are two, because a broker that is short of memory stops reading from connections that publish, and consumers
must go on then.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from rabbitevents.brokers import Deliver, Settings, Trusted
from rabbitevents.brokers.rabbitmq.connection import Wire, addresses
from rabbitevents.brokers.rabbitmq.declaring import declare, depth
from rabbitevents.brokers.rabbitmq.link import Link, Restore
from rabbitevents.brokers.rabbitmq.publisher import Publisher
from rabbitevents.brokers.rabbitmq.subscriber import Subscriber
from rabbitevents.errors import BrokerError, BrokerUnavailableError, NotSentError, TopologyError
from rabbitevents.facts import Blocked, Report, Unblocked
from rabbitevents.message import Message
from rabbitevents.states import Check, Depth
from rabbitevents.topology import Binding, Topology

TICK = 0.25
"""Seconds between two looks at deadlines and at silent connections."""

REGISTER_TIMEOUT = 10.0
"""Seconds that starting to consume waits for the broker; the supervisor goes on trying after that."""


class RabbitMQ:
    """A bus's connections to RabbitMQ, 3.10 and later.

    ``urls`` are tried in turn (nodes of one cluster). ``ssl_context`` is used with ``amqps://``. ``heartbeat`` is in
    seconds: a silent broker is given up after two and a half of them.
    """

    def __init__(self, *urls: str, ssl_context: ssl.SSLContext | None = None, heartbeat: int = 10) -> None:
        self._addresses = addresses(urls)
        self._context = ssl_context
        self._heartbeat = heartbeat
        self._topology = Topology()
        self._passive = False
        self._subscribers: list[Subscriber] = []
        self._settings = Settings()
        self._report: Report | None = None
        self._publishing: Link | None = None
        self._consuming: Link | None = None
        self._publisher: Publisher | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """The broker that we are connected to; while there is none, all that are looked for."""
        wire = self._publishing.wire if self._publishing is not None else None
        return str(wire.address) if wire is not None else " or ".join(map(str, self._addresses))

    # --- starting ---

    async def start(self, settings: Settings, report: Report | None) -> None:
        """Connect for publishing; the consuming connection is made with the first queue that is consumed."""
        self._settings, self._report = settings, report
        self._consuming = None  # what an earlier life left; its event loop may be gone
        self._subscribers.clear()
        self._topology = Topology()
        self._publisher = Publisher(in_flight=settings.in_flight, limits=settings.limits, declare=self._declare_all)
        self._publishing = self._link("publish", self._restore_publishing)
        self._publishing.open()
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="rabbitevents watch")
        try:
            await self._until_running(self._publishing)
        except BaseException:
            await self.stop(asyncio.get_running_loop().time() + 1)
            raise

    def _link(self, role: str, restore: Restore) -> Link:
        return Link(
            role,
            self._addresses,
            name=self._settings.name,
            heartbeat=self._heartbeat,
            context=self._context,
            restore=restore,
            report=self._report,
        )

    async def _until_running(self, link: Link) -> None:
        """Wait until ``link`` runs. Raises `BrokerUnavailableError`: at once when we are refused, else at the timeout."""
        timeout = self._settings.start_timeout
        running = asyncio.ensure_future(link.running.wait())
        try:
            either: set[asyncio.Future[Any]] = {running, link.refused}
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.cancel()
        if link.running.is_set():
            return
        if link.refused.done():
            refusal = link.refused.result()
            raise BrokerUnavailableError(str(refusal), code=refusal.code)
        raise link.unavailable(timeout)

    async def _restore_publishing(self, wire: Wire) -> None:
        wire.tap.on_blocked = self._blocked
        if self._publisher is not None:
            await self._publisher.restore(wire)

    def _blocked(self, reason: str | None) -> None:
        if self._publisher is not None:
            self._publisher.wake()
        if self._report is not None:
            self._report(Unblocked() if reason is None else Blocked(reason))

    async def _restore_consuming(self, wire: Wire) -> None:
        """Nothing is shared by consumers: each registers itself."""

    # --- the seam ---

    async def declare(self, topology: Topology, *, passive: bool = False) -> Mapping[str, TopologyError]:
        """Declare now, and again after each reconnection. Raises `BrokerError`."""
        self._passive = passive
        wire = self._publishing.wire if self._publishing is not None else None
        if wire is None:
            raise BrokerError("declaring: there is no connection to the broker")
        refused = await declare(wire, topology, passive=passive)
        self._topology += topology
        return refused

    async def _declare_all(self, wire: Wire) -> dict[str, TopologyError]:
        return await declare(wire, self._topology, passive=self._passive)

    async def _declare_queue(self, wire: Wire, queue: str) -> TopologyError | None:
        """Declare what one queue needs. What stands otherwise is this queue's trouble alone."""
        items = self._topology.items
        mine = {queue, *(b.queue for b in items if isinstance(b, Binding) and b.routing_key == queue)}
        mine.update([b.exchange for b in items if isinstance(b, Binding) and b.queue in mine])
        part = [i for i in items if (i.queue if isinstance(i, Binding) else i.name) in mine]
        return (await declare(wire, Topology(tuple(part)), passive=self._passive)).get(queue)

    async def publish(self, message: Message, deadline: float) -> bool:
        """Publish on the publishing connection."""
        if self._publisher is None:
            raise NotSentError(message, "the broker is not started")
        return await self._publisher.publish(message, deadline)

    async def consume(self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None) -> Subscriber:
        """Consume on the consuming connection, on a channel of its own."""
        if self._consuming is None:
            self._consuming = self._link("consume", self._restore_consuming)
            self._consuming.open()
        await self._until_running(self._consuming)
        subscriber = Subscriber(
            self._consuming,
            queue,
            prefetch=prefetch,
            deliver=deliver,
            trusted=trusted,
            body_limit=self._settings.limits.body,
            declare=self._declare_queue,
            report=self._report,
        )
        self._subscribers.append(subscriber)
        subscriber.start()
        await subscriber.tried(REGISTER_TIMEOUT)
        return subscriber

    async def depth(self, queue: str) -> Depth | None:
        """Look at a queue by a passive declaration, on a channel that is thrown away."""
        wire = self._publishing.wire if self._publishing is not None else None
        if wire is None:
            raise BrokerError(f"looking at queue {queue!r}: there is no connection to the broker")
        return await depth(wire, queue)

    def health(self) -> Iterable[Check]:
        """Say how the connections, the publishing channel and the consumers are."""
        for link in (self._publishing, self._consuming):
            if link is not None:
                wire = link.wire
                blocked = (
                    f"the broker blocks publishers: {wire.tap.blocked}" if wire and wire.tap.blocked is not None else ""
                )
                problem = link.detail or blocked or (wire.quiet if wire is not None else "")
                yield Check(f"connection {link.role}", link.state == "running" and not problem, problem)
        if self._publisher is not None:
            yield self._publisher.check()
        for subscriber in self._subscribers:
            yield subscriber.check()

    async def stop(self, deadline: float) -> None:
        """Close everything, at the latest by ``deadline``."""
        now = asyncio.get_running_loop().time
        if self._publisher is not None:
            await self._publisher.drain(deadline - 1)
        if self._watcher is not None:
            self._watcher.cancel()
        left = max(0.2, min(2.0, deadline - now()))
        with suppress(TimeoutError):
            async with asyncio.timeout(left + 1):
                await asyncio.gather(*(subscriber.close() for subscriber in self._subscribers))
                if self._publisher is not None:
                    await self._publisher.close()
        await asyncio.gather(*(link.close(left) for link in (self._publishing, self._consuming) if link is not None))

    # --- the watch ---

    async def _watch(self) -> None:
        """Look at deadlines and silent connections, a few times a second.

        A loop that stood still itself must not blame the broker: then the bytes that waited are read first.
        """
        now = asyncio.get_running_loop().time
        before = now()
        while True:
            await asyncio.sleep(TICK)
            moment = now()
            stood_still, before = moment - before > 4 * TICK, moment
            if self._publisher is not None:
                self._publisher.expire(moment)
            if stood_still:
                continue
            for link in (self._publishing, self._consuming):
                if link is not None and link.wire is not None:
                    link.wire.watch(moment)
