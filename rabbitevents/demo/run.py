"""One run of the demonstration: open the shop, place the orders, wait for all effects, count."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from secrets import token_hex
from time import perf_counter, time
from typing import TYPE_CHECKING, Final, Protocol

import attrs
from attrs import frozen
from yarl import URL

from rabbitevents import BrokerError, Bus, PublishError
from rabbitevents.demo import morgue
from rabbitevents.demo.crew import Assignment, Crew
from rabbitevents.demo.ledger import Published
from rabbitevents.demo.orders import Order
from rabbitevents.demo.services import SERVICES, Front, Site, opened
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.tally import Tally, Trouble
from rabbitevents.demo.unbinding import unbind
from rabbitevents.testing import EmbeddedBroker

if TYPE_CHECKING:
    from rabbitevents.demo.past import Replay

BATCH: Final = 500
"""How many orders are on their way to the broker together."""

GLANCE: Final = 0.02
"""Seconds between two looks into the ledgers."""

STORE_GLANCE: Final = 0.1
"""The same where they are in a database."""

LOOK: Final = 0.2
"""Seconds between two looks into the dead letter queues."""


class Audience(Protocol):
    """Who is told how it goes."""

    def say(self, line: str, /) -> None:
        """Hear of something."""
        ...

    def progress(self, placed: int, closed: int, effects: int, /) -> None:
        """Learn how many orders are placed, how many of them confirmed or cancelled, and how many effects there are."""
        ...


@frozen
class Counts:
    """What came out.

    ``placed`` orders were given to the order service, of which ``unconfirmed`` were not taken by the broker; of the
    others, ``confirmed`` and ``cancelled`` were closed, and ``dead`` have an event in a dead letter queue instead.
    ``published`` events were confirmed by the broker (with a ``store``: committed there), and ``handled`` effects
    found in the ledgers, each counted once; ``lost`` effects are missing there, and not dead letters; ``duplicates``
    were there already. ``retried`` is how often a handling was tried again. ``seconds`` go from the first order to
    the last effect. ``restarts`` counts processes that ended in the middle. ``overdue`` payments were given up, which there
    is nobody for without a store; a process that does not end is ``lost``, too. ``replayed`` events were in the store, and
    what was made of them anew was ``equal`` to what the run had made of them; None where that was not asked for.
    """

    broker: str
    store: str | None
    placed: int
    confirmed: int
    cancelled: int
    published: int
    handled: int
    lost: int
    duplicates: int
    seconds: float
    retried: int
    dead: int
    unconfirmed: int
    restarts: int
    overdue: int = 0
    replayed: int | None = None
    equal: bool | None = None

    @property
    def flawless(self) -> bool:
        """Whether every order was closed, or is dead, and every confirmed event had each of its effects, once.

        Where a process was killed, an effect may be there twice, since delivery is at least once; but not in a store.
        """
        closed = self.confirmed + self.cancelled + self.dead == self.placed
        once = self.duplicates == 0 or (self.restarts > 0 and self.store is None)
        return closed and once and self.lost == 0 and self.equal is not False


@frozen
class Result:
    """What came out, and how: the story of one order, and its trace as text ("" where none was asked for)."""

    counts: Counts
    tally: Tally
    story: Sequence[Published | Trouble]
    trace: str


async def run(
    orders: Sequence[Order],
    settings: Settings,
    audience: Audience,
    *,
    folder: Path | None = None,
    embedded: EmbeddedBroker | None = None,
) -> Result:
    """Place ``orders``, follow each through all services, and count.

    ``folder`` is where services and ledgers keep their files; without one, they are gone afterwards. ``embedded`` is
    the broker where ``settings`` name no other. Raises OSError, and what starting a bus raises:
    `BrokerUnavailableError` and `ConfigurationError`.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="rabbitevents-demo-") as temporary:
            return await run(orders, settings, audience, folder=Path(temporary), embedded=embedded)
    prefix = f"{token_hex(4)}-"  # what an earlier run left on the broker must not meet orders of the same number
    ours = [attrs.evolve(order, order_id=prefix + order.order_id) for order in orders]
    async with opened(settings, folder, embedded or EmbeddedBroker(), name="shop", say=audience.say) as site:
        tally = Tally(folder, site.listeners)
        if site.store is not None:
            await site.store.prepare()
        async with _shop(site, audience) as (front, crew):
            started = perf_counter()
            placed, unconfirmed = await _place_all(front, ours, audience)
            await _follow(site, tally, placed - unconfirmed, audience)
            seconds = perf_counter() - started
            await _look_for_the_dead(site, front.bus, tally)
            replay = await _replay(site, audience)
        await site.collect()
    tally.read()  # all ledgers are closed now: what came last is among it
    counts = _count(
        settings, None if site.store is None else site.store.shown, tally, placed, unconfirmed, seconds, crew.restarts
    )
    if replay is not None:
        counts = attrs.evolve(counts, replayed=replay.events, equal=replay.equal)
    chosen = tally.most_telling
    return Result(counts, tally, tally.story(chosen), _trace(folder, chosen) if settings.trace and chosen else "")


def _trace(folder: Path, event: str) -> str:
    from rabbitevents.demo.traces import told  # which needs an extra, and only for those who ask for it

    return told(folder, event)


# --- opening the shop ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def _shop(site: Site, audience: Audience) -> AsyncGenerator[tuple[Front, Crew]]:
    """Run all five services; yield what to place orders with, and those that have a process of their own."""
    settings = site.settings
    separate = SERVICES if settings.processes else ()
    async with AsyncExitStack() as stack:
        ledger = site.ledger("shop")
        stack.push_async_callback(ledger.close)
        front = site.front(ledger)
        if site.store is not None and settings.broker is not None:
            stack.push_async_callback(unbind, front.bus, site.besides(*SERVICES))
        for name in SERVICES:
            if name not in separate:
                await stack.enter_async_context(site.bus(name, ledger))
        await stack.enter_async_context(front.bus)  # what is wrong with the URL is said once, here
        crew = Crew([Assignment(name, str(site.folder), settings) for name in separate], audience.say)
        yield front, await stack.enter_async_context(crew)


# --- placing and following -----------------------------------------------------------------------------------------


async def _place_all(front: Front, orders: Iterable[Order], audience: Audience) -> tuple[int, int]:
    """Place orders until one is not confirmed; return how many were placed, and how many of these not confirmed."""
    placed = unconfirmed = 0
    rest = iter(orders)
    while not unconfirmed and (batch := list(islice(rest, BATCH))):
        try:
            await front.place(batch)
        except* PublishError as errors:
            unconfirmed = len(errors.exceptions)
            audience.say(f"{unconfirmed:,} orders were not confirmed, so no more are placed: {errors.exceptions[0]}")
        placed += len(batch)
        audience.progress(placed, 0, 0)
    return placed, unconfirmed


async def _follow(site: Site, tally: Tally, orders: int, audience: Audience) -> None:
    """Wait until everything that was confirmed has its effects, or nothing new came for ``patience`` seconds.

    What a service has given up on is not waited for, and what is to be tried again has until then to be so.
    """
    last_news = perf_counter()
    patience = site.settings.patience
    while True:
        await site.collect()
        if tally.read():
            last_news = perf_counter()
            closed = tally.of_type("order.confirmed") + tally.of_type("order.cancelled")
            audience.progress(orders, closed, tally.effects.total())
        if not tally.awaited and not tally.unsettled and len(tally.sizes) >= orders:
            return
        if perf_counter() - last_news > patience and time() - tally.due > patience:
            audience.say(f"no new effect for {patience:g} s: what is missing now is lost")
            return
        await asyncio.sleep(GLANCE if site.store is None else STORE_GLANCE)


async def _look_for_the_dead(site: Site, front: Bus, tally: Tally) -> None:
    """Look into the dead letter queues, until all is there that services say they have given up on, or for ``patience``."""
    end = perf_counter() + site.settings.patience
    while tally.lost:
        with suppress(BrokerError):  # a look that is broken off is no answer: the next one may be
            await morgue.look(front, tally)
        if not tally.lost & tally.given_up.keys() or perf_counter() > end:
            return
        await asyncio.sleep(LOOK)
        await site.collect()
        tally.read()


async def _replay(site: Site, audience: Audience) -> Replay | None:
    """Make the read models anew, if that was asked for, and say where they are not as they were."""
    if site.store is None or not site.settings.replay:
        return None
    replay = await site.store.replay(site.settings.patience)
    if replay.flaw:
        audience.say(f"the read models do not follow from the stored events: {replay.flaw}")
    return replay


def _count(
    settings: Settings, store: str | None, tally: Tally, placed: int, unconfirmed: int, seconds: float, restarts: int
) -> Counts:
    return Counts(
        store=store,
        broker="memory://" if settings.broker is None else str(URL(settings.broker).with_password(None)),
        placed=placed,
        confirmed=tally.of_type("order.confirmed"),
        cancelled=tally.of_type("order.cancelled"),
        published=tally.published.total(),
        handled=tally.effects.total(),
        lost=len(tally.lost) + len(tally.unsettled),
        duplicates=tally.duplicates,
        seconds=round(seconds, 3),
        retried=tally.retried.total(),
        dead=len(tally.dead_orders),
        unconfirmed=unconfirmed,
        restarts=restarts,
        overdue=tally.of_type("payment.overdue"),
    )
