"""A process that tests share: an order is charged, and cancelled where nobody pays."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from attrs import define, evolve, frozen

from rabbitevents import event
from rabbitevents_process import DONE, Process, Step, Timeout

HALF_AN_HOUR = timedelta(minutes=30)


@event("order.placed", entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str


@event("stock.reserved", entity="order", key="order_id")
@frozen
class StockReserved:
    order_id: str


@event("card.charged", entity="order", key="order_id")
@frozen
class CardCharged:
    order_id: str


@event("card.to-be-charged", entity="order", key="order_id")
@frozen
class ChargeCard:
    order_id: str


@event("order.confirmed", entity="order", key="order_id")
@frozen
class OrderConfirmed:
    order_id: str


@event("order.cancelled", entity="order", key="order_id")
@frozen
class OrderCancelled:
    order_id: str


@event("reminder.wanted", entity="order", key="order_id")
@frozen
class RemindCustomer:
    order_id: str


@define
class Fulfilment:
    order_id: str
    paid: bool = False
    reserved: bool = False
    reminders: int = 0


def fulfilling(**told: Any) -> Process:
    """Make the process, with what else it is told."""
    told.setdefault("key", "order_id")
    made = Process("fulfilment", Fulfilment, **told)

    @made.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        waits = [Timeout("unpaid", HALF_AN_HOUR), Timeout("reminder", HALF_AN_HOUR / 3)]
        return Step(Fulfilment(order.order_id), ChargeCard(order.order_id), timeout=waits)

    @made.on(CardCharged, StockReserved)
    def progress(happened: CardCharged | StockReserved, state: Fulfilment) -> Step:
        paid = isinstance(happened, CardCharged)
        state = evolve(state, paid=state.paid or paid, reserved=state.reserved or not paid)
        if state.paid and state.reserved:
            return Step(DONE, OrderConfirmed(state.order_id))
        return Step(state, clear=["unpaid", "reminder"] if state.paid else [])

    @made.timeout("unpaid")
    def give_up(state: Fulfilment) -> Step:
        return Step(DONE, OrderCancelled(state.order_id))

    @made.timeout("reminder")
    def remind(state: Fulfilment) -> Step:
        again = Timeout("reminder", HALF_AN_HOUR / 3)
        return Step(evolve(state, reminders=state.reminders + 1), RemindCustomer(state.order_id), timeout=again)

    return made
