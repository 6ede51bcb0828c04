"""Finding out which rights a user has, before anything is made: questions that RabbitMQ answers and that change nothing.

It looks at rights first, and at what was asked for afterwards (measured on 3.10.8):

* a declaration with an argument that cannot be is refused with 403 where ``configure`` is missing, and with 406
  otherwise, whether the thing is there or not;
* an unbinding of what was never bound is refused with 403 where ``write`` on the one side or ``read`` on the other is
  missing, and agreed to otherwise, whether the two are there or not. Its routing key is the true one, since rights on
  topics look at that, and its argument makes it a binding that nobody has.

No deletion is among them: a queue that another process has just made would be gone.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any
from uuid import uuid4

from pamqp.common import FieldValue

from rabbitevents.brokers.rabbitmq.calls import together
from rabbitevents.brokers.rabbitmq.control import ControlChannel
from rabbitevents.brokers.rabbitmq.rights import Lack, target
from rabbitevents.errors import BrokerError
from rabbitevents.topology import HASH, Binding, Exchange, Queue

Ask = Callable[[Callable[[ControlChannel], Awaitable[Any]], str], Awaitable[BrokerError | None]]
"""Asks the broker, and returns what it refuses."""

_RESOURCE = re.compile(r"access to (?:exchange|queue) '(?P<name>[^']*)'")


async def lacks_for(items: Iterable[Exchange | Queue | Binding], absent: set[str], ask: Ask) -> frozenset[Lack]:
    """Return the rights that are missing to make what is ``absent``, with its bindings. Raises `BrokerError`."""
    found = await together(_lacks_for(item, absent, ask) for item in items)
    return frozenset[Lack]().union(*found)


async def _lacks_for(item: Exchange | Queue | Binding, absent: set[str], ask: Ask) -> set[Lack]:
    if isinstance(item, Binding):
        return (
            await _unbound(ask, item.queue, item.exchange, item.routing_key, to_exchange=item.to_exchange)
            if {item.queue, item.exchange} & absent
            else set()
        )
    theirs = isinstance(item, Exchange) and item.kind is None  # which is not made here
    if theirs or item.name not in absent or not item.name or item.name.startswith("amq."):
        return set()
    error = await ask(partial(_impossible, item=item), f"asking for the rights on {item.name!r}")
    lacks = {Lack("configure", item.name)} if error is not None and error.code == 403 else set[Lack]()
    if (leads_to := target(item)) is not None:
        lacks |= await _unbound(ask, leads_to, item.name, "", to_exchange=True)
    return lacks


def _impossible(channel: ControlChannel, item: Exchange | Queue) -> Awaitable[Any]:
    """Declare what cannot be."""
    if isinstance(item, Queue):
        return channel.queue_declare(item.name, durable=True, arguments={"x-expires": -1})
    kind = "topic" if item.kind in (None, HASH) else item.kind  # to ask for a type that is not there ends a connection
    return channel.exchange_declare(item.name, exchange_type=kind, durable=True, arguments={"alternate-exchange": -1})


async def _unbound(ask: Ask, written: str, read: str, key: str, *, to_exchange: bool) -> set[Lack]:
    """Return what is missing to bind ``written``, a queue or an exchange, to the exchange ``read``, or to hand on to it."""
    never: dict[str, FieldValue] = {"rabbitevents-looks": uuid4().hex}

    def unbind(channel: ControlChannel) -> Awaitable[Any]:
        if to_exchange:
            return channel.exchange_unbind(destination=written, source=read, routing_key=key, arguments=never)
        return channel.queue_unbind(written, read, routing_key=key, arguments=never)

    error = await ask(unbind, f"asking for the rights on {written!r} and {read!r}")
    if error is None or error.code != 403:
        return set()
    return {refused_for(error, written, read, key)}


def refused_for(error: BrokerError, written: str, read: str, key: str) -> Lack:
    """Return the right for which a binding was refused. RabbitMQ names the first that is missing, write before read."""
    resource = _RESOURCE.search(str(error))
    if resource is None:  # it is the topic that may not be read
        return Lack("read", read, key)
    return Lack("write", written) if resource["name"] == written else Lack("read", read)
