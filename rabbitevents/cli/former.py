"""What keeps code of before a rename from making the queue of the old name anew: every event would be in both queues then."""

from __future__ import annotations

import asyncio
import os
from typing import Final
from urllib.parse import quote

from rabbitevents import BrokerError, Bus, ConfigurationError
from rabbitevents.brokers.rabbitmq.broker import RabbitMQ
from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.cli.seeing import HTTP_URL
from rabbitevents.operations.standing import BINDING_COLUMNS, bindings_of
from rabbitevents.topology import DELAY_DUE

WITHIN: Final = 2.0
"""Seconds that a start waits for it: a service that cannot see starts all the same."""

_NOT_THERE: Final = 404


async def refuse_former_names(bus: Bus) -> None:
    """Ask RabbitMQ's management API whether a queue of this bus has another name by now.

    Raises `ConfigurationError` where it has, and nobody has made it anew yet. Where that API says nothing, nothing is refused.
    """
    broker = bus.broker
    if not isinstance(broker, RabbitMQ) or not bus.subscriptions or bus.configuration.declare != "active":
        return
    try:
        http = Management(broker.addresses[0], os.environ.get(HTTP_URL), context=broker.context)
        async with asyncio.timeout(WITHIN):
            renamed = await _renamed(bus, http)
    except (BrokerError, ConfigurationError, TimeoutError):
        return  # what is wrong there is said once the service runs (`say_leftovers`)
    if renamed:
        name, becomes = renamed[0]
        raise ConfigurationError(
            f"queue {name!r} was given another name, {becomes!r} (rabbitevents topology migrate), and is gone. This code is from "
            "before that, and would make it anew: every event would be in both. Start code that says "
            f"was={name!r}; or, to go back, say the old name, and was={becomes!r}"
        )


async def _renamed(bus: Bus, http: Management) -> list[tuple[str, str]]:
    """Return the queues that are gone, each with its name of now: what has waited for it under the old one goes there."""
    bindings = bindings_of(await http.list(f"bindings/{{vhost}}?columns={BINDING_COLUMNS}"))
    goes_to = {each.routing_key: each.target for each in bindings if each.exchange == DELAY_DUE and each.to_queue}
    goes_to |= {each.target: each.target for each in bindings if each.exchange == DELAY_DUE}
    mine = [(each.name, goes_to.get(each.name, each.name), each.was) for each in bus.subscriptions]
    return [
        (name, becomes) for name, becomes, was in mine if becomes not in (name, was) and not await _stands(http, name)
    ]


async def _stands(http: Management, queue: str) -> bool:
    try:
        await http.get(f"queues/{{vhost}}/{quote(queue, safe='')}?columns=name")
    except BrokerError as error:
        if error.code != _NOT_THERE:
            raise
        return False
    return True
