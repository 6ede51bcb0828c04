"""The course of making a queue anew: the next act, as it follows from what stands at the broker. A pure function.

Routes move, and messages do not. All that leads to ``q`` is led through a fanout exchange first (the exchange
``q.moving``); a message that reaches a queue by two paths is delivered once, so half-way is harmless. Unbinding ``q`` from
it is an atomic switch: its alternate exchange leads to the queue that stands in (``q.moving``) from one message to the
next. The consumers empty ``q``, which is deleted and declared anew; the same switch leads back; the consumers empty the
queue that stood in. Measured on 3.10.8 and 4.3.6, with publishers at work: 0 lost, 0 twice.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.altering import Link
from rabbitevents.brokers.rabbitmq.moving import FIRST, MOVING, NOTICE, REST
from rabbitevents.errors import ConfigurationError
from rabbitevents.operations.differences import of_queue, said
from rabbitevents.operations.standing import Standing
from rabbitevents.topology import Arguments, Queue

GAP: Final = 2.0
"""Seconds between a deletion and a declaration of one name: at once, RabbitMQ 3.10 keeps a consumer that is none."""


class DeclareQueue(msgspec.Struct, frozen=True):
    """Declare a queue, ``pause`` seconds from now."""

    name: str
    arguments: Arguments
    pause: float = 0.0


class DeclareExchange(msgspec.Struct, frozen=True):
    """Declare a fanout exchange."""

    name: str
    alternate: str | None = None


class Bind(msgspec.Struct, frozen=True):
    """Bind."""

    link: Link


class Unbind(msgspec.Struct, frozen=True):
    """Unbind."""

    link: Link


class Empty(msgspec.Struct, frozen=True):
    """Wait until a queue is empty, and delete it."""

    name: str
    kind: str = "quorum"


class DeleteExchange(msgspec.Struct, frozen=True):
    """Delete an exchange."""

    name: str
    if_unused: bool = True


Act = DeclareQueue | DeclareExchange | Bind | Unbind | Empty | DeleteExchange


class Step(msgspec.Struct, frozen=True):
    """An act, and what it is for, in words."""

    act: Act
    what: str


class _There(msgspec.Struct, frozen=True):
    """What stands, seen from the queue that is made anew."""

    wanted: Queue
    standing: Standing

    @property
    def q(self) -> str:
        return self.wanted.name

    @property
    def moving(self) -> str:
        return f"{self.q}{MOVING}"

    @property
    def is_there(self) -> bool:
        return self.q in self.standing.queues

    @property
    def stands_in(self) -> bool:
        return self.moving in self.standing.queues

    @property
    def is_half_done(self) -> bool:
        """Whether the old queue is gone, and the consumers are at the one that stands in."""
        return f"{self.q}{FIRST}" in self.standing.exchanges

    def has(self, exchange: str) -> bool:
        return exchange in self.standing.exchanges

    def links(self, target: str, *, to_queue: bool) -> list[Link]:
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
        there = self.standing.queues.get(self.q)
        return "" if there is None else said(of_queue(self.wanted, there))


def next_step(wanted: Queue, standing: Standing) -> Step | None:
    """Return what is to be done next to have ``wanted`` stand, without losing a message; None where all is done.

    Raises `ConfigurationError` where there is no way on.
    """
    here = _There(wanted, standing)
    if here.is_half_done:
        return _back(here)
    if here.stands_in or here.differs:
        return _away(here)
    if not here.is_there:
        raise ConfigurationError(f"there is no queue {here.q!r}: rabbitevents topology apply declares it")
    return _last(here)


def _away(here: _There) -> Step | None:
    """Return a step of the first half: the queue that stands in takes over, and the old one is emptied and deleted."""
    if here.is_there and not here.led_through and not here.straight:
        raise ConfigurationError(f"nothing leads to queue {here.q!r}: rabbitevents topology apply binds it")
    if (step := _prepared(here)) is not None:
        return step
    if not here.is_there:
        return Step(DeclareExchange(f"{here.q}{FIRST}"), "its consumers go to the queue that stands in")
    if here.led_through and here.is_switched:
        for each in here.straight:
            return Step(Unbind(each), "unbound again: somebody has bound it meanwhile, who does not know of this")
        return Step(Empty(here.q, here.standing.queues[here.q].kind), "the old queue is empty, and deleted")
    if here.is_switched:
        return Step(Bind(here.switch), "led to the old queue, for now")
    for each in here.straight:
        through = Link(each.source, here.moving, each.key, to_queue=False)
        if through not in here.led_through:
            return Step(Bind(through), "led through, too")
        return Step(Unbind(each), "led through only")
    return Step(Unbind(here.switch), "switched: what comes now waits in the queue that stands in")


def _prepared(here: _There) -> Step | None:
    rest = f"{here.q}{REST}"
    notice = Link(NOTICE, here.moving)
    if not here.has(NOTICE):
        return Step(DeclareExchange(NOTICE), "whoever starts now looks first")
    if not here.stands_in:
        return Step(DeclareQueue(here.moving, here.wanted.arguments), "the queue that stands in")
    if notice not in here.links(here.moving, to_queue=True):
        return Step(Bind(notice), "so that it stays")
    if not here.is_there:
        return None  # all of it was there when the old queue was deleted
    if not here.has(rest):
        return Step(DeclareExchange(rest), "what leads to the queue that stands in")
    if Link(rest, here.moving) not in here.links(here.moving, to_queue=True):
        return Step(Bind(Link(rest, here.moving)), "what leads to the queue that stands in")
    if not here.has(here.moving):
        return Step(DeclareExchange(here.moving, rest), "what leads to either queue")
    return None


def _back(here: _There) -> Step | None:
    """Return a step of the second half: the queue stands anew and takes over; what stood in is emptied and deleted."""
    if not here.is_there:
        return Step(DeclareQueue(here.q, here.wanted.arguments, GAP), "declared anew")
    if here.differs:
        raise ConfigurationError(
            f"queue {here.q!r} stands with other arguments, of which somebody declared it meanwhile: {here.differs}. Its "
            f"events are safe in {here.moving!r}. Stop whoever runs other code than this, have that queue deleted, if it "
            "is empty, and run this again"
        )
    if here.led_through and here.is_switched:
        for each in here.straight:
            return Step(Unbind(each), "unbound again: somebody has bound it meanwhile, who does not know of this")
        return Step(Bind(here.switch), "switched back: what comes now waits in the new queue")
    for each in here.led_through:
        straight = Link(each.source, here.q, each.key)
        if straight not in here.straight:
            return Step(Bind(straight), "led straight, too")
        return Step(Unbind(each), "led straight only")
    if here.has(here.moving):
        return Step(DeleteExchange(here.moving, if_unused=False), "nothing more can come to what stood in")
    if here.has(f"{here.q}{REST}"):
        return Step(DeleteExchange(f"{here.q}{REST}", if_unused=False), "nothing more can come to what stood in")
    if here.stands_in:
        return Step(Empty(here.moving), "what stood in is empty, and deleted")
    return Step(DeleteExchange(f"{here.q}{FIRST}"), "its consumers are at the new queue")


def _last(here: _There) -> Step | None:
    """Take away what says that queues are being made anew, where none is."""
    others = [each for each in here.standing.bindings if each.exchange == NOTICE]
    if here.has(NOTICE) and not others:
        return Step(DeleteExchange(NOTICE), "no queue is being made anew")
    return None
