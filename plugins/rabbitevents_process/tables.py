"""The table of processes, as SQLAlchemy metadata: for `create`, for Alembic, and as plain SQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    insert,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateIndex, CreateTable

from rabbitevents import ConfigurationError
from rabbitevents.arguments import one_of, text
from rabbitevents.texts import cut, printable

VERSION: Final = 1
"""The table's version, which stands in the database: `ProcessTables.check` compares it."""

Backend = Literal["postgresql", "sqlite"]
"""The databases whose SQL is known here."""

_DIALECTS: Final[dict[Backend, Any]] = {"postgresql": postgresql, "sqlite": sqlite}


class ProcessTables:
    """Where processes have their state.

    ::

        fulfilment = Process("fulfilment", Fulfilment, key="order_id", tables=ProcessTables(schema="messaging"))

    With Alembic, ``target_metadata = [Base.metadata, tables.metadata]``.

    :param prefix: What the tables' names begin with.
    :param schema: The PostgreSQL schema that they are in; by default the connection's own.
    :param metadata: The SQLAlchemy metadata that they are added to; by default one of their own.
    """

    def __init__(
        self, prefix: str = "rabbitevents_", *, schema: str | None = None, metadata: MetaData | None = None
    ) -> None:
        self.prefix: str = text("ProcessTables: prefix", prefix, such_as="rabbitevents_", most=40)
        self.schema: str | None = None if schema is None else text("ProcessTables: schema", schema, such_as="messaging")
        self.metadata: MetaData = MetaData() if metadata is None else metadata
        self.process: Table = self._process()
        """Each process that runs, and for a time each that has ended."""
        self.version: Table = Table(
            f"{prefix}process_version",
            self.metadata,
            Column("version", Integer, primary_key=True, autoincrement=False),
            schema=schema,
        )

    def _process(self) -> Table:
        table = Table(
            f"{self.prefix}process",
            self.metadata,
            Column("process", Text, primary_key=True),
            Column("key", Text, primary_key=True),
            Column("state", LargeBinary, nullable=False),
            Column("schema_version", Integer, nullable=False),
            Column("timeouts", LargeBinary, nullable=False),
            Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            Column("done_at", DateTime(timezone=True)),
            schema=self.schema,
        )
        row = table.c
        runs, ended = row.done_at.is_(None), row.done_at.is_not(None)
        for name, columns, those in (
            ("process_running", (row.process, row.changed_at), runs),  # which are stuck?
            ("process_ended", (row.process, row.done_at), ended),  # which are to be forgotten?
        ):
            Index(self.prefix + name, *columns, postgresql_where=those, sqlite_where=those)
        return table

    def sql(self, backend: Backend) -> str:
        """Return what makes the tables, as SQL.

        :param backend: "postgresql" or "sqlite".
        """
        one_of("ProcessTables.sql: backend", backend, Backend)
        dialect = _DIALECTS[backend].dialect()
        indexes = sorted(self.process.indexes, key=lambda index: str(index.name))
        made: list[CreateTable | CreateIndex] = [
            CreateTable(self.version),
            CreateTable(self.process),
            *map(CreateIndex, indexes),
        ]
        version = insert(self.version).values(version=VERSION)
        statements = [str(each.compile(dialect=dialect)).strip() for each in made]
        statements.append(str(version.compile(dialect=dialect, compile_kwargs={"literal_binds": True})))
        return "".join(f"{statement};\n\n" for statement in statements)

    async def create(self, engine: AsyncEngine) -> None:
        """Make the tables that are missing: for tests and first steps; a service has them made by its migrations.

        :param engine: An engine for PostgreSQL or SQLite.
        """
        async with engine.begin() as connection:
            await connection.run_sync(self._create)

    def _create(self, connection: Connection) -> None:
        self.metadata.create_all(connection, tables=[self.version, self.process], checkfirst=True)
        if connection.scalar(select(self.version.c.version)) is None:
            connection.execute(insert(self.version).values(version=VERSION))

    def check(self, connection: Connection) -> None:
        """Raise `ConfigurationError`, which says the way out, where the tables are missing, or of another version.

        :param connection: One to the database that they are in.
        """
        database = where(connection.engine)
        way_out = f"`rabbitevents sql print MODULE:BUS --dialect {connection.dialect.name}` has what makes it"
        try:
            found = connection.scalar(select(self.version.c.version))
            connection.execute(select(self.process).limit(0))
        except SQLAlchemyError as error:
            raise ConfigurationError(
                f"the tables {self.process.fullname!r} and {self.version.fullname!r} of {database} cannot be read; {way_out}: "
                f"{reason(error)}"
            ) from error
        if found != VERSION:
            raise ConfigurationError(
                f"table {self.version.fullname!r} of {database} says version {found}, and this version of rabbitevents needs "
                f"{VERSION}: bring the tables up to date"
            )


def reason(error: BaseException) -> str:
    """Say why a database did not do as it was told, in a line without values and statements."""
    said = str(getattr(error, "orig", None) or error).strip().splitlines()
    return printable(cut(said[0] if said else type(error).__name__, 200))


def where(engine: AsyncEngine | Engine) -> str:
    """Name a database for errors, without a password."""
    return engine.url.render_as_string(hide_password=True)


def moment(away: timedelta) -> datetime:
    """Return the moment that is so far from now, as the table has them, by this machine's clock."""
    return datetime.now(UTC) + away
