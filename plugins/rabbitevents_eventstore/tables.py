"""The tables of an event store, and the trigger that they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    event,
    text,
)

from rabbitevents import ConfigurationError
from rabbitevents_sql import VersionedTables, backend_of, where

LOCK: Final = 1919902574
"""The first half of the advisory lock that each append has; the table's oid is the second one."""

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


class EventTables(VersionedTables):
    """Where a store has its events.

    With Alembic, ``target_metadata = [Base.metadata, EventTables().metadata]``; on PostgreSQL the migration needs the
    trigger too, which stands in `sql`.

    :param prefix: What the tables' names begin with.
    :param schema: The PostgreSQL schema that they are in; by default the connection's own.
    :param metadata: The SQLAlchemy metadata that they are added to; by default one of their own.
    """

    number: ClassVar[int] = 2
    added: ClassVar[Mapping[int, Sequence[str]]] = MappingProxyType({2: ("snapshots",)})
    noted_in: ClassVar[str] = "events_version"
    made_by: ClassVar[str] = "EventTables(...).sql({backend!r})"
    said_as: ClassVar[str] = "says version"

    def __init__(
        self, prefix: str = "rabbitevents_", *, schema: str | None = None, metadata: MetaData | None = None
    ) -> None:
        super().__init__(prefix, schema=schema, metadata=metadata)
        self.events: Table = self._events()
        """What happened, in the order in which it was written."""
        self.projections: Table = self._projections()
        """How far projections are: a row for each, and another one while it is built anew."""
        self.snapshots: Table = self._snapshots()
        """What entities' events come to. Rows may be deleted at any time."""
        event.listen(self.events, "after_create", self._created)

    def _events(self) -> Table:
        name = f"{self.prefix}events"
        return self._table(
            "events",
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
            sqlite_autoincrement=True,
        )

    def _projections(self) -> Table:
        return self._table(
            "projections",
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
        )

    def _snapshots(self) -> Table:
        return self._table(
            "snapshots",
            Column("entity_type", Text, primary_key=True),
            Column("entity_id", Text, primary_key=True),
            Column("mark", Text, primary_key=True),
            Column("version", BigInteger, nullable=False),
            Column("event_id", Uuid, nullable=False),
            Column("state", LargeBinary, nullable=False),
            Column("taken_at", DateTime(timezone=True), nullable=False),
        )

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

    def _besides(self, dialect: Dialect) -> Sequence[str]:
        return self._triggers() if dialect.name == "postgresql" else ()

    def check(self, connection: Connection, *tables: Table) -> None:
        """Raise `ConfigurationError`, which says the way out, where the tables are missing, or not as they must be.

        :param connection: One to the store's database.
        :param tables: Tables that are needed besides that of the events.
        """
        super().check(connection, self.events, *tables)
        if backend_of(connection.engine) == "postgresql":
            told = {"table": connection.dialect.identifier_preparer.format_table(self.events)}
            if not connection.scalar(_TRIGGERED, {**told, "name": self.trigger}):
                raise ConfigurationError(
                    f"table {self.events.fullname!r} of {where(connection.engine)} has no trigger {self.trigger}, or it is "
                    f"off, and without it readers would pass events over; {self._way_out(connection)} has what makes it"
                )

    def _name(self, what: str, value: object, *, such_as: str, most: int) -> str:
        """Return a name that stands in SQL as it is: it is part of a function's and a trigger's."""
        said = super()._name(what, value, such_as=such_as, most=min(most, 40))
        if not said.isidentifier() or not said.isascii() or said != said.lower():
            raise ConfigurationError(
                f"{what} is no plain name: say small letters, digits and underscores, such as {such_as!r}"
            )
        return said
