"""The tables, as SQLAlchemy metadata: for `create`, for Alembic, and as plain SQL."""

from __future__ import annotations

from typing import Any, Final

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
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateIndex, CreateTable

from rabbitevents import ConfigurationError
from rabbitevents.arguments import one_of, text
from rabbitevents_outbox.clock import now
from rabbitevents_outbox.databases import Backend, backend_of, reason

VERSION: Final = 1
"""The tables' version, which stands in the database: `Tables.check` compares it."""

_DIALECTS: Final[dict[Backend, Any]] = {"postgresql": postgresql, "sqlite": sqlite}

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


class Tables:
    """Where outbox and inbox have their rows.

    ::

        tables = Tables(schema="messaging")
        outbox, inbox = Outbox(engine, tables=tables), Inbox(sessions, tables=tables)

    With Alembic, ``target_metadata = [Base.metadata, tables.metadata]``.

    :param prefix: What the tables' names begin with.
    :param schema: The PostgreSQL schema that they are in; by default the connection's own.
    :param metadata: The SQLAlchemy metadata that they are added to; by default one of their own.
    """

    def __init__(
        self, prefix: str = "rabbitevents_", *, schema: str | None = None, metadata: MetaData | None = None
    ) -> None:
        self.prefix: str = text("Tables: prefix", prefix, such_as="rabbitevents_", most=40)
        self.schema: str | None = None if schema is None else text("Tables: schema", schema, such_as="messaging")
        self.metadata: MetaData = MetaData() if metadata is None else metadata
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
        self.version: Table = self._table("version", Column("version", Integer, primary_key=True, autoincrement=False))

    def _table(self, name: str, *items: Any, **told: Any) -> Table:
        return Table(self.prefix + name, self.metadata, *items, schema=self.schema, **told)

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

    def _index(self, name: str, *columns: Column[Any], where: Any) -> None:
        Index(self.prefix + name, *columns, postgresql_where=where, sqlite_where=where)

    @property
    def all(self) -> tuple[Table, ...]:
        """The tables, in the order of their making."""
        return self.version, self.outbox, self.lease, self.inbox

    def sql(self, backend: Backend) -> str:
        """Return what makes the tables, as SQL.

        :param backend: "postgresql" or "sqlite".
        """
        one_of("Tables.sql: backend", backend, Backend)
        dialect = _DIALECTS[backend].dialect()
        made: list[CreateTable | CreateIndex] = []
        for table in self.all:
            made += [CreateTable(table), *map(CreateIndex, _ordered(table))]
        statements = [str(each.compile(dialect=dialect)).strip() for each in made]
        if backend == "postgresql" and not _KNOWS_CLEARING:
            statements.append(_clearing(self.outbox, dialect))
        version = (
            insert(self.version)
            .values(version=VERSION)
            .compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        )
        return "".join(f"{statement};\n\n" for statement in (*statements, str(version)))

    async def create(self, engine: AsyncEngine) -> None:
        """Make the tables that are missing: for tests and first steps; a service has them made by its migrations."""
        async with engine.begin() as connection:
            await connection.run_sync(self._create)

    def _create(self, connection: Connection) -> None:
        self.metadata.create_all(connection, tables=self.all, checkfirst=True)
        if connection.scalar(select(self.version.c.version)) is None:
            connection.execute(insert(self.version).values(version=VERSION))

    def check(self, connection: Connection, *tables: Table) -> None:
        """Raise `ConfigurationError`, which says the way out, where the tables are missing, or of another version."""
        database = where(connection.engine)
        make = f"rabbitevents sql print --dialect {backend_of(connection.engine)}"
        for table in (self.version, *tables):
            try:
                found = connection.execute(
                    select(table).limit(1 if table is self.version else 0)
                ).first()  # columns alone
            except SQLAlchemyError as error:
                raise ConfigurationError(
                    f"table {table.fullname!r} of {database} cannot be read; `{make}` makes it: {reason(error)}"
                ) from error
            if table is self.version and (found is None or found[0] != VERSION):
                said = "says no version" if found is None else f"is of version {found[0]}"
                raise ConfigurationError(
                    f"table {table.fullname!r} of {database} {said}, and this version of rabbitevents needs {VERSION}: bring "
                    f"the tables up to date (`{make}` has them all)"
                )


def _ordered(table: Table) -> list[Index]:
    return sorted(table.indexes, key=lambda index: str(index.name))


def where(engine: AsyncEngine | Engine) -> str:
    """Name a database for errors, without a password."""
    return engine.url.render_as_string(hide_password=True)
