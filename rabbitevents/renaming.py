"""The names of queues; and queues that are given another: under which of the two each is consumed, as long as both kinds of code run.

A handler's queue that was called otherwise (``was=``) keeps the name that it has at the broker until an operator leads it
over. So code of before and after a rename share one queue, and going back is as harmless as going on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

import msgspec

from rabbitevents.errors import ConfigurationError
from rabbitevents.partitions import guard_of
from rabbitevents.routing import Subscription
from rabbitevents.topology import DELAY_LOST, MOVING

Looking = Callable[[str], Awaitable[object | None]]
"""Looks at a queue; None is one that is not there."""


async def old_names(subscriptions: Iterable[Subscription], look: Looking) -> frozenset[str]:
    """Return the former names that queues have still. Raises what ``look`` does.

    A queue has its former name as long as one of that name stands and none of the new one; also while it is led over.
    """
    found: set[str] = set()
    for each in subscriptions:
        if not each.was or await look(each.was) is None:
            continue
        if await look(each.name) is None or await look(f"{each.was}{MOVING}") is not None:
            found.add(each.was)
    return frozenset(found)


def as_it_stands(subscription: Subscription, old: frozenset[str]) -> Subscription:
    """Return a subscription with the name that its queue has, where ``old`` are the former names that queues have still."""
    return msgspec.structs.replace(subscription, queue=subscription.was) if subscription.was in old else subscription


def renames(subscriptions: Iterable[Subscription]) -> Mapping[str, str]:
    """Return the names that queues are to have, by those that they had."""
    return {each.was: each.name for each in subscriptions if each.was}


def check_names(subscriptions: Collection[Subscription], exchange: str) -> None:
    """Raise `ConfigurationError` for a handler's queue that would be one of the library's own, or another handler's."""
    known = {name for each in subscriptions for name in (each.name, each.whole)}
    for each in subscriptions:
        family, _, last = each.name.rpartition(".")
        if each.name == DELAY_LOST or (family in ("delay", f"{exchange}.delay") and last.isdecimal()):
            raise ConfigurationError(
                f"queue {each.name!r} is one that events wait in: give the router or the handler another name"
            )
        if not each.whole and guard_of(each.name) is not None:
            raise ConfigurationError(
                f"queue {each.name!r} has a name as partitions have: give the router or the handler another one"
            )
        for end, what in ((".dead", "place of dead letters"), (MOVING, "stand-in")):
            other = each.name.removesuffix(end)
            if other != each.name and other in known:
                raise ConfigurationError(
                    f"queue {each.name!r} is the {what} of {other!r}: give its handler another name"
                )
    _check_renames(subscriptions)


def _check_renames(subscriptions: Collection[Subscription]) -> None:
    known = {name for each in subscriptions for name in (each.name, f"{each.name}.dead")}
    for each in subscriptions:
        if each.was and each.was in known:
            raise ConfigurationError(
                f"subscription {each.name!r}: was={each.was!r} is another handler's queue of this bus; a queue that is renamed "
                "has one handler after that"
            )
        known.add(each.was)
