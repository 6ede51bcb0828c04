"""The embedded broker as its clients see it: what they connect to, and what takes their messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from rabbitevents.brokers import Deliver, Trusted
from rabbitevents.brokers.embedded.copies import further_keys, unacceptable
from rabbitevents.brokers.embedded.queues import MemoryQueue, Reader
from rabbitevents.brokers.embedded.routes import Routes
from rabbitevents.brokers.home import Home
from rabbitevents.errors import RefusedError, TopologyError
from rabbitevents.message import Message
from rabbitevents.topology import Binding, Exchange, Queue

LONGEST_WAIT: Final = 315_360_000_000
"""The longest expiration that RabbitMQ takes, in milliseconds: ten years."""


class Connection(Protocol):
    """A client, as far as the server knows it: somebody to tell what happens to the connection."""

    def lose(self, reason: str) -> None:
        """Learn that the connection is broken."""
        ...

    def come_back(self) -> None:
        """Connect again."""
        ...

    def block(self, reason: str | None) -> None:
        """Learn that nothing is taken from publishers, or (None) that it is again."""
        ...

    def declared(self) -> None:
        """Learn that there are queues or exchanges that were not there."""
        ...

    def queue_deleted(self) -> None:
        """Learn that a queue is gone, and its consumers with it."""
        ...


class Server(Routes):
    """Exchanges, queues and bindings, the clients, and the way of a message in."""

    def __init__(self) -> None:
        super().__init__()
        self.witnesses: list[Callable[[Message], None]] = []
        """Told of every message that reaches the broker, as it was published, also where no queue is bound for it."""
        self.clients: list[Connection] = []
        self.down: str | None = None
        self.blocked: str | None = None
        self._home = Home()

    def connect(self, client: Connection) -> None:
        """Know ``client`` from now on. Raises `ConfigurationError` where others are connected on another event loop."""
        if self.clients:
            self._home.check()
        self._home.settle()
        self.clock.wind()
        self.clients.append(client)

    def disconnect(self, client: Connection) -> None:
        """Know ``client`` no more."""
        if client in self.clients:
            self.clients.remove(client)

    def declare_all(self, items: Iterable[Exchange | Queue | Binding], *, passive: bool) -> dict[str, TopologyError]:
        """Declare things in order, or only look; return what is refused, by name. Those who wait for it learn of it."""
        before = len(self.queues) + len(self.exchanges)
        refused = super().declare_all(items, passive=passive)
        if len(self.queues) + len(self.exchanges) > before:
            for client in list(self.clients):
                client.declared()
        return refused

    def make_reader(
        self, queue: MemoryQueue, generation: int, prefetch: int, deliver: Deliver, trusted: Trusted | None
    ) -> Reader:
        """Make what reads from a queue for a client."""
        return Reader(queue, generation, prefetch, deliver, trusted)

    def take(self, message: Message) -> bool:
        """Take a published message; False when no queue is bound for it. Raises `RefusedError`."""
        self.check(message)
        self.tell(message)
        keys = [message.routing_key, *further_keys(message.headers, "CC", "BCC")]
        queues = self.route(message.exchange, keys, message.headers)
        if not queues:
            return False
        refusing = [queue.name for queue in queues if queue.full]
        for queue in queues:
            if queue.name not in refusing:
                self.store(queue, message)
        if refusing:
            raise RefusedError(message, f"queue {', '.join(refusing)} is full")
        return True

    def check(self, message: Message) -> None:
        """Raise `RefusedError` for a message that RabbitMQ closes the channel for."""
        if message.exchange and message.exchange not in self.exchanges:
            raise RefusedError(message, f"404: there is no exchange {message.exchange!r}")
        expiration = message.properties.expiration
        if expiration is not None and not _is_wait(expiration):
            raise RefusedError(message, f"406: its expiration {expiration[:40]!r} is no number of milliseconds")
        header = unacceptable(message.headers)
        if header is not None:
            raise RefusedError(message, f"406: its header {header} is no array of routing keys")

    def tell(self, message: Message) -> None:
        """Tell the witnesses of a message that reached the broker."""
        for witness in self.witnesses:
            witness(message)


def _is_wait(text: str) -> bool:
    """Whether RabbitMQ takes ``text`` for an expiration (3.10.8 was asked): a number as Erlang reads one."""
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None and 0 <= int(text) <= LONGEST_WAIT
