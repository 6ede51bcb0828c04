"""The transaction that is under way here: what is published meanwhile is written into it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec

from rabbitevents import RabbitEventsError


class TransactionError(RabbitEventsError):
    """A transaction is used as it cannot be: outside of one, or ended by a handler."""


class Transaction(msgspec.Struct, eq=False):
    """One transaction, and the rows that are to be written into it before it is committed."""

    rows: list[dict[str, Any]] = []
    outbox: object = None
    """The outbox whose rows these are, once there is one."""
    wake: Callable[[], None] | None = None
    """Tells its relay that there is something to send."""
    over: bool = False
    """Whether it has ended: what a task publishes that a handler left behind is not of it."""


CURRENT: ContextVar[Transaction | None] = ContextVar("rabbitevents_transaction", default=None)
"""The transaction that the current task is in."""


@contextmanager
def collecting() -> Generator[Transaction]:
    """Enter a transaction: an `Outbox` adds what is published inside to its ``rows``."""
    transaction = Transaction()
    token = CURRENT.set(transaction)
    try:
        yield transaction
    finally:
        transaction.over = True
        CURRENT.reset(token)
