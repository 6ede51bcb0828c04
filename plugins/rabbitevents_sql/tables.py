"""Tables as SQLAlchemy metadata: for `create`, for Alembic, and as plain SQL; and a row that says their version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from sqlalchemy import Column, Connection, Dialect, Index, Integer, MetaData, Table, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateIndex, CreateTable

from rabbitevents import ConfigurationError
from rabbitevents.arguments import one_of, text
from rabbitevents_sql.databases import Backend, backend_of, reason, where

_DIALECTS: Final[dict[Backend, Any]] = {"postgresql": postgresql, "sqlite": sqlite}


class VersionedTables:
    """Where a plugin has its rows: tables, the first of which says the version that they are of.

    A plugin derives its own, says the three class variables, and makes its tables by `_table`.

    :param prefix: What the tables' names begin with.
    :param schema: The PostgreSQL schema that they are in; by default the connection's own.
    :param metadata: The SQLAlchemy metadata that they are added to; by default one of their own.
    """

    number: ClassVar[int]
    """The version that the code needs, which stands in the database: `check` compares it."""

    noted_in: ClassVar[str]
    """What the table is called, behind the prefix, that says the version."""

    made_by: ClassVar[str]
    """What makes the tables, as errors say it; ``{backend}`` is the database."""

    said_as: ClassVar[str] = "is of version"
    """How errors say the version that was found."""

    def __init__(
        self, prefix: str = "rabbitevents_", *, schema: str | None = None, metadata: MetaData | None = None
    ) -> None:
        ours = type(self).__name__
        self.prefix: str = self._name(f"{ours}: prefix", prefix, such_as="rabbitevents_", most=40)
        self.schema: str | None = (
            None if schema is None else self._name(f"{ours}: schema", schema, such_as="messaging", most=255)
        )
        self.metadata: MetaData = MetaData() if metadata is None else metadata
        self._made: list[Table] = []
        self.version: Table = self._table(
            self.noted_in, Column("version", Integer, primary_key=True, autoincrement=False)
        )

    def _name(self, what: str, value: object, *, such_as: str, most: int) -> str:
        """Return what is part of names in SQL. Raises `ConfigurationError` for what cannot be."""
        return text(what, value, such_as=such_as, most=most)

    def _table(self, name: str, *items: Any, **told: Any) -> Table:
        table = Table(self.prefix + name, self.metadata, *items, schema=self.schema, **told)
        self._made.append(table)
        return table

    def _index(self, name: str, *columns: Column[Any], where: Any) -> None:
        """Make an index of some rows."""
        Index(self.prefix + name, *columns, postgresql_where=where, sqlite_where=where)

    def _besides(self, dialect: Dialect) -> Sequence[str]:
        """Return what else makes the tables, as SQL that comes after them."""
        return ()

    @property
    def all(self) -> tuple[Table, ...]:
        """The tables, in the order of their making."""
        return tuple(self._made)

    def sql(self, backend: Backend) -> str:
        """Return what makes the tables, as SQL.

        :param backend: "postgresql" or "sqlite".
        """
        one_of(f"{type(self).__name__}.sql: backend", backend, Backend)
        dialect = _DIALECTS[backend].dialect()
        made: list[CreateTable | CreateIndex] = []
        for table in self.all:
            indexes = sorted(table.indexes, key=lambda index: str(index.name))
            made += [CreateTable(table), *map(CreateIndex, indexes)]
        statements = [str(each.compile(dialect=dialect)).strip() for each in made]
        version = insert(self.version).values(version=self.number)
        noted = str(version.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        return "".join(f"{statement};\n\n" for statement in (*statements, *self._besides(dialect), noted))

    async def create(self, engine: AsyncEngine) -> None:
        """Make the tables that are missing: for tests and first steps; a service has them made by its migrations.

        :param engine: An engine for PostgreSQL or SQLite.
        """
        async with engine.begin() as connection:
            await connection.run_sync(self._create)

    def _create(self, connection: Connection) -> None:
        self.metadata.create_all(connection, tables=self.all, checkfirst=True)
        if connection.scalar(select(self.version.c.version)) is None:
            connection.execute(insert(self.version).values(version=self.number))

    def check(self, connection: Connection, *tables: Table) -> None:
        """Raise `ConfigurationError`, which says the way out, where the tables are missing, or of another version.

        :param connection: One to the database that they are in.
        :param tables: Those that are needed, besides the one that says the version.
        """
        found = self._read(connection, self.version, 1)
        if found != self.number:
            said = "says no version" if found is None else f"{self.said_as} {found}"
            raise ConfigurationError(
                f"table {self.version.fullname!r} of {where(connection.engine)} {said}, and this version of rabbitevents needs "
                f"{self.number}: bring the tables up to date ({self._way_out(connection)} has them all)"
            )
        for table in tables:
            self._read(connection, table, 0)  # its columns alone

    def _read(self, connection: Connection, table: Table, rows: int) -> Any:
        """Return what the first column of a table has, in its first row, if that is asked for."""
        try:
            return connection.scalar(select(table).limit(rows))
        except SQLAlchemyError as error:
            raise ConfigurationError(
                f"table {table.fullname!r} of {where(connection.engine)} cannot be read; {self._way_out(connection)} makes it: "
                f"{reason(error)}"
            ) from error

    def _way_out(self, connection: Connection) -> str:
        return self.made_by.format(backend=backend_of(connection.engine))
