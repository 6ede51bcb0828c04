"""What stands at a broker, seen from a queue that is emptied: to be made anew, or to have another name."""

from __future__ import annotations

import msgspec

from rabbitevents.brokers.rabbitmq.altering import Link
from rabbitevents.brokers.rabbitmq.moving import FIRST
from rabbitevents.operations.differences import of_queue, said
from rabbitevents.operations.standing import Standing
from rabbitevents.topology import MOVING, Queue, Topology


class There(msgspec.Struct, frozen=True):
    """What stands, seen from the queue that is emptied: made anew, or under another name."""

    wanted: Queue
    standing: Standing
    place: Topology = Topology()
    """What the queue of the other name needs that is to stand before anything comes to it."""
    becomes: str = ""
    """The other name."""

    @property
    def q(self) -> str:
        """The queue that is emptied."""
        return self.wanted.name

    @property
    def moving(self) -> str:
        """The exchange that leads to either queue, and the queue that stands in or says that this is under way."""
        return f"{self.q}{MOVING}"

    @property
    def target(self) -> str:
        """The queue that takes over."""
        return self.becomes or self.moving

    @property
    def is_there(self) -> bool:
        """Whether the queue that is emptied stands."""
        return self.q in self.standing.queues

    @property
    def stands_in(self) -> bool:
        """Whether what stands in, or says that this is under way, stands."""
        return self.moving in self.standing.queues

    @property
    def is_half_done(self) -> bool:
        """Whether the old queue is gone, and the consumers are at the one that stands in."""
        return f"{self.q}{FIRST}" in self.standing.exchanges

    def has(self, exchange: str) -> bool:
        """Say whether an exchange stands."""
        return exchange in self.standing.exchanges

    def links(self, target: str, *, to_queue: bool) -> list[Link]:
        """Return what leads to a queue, or to an exchange."""
        return sorted(
            Link(each.exchange, each.target, each.routing_key, to_queue)
            for each in self.standing.bindings
            if each.target == target and each.to_queue is to_queue
        )

    @property
    def switch(self) -> Link:
        """What leads to the queue itself from the exchange that leads to either."""
        return Link(self.moving, self.q)

    @property
    def is_switched(self) -> bool:
        """Whether all goes to the queue that stands in."""
        return self.switch not in self.links(self.q, to_queue=True)

    @property
    def straight(self) -> list[Link]:
        """What leads to the queue, past that exchange."""
        return [each for each in self.links(self.q, to_queue=True) if each.source != self.moving]

    @property
    def led_through(self) -> list[Link]:
        """What leads to that exchange."""
        return self.links(self.moving, to_queue=False)

    @property
    def differs(self) -> str:
        """In what the queue that stands differs from the one that is wanted."""
        there = self.standing.queues.get(self.q)
        return "" if there is None else said(of_queue(self.wanted, there))
