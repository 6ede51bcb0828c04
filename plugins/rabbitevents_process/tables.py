"""The table of processes."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import Column, Connection, DateTime, Integer, LargeBinary, MetaData, Table, Text, func

from rabbitevents_sql import VersionedTables


class ProcessTables(VersionedTables):
    """Where processes have their state.

    ::

        fulfilment = Process("fulfilment", Fulfilment, key="order_id", tables=ProcessTables(schema="messaging"))

    With Alembic, ``target_metadata = [Base.metadata, tables.metadata]``.

    :param prefix: What the tables' names begin with.
    :param schema: The PostgreSQL schema that they are in; by default the connection's own.
    :param metadata: The SQLAlchemy metadata that they are added to; by default one of their own.
    """

    number: ClassVar[int] = 1
    noted_in: ClassVar[str] = "process_version"
    made_by: ClassVar[str] = "`rabbitevents sql print MODULE:BUS --dialect {backend}`"
    said_as: ClassVar[str] = "says version"

    def __init__(
        self, prefix: str = "rabbitevents_", *, schema: str | None = None, metadata: MetaData | None = None
    ) -> None:
        super().__init__(prefix, schema=schema, metadata=metadata)
        self.process: Table = self._process()
        """Each process that runs, and for a time each that has ended."""

    def _process(self) -> Table:
        table = self._table(
            "process",
            Column("process", Text, primary_key=True),
            Column("key", Text, primary_key=True),
            Column("state", LargeBinary, nullable=False),
            Column("schema_version", Integer, nullable=False),
            Column("timeouts", LargeBinary, nullable=False),
            Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            Column("done_at", DateTime(timezone=True)),
        )
        row = table.c
        runs, ended = row.done_at.is_(None), row.done_at.is_not(None)
        self._index("process_running", row.process, row.changed_at, where=runs)  # which are stuck?
        self._index("process_ended", row.process, row.done_at, where=ended)  # which are to be forgotten?
        return table

    def check(self, connection: Connection, *tables: Table) -> None:
        """Raise `ConfigurationError`, which says the way out, where the tables are missing, or of another version.

        :param connection: One to the database that they are in.
        :param tables: Others that are needed there.
        """
        super().check(connection, self.process, *tables)
