"""Processes (sagas): what several events of one thing come to, over hours or weeks, kept in one row.

::

    fulfilment = Process("fulfilment", Fulfilment, key="order_id")

    @fulfilment.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(Fulfilment(order.order_id), ChargeCard(order.order_id), timeout=Timeout("unpaid", 1800))

A `Process` is a router of functions that answer an event and a state with a `Step`. State, events and timeouts commit
together, in the transaction of ``Inbox`` and ``Outbox``. `rabbitevents_process.testing` tries it without anything.
"""

from rabbitevents_process.errors import AlreadyRunningError, LateForProcess, NoKeyError, NoSuchProcessError, StateError
from rabbitevents_process.process import Process
from rabbitevents_process.step import DONE, Done, Step, Timeout
from rabbitevents_process.tables import ProcessTables

__all__ = [
    "DONE",
    "AlreadyRunningError",
    "Done",
    "LateForProcess",
    "NoKeyError",
    "NoSuchProcessError",
    "Process",
    "ProcessTables",
    "StateError",
    "Step",
    "Timeout",
]
