"""The embedded broker: a broker, not a mock, for tests and first steps.

It routes, stores, delivers, redelivers and dead-letters as RabbitMQ does, and passes the same conformance suite. Its
clock can be moved, and it can be told to fail. It lives in this process's memory, and is gone with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from rabbitevents.brokers.embedded.client import MemoryClient
from rabbitevents.brokers.embedded.server import Server
from rabbitevents.errors import OutcomeUnknownError, RefusedError
from rabbitevents.message import Message

Failure = Literal["refuse", "return", "lose"]
"""How a publish fails: the broker says no; finds no queue; or takes it, and breaks the connection before it says so."""


class Fault(msgspec.Struct):
    """A failure that waits for its message."""

    failure: Failure
    when: Callable[[Message], bool]
    times: int


class EmbeddedBroker(Server):
    """Exchanges, queues and bindings in memory. `client` connects a bus to it; several may share it.

    ``await probe.advance(...)`` moves its clock, by way of `rabbitevents.testing`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._faults: list[Fault] = []

    def client(self) -> MemoryClient:
        """Return a connection to this broker, for one bus."""
        return MemoryClient(self)

    # --- being told to fail ---

    def fail(self, failure: Failure, *, when: Callable[[Message], bool] = lambda _: True, times: int = 1) -> None:
        """Let the next ``times`` publishes fail for which ``when`` is true."""
        self._faults.append(Fault(failure, when, times))

    def take(self, message: Message) -> bool:
        """Take a published message, unless it is to fail. Raises `RefusedError` and `OutcomeUnknownError`."""
        failure = self._fault(message) if self._faults else None
        if failure == "refuse":
            raise RefusedError(message, "the broker was told to refuse it")
        if failure == "return":
            self.check(message)
            self.tell(message)
            return False
        routed = super().take(message)
        if failure == "lose" and routed:
            self.drop_connections()
            raise OutcomeUnknownError(message, "the broker was told to break the connection")
        return routed

    def _fault(self, message: Message) -> Failure | None:
        for fault in self._faults:
            if fault.times > 0 and fault.when(message):
                fault.times -= 1
                return fault.failure
        return None

    def drop_connections(self) -> None:
        """Break every connection: what is unsettled goes back, counted. Clients come back at once."""
        for client in list(self.clients):
            client.lose("the broker was told to drop connections")
            client.come_back()

    def go_down(self) -> None:
        """Break every connection, and take no new ones until `come_up`. What is stored stays."""
        self.down = reason = "the broker was told to go down"
        for client in list(self.clients):
            client.lose(reason)

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
        self.forget_queue(name)
        for client in list(self.clients):
            client.queue_deleted()
