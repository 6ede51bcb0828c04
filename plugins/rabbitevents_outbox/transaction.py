"""The transaction that is under way here: what is published meanwhile is written into it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import msgspec
from sqlalchemy import event
from sqlalchemy.orm import Session

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


_WAKE: Final = "rabbitevents_outbox"
"""Where a session notes what is to be woken once it has committed."""


def wake_after(session: Session, wake: Callable[[], None]) -> None:
    """Call ``wake`` once what is under way on a session has committed."""
    if not event.contains(Session, "after_commit", _after_commit):
        event.listen(Session, "after_commit", _after_commit)
    session.info[_WAKE] = wake


def _after_commit(session: Session) -> None:
    if _WAKE in session.info and session.get_nested_transaction() is None:
        session.info.pop(_WAKE)()
