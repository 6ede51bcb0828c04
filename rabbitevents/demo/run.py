"""One run of the demonstration: start both services, place the orders, wait for all effects, count."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from secrets import token_hex
from time import perf_counter
from typing import Final

import attrs
from attrs import frozen
from yarl import URL

from rabbitevents import Bus, Message, Plugin, Publish, PublishError, Router
from rabbitevents.brokers.memory import EmbeddedBroker
from rabbitevents.demo import services
from rabbitevents.demo.ledger import Effect, Ledger
from rabbitevents.demo.orders import Order
from rabbitevents.demo.sabotage import Sabotage, SabotagedLedger

BATCH: Final = 500
"""How many orders are on their way to the broker together."""

EXCHANGE: Final = "demo"
"""An exchange of our own: on a broker that others use, the demonstration is none of their business."""

Say = Callable[[str], None]
"""Takes a line about how it goes."""


@frozen
class Settings:
    """What a run is told; ``broker`` is a URL, or None for the embedded broker. Times in seconds.

    ``patience`` is how long no new effect may come before what is missing counts as lost, ``start_timeout`` how long a
    broker that is away is waited for, ``pieces_of_each`` what lies in the warehouse.
    """

    broker: str | None = None
    patience: float = 15.0
    start_timeout: float = 10.0
    pieces_of_each: int = 500
    sabotage: Sabotage | None = None


@frozen
class Counts:
    """What came out.

    ``placed`` orders were given to the order service, and ``published`` events were confirmed by the broker (an order
    and its answer). ``handled`` effects were found in the ledger, each counted once; ``lost`` are confirmed events
    without an effect, ``duplicates`` effects that were there already. ``seconds`` go from the first order to the last
    effect. ``unconfirmed`` orders were not taken by the broker, ``reserved`` and ``refused`` are the answers.
    """

    broker: str
    placed: int
    published: int
    handled: int
    lost: int
    duplicates: int
    seconds: float
    unconfirmed: int
    reserved: int
    refused: int

    @property
    def flawless(self) -> bool:
        """Whether every order was taken, and every event that the broker confirmed had its effect, once."""
        return self.lost == self.duplicates == self.unconfirmed == 0


class Confirmed(Plugin):
    """Note every event of this run that the broker has taken responsibility for.

    ``run_id`` begins the ids of this run's orders: what an earlier run left in the queues is handled, but not counted.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self.events: set[str] = set()
        self.orders: set[str] = set()

    async def publish(self, proceed: Publish, message: Message) -> None:
        """Publish, then note: what was not confirmed has raised by then."""
        await proceed(message)
        order_id = str(message.headers.get("entity-id"))
        if order_id.startswith(self._run_id):
            self.events.add(message.id)
            self.orders.add(order_id)


async def run(orders: Sequence[Order], settings: Settings, say: Say) -> Counts:
    """Place ``orders``, follow each through both services, and count.

    Raises what starting a bus raises: `BrokerUnavailableError` and `ConfigurationError`.
    """
    run_id = f"{token_hex(4)}-"
    ours = [attrs.evolve(order, order_id=run_id + order.order_id) for order in orders]
    confirmed, book = Confirmed(run_id), services.OrderBook()
    with (
        tempfile.TemporaryDirectory(prefix="rabbitevents-demo-") as folder,
        closing(_ledger(folder, settings)) as ledger,
    ):
        inventory_bus, order_bus = _buses(settings, confirmed, ledger, book)
        async with inventory_bus, order_bus:
            started = perf_counter()
            placed = await _place_all(order_bus, ours, say)
            say("waiting for their effects")
            await _wait_for_effects(ledger, confirmed, settings.patience, say)
            seconds = perf_counter() - started
        effects = [effect for effect in ledger.read() if effect.order_id.startswith(run_id)]
    return _count(settings, placed, confirmed, effects, book, seconds)


def _ledger(folder: str, settings: Settings) -> Ledger:
    path = Path(folder, "effects.jsonl")
    return Ledger(path) if settings.sabotage is None else SabotagedLedger(path, settings.sabotage)


def _buses(settings: Settings, confirmed: Confirmed, ledger: Ledger, book: services.OrderBook) -> tuple[Bus, Bus]:
    """Return the buses of the inventory service and of the order service, with what their handlers ask for."""
    embedded = EmbeddedBroker()

    def bus(router: Router) -> Bus:
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
    inventory_bus.provide(Ledger, ledger)
    order_bus.provide(services.OrderBook, book)
    order_bus.provide(Ledger, ledger)
    return inventory_bus, order_bus


async def _place_all(bus: Bus, orders: Sequence[Order], say: Say) -> int:
    """Place the orders, a batch at a time, until all are placed or one is not confirmed; return how many were placed."""
    placed, refused = 0, False
    rest = iter(orders)
    while not refused and (batch := list(islice(rest, BATCH))):
        placed += len(batch)
        try:
            await services.place(bus, batch)
        except* PublishError as errors:
            refused = True
            say(f"{len(errors.exceptions):,} orders were not confirmed, so no more are placed: {errors.exceptions[0]}")
        say(f"{placed:,} of {len(orders):,} orders placed")
    return placed


async def _wait_for_effects(ledger: Ledger, confirmed: Confirmed, patience: float, say: Say) -> None:
    """Wait until both services have recorded each confirmed order, or ``patience`` runs out."""
    orders = list(confirmed.orders)
    try:
        await ledger.wait_for(((handler, order) for order in orders for handler in ("reserve", "close")), patience)
    except TimeoutError:
        say(f"no new effect for {patience:g} s: what is missing now is lost")


def _count(
    settings: Settings,
    placed: int,
    confirmed: Confirmed,
    effects: Sequence[Effect],
    book: services.OrderBook,
    seconds: float,
) -> Counts:
    handled = {(effect.handler, effect.event_id) for effect in effects}
    return Counts(
        broker="memory://" if settings.broker is None else str(URL(settings.broker).with_password(None)),
        placed=placed,
        published=len(confirmed.events),
        handled=len(handled),
        lost=len(confirmed.events - {effect.event_id for effect in effects}),
        duplicates=len(effects) - len(handled),
        seconds=round(seconds, 3),
        unconfirmed=placed - len(confirmed.orders),
        reserved=len(book.confirmed & confirmed.orders),
        refused=len(book.cancelled & confirmed.orders),
    )
