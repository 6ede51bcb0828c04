"""The seam: what the rest of the house asks of a broker, and no more.

Two fulfil it: `rabbitevents.brokers.embedded` and `rabbitevents.brokers.rabbitmq`. Whoever writes a third
one runs `rabbitevents.testing.conformance` against it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from rabbitevents.errors import TopologyError
from rabbitevents.facts import Report
from rabbitevents.message import Delivery, Message
from rabbitevents.states import Check, Depth
from rabbitevents.topology import Topology
from rabbitevents.wire import Limits

Deliver = Callable[[list[Delivery]], None]
"""Takes what arrived together for one queue, in order. It must not wait."""

Trusted = Callable[[Delivery], bool]
"""Says whether the window may open to its full width at this delivery."""


class Verdict(Enum):
    """How a delivery is settled at the broker."""

    ACK = "ack"
    REQUEUE = "requeue"
    REJECT = "reject"


class Settings(msgspec.Struct, frozen=True):
    """What a bus tells its broker. Times in seconds."""

    name: str = "rabbitevents"
    start_timeout: float = 30.0
    in_flight: int = 1000
    """How many publishes may wait for their confirm; further ones wait before they are sent."""
    limits: Limits = Limits()
    renames: Mapping[str, str] = {}
    """Queues that are to go by another name, each with that: their consumers go where their events go."""


class Consumer(Protocol):
    """A consumer of one queue, across reconnections, until it is closed.

    `cancel` and `resume` say what is wanted, at once and for good; the broker makes it so, also for a caller that is
    cut off. Both may be called any number of times.
    """

    @property
    def running(self) -> bool:
        """Whether the broker has our consumer at this moment."""
        ...

    def settle(self, delivery: Delivery, verdict: Verdict) -> bool:
        """Settle a delivery, soon and without waiting; False when it is stale, and nothing was done."""
        ...

    def clear(self, delivery: Delivery) -> None:
        """Let one more come while ``delivery`` stays unsettled: it was not ``trusted``, and has crashed nothing."""
        ...

    async def cancel(self) -> None:
        """Have nothing more delivered, and wait until the broker has taken the consumer away, a bounded time.

        What is delivered can still be settled. With ``trusted``, what was on its way is delivered once the consumer is
        gone. Does not raise.
        """
        ...

    async def resume(self) -> None:
        """Have deliveries again after `cancel`; what was delivered before can still be settled. Does not raise.

        The window is as wide as at first, whatever is unsettled.
        """
        ...

    def give_back(self) -> int:
        """Give back the first of what is unsettled, in its order, and return how many; to be called after `cancel`.

        The caller waits until they are back before it asks for the next ones; 0: nothing is left.
        """
        ...

    async def close(self) -> None:
        """Write out what was settled, then give everything else back. Does not raise."""
        ...


class Broker(Protocol):
    """A bus's connection to whatever moves its events. Every call ends within its deadline."""

    @property
    def address(self) -> str:
        """Where the broker is, or is looked for; without a password."""
        ...

    async def start(self, settings: Settings, report: Report | None) -> None:
        """Connect. Raises `BrokerUnavailableError` after ``settings.start_timeout``, and says where it looked."""
        ...

    async def declare(self, topology: Topology, *, passive: bool = False) -> Mapping[str, TopologyError]:
        """Make sure that everything exists (``passive``: only look), also after a reconnection.

        Returns what could not be declared, by name: it is otherwise there, may not be made, or is used as it ``stands``.
        """
        ...

    def publish(self, message: Message, deadline: float) -> Awaitable[bool]:
        """Publish, and return once it is safe: True in at least one queue, False where no queue is bound.

        ``deadline`` is on the event loop's clock. Raises `NotSentError`, `RefusedError`, `OutcomeUnknownError`, and
        `EncodeError` for what cannot be sent at all. A cancelled caller harms nobody else.
        """
        ...

    async def publish_many(self, messages: Sequence[Message], deadline: float) -> list[bool | Exception]:
        """Publish several, in flight together; return for each what `publish` returns or raises."""
        ...

    async def consume(self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None) -> Consumer:
        """Begin to consume: one delivery at first, up to ``prefetch`` unsettled ones once ``trusted`` says so.

        The one that ``trusted`` said so of may come on top, until it is settled. Without ``trusted`` the window is open
        from the start.
        """
        ...

    async def depth(self, queue: str) -> Depth | None:
        """Look at a queue without touching it; None if there is none of that name. Raises `BrokerError`."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` in ``delay`` seconds, by the clock that waits at this broker go by.

        There is no taking back: it looks whether it is still wanted.
        """
        ...

    def health(self) -> Iterable[Check]:
        """Say how every piece is that should be running."""
        ...

    async def stop(self, deadline: float) -> None:
        """Close everything by ``deadline`` (event loop's clock), politely or not. Does not raise."""
        ...
