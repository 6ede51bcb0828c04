"""One run of the demonstration: start both services, place the orders, wait for all effects, count."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from secrets import token_hex
from time import perf_counter

import attrs
from attrs import field, frozen
from yarl import URL

from rabbitevents import Bus, Message, Plugin, Publish, PublishError
from rabbitevents.brokers.memory import EmbeddedBroker
from rabbitevents.demo import services
from rabbitevents.demo.ledger import Effect, Ledger
from rabbitevents.demo.orders import Order
from rabbitevents.demo.sabotage import Sabotage, SabotagedLedger

BATCH = 500
"""How many orders are on their way to the broker together."""

EXCHANGE = "demo"
"""An exchange of our own: on a broker that others use, the demonstration is none of their business."""


@frozen
class Settings:
    """What one run is told; ``broker`` is a URL, or None for the embedded broker.

    ``patience`` is how many seconds may pass without any new effect before what is missing counts as lost.
    """

    broker: str | None = None
    patience: float = 15.0
    start_timeout: float = 10.0
    pieces_of_each: int = 500
    sabotage: Sabotage | None = None


@frozen
class Counts:
    """What came out: orders placed, events confirmed by the broker, effects found in the ledger, and what is wrong."""

    broker: str
    placed: int
    published: int
    handled: int
    lost: int
    duplicates: int
    seconds: float
    confirmed: int = field(kw_only=True)
    cancelled: int = field(kw_only=True)

    @property
    def flawless(self) -> bool:
        """Whether each event that the broker confirmed had its effect, once."""
        return self.lost == 0 and self.duplicates == 0


class Confirmed(Plugin):
    """Note the id of every event of this run that the broker has taken responsibility for.

    ``run`` begins the ids of this run's orders: what an earlier run left in the queues is handled, but not counted.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self.events: set[str] = set()
        self.orders: dict[str, None] = {}

    async def publish(self, proceed: Publish, message: Message) -> None:
        """Publish, then note: an event that raises on the way is not noted."""
        await proceed(message)
        order_id = str(message.headers.get("entity-id"))
        if order_id.startswith(self._run):
            self.events.add(message.id)
            self.orders[order_id] = None


async def run(orders: Sequence[Order], settings: Settings, say: Callable[[str], None]) -> Counts:
    """Place ``orders`` and follow each through both services; ``say`` is told how it goes.

    Raises what `Bus.start` raises: `BrokerUnavailableError` and `ConfigurationError`.
    """
    run_id = f"{token_hex(4)}-"
    ours = [attrs.evolve(order, order_id=run_id + order.order_id) for order in orders]
    confirmed, book = Confirmed(run_id), services.OrderBook()
    with tempfile.TemporaryDirectory(prefix="rabbitevents-demo-") as folder:
        ledger = Ledger(Path(folder, "effects.jsonl"))
        inventory_bus, order_bus = _buses(settings, confirmed, book, ledger)
        async with inventory_bus, order_bus:
            started = perf_counter()
            placed = await _place_all(order_bus, ours, say)
            say("waiting for their effects")
            complete = await _all_effects(ledger, confirmed, settings.patience)
            seconds = perf_counter() - started
        if not complete:
            say(f"no new effect for {settings.patience:g} s: what is missing now is lost")
        ledger.close()
        return _count(settings, placed, confirmed, book, ledger.read(), run_id, seconds)


def _buses(settings: Settings, confirmed: Confirmed, book: services.OrderBook, ledger: Ledger) -> tuple[Bus, Bus]:
    """Return the buses of the inventory service and of the order service."""
    embedded = EmbeddedBroker()

    def bus(router: services.Router) -> Bus:
        return Bus(
            embedded.client() if settings.broker is None else settings.broker,
            router,
            plugins=[confirmed],
            exchange=EXCHANGE,
            unroutable="raise",
            start_timeout=settings.start_timeout,
            grace=5.0,
        )

    inventory_bus, order_bus = bus(services.inventory), bus(services.orders)
    inventory_bus.provide(services.Stock, services.Stock(settings.pieces_of_each))
    inventory_bus.provide(Ledger, SabotagedLedger(ledger, settings.sabotage) if settings.sabotage else ledger)
    order_bus.provide(services.OrderBook, book)
    order_bus.provide(Ledger, ledger)
    return inventory_bus, order_bus


async def _place_all(bus: Bus, orders: Sequence[Order], say: Callable[[str], None]) -> int:
    """Place the orders in batches; return how many were placed before one failed."""
    placed = 0
    rest = iter(orders)
    failed = False
    while not failed and (batch := list(islice(rest, BATCH))):
        placed += len(batch)
        try:
            await services.place(bus, batch)
        except* PublishError as errors:
            say(f"not all of these orders were confirmed, no more are placed: {errors.exceptions[0]}")
            failed = True
        say(f"{placed:,} of {len(orders):,} orders placed")
    return placed


async def _all_effects(ledger: Ledger, confirmed: Confirmed, patience: float) -> bool:
    """Wait until each confirmed order was seen by both services; False if ``patience`` ran out first."""
    placed = list(confirmed.orders)
    try:
        await ledger.wait_for(((handler, order) for order in placed for handler in ("reserve", "close")), patience)
    except TimeoutError:
        return False
    return True


def _count(
    settings: Settings,
    placed: int,
    confirmed: Confirmed,
    book: services.OrderBook,
    effects: Sequence[Effect],
    run_id: str,
    seconds: float,
) -> Counts:
    ours = [(effect.handler, effect.event_id) for effect in effects if effect.order_id.startswith(run_id)]
    handled = set(ours)
    return Counts(
        broker="memory://" if settings.broker is None else str(URL(settings.broker).with_password(None)),
        placed=placed,
        published=len(confirmed.events),
        handled=len(handled),
        lost=len(confirmed.events - {event_id for _, event_id in handled}),
        duplicates=len(ours) - len(handled),
        seconds=round(seconds, 3),
        confirmed=sum(order_id.startswith(run_id) for order_id in book.confirmed),
        cancelled=sum(order_id.startswith(run_id) for order_id in book.cancelled),
    )
