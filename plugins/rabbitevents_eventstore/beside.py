"""Tables beside those that are read, filled by the same statements, which then take their place in one transaction.

On PostgreSQL they are in a schema of their own, first on the search path of a page's transaction. On SQLite they are temporary
ones, which stand before others of their name on the connection that they were made on. So statements need not be rewritten,
written by hand or not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Index, MetaData, Table, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable
from sqlalchemy.sql import quoted_name

from rabbitevents import ConfigurationError
from rabbitevents_eventstore.tables import EventTables
from rabbitevents_sql import backend_of, turn_of

LOCKING: Final = "2s"
"""For how long a swap waits for those who read: behind it, others who read wait for it."""

_PATH: Final = text(
    "SELECT set_config('search_path', :first || ', ' || current_setting('search_path'), true)"
).bindparams(bindparam("first"))
_LOCKING: Final = text(f"SET LOCAL lock_timeout = '{LOCKING}'")
_SCHEMA: Final = text(
    "SELECT coalesce((SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.oid = to_regclass(:name)), current_schema())"
)
_GRANTS: Final = text(
    "SELECT a.privilege_type, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, "
    "a.is_grantable FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass(:name)"
)


class Beside(Protocol):
    """Where a projection is built anew."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Return what makes the tables, empty; and drops what is left of them, at the end."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Return a transaction in which the projection's tables are these."""
        ...

    async def swap(self, connection: AsyncConnection) -> None:
        """Let them take the place of those that are read, in the transaction that is under way."""
        ...


def beside(engine: AsyncEngine, tables: EventTables, its: tuple[Table, ...]) -> Beside:
    """Return where a projection can be built that has these tables."""
    if backend_of(engine) == "postgresql":
        return _InSchema(engine, f"{tables.prefix}building", its)
    return _Temporary(engine, its)


def copies(engine: AsyncEngine, its: tuple[Table, ...], schema: str, *, others: str | None = None) -> list[Table]:
    """Return tables as they are in another schema, in the order of their making.

    Their indexes are called as they were. What else they refer to stays where it is, or is said to be in ``others``.
    """
    metadata = MetaData(naming_convention=its[0].metadata.naming_convention)

    def place(_table: Table, _to: str | None, constraint: Any, referred: str | None) -> str | None:
        return schema if constraint.referred_table in its else others or referred

    for other in {key.column.table for table in its for key in table.foreign_keys} - set(its):
        if others is None:
            other.to_metadata(metadata)
        else:
            other.to_metadata(metadata, schema=others)
    made = [table.to_metadata(metadata, schema=schema, referred_schema_fn=place) for table in its]
    for old, new in zip(its, made, strict=True):
        names = {_key(index): engine.dialect.identifier_preparer.format_index(index) for index in old.indexes}
        for index in new.indexes:
            index.name = quoted_name(names[_key(index)].strip('"'), quote=None)
    return [table for table in metadata.sorted_tables if table in made]


def _key(index: Index) -> tuple[str, ...]:
    """Return what tells an index from others of its table: what is generated for a name says the schema too."""
    return ("unique" if index.unique else "", *(str(each).rpartition(".")[2] for each in index.expressions))


class _InSchema:
    """PostgreSQL: a table keeps its indexes, constraints and sequences when it changes its schema."""

    def __init__(self, engine: AsyncEngine, schema: str, its: tuple[Table, ...]) -> None:
        self._engine = engine
        self._schema = schema
        self._its = its
        self._copies = copies(engine, its, schema)
        self._format = engine.dialect.identifier_preparer.format_table
        self._translated: dict[str | None, str | None] = {
            table.schema: schema for table in its if table.schema is not None
        }
        """Tables whose statements say a schema are not found on a path."""
        self._homes: dict[str, str] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        async with self._engine.begin() as connection:
            await connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
            await connection.run_sync(self._drop)
            await connection.run_sync(self._copies[0].metadata.create_all, tables=self._copies)
            for table in self._its:
                home = await connection.scalar(_SCHEMA, {"name": self._format(table)})
                self._homes[table.name] = str(table.schema or home)
        try:
            yield
        finally:
            async with self._engine.begin() as connection:
                await connection.run_sync(self._drop)

    def _drop(self, connection: Connection) -> None:
        for table in reversed(self._copies):
            connection.execute(DropTable(table, if_exists=True))

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        engine = self._engine
        if self._translated:
            engine = engine.execution_options(schema_translate_map=self._translated)
        async with engine.begin() as connection:
            await connection.execute(_PATH, {"first": self._schema})
            yield connection

    async def swap(self, connection: AsyncConnection) -> None:
        await connection.execute(_LOCKING)
        quoted = self._engine.dialect.identifier_preparer.quote
        for table in reversed(self._copies):
            home = f"{quoted(self._homes[table.name])}.{quoted(table.name)}"
            for what, whom, grantable in (await connection.execute(_GRANTS, {"name": home})).all():
                option = " WITH GRANT OPTION" if grantable else ""
                await connection.exec_driver_sql(f"GRANT {what} ON {self._format(table)} TO {whom}{option}")
            await connection.exec_driver_sql(f"DROP TABLE IF EXISTS {home}")
        for table in self._copies:
            home = quoted(self._homes[table.name])
            await connection.exec_driver_sql(f"ALTER TABLE {self._format(table)} SET SCHEMA {home}")


class _Temporary:
    """SQLite: temporary tables, whose rows are copied at the end; they live as long as their connection."""

    def __init__(self, engine: AsyncEngine, its: tuple[Table, ...]) -> None:
        if isinstance(engine.pool, StaticPool):
            raise ConfigurationError(
                "rebuild: this SQLite has one connection, in memory, and what is built needs one of its own: use a file"
            )
        self._engine = engine
        self._copies = copies(engine, its, "temp")
        self._new = copies(engine, its, "main", others="main")
        self._connection: AsyncConnection | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        connection = await self._engine.connect()
        try:
            async with turn_of(self._engine), connection.begin():
                await connection.run_sync(self._copies[0].metadata.create_all, tables=self._copies, checkfirst=False)
            self._connection = connection
            yield
        finally:
            self._connection = None
            await connection.invalidate()  # with its temporary tables
            await connection.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        connection = self._connection
        if connection is None:
            raise RuntimeError("it is not open")
        async with connection.begin():
            yield connection

    async def swap(self, connection: AsyncConnection) -> None:
        for table in reversed(self._new):
            await connection.execute(DropTable(table, if_exists=True))
        for table in self._new:
            await connection.execute(CreateTable(table))
            kept = ", ".join(f'"{column.name}"' for column in table.columns if column.computed is None)
            await connection.exec_driver_sql(
                f'INSERT INTO main."{table.name}" ({kept}) SELECT {kept} FROM temp."{table.name}"'  # noqa: S608
            )
            for index in sorted(table.indexes, key=lambda each: str(each.name)):
                await connection.execute(CreateIndex(index))
