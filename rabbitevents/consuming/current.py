"""What is being handled here: known to what is published and logged meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

import msgspec

from rabbitevents.ids import derived_id
from rabbitevents.message import Delivery
from rabbitevents.plugin import Publish
from rabbitevents.wire import Received


class Handling(msgspec.Struct, eq=False):
    """One attempt at an event: what is published meanwhile is caused by it, and its ids derive from this one's.

    ``owner`` is the bus that handles it, ``chain`` the publish chain of its subscription. When it has `ended`, a task
    that the handler left behind still knows the cause of what it publishes; but its ids derive from nothing.
    """

    received: Received
    subscription: str
    owner: object
    chain: Publish
    ended: bool = False
    equals: dict[bytes, int] = {}
    """How many events have been published that say the same, by what they say."""

    def next_id(self, said: bytes) -> UUID:
        """Return the id of an event that says ``said`` (a digest): the same one at every attempt, in whatever order.

        Those that say the same are told apart by their number.
        """
        number = self.equals[said] = self.equals.get(said, -1) + 1
        return derived_id(self.received.delivery.id, self.subscription, said, number)

    def named_id(self, type: str, name: str) -> UUID:
        """Return the id of the event of ``type`` that its author calls ``name``: the same one at every attempt."""
        return derived_id(self.received.delivery.id, self.subscription, f"{type}\0{name}".encode())

    @property
    def delivery(self) -> Delivery:
        """What is being handled."""
        return self.received.delivery

    @property
    def id(self) -> str:
        """The id of the event that is handled."""
        return str(self.received.delivery.id)

    @property
    def correlation_id(self) -> str:
        """What everything in this cascade shares: the handled event's correlation id, or its id."""
        return self.received.correlation_id or self.id


CURRENT: ContextVar[Handling | None] = ContextVar("rabbitevents_handling", default=None)
"""The handling that the current task is part of, or was begun by."""


@contextmanager
def detached() -> Generator[None]:
    """Leave the handling that is under way: what is published inside has no cause, a correlation and an id of its own.

    ::

        with rabbitevents.detached():
            asyncio.create_task(nightly_report())  # and all that it does from now on
    """
    token = CURRENT.set(None)
    try:
        yield
    finally:
        CURRENT.reset(token)
