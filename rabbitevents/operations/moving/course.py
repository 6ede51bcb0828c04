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
from rabbitevents.brokers.rabbitmq.moving import FIRST, NOTICE, REST
from rabbitevents.errors import ConfigurationError
from rabbitevents.operations.moving.there import There
from rabbitevents.operations.standing import Standing
from rabbitevents.topology import Arguments, Binding, Queue

GAP: Final = 2.0
"""Seconds between a deletion and a declaration of one name: at once, RabbitMQ 3.10 keeps a consumer that is none."""


class DeclareQueue(msgspec.Struct, frozen=True):
    """Declare a queue, ``pause`` seconds from now."""

    name: str
    arguments: Arguments
    pause: float = 0.0


class DeclareExchange(msgspec.Struct, frozen=True):
    """Declare an exchange; ``anew``, in the place of one that is deleted first."""

    name: str
    alternate: str | None = None
    kind: str = "fanout"
    arguments: Arguments = {}
    anew: bool = False


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


def next_step(wanted: Queue, standing: Standing) -> Step | None:
    """Return what is to be done next to have ``wanted`` stand, without losing a message; None where all is done.

    Raises `ConfigurationError` where there is no way on.
    """
    here = There(wanted, standing)
    if here.is_half_done:
        return _back(here)
    if here.stands_in or here.differs:
        return away(here)
    if not here.is_there:
        raise ConfigurationError(f"there is no queue {here.q!r}: rabbitevents topology apply declares it")
    return last(here)


def away(here: There) -> Step | None:
    """Return a step of the first half: the queue that stands in takes over, and the old one is emptied and deleted."""
    if here.is_there and not here.led_through and not here.straight:
        raise ConfigurationError(f"nothing leads to queue {here.q!r}: rabbitevents topology apply binds it")
    if (step := _prepared(here)) is not None:
        return step
    to = "the new queue" if here.becomes else "the queue that stands in"
    if not here.is_there:
        return Step(DeclareExchange(f"{here.q}{FIRST}"), f"its consumers go to {to}")
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
    return Step(Unbind(here.switch), f"switched: what comes now waits in {to}")


def _prepared(here: There) -> Step | None:
    rest = f"{here.q}{REST}"
    notice = Link(NOTICE, here.moving)
    if not here.has(NOTICE):
        return Step(DeclareExchange(NOTICE), "whoever starts now looks first")
    if not here.stands_in:
        what = "what says that it is given another name" if here.becomes else "the queue that stands in"
        return Step(DeclareQueue(here.moving, here.wanted.arguments), what)
    if notice not in here.links(here.moving, to_queue=True):
        return Step(Bind(notice), "so that it stays")
    if not here.is_there:
        return None  # all of it was there when the old queue was deleted
    if (step := _placed(here)) is not None:
        return step
    to = "the new queue" if here.becomes else "the queue that stands in"
    if not here.has(rest):
        return Step(DeclareExchange(rest), f"what leads to {to}")
    if Link(rest, here.target) not in here.links(here.target, to_queue=True):
        return Step(Bind(Link(rest, here.target)), f"what leads to {to}")
    if not here.has(here.moving):
        return Step(DeclareExchange(here.moving, rest), "what leads to either queue")
    return None


def _placed(here: There) -> Step | None:
    """Have the queue of the other name stand, and the place of its dead letters, which is bound."""
    for item in here.place.items:
        if isinstance(item, Queue) and item.name not in here.standing.queues:
            return Step(DeclareQueue(item.name, item.arguments), f"declared: {item.name}")
        if isinstance(item, Binding) and item.queue != here.becomes:
            link = Link(item.exchange, item.queue, item.routing_key)
            if link not in here.links(item.queue, to_queue=True):
                return Step(Bind(link), f"bound: {item.queue}")
    return None


def _back(here: There) -> Step | None:
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


def last(here: There) -> Step | None:
    """Take away what says that queues are being made anew, where none is."""
    others = [each for each in here.standing.bindings if each.exchange == NOTICE]
    if here.has(NOTICE) and not others:
        return Step(DeleteExchange(NOTICE), "no queue is being made anew")
    return None
