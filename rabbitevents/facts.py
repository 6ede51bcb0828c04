"""What happened, as small values, for whoever observes: `Plugin.observe` gets each of them.

A fact is made only if somebody observes. Facts carry names, ids and numbers, never a body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

import msgspec


class Fact(msgspec.Struct, frozen=True):
    """What a fact is: frozen, and named by its class. A plugin's own facts derive from it."""


class Connected(Fact, frozen=True):
    """A connection stands (again). ``connection`` is "publish" or "consume"; ``downtime`` in seconds."""

    connection: str
    address: str
    downtime: float

    @property
    def server(self) -> Mapping[str, str | int]:
        """Host and port of the address, as OpenTelemetry calls them; without what it does not say."""
        parts = urlsplit(self.address)
        said = {"server.address": parts.hostname, "server.port": parts.port}
        return {name: value for name, value in said.items() if value}


class ConnectionLost(Fact, frozen=True):
    """A connection broke off; it is being made again."""

    connection: str
    address: str
    reason: str


class Blocked(Fact, frozen=True):
    """The broker stopped reading what we publish (``connection.blocked``); publishers wait."""

    reason: str


class Unblocked(Fact, frozen=True):
    """The broker reads again."""


class ConsumerLost(Fact, frozen=True):
    """A queue has no consumer of ours any more, while the connection stands; it is being registered again."""

    queue: str
    reason: str


class ConsumerRestored(Fact, frozen=True):
    """A queue has its consumer (again); ``downtime`` in seconds."""

    queue: str
    downtime: float


class Returned(Fact, frozen=True):
    """An event was published and no queue is bound for it."""

    type: str
    id: str


class Stale(Fact, frozen=True):
    """A settlement or an unstarted delivery was dropped, because its channel is gone: the broker delivers it again."""

    queue: str
    started: bool


class Held(Fact, frozen=True):
    """A delivery failed and no plugin took care of it: it is held, and tried again in ``pause`` seconds (None: not)."""

    subscription: str
    type: str
    id: str
    error: str
    pause: float | None


class Released(Fact, frozen=True):
    """A delivery that was held is settled at last, or given back."""

    subscription: str
    id: str


class Paused(Fact, frozen=True):
    """A subscription takes nothing new; ``reason`` says who or what paused it."""

    subscription: str
    reason: str


class Resumed(Fact, frozen=True):
    """A subscription takes new deliveries again."""

    subscription: str


class Tripped(Fact, frozen=True):
    """A kill switch stops a subscription: ``failed`` of the last ``of`` events failed, the latest with ``error``.

    ``error`` names the exception's class.
    """

    subscription: str
    failed: int
    of: int
    error: str


class Forwarded(Fact, frozen=True):
    """A delivery went on as a copy; ``after`` is how long the copy waits first, in seconds."""

    subscription: str
    type: str
    id: str
    to: str
    after: float


class Retried(Fact, frozen=True):
    """A handling failed and is tried again: ``attempt`` is the one that failed, ``after`` the wait in seconds.

    ``inline`` says that the wait is in this process, not at the broker. ``error`` names the exception's class.
    """

    subscription: str
    type: str
    id: str
    attempt: int
    after: float
    error: str
    inline: bool


class Postponed(Fact, frozen=True):
    """A handling failed and is to be handled later, which is no attempt: ``after`` is the wait in seconds.

    ``attempt``, ``inline`` and ``error`` are as in `Retried`.
    """

    subscription: str
    type: str
    id: str
    attempt: int
    after: float
    error: str
    inline: bool


class Discarded(Fact, frozen=True):
    """A handling failed, and the event is taken as done, since a policy says so. ``error`` names the exception's class."""

    subscription: str
    type: str
    id: str
    attempt: int
    error: str


class DeadLettered(Fact, frozen=True):
    """A delivery was given up on and goes to its dead letter queue, after ``attempts`` attempts.

    ``reason`` names the exception's class.
    """

    subscription: str
    type: str
    id: str
    attempts: int
    reason: str


class Duplicate(Fact, frozen=True):
    """A delivery was acknowledged without its handler, which had handled this event before."""

    subscription: str
    type: str
    id: str


class Backlog(Fact, frozen=True):
    """What an outbox has: ``pending`` messages to be sent, the oldest ``lag`` seconds old, and ``dead`` ones.

    What is dead is sent no more until somebody retries or drops it. ``pending`` is counted up to 10,000.
    """

    outbox: str
    pending: int
    lag: float
    dead: int


class Relayed(Fact, frozen=True):
    """An outbox has sent an event that is traced, ``waited`` seconds after it was written there.

    ``traceparent`` is what it carries of its trace (W3C Trace Context, sampled); ``entity`` is "order/42".
    """

    outbox: str
    type: str
    id: str
    entity: str | None
    waited: float
    traceparent: str


class Projected(Fact, frozen=True):
    """How far a projection is: how many of its store's positions are ``behind`` it still, and whether it has ``stopped``.

    One that has stopped stands before an event that it could not apply, until somebody mends it or skips the event.
    """

    projection: str
    behind: int
    stopped: bool


class Report(Protocol):
    """Takes a fact to everybody who observes. Raises nothing."""

    def __call__(self, fact: Fact, /) -> None:
        """Report ``fact``."""
        ...
