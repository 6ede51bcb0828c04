"""The five services, and how each becomes a bus: its router, its state, its plugins."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen
from tenacity import stop_after_attempt, wait_chain, wait_fixed

from rabbitevents import Bus, ConfigurationError, Delivery, Plugin, Router
from rabbitevents.demo import memory
from rabbitevents.demo.ledger import Ledger
from rabbitevents.demo.provider import UnreliableProvider
from rabbitevents.demo.recorder import Recorder
from rabbitevents.demo.sabotage import SabotagedLedger
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.shop import analytics, inventory, notification, order, payment
from rabbitevents.demo.shop.payment import PaymentProvider
from rabbitevents.testing import EmbeddedBroker
from rabbitevents.topics import matches
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, Store
from rabbitevents_retry import Retry

if TYPE_CHECKING:
    from rabbitevents.demo.traces import Traces

EXCHANGE: Final = "shop"
"""An exchange of our own: on a broker that others use, the demonstration is none of their business."""

WAIT: Final = wait_chain(wait_fixed(0.1), wait_fixed(1.0))
"""The first retry comes at once, in the process; the further ones by way of the broker, which takes a second each."""

ATTEMPTS: Final = 6
"""How often an event is handled until it is given up on: a payment provider that is away half of the time loses one in 64."""


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


@cache
def owner(queue: str) -> str:
    """Return the service whose queue it is."""
    return next(
        name
        for name, service in SERVICES.items()
        if queue in {subscription.queue for subscription in service.router.subscriptions()}
    )


@frozen
class Site:
    """Where the services of a run are: on which broker, with everybody's files in ``folder``.

    ``store`` remembers what was handled, ``traces`` is where spans go, if anywhere.
    """

    settings: Settings
    folder: Path
    embedded: EmbeddedBroker
    store: Store
    traces: Traces | None

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
        bus.provide(PaymentProvider, factory=self._provider)
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
        return [
            DeadLetter(),
            Retry(stop=stop_after_attempt(ATTEMPTS), wait=WAIT),
            *([self.traces.plugin(name)] if self.traces is not None else []),
            Idempotency(self.store, lease=memory.LEASE, keep=memory.KEEP),
            Recorder(name, ledger),
        ]

    def _provider(self, delivery: Delivery) -> PaymentProvider:
        return UnreliableProvider(self.settings.fail, self.settings.seed, delivery.attempt)


@asynccontextmanager
async def opened(
    settings: Settings, folder: Path, embedded: EmbeddedBroker, *, name: str, say: Callable[[str], object]
) -> AsyncGenerator[Site]:
    """Yield the site, with what a process called ``name`` has open for it. Raises `ConfigurationError`."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(memory.opened(settings.redis))
        traces = _traces(settings, folder, name, say)
        if traces is not None:
            stack.push_async_callback(traces.close)
        yield Site(settings, folder, embedded, store, traces)


def _traces(settings: Settings, folder: Path, name: str, say: Callable[[str], object]) -> Traces | None:
    if not settings.trace and settings.otlp is None:
        return None
    try:
        from rabbitevents.demo.traces import Traces
    except ModuleNotFoundError as error:
        raise ConfigurationError("--trace and --otlp need OpenTelemetry: pip install 'rabbitevents[otel]'") from error
    return Traces(settings, folder, name, say)
