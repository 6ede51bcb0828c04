"""The payment process, which is there with a store: waits for what becomes of each payment, and gives it up in the end.

    InventoryReserved -> PaymentProcessed or PaymentDeclined in time: that was it
                     `-> nothing for ten seconds: PaymentOverdue -> OrderCancelled, and the stock is given back

A payment that comes after all is one for an order that is cancelled: `RefundDue`, and the money is given back.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Final

from attrs import frozen

from rabbitevents import Router
from rabbitevents.demo.shop.events import (
    InventoryReserved,
    PaymentDeclined,
    PaymentOverdue,
    PaymentProcessed,
    RefundDue,
)
from rabbitevents.demo.shop.payment import PaymentProvider, Payments
from rabbitevents_process import DONE, Process, ProcessTables, Step, Timeout

WITHIN: Final = timedelta(seconds=10)
"""How long a payment is waited for: twice as long as it is tried. A shop that is open longer says half an hour."""

TABLES: Final = ProcessTables("rabbitevents_demo_")
"""Tables of our own: each run begins with an empty shop."""


@frozen
class Awaited:
    """A payment that is waited for."""

    order_id: str
    customer: str
    total: Decimal


paying: Process = Process("shop.payment", Awaited, key="order_id", tables=TABLES, concurrency=4)


@paying.starts(InventoryReserved)
def wait(reserved: InventoryReserved) -> Step:
    """Wait for the payment, now that what was ordered is set aside."""
    awaited = Awaited(reserved.order_id, reserved.customer, reserved.total)
    return Step(awaited, timeout=Timeout("unpaid", WITHIN))


@paying.on(PaymentProcessed, PaymentDeclined)
def end(_: PaymentProcessed | PaymentDeclined) -> Step:
    """Wait no longer: it has become one or the other."""
    return Step(DONE)


@paying.timeout("unpaid")
def give_up(awaited: Awaited) -> Step:
    """Give it up: what was set aside is for others to buy."""
    return Step(DONE, PaymentOverdue(awaited.order_id, awaited.customer, awaited.total))


router: Router = Router("shop.payment")


@router.on(RefundDue, concurrency=1)
async def refund(due: RefundDue, payments: Payments, provider: PaymentProvider) -> None:
    """Give the money back: the order was cancelled before it was paid."""
    await provider.refund(due.order_id)
    await payments.give_back(due.order_id)
