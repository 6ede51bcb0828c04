"""The service whose process `tests.test_process_races` runs in several operating system processes at once.

Broker and database are told by the environment, and so are the version of the state's shape (``STATE``), which an older
and a newer build of a service have, and how long an order is waited for (``UNPAID``, in seconds: 1).
"""

from __future__ import annotations

import os

from attrs import define, evolve, frozen
from sqlalchemy.ext.asyncio import async_sessionmaker
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Fact, Plugin, event, facts
from rabbitevents_deadletter import DeadLetter
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_process import DONE, LateForProcess, Process, Step, Timeout
from rabbitevents_retry import Retry
from tests.committed_service import LEASE, engine_of


@event("order.placed", entity="order", key="order_id")
@frozen
class Placed:
    order_id: str


@event("order.imported", entity="order", key="order_id")
@frozen
class Imported:
    """Starts a process too, and means something to one that runs."""

    order_id: str


@event("order.item-added", entity="order", key="order_id")
@frozen
class ItemAdded:
    order_id: str


@event("card.charged", entity="order", key="order_id")
@frozen
class Charged:
    order_id: str


@event("order.noted", entity="order", key="order_id")
@frozen
class Noted:
    """What a step did: one is published by each."""

    order_id: str
    what: str
    number: int
    pid: int


@define
class OldOrder:
    order_id: str
    items: int = 0


@define
class Order:
    """The second version, in which the number of items is called otherwise."""

    order_id: str
    count: int = 0


def noted(order: OldOrder | Order, what: str) -> Noted:
    return Noted(order.order_id, what, items(order), os.getpid())


def items(order: OldOrder | Order) -> int:
    return order.count if isinstance(order, Order) else order.items


def more(order: OldOrder | Order) -> OldOrder | Order:
    if isinstance(order, Order):
        return evolve(order, count=order.count + 1)
    return evolve(order, items=order.items + 1)


def ordering(version: int) -> Process:
    shape = OldOrder if version == 1 else Order
    made = Process("ordering", shape, key="order_id", version=version, concurrency=8, prefetch=8)

    @made.starts(Placed, Imported)
    def begin(happened: Placed | Imported) -> Step:
        order = shape(happened.order_id)
        return Step(order, noted(order, "began"), timeout=Timeout("unpaid", float(os.environ.get("UNPAID", "1"))))

    @made.on(Placed, Imported)
    def join(happened: Placed | Imported, state: OldOrder | Order) -> Step:
        return Step(state, noted(state, "joined"))

    @made.on(ItemAdded)
    def add(happened: ItemAdded, state: OldOrder | Order) -> Step:
        grown = more(state)
        return Step(grown, noted(grown, "added"))

    @made.on(Charged)
    def pay(happened: Charged, state: OldOrder | Order) -> Step:
        return Step(DONE, noted(state, "paid"))

    @made.timeout("unpaid")
    def give_up(state: OldOrder | Order) -> Step:
        return Step(DONE, noted(state, "given up"))

    if version == 2:

        @made.upcast(from_version=1)
        def renamed(document: dict[str, object]) -> dict[str, object]:
            document["count"] = document.pop("items")
            return document

    return made


class Telling(Plugin):
    """Prints what must not happen, and what may."""

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, (facts.Retried, facts.Held, facts.DeadLettered, facts.Postponed, LateForProcess)):
            print(f"fact {type(fact).__name__} {fact}", flush=True)


def bus() -> Bus:
    engine = engine_of(os.environ["DATABASE_URL"])
    retry = Retry(wait=wait_fixed(0.3), stop=stop_after_attempt(60), inline_below=0)
    outbox = Outbox(engine, lease=LEASE, poll=0.05)
    return Bus(
        os.environ["AMQP_URL"],
        ordering(int(os.environ.get("STATE", "1"))),
        plugins=[Telling(), DeadLetter(), retry, Inbox(async_sessionmaker(engine)), outbox],
        grace=1,
    )
