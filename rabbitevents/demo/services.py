"""The five services, and how each becomes a bus: its router, its state, its plugins."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from rabbitevents import Bus, Plugin, Router
from rabbitevents.demo.ledger import Ledger
from rabbitevents.demo.recorder import Recorder
from rabbitevents.demo.sabotage import SabotagedLedger
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.shop import analytics, inventory, notification, order, payment
from rabbitevents.routing import matches
from rabbitevents.testing import EmbeddedBroker

EXCHANGE: Final = "shop"
"""An exchange of our own: on a broker that others use, the demonstration is none of their business."""


@frozen
class Service:
    """A service of the shop: its handlers, and the class of the state that they ask for, which lives in a folder."""

    router: Router
    state: type[Any]


SERVICES: Final[Mapping[str, Service]] = {
    "order": Service(order.router, order.OrderBook),
    "inventory": Service(inventory.router, inventory.Stock),
    "payment": Service(payment.router, payment.Payments),
    "notification": Service(notification.router, notification.Mail),
    "analytics": Service(analytics.router, analytics.Figures),
}


@cache
def listeners(type: str) -> tuple[str, ...]:
    """Return the queues that every event of ``type`` has to reach."""
    return tuple(
        subscription.queue
        for service in SERVICES.values()
        for subscription in service.router.subscriptions()
        if any(matches(key, type) for key in subscription.routing_keys)
    )


@frozen
class Site:
    """Where the services of a run are: on which broker, and with everybody's files in ``folder``."""

    settings: Settings
    folder: Path
    embedded: EmbeddedBroker

    def ledger(self, name: str) -> Ledger:
        """Open a ledger, which is kept well, or as badly as the settings say."""
        path = self.folder / f"{name}.ledger"
        sabotage = self.settings.sabotage
        return Ledger(path) if sabotage is None else SabotagedLedger(path, sabotage)

    def bus(self, name: str, ledger: Ledger) -> Bus:
        """Return a service's bus, not started."""
        service = SERVICES[name]
        bus = self._bus(name, ledger, service.router)
        bus.provide(service.state, service.state(self.folder / name))
        return bus

    def front(self, ledger: Ledger) -> Bus:
        """Return the bus that orders are placed with: it is the order service's too, and has no handlers."""
        return self._bus("order", ledger)

    def _bus(self, name: str, ledger: Ledger, *routers: Router) -> Bus:
        broker = self.settings.broker
        return Bus(
            self.embedded.client() if broker is None else broker,
            *routers,
            name=SERVICES[name].router.name,
            plugins=self._plugins(name, ledger),
            exchange=EXCHANGE,
            unroutable="ignore" if routers else "raise",  # orders must be heard; the analytics need nobody to listen
            start_timeout=self.settings.start_timeout,
            grace=5.0,
        )

    def _plugins(self, name: str, ledger: Ledger) -> list[Plugin]:
        """Return a service's plugins, the outermost first."""
        return [Recorder(name, ledger)]
