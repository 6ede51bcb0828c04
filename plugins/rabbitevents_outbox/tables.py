"""The tables of outbox and inbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Identity,
    Index,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    and_,
    event,
    insert,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from rabbitevents_sql import VersionedTables, now

CLEARING: Final = {
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 2000,
    "autovacuum_vacuum_cost_delay": 0,
}
"""How PostgreSQL clears the outbox of what was sent: soon, and without pauses."""

_KNOWS_CLEARING: Final = any(
    kind is Table and "with" in told for kind, told in postgresql.dialect.construct_arguments or ()
)
"""Whether SQLAlchemy says so as it makes a table: 2.1 does, and for 2.0 it is a statement of its own."""


def _clearing(table: Table, dialect: Dialect) -> str:
    told = ", ".join(f"{name} = {value}" for name, value in CLEARING.items())
    return f"ALTER TABLE {dialect.identifier_preparer.format_table(table)} SET ({told})"


def _created(table: Table, connection: Connection, **_told: Any) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_clearing(table, connection.dialect))


class Tables(VersionedTables):
    """Where outbox and inbox have their rows.

    ::

        tables = Tables(schema="messaging")
        outbox, inbox = Outbox(engine, tables=tables), Inbox(sessions, tables=tables)

    With Alembic, ``target_metadata = [Base.metadata, tables.metadata]``.

    :param prefix: What the tables' names begin with.
    :param schema: The PostgreSQL schema that they are in; by default the connection's own.
    :param metadata: The SQLAlchemy metadata that they are added to; by default one of their own.
    """

    number: ClassVar[int] = 1
    noted_in: ClassVar[str] = "version"
    made_by: ClassVar[str] = "`rabbitevents sql print --dialect {backend}`"

    def __init__(
        self, prefix: str = "rabbitevents_", *, schema: str | None = None, metadata: MetaData | None = None
    ) -> None:
        super().__init__(prefix, schema=schema, metadata=metadata)
        self.outbox: Table = self._outbox()
        """What is to be sent, in the order in which it was written."""
        self.writing: Insert = insert(self.outbox).inline()
        """What writes it: made once, and inline, as nobody asks for the row's number."""
        self.lease: Table = self._table(
            "outbox_lease",
            Column("shard", SmallInteger, primary_key=True, autoincrement=False),
            Column("owner", Uuid),
            Column("epoch", BigInteger, nullable=False, server_default="0"),
            Column("until", DateTime(timezone=True), nullable=False, server_default=now()),
        )
        """Which relay sends what, and until when."""
        self.inbox: Table = self._inbox()
        """What was handled, by event and subscription."""

    def _outbox(self) -> Table:
        table = self._table(
            "outbox",
            Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(always=True), primary_key=True),
            Column("shard", SmallInteger, nullable=False, server_default="0"),
            Column("entity", Text),
            Column("event_id", Uuid, nullable=False),
            Column("type", Text, nullable=False),
            Column("exchange", Text),
            Column("routing_key", Text, nullable=False),
            Column("properties", LargeBinary, nullable=False),
            Column("body", LargeBinary, nullable=False),
            Column("delay_ms", BigInteger),
            Column("created_at", DateTime(timezone=True), nullable=False, server_default=now()),
            Column("attempts", SmallInteger, nullable=False, server_default="0"),
            Column("next_try_at", DateTime(timezone=True)),
            Column("last_error", Text),
            Column("dead_at", DateTime(timezone=True)),
            Column("sent_at", DateTime(timezone=True)),
            sqlite_autoincrement=True,
            **({"postgresql_with": CLEARING} if _KNOWS_CLEARING else {}),
        )
        if not _KNOWS_CLEARING:
            event.listen(table, "after_create", _created)
        column = table.c
        todo = and_(column.sent_at.is_(None), column.dead_at.is_(None))
        self._index("outbox_todo", column.shard, column.id, where=todo)  # the relay's only scan
        self._index("outbox_held", column.entity, column.id, where=and_(column.attempts > 0, column.sent_at.is_(None)))
        return table

    def _inbox(self) -> Table:
        table = self._table(
            "inbox",
            Column("event_id", Uuid, nullable=False),
            Column("subscription", Text, nullable=False),
            Column("handled_at", DateTime(timezone=True), nullable=False, server_default=now()),
            PrimaryKeyConstraint("event_id", "subscription"),
        )
        Index(f"{self.prefix}inbox_handled", table.c.handled_at, postgresql_using="brin")
        return table

    def _besides(self, dialect: Dialect) -> Sequence[str]:
        return [_clearing(self.outbox, dialect)] if dialect.name == "postgresql" and not _KNOWS_CLEARING else ()
