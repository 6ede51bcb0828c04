"""The tables, as SQLAlchemy metadata: for `create`, for Alembic, and as plain SQL. And the trigger that they need."""

from __future__ import annotations

from typing import Any, Final, Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Engine,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateTable

from rabbitevents import ConfigurationError, arguments
from rabbitevents.texts import text_of

Backend = Literal["postgresql", "sqlite"]
"""The databases whose SQL is known here."""

VERSION: Final = 1
"""The tables' version, which stands in the database: `EventTables.check` compares it."""

LOCK: Final = 1919902574
"""The first half of the advisory lock that each append has; the table's oid is the second one."""

_DIALECTS: Final[dict[Backend, Any]] = {"postgresql": postgresql, "sqlite": sqlite}

_FUNCTION: Final = (
    "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    f"PERFORM pg_advisory_xact_lock_shared({LOCK}, TG_RELID::int); RETURN NULL; END $$"
)
_TRIGGER: Final = "CREATE TRIGGER {trigger} BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
_VACUUM: Final = (
    "ALTER TABLE {table} SET (autovacuum_vacuum_insert_scale_factor = 0.05)"  # SQLAlchemy 2.0 has no word for it
)
_TRIGGERED: Final = text(
    "SELECT count(*) FROM pg_trigger WHERE tgrelid = CAST(:table AS regclass) AND tgname = :name AND tgenabled IN ('O', 'A')"
)


class EventTables:
    """Where a store has its events.

    With Alembic, ``target_metadata = [Base.metadata, EventTables().metadata]``; on PostgreSQL the migration needs the
    trigger too, which stands in `sql`.

    :param prefix: What the tables' names begin with.
    :param schema: The PostgreSQL schema that they are in; by default the connection's own.
    :param metadata: The SQLAlchemy metadata that they are added to; by default one of their own.
    """

    def __init__(
        self, prefix: str = "rabbitevents_", *, schema: str | None = None, metadata: MetaData | None = None
    ) -> None:
        self.prefix: str = _name("EventTables: prefix", prefix, "rabbitevents_")
        self.schema: str | None = None if schema is None else _name("EventTables: schema", schema, "events")
        self.metadata: MetaData = MetaData() if metadata is None else metadata
        self.events: Table = self._events()
        """What happened, in the order in which it was written."""
        self.version: Table = Table(
            f"{prefix}events_version",
            self.metadata,
            Column("version", Integer, primary_key=True, autoincrement=False),
            schema=schema,
        )
        self.projections: Table = self._projections()
        """How far projections are: a row for each, and another one while it is built anew."""
        event.listen(self.events, "after_create", self._created)

    def _events(self) -> Table:
        name = f"{self.prefix}events"
        return Table(
            name,
            self.metadata,
            Column("position", BigInteger().with_variant(Integer, "sqlite"), Identity(always=True), primary_key=True),
            Column("entity_type", Text, nullable=False),
            Column("entity_id", Text, nullable=False),
            Column("version", BigInteger, CheckConstraint("version > 0", name=f"{name}_counts"), nullable=False),
            Column("event_id", Uuid, nullable=False),
            Column("type", Text, nullable=False),
            Column("schema_version", Integer, nullable=False),
            Column("timestamp", DateTime(timezone=True), nullable=False),
            Column("metadata", LargeBinary, nullable=False),
            Column("body", LargeBinary, nullable=False),
            UniqueConstraint("entity_type", "entity_id", "version", name=f"{name}_version_key"),
            UniqueConstraint("event_id", name=f"{name}_event_id_key"),
            schema=self.schema,
            sqlite_autoincrement=True,
        )

    def _projections(self) -> Table:
        return Table(
            f"{self.prefix}projections",
            self.metadata,
            Column("name", Text, primary_key=True),
            Column("building", Boolean, primary_key=True),
            Column("version", Integer, nullable=False),
            Column("position", BigInteger, nullable=False),
            Column("status", Text, nullable=False),
            Column("owner", Uuid),
            Column("until", DateTime(timezone=True)),
            Column("failed_event", Uuid),
            Column("error", Text),
            Column("updated_at", DateTime(timezone=True), nullable=False),
            schema=self.schema,
        )

    @property
    def all(self) -> tuple[Table, ...]:
        """The tables, in the order of their making."""
        return self.version, self.events, self.projections

    @property
    def trigger(self) -> str:
        """The name of the trigger that takes an append's lock, and of its function."""
        return f"{self.prefix}appending"

    def _triggers(self) -> list[str]:
        schema = "" if self.schema is None else f'"{self.schema}".'
        names = {
            "{function}": f"{schema}{self.trigger}",
            "{trigger}": self.trigger,
            "{table}": f"{schema}{self.events.name}",
        }
        statements = [_FUNCTION, _TRIGGER, _VACUUM]
        for word, name in names.items():
            statements = [each.replace(word, name) for each in statements]
        return statements

    def _created(self, _table: Table, connection: Connection, **_told: Any) -> None:
        if connection.dialect.name == "postgresql":
            for statement in self._triggers():
                connection.exec_driver_sql(statement)

    def sql(self, backend: Backend) -> str:
        """Return what makes the tables, as SQL.

        :param backend: "postgresql" or "sqlite".
        """
        arguments.one_of("EventTables.sql: backend", backend, Backend)
        dialect = _DIALECTS[backend].dialect()
        version = insert(self.version).values(version=VERSION)
        statements = [CreateTable(table).compile(dialect=dialect) for table in self.all]
        triggers = self._triggers() if backend == "postgresql" else []
        made = [str(each).strip() for each in statements]
        made += triggers
        made.append(str(version.compile(dialect=dialect, compile_kwargs={"literal_binds": True})))
        return "".join(f"{statement};\n\n" for statement in made)

    async def create(self, engine: AsyncEngine) -> None:
        """Make the tables that are missing: for tests and first steps; a service has them made by its migrations.

        :param engine: An engine for PostgreSQL or SQLite.
        """
        async with engine.begin() as connection:
            await connection.run_sync(self._create)

    def _create(self, connection: Connection) -> None:
        self.metadata.create_all(connection, tables=self.all, checkfirst=True)
        if connection.scalar(select(self.version.c.version)) is None:
            connection.execute(insert(self.version).values(version=VERSION))

    def check(self, connection: Connection, *others: Table) -> None:
        """Raise `ConfigurationError`, which says the way out, where the tables are missing, or not as they must be.

        :param connection: One to the store's database.
        :param others: Tables that are needed besides that of the events.
        """
        database = where(connection.engine)
        backend = backend_of(connection.engine)
        way_out = f"EventTables(...).sql({backend!r}) has what makes it"
        try:
            found = connection.scalar(select(self.version.c.version))
            for table in (self.events, *others):
                connection.execute(select(table).limit(0))
        except SQLAlchemyError as error:
            named = " and ".join(repr(table.fullname) for table in (self.events, *others, self.version))
            raise ConfigurationError(
                f"the tables {named} of {database} cannot be read; {way_out}: {reason(error)}"
            ) from error
        if found != VERSION:
            raise ConfigurationError(
                f"table {self.version.fullname!r} of {database} says version {found}, and this version of rabbitevents needs "
                f"{VERSION}: bring the tables up to date"
            )
        if backend == "postgresql":
            told = {"table": connection.dialect.identifier_preparer.format_table(self.events)}
            if not connection.scalar(_TRIGGERED, {**told, "name": self.trigger}):
                raise ConfigurationError(
                    f"table {self.events.fullname!r} of {database} has no trigger {self.trigger}, or it is off, and "
                    f"without it readers would pass events over; {way_out}"
                )


def _name(what: str, value: object, such_as: str) -> str:
    """Return a name that stands in SQL as it is: it is part of a function's and a trigger's."""
    said = arguments.text(what, value, such_as=such_as, most=40)
    if not said.isidentifier() or not said.isascii() or said != said.lower():
        raise ConfigurationError(
            f"{what} is no plain name: say small letters, digits and underscores, such as {such_as!r}"
        )
    return said


def backend_of(engine: AsyncEngine | Engine) -> Backend:
    """Return which database an engine leads to. Raises `ConfigurationError` for one that is not known here."""
    name = engine.dialect.name
    if name not in ("postgresql", "sqlite"):
        raise ConfigurationError(f"the engine leads to {name}: an event store is on PostgreSQL or SQLite")
    return "postgresql" if name == "postgresql" else "sqlite"


def reason(error: BaseException) -> str:
    """Say why a database did not do as it was told, in a line without values and statements."""
    said = text_of(getattr(error, "orig", None) or error).strip().splitlines()
    return said[0][:200] if said else type(error).__name__


def where(engine: AsyncEngine | Engine) -> str:
    """Name a database for errors, without a password."""
    return engine.url.render_as_string(hide_password=True)
