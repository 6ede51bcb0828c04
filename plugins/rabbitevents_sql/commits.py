"""What is to happen once a session has committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.orm import Session

_CALLS: Final = "rabbitevents_after_commit"
"""Where a session notes what is to be called, and after which transaction."""


def after_commit(session: Session, call: Callable[[], object]) -> None:
    """Call something once the transaction that is under way on a session has committed, and once only.

    A savepoint is no commit: what was done in one that is rolled back is not known to the call.

    :param session: The session: of an `AsyncSession`, its ``sync_session``.
    :param call: What is called, without arguments. It must be fast, and raise nothing.
    """
    if not event.contains(Session, "after_commit", _committed):
        event.listen(Session, "after_commit", _committed)
    calls: dict[Callable[[], object], Any] = session.info.setdefault(_CALLS, {})
    calls[call] = session.get_transaction()


def _committed(session: Session) -> None:
    if _CALLS not in session.info or session.get_nested_transaction() is not None:
        return
    ended = session.get_transaction()
    for call, transaction in session.info.pop(_CALLS).items():
        if transaction is ended:
            call()
