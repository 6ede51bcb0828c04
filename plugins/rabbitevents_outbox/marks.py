"""The marks of what was handled: one statement makes one, without waiting for anybody."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import Connection, Integer, and_, bindparam, column, delete, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.orm import Session

from rabbitevents_outbox.tables import Tables
from rabbitevents_sql import Backend, at

Mark = Literal["new", "done", "busy"]
"""What is known of an event: it is ours to handle, it was handled, or another worker has it under way."""

PURGED: Final = 5_000
"""How many marks are deleted at a time."""


class Marks:
    """The inbox's table. Its key begins with the event's id: those of version 7 are inserted at the right edge."""

    def __init__(self, tables: Tables, backend: Backend) -> None:
        self._table = tables.inbox
        self._locks = backend == "postgresql"
        self._marking = self._marks() if self._locks else self._marks_one_by_one()
        row = self._table.c
        which = and_(row.event_id == bindparam("event_id"), row.subscription == bindparam("subscription"))
        self._looking = select(literal(1)).where(which)

    def make(self, connection: Connection, event_id: UUID, subscription: str) -> Mark:
        """Mark an event as handled, in the connection's transaction.

        A lock that is tried and not waited for stands before it on PostgreSQL: to wait for a mark of the same event would
        keep a connection for as long as its handler runs.
        """
        values: dict[str, Any] = {"event_id": event_id, "subscription": subscription}
        locks = _keys(event_id, subscription) if self._locks else {}
        if connection.execute(self._marking, {**values, **locks}).first() is not None:
            return "new"
        return "busy" if connection.execute(self._looking, values).first() is None else "done"

    def make_all(self, connection: Connection, event_ids: Sequence[UUID], subscription: str) -> list[Mark]:
        """Mark events as handled, as `make` does, and say of each what is known of it: a few statements for all of them.

        Of one that comes twice the second one is busy.
        """
        free = dict.fromkeys(event_ids)
        if self._locks:
            keys = {tuple(_keys(each, subscription).values()): each for each in free}
            free = dict.fromkeys(keys[tuple(row)] for row in connection.execute(self._locking(list(keys))))
        made: set[UUID] = set()
        if free:
            rows = [{"event_id": each, "subscription": subscription} for each in free]
            insert = (insert_postgresql if self._locks else insert_sqlite)(self._table).on_conflict_do_nothing()
            made = set(connection.execute(insert.returning(self._table.c.event_id), rows).scalars())
        row = self._table.c
        rest = [each for each in dict.fromkeys(event_ids) if each not in made]
        there = select(row.event_id).where(row.subscription == subscription, row.event_id.in_(rest))
        done = set(connection.execute(there).scalars()) if rest else set[UUID]()
        found: list[Mark] = []
        for each in event_ids:
            found.append("new" if each in made else "done" if each in done else "busy")
            made.discard(each)
        return found

    def _locking(self, keys: Sequence[tuple[int, ...]]) -> Any:
        arrays = [literal([key[place] for key in keys], ARRAY(Integer)) for place in (0, 1)]
        asked = func.unnest(*arrays).table_valued(column("one", Integer), column("two", Integer)).render_derived()
        return select(asked.c.one, asked.c.two).where(func.pg_try_advisory_xact_lock(asked.c.one, asked.c.two))

    def unmake(self, connection: Connection, event_ids: Sequence[UUID], subscription: str) -> None:
        """Take back marks of this transaction: their events failed, and others of their batch did not."""
        row = self._table.c
        connection.execute(delete(self._table).where(row.subscription == subscription, row.event_id.in_(event_ids)))

    def _marks(self) -> Any:
        lock = select(
            func.pg_try_advisory_xact_lock(bindparam("one", type_=Integer), bindparam("two", type_=Integer)).label(
                "free"
            )
        ).cte("lock")
        columns = [bindparam(name, type_=self._table.c[name].type) for name in ("event_id", "subscription")]
        free = select(*columns).select_from(lock).where(lock.c.free)
        made = insert_postgresql(self._table).from_select(["event_id", "subscription"], free)
        return made.on_conflict_do_nothing().returning(literal(1))

    def _marks_one_by_one(self) -> Any:
        columns: dict[str, Any] = {name: bindparam(name) for name in ("event_id", "subscription")}
        return insert_sqlite(self._table).values(columns).on_conflict_do_nothing().returning(literal(1))

    def purge(self, session: Session, keep: timedelta) -> int:
        """Delete some of the marks that are older than ``keep``; return how many."""
        row = self._table.c
        old = select(row.event_id, row.subscription).where(row.handled_at < at(-keep.total_seconds())).limit(PURGED)
        done = session.execute(delete(self._table).where(tuple_(row.event_id, row.subscription).in_(old)))
        return int(getattr(done, "rowcount", 0))


def _keys(event_id: UUID, subscription: str) -> dict[str, int]:
    """Return the two numbers of an advisory lock, signed, of 32 bits each."""
    digest = blake2b(event_id.bytes + subscription.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return {"one": int.from_bytes(digest[:4], signed=True), "two": int.from_bytes(digest[4:], signed=True)}


__all__ = ["Mark", "Marks"]
