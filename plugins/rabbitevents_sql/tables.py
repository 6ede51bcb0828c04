"""Tables as SQLAlchemy metadata: for `create`, for Alembic, and as plain SQL; and a row that says their version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final

from sqlalchemy import (
    Column,
    Connection,
    Dialect,
    Index,
    Insert,
    Integer,
    MetaData,
    Table,
    Update,
    insert,
    select,
    update,
)
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

    added: ClassVar[Mapping[int, Sequence[str]]] = MappingProxyType({})
    """Which tables came with a version, as they are called behind the prefix, where nothing else did: `sql` leads there."""

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

    def sql(self, backend: Backend, *, since: int = 0) -> str:
        """Return what makes the tables, as SQL.

        :param backend: "postgresql" or "sqlite".
        :param since: The version that the tables are of already, to which what is missing is added; 0: there are none.

        Raises `ConfigurationError` for a version from which no addition of tables leads to this one.
        """
        one_of(f"{type(self).__name__}.sql: backend", backend, Backend)
        dialect = _DIALECTS[backend].dialect()
        if since:
            version: Insert | Update = update(self.version).values(version=self.number)
            return self._statements(dialect, self._since(since), [], version)
        version = insert(self.version).values(version=self.number)
        return self._statements(dialect, self.all, self._besides(dialect), version)

    def _since(self, version: int) -> Sequence[Table]:
        """Return the tables that came after a version."""
        after = range(version + 1, self.number + 1)
        if not after or any(each not in self.added for each in after):
            raise ConfigurationError(
                f"{type(self).__name__}.sql: from version {version} nothing leads to version {self.number}"
            )
        names = {self.prefix + name for each in after for name in self.added[each]}
        return [table for table in self.all if table.name in names]

    def _statements(
        self, dialect: Dialect, tables: Sequence[Table], besides: Sequence[str], version: Insert | Update
    ) -> str:
        made: list[CreateTable | CreateIndex] = []
        for table in tables:
            indexes = sorted(table.indexes, key=lambda index: str(index.name))
            made += [CreateTable(table), *map(CreateIndex, indexes)]
        statements = [str(each.compile(dialect=dialect)).strip() for each in made]
        noted = str(version.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        return "".join(f"{statement};\n\n" for statement in (*statements, *besides, noted))

    async def create(self, engine: AsyncEngine) -> None:
        """Make the tables that are missing: for tests and first steps; a service has them made by its migrations.

        :param engine: An engine for PostgreSQL or SQLite.
        """
        async with engine.begin() as connection:
            await connection.run_sync(self._create)

    def _create(self, connection: Connection) -> None:
        self.metadata.create_all(connection, tables=self.all, checkfirst=True)
        found = connection.scalar(select(self.version.c.version))
        if found is None:
            connection.execute(insert(self.version).values(version=self.number))
        elif all(each in self.added for each in range(found + 1, self.number + 1)):
            connection.execute(
                update(self.version).where(self.version.c.version < self.number).values(version=self.number)
            )

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
                f"{self.number}: bring the tables up to date ({self._way_on(connection, found)})"
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

    def _way_on(self, connection: Connection, found: Any) -> str:
        if isinstance(found, int) and all(
            each in self.added for each in range(found + 1, max(found + 2, self.number + 1))
        ):
            return f"{type(self).__name__}(...).sql({backend_of(connection.engine)!r}, since={found}) leads there"
        return f"{self._way_out(connection)} has them all"

    def _way_out(self, connection: Connection) -> str:
        return self.made_by.format(backend=backend_of(connection.engine))
