"""What only a shop with a store listens to: nothing more is led there once it is closed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from rabbitevents import BrokerError, Bus, Router
from rabbitevents.brokers.rabbitmq.altering import Altering, Link
from rabbitevents.operations.planning import at_work


async def unbind(bus: Bus, routers: Iterable[Router]) -> None:
    """Unbind the queues of ``routers`` on the broker of ``bus``; the next shop that has them binds them anew.

    A shop without a store takes nothing out of them, and they would grow with each of its runs. Timeouts that are still to
    come find their queue nevertheless: they come out of another exchange. A broker that is away is left as it is.
    """
    with suppress(BrokerError):
        async with at_work(bus, None) as site:
            altering = Altering(site.connection)
            for subscription in (each for router in routers for each in router.subscriptions()):
                for key in subscription.routing_keys:
                    await altering.unbind(Link(bus.exchange, subscription.queue, key))
