"""What a service says at its start of bindings that older code has left: events come by them that no handler is for."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Final

import msgspec

from rabbitevents import BrokerError, Bus, ConfigurationError
from rabbitevents.brokers.rabbitmq.broker import RabbitMQ
from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.cli.seeing import HTTP_URL
from rabbitevents.operations.differences import stale_bindings
from rabbitevents.operations.doctor import bare
from rabbitevents.operations.standing import BINDING_COLUMNS, Standing, bindings_of

log: logging.Logger = logging.getLogger("rabbitevents.cli")

WITHIN: Final = 5.0
"""Seconds for the one question."""


async def say_leftovers(bus: Bus, reference: str) -> None:
    """Ask RabbitMQ's management API once what the bus's queues are bound to, and warn of what no handler is for.

    Where that API says nothing, nothing is said: the first such event says it, too. Does not raise.
    """
    try:
        async with asyncio.timeout(WITHIN):
            for each in await _leftovers(bus, reference):
                log.warning("%s", each)
    except (BrokerError, TimeoutError) as error:
        log.debug("what the queues are bound to is not seen: %s", error)
    except ConfigurationError as error:
        log.warning("what the queues are bound to is not seen: %s", error)


async def _leftovers(bus: Bus, reference: str) -> list[str]:
    broker = bus.broker
    if not isinstance(broker, RabbitMQ) or not bus.subscriptions:
        return []
    http = Management(broker.addresses[0], os.environ.get(HTTP_URL), context=broker.context)
    bindings = bindings_of(await http.list(f"bindings/{{vhost}}?columns={BINDING_COLUMNS}"))
    scene = msgspec.structs.replace(bare(bus), standing=Standing(bindings=bindings))
    keys: dict[str, list[str]] = {}
    for each in stale_bindings(scene):
        keys.setdefault(each.target, []).append(each.routing_key)
    return list(_said(keys, reference))


def _said(keys: dict[str, list[str]], reference: str) -> Iterator[str]:
    for queue, found in keys.items():
        yield (
            f"queue {queue} is bound by {', '.join(map(repr, dict.fromkeys(found)))}, and no handler is called for that; once no "
            f"older version of the service runs: rabbitevents topology apply {reference} --prune"
        )
