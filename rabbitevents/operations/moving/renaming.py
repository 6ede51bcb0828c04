"""The course of giving a queue another name: the next act, as it follows from what stands at the broker. A pure function.

The first half of making a queue anew (`course`), with the queue of the new name in the place of the one that stands in: the
same switch, and the consumers empty the old queue, which is deleted. What led to it leads to the new one, also what has
waited for it under its old name; there is no second half.
"""

from __future__ import annotations

import msgspec

from rabbitevents.brokers.rabbitmq.altering import Link
from rabbitevents.brokers.rabbitmq.moving import FIRST, REST
from rabbitevents.errors import ConfigurationError
from rabbitevents.operations.differences import of_queue, said
from rabbitevents.operations.moving.course import Bind, DeleteExchange, Empty, Step, Unbind, away, last
from rabbitevents.operations.moving.there import There
from rabbitevents.operations.standing import Standing
from rabbitevents.topology import Binding, Queue, Topology


class Renaming(msgspec.Struct, frozen=True):
    """A queue's former name, the one that it is to have, and all that the code wants for that (`Topology.part`)."""

    was: str
    name: str
    place: Topology

    @property
    def wanted(self) -> Queue:
        """The queue that is wanted."""
        queue = self.place.queue(self.name)
        return Queue(self.name) if queue is None else queue


def next_renaming_step(renaming: Renaming, standing: Standing) -> Step | None:
    """Return what is to be done next to have a queue under its new name, without losing a message; None where all is done.

    Raises `ConfigurationError` where there is no way on.
    """
    was, name, wanted = renaming.was, renaming.name, renaming.wanted
    here = There(Queue(was, wanted.arguments), standing, renaming.place, name)
    there = standing.queues.get(name)
    if there is not None and (differs := said(of_queue(wanted, there))):
        raise ConfigurationError(f"queue {name!r} stands, and is not as the bus wants it: {differs}")
    if here.is_half_done:
        return _led_straight(here)
    if here.is_there and there is not None and not here.stands_in:
        raise ConfigurationError(
            f"{was!r} and {name!r} both stand, and what came was in both: some code ran with the new name that does not say "
            f"was={was!r}. Once nobody consumes {was!r}, rabbitevents topology remove takes it away, and topology move what "
            "is in it, if it is wanted"
        )
    if here.is_there or here.stands_in:
        return away(here)
    if there is None:
        raise ConfigurationError(
            f"there is no queue {name!r}, and none {was!r}: rabbitevents topology apply declares it"
        )
    return last(here)


def _led_straight(here: There) -> Step | None:
    """Return a step of the rest: the old queue is gone, and what led to it leads to the new one without a way round."""
    standing = here.links(here.becomes, to_queue=True)
    for each in here.led_through:
        straight = Link(each.source, here.becomes, each.key)
        if straight not in standing:
            return Step(Bind(straight), "led straight, too")
        return Step(Unbind(each), "led straight only")
    wanted = [item for item in here.place.items if isinstance(item, Binding) and item.queue == here.becomes]
    for link in (Link(item.exchange, item.queue, item.routing_key) for item in wanted):
        if link not in standing:
            return Step(Bind(link), "bound, as the code wants it")
    for name in (here.moving, f"{here.q}{REST}"):
        if here.has(name):
            return Step(DeleteExchange(name, if_unused=False), "no way round any more")
    if here.stands_in:
        return Step(Empty(here.moving), "what said that it is given another name is away")
    return Step(DeleteExchange(f"{here.q}{FIRST}"), "its consumers are at the new queue")
