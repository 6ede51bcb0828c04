"""The marks of what was handled: one statement makes one, without waiting for anybody."""

from __future__ import annotations

from datetime import timedelta
from hashlib import blake2b
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import and_, delete, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.orm import Session

from rabbitevents_outbox.clock import at
from rabbitevents_outbox.databases import Backend
from rabbitevents_outbox.tables import Tables

Mark = Literal["new", "done", "busy"]
"""What is known of an event: it is ours to handle, it was handled, or another worker has it under way."""

PURGED: Final = 5_000
"""How many marks are deleted at a time."""


class Marks:
    """The inbox's table. Its key begins with the event's id: those of version 7 are inserted at the right edge."""

    def __init__(self, tables: Tables, backend: Backend) -> None:
        self._table = tables.inbox
        self._locks = backend == "postgresql"

    def make(self, session: Session, event_id: UUID, subscription: str) -> Mark:
        """Mark an event as handled, in the session's transaction.

        A lock that is tried and not waited for stands before it on PostgreSQL: to wait for a mark of the same event would
        keep a connection for as long as its handler runs.
        """
        row, values = self._table.c, {"event_id": event_id, "subscription": subscription}
        if session.execute(self._statement(event_id, subscription)).first() is not None:
            return "new"
        which = and_(row.event_id == values["event_id"], row.subscription == values["subscription"])
        return "busy" if session.scalar(select(literal(1)).where(which)) is None else "done"

    def _statement(self, event_id: UUID, subscription: str) -> Any:
        table = self._table
        if not self._locks:
            made = insert_sqlite(table).values(event_id=event_id, subscription=subscription)
            return made.on_conflict_do_nothing().returning(literal(1))
        lock = select(func.pg_try_advisory_xact_lock(*_keys(event_id, subscription)).label("free")).cte("lock")
        columns = [
            literal(event_id, table.c.event_id.type).label("event_id"),
            literal(subscription, table.c.subscription.type).label("subscription"),
        ]
        free = select(*columns).select_from(lock).where(lock.c.free)
        inserted = insert_postgresql(table).from_select(["event_id", "subscription"], free)
        return inserted.on_conflict_do_nothing().returning(literal(1))

    def purge(self, session: Session, keep: timedelta) -> int:
        """Delete some of the marks that are older than ``keep``; return how many."""
        row = self._table.c
        old = select(row.event_id, row.subscription).where(row.handled_at < at(-keep.total_seconds())).limit(PURGED)
        done = session.execute(delete(self._table).where(tuple_(row.event_id, row.subscription).in_(old)))
        return int(getattr(done, "rowcount", 0))


def _keys(event_id: UUID, subscription: str) -> tuple[int, int]:
    """Return the two numbers of an advisory lock, signed, of 32 bits each."""
    digest = blake2b(event_id.bytes + subscription.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest[:4], signed=True), int.from_bytes(digest[4:], signed=True)


__all__ = ["Mark", "Marks"]
