"""RabbitMQ: a connection to publish on, one to consume and to ask on, and a watch over both.

They are two, because a broker that is short of memory stops reading from connections that publish, and consumers, and
whoever looks at a queue, must go on then.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rabbitevents.brokers import Deliver, Settings, Trusted
from rabbitevents.brokers.rabbitmq.address import Address, addresses
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.declaring import declare, depth
from rabbitevents.brokers.rabbitmq.link import Link, Restore
from rabbitevents.brokers.rabbitmq.moving import Elsewhere, handled, without
from rabbitevents.brokers.rabbitmq.publisher import Publisher
from rabbitevents.brokers.rabbitmq.registration import Source
from rabbitevents.brokers.rabbitmq.subscriber import Subscriber
from rabbitevents.brokers.rabbitmq.tags import mark
from rabbitevents.errors import BrokerError, BrokerUnavailableError, NotSentError, TopologyError
from rabbitevents.facts import Blocked, Report, Unblocked
from rabbitevents.message import Message
from rabbitevents.partitions import guard_of
from rabbitevents.states import Check, Depth
from rabbitevents.topology import Topology

log: logging.Logger = logging.getLogger("rabbitevents.broker")

TICK = 0.25
"""Seconds between two looks at deadlines and at silent connections."""

SPREAD = 2.0
"""Seconds that a process waits at most, before it consumes a partition."""

REGISTER_TIMEOUT = 10.0
"""Seconds that starting to consume waits for the broker; the supervisor goes on trying after that."""


class RabbitMQ:
    """A bus's connections to RabbitMQ, 3.10 and later.

    ``urls`` are tried in turn (nodes of one cluster). ``ssl_context`` is used with ``amqps://``. ``heartbeat`` is in
    seconds: a silent broker is given up after two and a half of them.
    """

    def __init__(self, *urls: str, ssl_context: ssl.SSLContext | None = None, heartbeat: int = 10) -> None:
        self.addresses: tuple[Address, ...] = addresses(urls)
        """Where it is looked for, with the passwords."""
        self.context: ssl.SSLContext | None = ssl_context
        self._heartbeat = heartbeat
        self._topology = Topology()
        self._passive = False
        self._refused: dict[str, TopologyError] = {}
        """What could not be declared, by name, as far as we were told last."""
        self._said: set[str] = set()
        """What was said to be used as it stands."""
        self._otherwise: dict[str, TopologyError] = {}
        """What stands with other limits, by name, and is used as it is."""
        self._elsewhere = Elsewhere({})
        """The queues that are left alone."""
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
        connection = self._publishing.connection if self._publishing is not None else None
        return str(connection.address) if connection is not None else " or ".join(map(str, self.addresses))

    # --- starting ---

    async def start(self, settings: Settings, report: Report | None) -> None:
        """Connect for publishing; the other connection is made when it is first needed."""
        self._settings, self._report = settings, report
        self._consuming = None  # what an earlier life left; its event loop may be gone
        self._subscribers.clear()
        self._refused.clear()
        self._said.clear()
        self._elsewhere = Elsewhere(settings.renames)
        self._otherwise.clear()
        self._topology = Topology()
        self._publisher = Publisher(
            in_flight=settings.in_flight, limits=settings.limits, prepare=self._prepare_publishing
        )
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
            self.addresses,
            name=self._settings.name,
            heartbeat=self._heartbeat,
            context=self.context,
            restore=restore,
            report=self._report,
            patience=self._settings.start_timeout,
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
        if link.connection is not None:
            return
        if link.refused.done():
            refusal = link.refused.result()
            raise BrokerUnavailableError(str(refusal), code=refusal.code)
        raise link.unavailable(timeout)

    async def _asking(self, what: str) -> Connection:
        """Return the connection that questions are asked on: the consuming one, which no alarm blocks.

        Raises `BrokerError`.
        """
        if self._publishing is None or self._publishing.state == "closed":
            raise BrokerError(f"{what}: there is no connection to the broker")
        link = self._consuming or await self._until_consuming()
        if link.connection is None:
            raise BrokerError(f"{what}: there is no connection to the broker")
        return link.connection

    async def _until_consuming(self) -> Link:
        """Wait for the consuming connection, which is begun when it is first needed. Raises `BrokerUnavailableError`."""
        if self._consuming is None:
            self._consuming = self._link("consume", self._restore_consuming)
            self._consuming.open()
        await self._until_running(self._consuming)
        return self._consuming

    # --- topology ---

    async def declare(self, topology: Topology, *, passive: bool = False) -> Mapping[str, TopologyError]:
        """Declare now, and again after each reconnection. Raises `BrokerError`."""
        self._passive = passive
        there: Connection | None
        if topology.queues or self._consuming is not None:
            there = await self._asking("declaring")
        else:  # a bus that only publishes needs no second connection for its exchange
            there = self._publishing.connection if self._publishing is not None else None
        if there is None:
            raise BrokerError("declaring: there is no connection to the broker")
        refused = await self._declare(there, topology)
        self._topology += topology
        return refused

    async def _declare(self, connection: Connection, topology: Topology) -> Mapping[str, TopologyError]:
        """Declare, and remember what could not be; say once what is used as it stands."""
        service = self._topology + topology
        await self._elsewhere.look(connection, handled(topology))
        elsewhere = self._elsewhere.queues
        wanted = without(topology, elsewhere)
        declared = await declare(connection, wanted, passive=self._passive, service=service, said=self._said)
        warnings = ((logging.WARNING, text) for text in (declared.warning, declared.otherwise))
        for level, text in ((logging.INFO, declared.info), *warnings):
            if text:
                log.log(level, "%s", text)
        for name in topology.names:
            self._refused.pop(name, None)
            self._otherwise.pop(name, None)
        self._refused.update({name: error for name, error in declared.refused.items() if not error.stands})
        self._otherwise.update({name: error for name, error in declared.refused.items() if _is_otherwise(error)})
        return {**declared.refused, **{name: _anew(name) for name in elsewhere.intersection(topology.queues)}}

    async def _restore_publishing(self, connection: Connection) -> None:
        connection.tap.on_blocked = self._blocked
        if self._publisher is not None:
            await self._publisher.restore(connection)

    async def _prepare_publishing(self, connection: Connection, missing: bool) -> None:
        """Declare what a publish needs, the exchanges; where one was missing, all that led from it too.

        A bus that consumes declares everything on its other connection.
        """
        if self._consuming is not None and not missing:
            return
        wanted = self._topology if missing else self._topology.exchanges
        for error in (await self._declare(connection, wanted)).values():
            if not error.stands:
                log.error("%s", error)

    async def _restore_consuming(self, connection: Connection) -> None:
        """Declare everything once; each consumer registers itself then."""
        await self._declare(connection, self._topology)

    async def _prepare_queue(self, connection: Connection, queue: str, missing: bool) -> Source:
        """Make sure that a queue can be consumed. What stands otherwise is this queue's trouble alone."""
        elsewhere = self._elsewhere
        part = self._topology.part(queue)
        known = mark(part, queue, elsewhere.becomes(queue))
        if not part.items:
            await elsewhere.look(connection, [queue])
        elif missing or queue in self._refused or queue in elsewhere.queues:
            await self._declare(connection, part)
        if (source := await elsewhere.source(connection, queue)) is not None:
            return Source(source, known)
        if (refused := self._refused.get(queue)) is not None:
            raise refused
        return Source(queue, known)

    def _blocked(self, reason: str | None) -> None:
        if self._publisher is not None:
            self._publisher.wake()
        if self._report is not None:
            self._report(Unblocked() if reason is None else Blocked(reason))

    # --- the seam ---

    def publish(self, message: Message, deadline: float) -> Awaitable[bool]:
        """Publish on the publishing connection; what is awaited is the publisher's own, a layer less for each event."""
        if self._publisher is None:
            raise NotSentError(message, "the broker is not started")
        return self._publisher.publish(message, deadline)

    async def publish_many(self, messages: Sequence[Message], deadline: float) -> list[bool | Exception]:
        """Publish on the publishing connection, in flight together."""
        if self._publisher is None:
            raise NotSentError(messages[0], "the broker is not started")
        return await self._publisher.publish_many(messages, deadline)

    async def consume(self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None) -> Subscriber:
        """Consume on the consuming connection, on a channel of its own.

        Of processes that start together, each is the first one at some of the partitions, and so has their events.
        """
        if guard_of(queue) is not None:
            await asyncio.sleep(random.uniform(0, SPREAD))
        subscriber = Subscriber(
            await self._until_consuming(),
            queue,
            prefetch=prefetch,
            deliver=deliver,
            trusted=trusted,
            body_limit=self._settings.limits.body,
            prepare=self._prepare_queue,
            report=self._report,
            closed=self._forget,
            known=self._refused.get(queue),
        )
        self._subscribers.append(subscriber)
        try:
            await subscriber.tried(REGISTER_TIMEOUT)
        except BaseException:
            subscriber.abandon()
            raise
        return subscriber

    def _forget(self, subscriber: Subscriber) -> None:
        with suppress(ValueError):
            self._subscribers.remove(subscriber)

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` in ``delay`` seconds."""
        asyncio.get_running_loop().call_later(delay, callback)

    async def depth(self, queue: str) -> Depth | None:
        """Look at a queue by a passive declaration."""
        return await depth(await self._asking(f"looking at queue {queue!r}"), queue)

    def health(self) -> Iterable[Check]:
        """Say how the connections, the publishing channel and the consumers are."""
        for link in self._links:
            yield link.check()
        if self._publisher is not None:
            yield self._publisher.check()
        for subscriber in self._subscribers:
            yield subscriber.check()
        for name, error in self._otherwise.items():
            yield Check(f"queue {name}", ok=False, detail=str(error), degraded=True)

    @property
    def _links(self) -> list[Link]:
        return [link for link in (self._publishing, self._consuming) if link is not None]

    async def stop(self, deadline: float) -> None:
        """Close everything, at the latest by ``deadline``. Whoever still waits for a publish learns that it is over."""
        now = asyncio.get_running_loop().time
        subscribers = list(self._subscribers)
        try:
            if self._publisher is not None:
                await self._publisher.drain(deadline - 1)
            if subscribers:
                closing = [asyncio.ensure_future(subscriber.close()) for subscriber in subscribers]
                await asyncio.wait(closing, timeout=max(0.2, min(2.0, deadline - now())))
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
            if self._publisher is not None:
                self._publisher.close()
            left = max(0.2, min(2.0, deadline - now()))
            await asyncio.gather(*(link.close(left) for link in self._links))
            for subscriber in subscribers:
                subscriber.end()

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
            for link in self._links:
                if link.connection is not None:
                    link.connection.watch(moment)


def _anew(queue: str) -> TopologyError:
    """Say that a queue is being made anew, or has another name by now: nothing of it was declared."""
    text = f"queue {queue!r} is being made anew, or goes by another name, and is used as it stands"
    return TopologyError(text, name=queue, code=0, stands=True)


def _is_otherwise(error: TopologyError) -> bool:
    """Say whether something is used that stands with other limits."""
    return error.stands and error.code == 406
