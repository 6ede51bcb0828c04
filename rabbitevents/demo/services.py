"""The five services, and how each becomes a bus: its router, its state, its plugins."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen
from tenacity import stop_after_attempt, wait_chain, wait_fixed

from rabbitevents import Bus, ConfigurationError, Delivery, Plugin, Router
from rabbitevents.demo import memory
from rabbitevents.demo.books import Folder
from rabbitevents.demo.ledger import Ledger, Records
from rabbitevents.demo.orders import Order
from rabbitevents.demo.provider import UnreliableProvider
from rabbitevents.demo.recorder import Recorder
from rabbitevents.demo.sabotage import SabotagedLedger
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.shop import analytics, inventory, notification, order, payment
from rabbitevents.demo.shop.order import place
from rabbitevents.demo.shop.payment import PaymentProvider
from rabbitevents.testing import EmbeddedBroker
from rabbitevents.topics import matches
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency
from rabbitevents_idempotency import Store as Memory
from rabbitevents_retry import Retry

if TYPE_CHECKING:
    from rabbitevents.demo.store import Store
    from rabbitevents.demo.traces import Traces

EXCHANGE: Final = "shop"
"""An exchange of our own: on a broker that others use, the demonstration is none of their business."""

WAIT: Final = wait_chain(wait_fixed(0.1), wait_fixed(1.0))
"""The first retry comes at once, in the process; the further ones by way of the broker, which takes a second each."""

ATTEMPTS: Final = 6
"""How often an event is handled until it is given up on: a payment provider that is away half of the time loses one in 64."""


@frozen
class Service:
    """A service of the shop: its handlers, and the class of the state that they ask for, which is made of a shelf of books."""

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
def listeners(type: str, *besides: Router) -> tuple[str, ...]:
    """Return the queues that every event of ``type`` has to reach: those of the services, and of routers ``besides``."""
    return tuple(
        subscription.queue
        for router in (*(service.router for service in SERVICES.values()), *besides)
        for subscription in router.subscriptions()
        if any(matches(key, type) for key in subscription.routing_keys)
    )


@cache
def owner(queue: str) -> str:
    """Return the service whose queue it is."""
    return next(name for name, service in SERVICES.items() if queue.startswith(f"{service.router.name}."))


@frozen
class Front:
    """What orders are placed with: ``place`` returns once they are in good hands, the broker's or the store's."""

    bus: Bus
    place: Callable[[Sequence[Order]], Awaitable[None]]


@frozen
class Site:
    """Where the services of a run are: on which broker, with everybody's files in ``folder``.

    ``memory`` is what was handled, or ``store`` has that and all else. ``traces`` is where spans go, if anywhere.
    """

    settings: Settings
    folder: Path
    embedded: EmbeddedBroker
    memory: Memory
    store: Store | None
    traces: Traces | None

    def besides(self, *names: str) -> Iterable[Router]:
        """Return what services handle beside what they always do."""
        return [router for name in names for router in (() if self.store is None else self.store.routers(name))]

    def listeners(self, type: str) -> Sequence[str]:
        """Return the queues that every event of ``type`` has to reach."""
        return listeners(type, *self.besides(*SERVICES))

    def ledger(self, name: str) -> Records:
        """Open a ledger, which is kept well, or as badly as the settings say."""
        ledger: Records = Ledger(self.folder / f"{name}.ledger")
        if self.store is not None:
            ledger = self.store.ledger(ledger)
        sabotage = self.settings.sabotage
        return ledger if sabotage is None else SabotagedLedger(ledger, sabotage)

    def bus(self, name: str, ledger: Records) -> Bus:
        """Return a service's bus, not started."""
        service = SERVICES[name]
        plugins = self._plugins(name, ledger)
        bus = self._bus(name, plugins, service.router, *self.besides(name))
        bus.provide(service.state, self._state(service, name, plugins))
        bus.provide(PaymentProvider, factory=self._provider)
        return bus

    def _state(self, service: Service, name: str, plugins: Sequence[Plugin]) -> Any:
        if self.store is None:
            return service.state(Folder(self.folder / name))
        return self.store.orders(plugins) if name == "order" else service.state(self.store.shelf(name))

    def front(self, ledger: Records) -> Front:
        """Return what orders are placed with: it is the order service's too, and has no handlers."""
        plugins = self._plugins("order", ledger)
        bus = self._bus("order", plugins)
        return Front(bus, partial(place, bus) if self.store is None else self.store.placing(plugins))

    async def collect(self) -> None:
        """Put what was committed since the last time into a ledger that the tally reads."""
        if self.store is not None and (lines := await self.store.take()):
            with (self.folder / "store.ledger").open("ab") as file:
                file.writelines(line + b"\n" for line in lines)

    def _bus(self, name: str, plugins: Sequence[Plugin], *routers: Router) -> Bus:
        broker = self.settings.broker
        return Bus(
            self.embedded.client() if broker is None else broker,
            *routers,
            name=SERVICES[name].router.name,
            plugins=plugins,
            exchange=EXCHANGE,
            unroutable="ignore" if routers else "raise",  # orders must be heard; the analytics need nobody to listen
            start_timeout=self.settings.start_timeout,
            grace=5.0,
        )

    def _plugins(self, name: str, ledger: Records) -> list[Plugin]:
        """Return a service's plugins, the outermost first."""
        recorder = Recorder(name, ledger)
        once: list[Plugin] = [Idempotency(self.memory, lease=memory.LEASE, keep=memory.KEEP), recorder]
        return [
            DeadLetter(),
            Retry(stop=stop_after_attempt(ATTEMPTS), wait=WAIT),
            *([self.traces.plugin(name)] if self.traces is not None else []),
            *(once if self.store is None else self.store.plugins(name, recorder)),
        ]

    def _provider(self, delivery: Delivery) -> PaymentProvider:
        return UnreliableProvider(self.settings.fail, self.settings.seed, delivery.attempt)


@asynccontextmanager
async def opened(
    settings: Settings, folder: Path, embedded: EmbeddedBroker, *, name: str, say: Callable[[str], object]
) -> AsyncGenerator[Site]:
    """Yield the site, with what a process called ``name`` has open for it. Raises `ConfigurationError`."""
    async with AsyncExitStack() as stack:
        store = None if settings.store is None else await stack.enter_async_context(_store(settings.store, settings))
        remembered = await stack.enter_async_context(memory.opened(settings.redis))
        traces = _traces(settings, folder, name, say)
        if traces is not None:
            stack.push_async_callback(traces.close)
        yield Site(settings, folder, embedded, remembered, store, traces)


def _store(url: str, settings: Settings) -> AbstractAsyncContextManager[Store]:
    try:
        from rabbitevents.demo.store import CONNECTIONS, Store

        return Store(url, pool=CONNECTIONS if settings.processes else len(SERVICES) * CONNECTIONS).opened()
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"--store needs {error.name}: pip install 'rabbitevents[sql]'") from error


def _traces(settings: Settings, folder: Path, name: str, say: Callable[[str], object]) -> Traces | None:
    if not settings.trace and settings.otlp is None:
        return None
    try:
        from rabbitevents.demo.traces import Traces
    except ModuleNotFoundError as error:
        raise ConfigurationError("--trace and --otlp need OpenTelemetry: pip install 'rabbitevents[otel]'") from error
    return Traces(settings, folder, name, say)
