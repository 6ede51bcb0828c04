"""What is being handled here: known to what is published and logged meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

from rabbitevents.ids import derived_id
from rabbitevents.message import Delivery
from rabbitevents.plugin import Publish
from rabbitevents.wire import Received


class Handling:
    """One attempt at an event: what is published meanwhile is caused by it, and its ids derive from this one's.

    ``owner`` is the bus that handles it, ``chain`` the publish chain of its subscription. When it has `ended`, a task
    that the handler left behind still knows the cause of what it publishes; but its ids derive from nothing.
    """

    __slots__ = ("_equals", "_received", "_subscription", "chain", "ended", "owner")

    def __init__(self, received: Received, subscription: str, owner: object, chain: Publish) -> None:
        self.owner: object = owner
        self.chain: Publish = chain
        self.ended: bool = False
        self._received = received
        self._subscription = subscription
        self._equals: dict[bytes, int] = {}

    def next_id(self, said: bytes) -> UUID:
        """Return the id of an event that says ``said`` (a digest): the same one at every attempt, in whatever order.

        Those that say the same are told apart by their number.
        """
        number = self._equals[said] = self._equals.get(said, -1) + 1
        return derived_id(self._received.delivery.id, self._subscription, said, number)

    def named_id(self, type: str, name: str) -> UUID:
        """Return the id of the event of ``type`` that its author calls ``name``: the same one at every attempt."""
        return derived_id(self._received.delivery.id, self._subscription, f"{type}\0{name}".encode())

    @property
    def delivery(self) -> Delivery:
        """What is being handled."""
        return self._received.delivery

    @property
    def id(self) -> str:
        """The id of the event that is handled."""
        return str(self._received.delivery.id)

    @property
    def correlation_id(self) -> str:
        """What everything in this cascade shares: the handled event's correlation id, or its id."""
        return self._received.envelope(None).metadata.correlation_id or self.id


CURRENT: ContextVar[Handling | None] = ContextVar("rabbitevents_handling", default=None)
"""The handling that the current task is part of, or was begun by."""


@contextmanager
def detached() -> Iterator[None]:
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
