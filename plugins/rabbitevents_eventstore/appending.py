"""Appending: events become rows of an entity, under the version that the caller has seen."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from rabbitevents import ConfigurationError
from rabbitevents.arguments import whole
from rabbitevents_eventstore.errors import ConcurrencyError, entity
from rabbitevents_eventstore.tables import EventTables

Database: TypeAlias = AsyncSession | AsyncConnection
"""What a transaction is under way on."""


LAST: Final = 2**63 - 1
"""The last number that a version or a position can be."""


class _Expected(Enum):
    NEW = "new"
    ANY = "any"


NEW: Final = _Expected.NEW
"""The entity has no events yet."""

ANY: Final = _Expected.ANY
"""Whatever the entity's version is: the events are appended behind what is there."""

Expected: TypeAlias = int | Literal[_Expected.NEW, _Expected.ANY]
"""At which version an entity must be for events to be appended: a number, `NEW` (which is 0), or `ANY`."""


class ConflictError(Exception):
    """The entity was not at the version that was expected, or an event's id is there already."""


class Ledger:
    """The rows of one table, written and counted. It decides nothing: the table's two unique keys do."""

    def __init__(self, tables: EventTables) -> None:
        self._table = tables.events
        column, before = tables.events.c, tables.events.alias("before").c
        there = select(before.version).where(
            before.entity_type == bindparam("its_type"),
            before.entity_id == bindparam("its_id"),
            before.version == bindparam("behind"),
        )
        self._written = insert(self._table).returning(column.position, sort_by_parameter_order=True)
        self._next = (
            insert(self._table)
            .values({column.version: there.scalar_subquery() + 1})
            .returning(column.position, sort_by_parameter_order=True)
        )
        """Writes one event behind the version that is expected: where that is not there, it has none, which no row may."""

    async def version(self, session: Database, entity_type: str, entity_id: str) -> int:
        """Return at which version an entity is; 0 without events."""
        column = self._table.c
        found = select(func.max(column.version)).where(column.entity_type == entity_type, column.entity_id == entity_id)
        return (await session.execute(found)).scalar() or 0

    async def base(self, session: Database, entity_type: str, entity_id: str, expected: int | None) -> int:
        """Return behind which version to append. Raises `ConflictError` where the expected one is not there yet.

        That somebody has appended behind it is for the unique key to say: a version that is there stays.
        """
        if expected == 0:
            return 0
        actual = await self.version(session, entity_type, entity_id)
        if expected is None:
            return actual
        if actual != expected:
            raise ConflictError
        return expected

    async def insert(self, session: Database, rows: Sequence[dict[str, Any]]) -> list[int]:
        """Write rows; return their positions, in their order. Raises SQLAlchemy's ``IntegrityError`` for a conflict."""
        return list((await session.execute(self._written, rows)).scalars())

    async def insert_next(self, session: Database, row: dict[str, Any], behind: int) -> list[int]:
        """Write one row behind a version, in one statement; return its position. Raises as `insert` does."""
        asked = {"its_type": row["entity_type"], "its_id": row["entity_id"], "behind": behind}
        told = {name: value for name, value in row.items() if name != "version"}
        return list((await session.execute(self._next, [{**told, **asked}])).scalars())

    async def same(
        self, session: Database, entity_type: str, entity_id: str, ids: Sequence[UUID]
    ) -> list[tuple[int, int]]:
        """Return positions and versions of events that are there already, in their order; nothing if none of them is.

        Raises `ConfigurationError` where some are there and others not, or elsewhere, or in another order.
        """
        column = self._table.c
        found = (
            select(column.event_id, column.position, column.version, column.entity_type, column.entity_id)
            .where(column.event_id.in_(ids))
            .order_by(column.position)
        )
        rows = (await session.execute(found)).all()
        if not rows:
            return []
        for row in rows:
            if (row.entity_type, row.entity_id) != (entity_type, entity_id):
                raise ConfigurationError(
                    f"append: the id {row.event_id} is that of an event of {entity(row.entity_type, row.entity_id)} already"
                )
        if [row.event_id for row in rows] != list(ids):
            raise ConfigurationError(
                f"append: of {len(ids)} events of {entity(entity_type, entity_id)}, {len(rows)} were appended before, and not "
                "together with the others in this order: append the same ones again, or new ones"
            )
        return [(row.position, row.version) for row in rows]


def version_of(expected: object) -> int | None:
    """Return the version that is expected: 0 for a new entity, None for any."""
    if expected is NEW:
        return 0
    if expected is ANY:
        return None
    return whole("append: expected", expected, least=0, most=LAST, why="or NEW, or ANY")


def conflict(entity_type: str, entity_id: str, expected: int | None, actual: int) -> ConcurrencyError:
    """Return what is raised for a conflict."""
    return ConcurrencyError(entity_type, entity_id, expected=expected, actual=actual)
