"""What users test with: their bus on the embedded broker, and a probe that sees what it does.

::

    async with running(bus) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        assert probe.published(OrderConfirmed) == [OrderConfirmed("o-1")]

Where an application has its own bus, and a view publishes through it::

    with probing(bus) as probe:
        client.post("/orders/o-1")
        assert probe.published(OrderPlaced) == [OrderPlaced("o-1")]

`rabbitevents.testing.conformance` is for authors of brokers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TypeVar, cast

from rabbitevents.arguments import Seconds, instance, seconds, wrong
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.brokers.embedded.client import MemoryClient
from rabbitevents.bus import Bus
from rabbitevents.configuration import Told
from rabbitevents.errors import ConfigurationError
from rabbitevents.events import event_type
from rabbitevents.message import Delivery, Message
from rabbitevents.payload.codec import Codec
from rabbitevents.plugin import Plugin
from rabbitevents.properties import Properties
from rabbitevents.sync import SyncBus
from rabbitevents.wire import read

P = TypeVar("P")

__all__ = ["EmbeddedBroker", "Probe", "Witness", "probing", "running"]


class Witness:
    """Sees what is published; it may be asked from any thread."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        """Everything that was published, in order, as messages."""

    def witness(self, message: Message) -> None:
        """Note a published message."""
        self.messages.append(message)

    def published(self, cls: type[P]) -> list[P]:
        """Return the events of one class that were published, in order; ``[]`` if there were none."""
        if not isinstance(cast("object", cls), type):
            raise ConfigurationError(
                f"published() takes a class: published({type(cls).__name__}) returns its events, to be compared with yours"
            )
        codec = Codec(cls)
        names = event_type(cls).names
        received = (read(_as_delivered(message)) for message in list(self.messages) if message.type in names)
        return [codec.decode(each.body, each.version) for each in received]


class Probe(Witness):
    """Sees what a running bus publishes, and moves its broker's clock."""

    def __init__(self, bus: Bus, broker: EmbeddedBroker) -> None:
        super().__init__()
        self.bus = bus
        self.broker = broker

    def waiting(self, queue: str) -> int:
        """Return how many messages a queue holds, delivered ones included; 0 for one that does not exist."""
        there = self.broker.queues.get(queue)
        return there.ready + there.unsettled if there is not None else 0

    async def settled(self, timeout: Seconds = 5.0) -> None:
        """Wait until the whole cascade is quiet: every queue of the bus empty, and no handler running.

        Events that wait for a later time do not count, nor those that are held. Raises TimeoutError, which names the
        queues that are not empty.

        :param timeout: How long to wait at most: seconds (5), or a timedelta.
        """
        limit = seconds("settled: timeout", timeout)
        deadline = asyncio.get_running_loop().time() + limit
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(0 if quiet else 0.0005)
            busy = self._busy()
            quiet = quiet + 1 if not busy else 0
            if busy and asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(
                    f"not settled within {limit:g} s: {', '.join(busy)}; settled(timeout=...) waits longer"
                )

    def _busy(self) -> list[str]:
        loads, queues = self.bus.load.items(), {each.name: each.queue for each in self.bus.subscriptions}
        waiting = [(queues[name], self.waiting(queues[name]) - load.held) for name, load in loads]
        busy = [f"{self.waiting(queue)} in {queue}" for queue, more in waiting if more > 0]
        if any(load.running for _, load in loads):
            busy.append("a handler is running")
        return [*busy, *filter(None, (plugin.busy() for plugin in self.bus.plugins))]

    async def advance(self, by: Seconds) -> None:
        """Move the broker's clock forward, letting everything that falls due on the way run its course, in order.

        :param by: How far: seconds, or a timedelta.
        """
        clock = self.broker.clock
        end = clock.time() + seconds("advance: by", by)
        await self.settled()
        while (due := clock.next_due()) is not None and due <= end:
            clock.jump(due)
            await self.settled()
        clock.jump(end)
        await self.settled()


def _as_delivered(message: Message) -> Delivery:
    return Delivery("", 0, 0, False, message.exchange, message.routing_key, message.body, message.properties)


@asynccontextmanager
async def running(
    bus: Bus, *, broker: EmbeddedBroker | str = "memory://", plugins: Sequence[Plugin] | None = None
) -> AsyncGenerator[Probe]:
    """Run a sibling of ``bus`` on the embedded broker, with the same handlers; yield a probe of it.

    :param bus: What is tested. It is not started, but its sibling.
    :param broker: An `EmbeddedBroker`, to share it with another bus. By default one of its own.
    :param plugins: They stand in for the bus's own; ``[]`` is none.
    """
    instance("running: bus", bus, Bus, "it runs a sibling of a Bus, and probing() takes a SyncBus")
    if not isinstance(broker, EmbeddedBroker) and broker != "memory://":
        raise wrong(
            "running: broker",
            broker,
            "say an EmbeddedBroker, or leave it out: a test runs on memory://; for a sibling on another broker, write "
            'async with bus.sibling("amqp://localhost")',
        )
    server = broker if isinstance(broker, EmbeddedBroker) else EmbeddedBroker()
    sibling = bus.sibling(server.client(), plugins=plugins)
    probe = Probe(sibling, server)
    server.witnesses.append(probe.witness)
    try:
        async with sibling:
            yield probe
    finally:
        server.witnesses.remove(probe.witness)


@contextmanager
def probing(bus: Bus | SyncBus, *, broker: EmbeddedBroker | None = None) -> Generator[Witness]:
    """Put the bus of an application on an embedded broker, and yield a witness of what it publishes.

    It is the very bus that views have. A `SyncBus` is there as long as this is entered, and connects anew after it. A
    `Bus` is moved before it starts, and stays; one that runs already has to be on ``memory://``. ``broker`` (else a
    fresh one, to which nobody is bound, as no error) may be told to fail. Raises `ConfigurationError` for a bus that
    runs on another broker.
    """
    if not isinstance(cast("object", bus), (Bus, SyncBus)):
        raise ConfigurationError(f"probing() takes the Bus or the SyncBus that publishes, not a {type(bus).__name__}")
    with ExitStack() as stack:
        if isinstance(bus, SyncBus):
            client = (broker or EmbeddedBroker()).client()
            told: Told = {} if broker is not None else {"unroutable": "ignore"}  # who could be bound to a fresh one?
            stack.enter_context(bus.elsewhere(client, **told))
        else:
            client = _moved(bus, broker, stack)
        witnesses, witness = client.server.witnesses, Witness()
        witnesses.append(witness.witness)
        stack.callback(witnesses.remove, witness.witness)
        yield witness


def _moved(bus: Bus, broker: EmbeddedBroker | None, stack: ExitStack) -> MemoryClient:
    """Return the connection of ``bus`` to an embedded broker: the one that it has, or a new one in its broker's place."""
    there = bus.broker
    if isinstance(there, MemoryClient) and broker in (None, there.server):
        return there
    client = (broker or EmbeddedBroker()).client()
    try:
        bus.broker = client
    except ConfigurationError as error:
        raise ConfigurationError(
            f"probing(bus): {error}. Enter probing() before that, or have the test's application make its bus on memory://"
        ) from error

    def back() -> None:
        with suppress(ConfigurationError):  # it has run, and will not again
            bus.broker = there

    stack.callback(back)
    return client


def delivered(body: bytes, properties: Properties, *, queue: str = "queue", routing_key: str = "") -> Delivery:
    """Return a delivery that no broker brought, to call what takes one."""
    return Delivery(queue, 1, 1, False, "", routing_key, body, properties)
