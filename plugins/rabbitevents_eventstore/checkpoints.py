"""How far projections are, as rows: each call is one statement, and those that must hold with a page are in its transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final, Literal, cast
from uuid import UUID

import msgspec
from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Executable,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.dml import ReturningUpdate

from rabbitevents_eventstore.tables import EventTables
from rabbitevents_sql import at, backend_of, now

DEADLINE: Final = 10.0
"""Seconds that a statement may take: a row that a page is being applied with is waited for."""

Status = Literal["running", "paused", "stopped"]
"""What a projection does: it goes on, or somebody has paused it, or an event has stopped it."""

RUNNING: Final[Status] = "running"
PAUSED: Final[Status] = "paused"
STOPPED: Final[Status] = "stopped"


class Hold(msgspec.Struct, frozen=True):
    """That a projection's row is ours to move: of one owner at a time, by a lease on the database's clock."""

    name: str
    version: int
    owner: UUID
    building: bool = False


class Checkpoint(msgspec.Struct, frozen=True):
    """How far a projection is, and what it does. ``building``: it is the one that is made beside the one that is read."""

    name: str
    building: bool
    version: int
    position: int
    status: Status
    owner: UUID | None
    failed_event: UUID | None
    error: str | None
    is_held: bool
    """Whether some process has it at this moment."""


def standing(found: Checkpoint, version: int) -> str:
    """Say why a projection stands, for code of a version; empty: it does not."""
    if found.version != version:
        way_out = (
            "`rabbitevents projection rebuild` builds this one beside it"
            if found.version < version
            else "this process has older code"
        )
        return f"version {found.version} is live, and version {version} does nothing: {way_out}"
    if found.status == STOPPED:
        event = "" if found.failed_event is None else f" before event {found.failed_event}"
        return f"stopped{event}: {found.error}; `rabbitevents projection retry` or `skip`"
    return "paused; `rabbitevents projection resume`" if found.status == PAUSED else ""


class Checkpoints:
    """The rows of all projections of a store.

    :param engine: The store's.
    :param tables: The store's.
    :param lease: Seconds for which a row is its owner's who does not renew that.
    """

    def __init__(self, engine: AsyncEngine, tables: EventTables, lease: float = 30.0) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._table = tables.projections
        self._column = tables.projections.c
        self._events = tables.events.c
        self._lease = lease
        self._is_sqlite = backend_of(engine) == "sqlite"
        self._moving = self._moves()

    async def _execute(self, statement: Executable) -> CursorResult[Any]:
        async with asyncio.timeout(DEADLINE), self._engine.connect() as connection:
            return cast("CursorResult[Any]", await connection.execute(statement))

    def _insert(self) -> Any:
        return (insert_sqlite if self._is_sqlite else insert_postgresql)(self._table)

    # --- whose it is ---

    async def make(self, name: str, version: int) -> None:
        """Make a projection's row, at the beginning, where there is none."""
        values = {"name": name, "building": False, "version": version, "position": 0, "status": RUNNING}
        await self._execute(self._insert().values(**values, updated_at=now()).on_conflict_do_nothing())

    async def take(self, hold: Hold) -> int | None:
        """Take a row that is nobody's, if it is of our version and running; return how far it is."""
        column = self._column
        free = or_(column.owner.is_(None), column.until < now(), column.owner == hold.owner)
        taken = (
            update(self._table)
            .where(self._is_row(hold.name, hold.building), column.version == hold.version, free)
            .where(column.status == RUNNING)
            .values(owner=hold.owner, until=at(self._lease))
            .returning(column.position)
        )
        return cast("int | None", (await self._execute(taken)).scalar())

    async def keep(self, hold: Hold) -> bool:
        """Keep a row for another while; say whether it is still ours."""
        kept = update(self._table).where(self._is_ours(hold)).values(until=at(self._lease))
        return bool((await self._execute(kept)).rowcount)

    async def release(self, hold: Hold) -> None:
        """Let another process have a row at once."""
        await self._execute(update(self._table).where(self._is_ours(hold)).values(owner=None, until=None))

    def _is_row(self, name: str, building: bool) -> ColumnElement[bool]:
        return and_(self._column.name == name, self._column.building.is_(building))

    def _is_ours(self, hold: Hold) -> ColumnElement[bool]:
        column = self._column
        return and_(
            self._is_row(hold.name, hold.building),
            column.version == hold.version,
            column.owner == hold.owner,
            column.status == RUNNING,
        )

    # --- in a page's transaction ---

    async def move(self, connection: AsyncConnection, hold: Hold, old: int, new: int) -> bool:
        """Move a row from where it was, and keep others from it until the transaction ends; say whether it was there, and ours.

        It comes first in each transaction, so that nobody holds tables while waiting for the row.
        """
        which = {
            "its_name": hold.name,
            "is_building": hold.building,
            "its_version": hold.version,
            "its_owner": hold.owner,
        }
        return (await connection.execute(self._moving, {**which, "old": old, "new": new})).first() is not None

    def _moves(self) -> ReturningUpdate[Any]:
        """Return what each transaction of a projection begins with, made once.

        On PostgreSQL its commit does not wait for the disk: what a server that crashes has lost of it, rows and how far they
        are, is applied again.
        """
        column = self._column
        unhurried = func.set_config("synchronous_commit", "off", literal(True))
        return (
            update(self._table)
            .where(column.name == bindparam("its_name"), column.building == bindparam("is_building"))
            .where(column.version == bindparam("its_version"), column.owner == bindparam("its_owner"))
            .where(column.status == RUNNING, column.position == bindparam("old"))
            .values(position=bindparam("new"), until=at(self._lease), updated_at=now())
            .returning(column.position if self._is_sqlite else unhurried)
        )

    # --- what stops it ---

    async def stop(self, hold: Hold, failed_event: UUID | None, error: str) -> bool:
        """Note which event has stopped it, and why; say whether the row was ours."""
        values = {"status": STOPPED, "failed_event": failed_event, "error": error, "owner": None, "until": None}
        stopped = update(self._table).where(self._is_ours(hold)).values(**values, updated_at=now())
        return bool((await self._execute(stopped)).rowcount)

    async def turn(self, name: str, old: Status, new: Status) -> bool:
        """Let one that does this do that; say whether it did this."""
        turned = update(self._table).where(self._is_row(name, building=False), self._column.status == old)
        values = {"status": new, "failed_event": None, "error": None, "owner": None, "until": None}
        return bool((await self._execute(turned.values(**values, updated_at=now()))).rowcount)

    async def skip(self, name: str, event: UUID) -> bool:
        """Let one that an event has stopped go on behind it; say whether that event has."""
        position = select(self._events.position).where(self._events.event_id == event).scalar_subquery()
        values = {"status": RUNNING, "failed_event": None, "error": None, "position": position}
        stopped = and_(self._column.status == STOPPED, self._column.failed_event == event)
        skipped = update(self._table).where(self._is_row(name, building=False), stopped)
        return bool((await self._execute(skipped.values(**values, updated_at=now()))).rowcount)

    # --- looking ---

    async def read(self, names: Iterable[str] = ()) -> list[Checkpoint]:
        """Return the rows of some projections, or of all."""
        column = self._column
        fields = [column[name] for name in Checkpoint.__struct_fields__[:-1]]
        is_held = and_(column.owner.is_not(None), column.until >= now()).label("is_held")
        found = select(*fields, func.coalesce(is_held, False)).order_by(column.name, column.building)
        wanted = list(names)
        if wanted:
            found = found.where(column.name.in_(wanted))
        rows = cast("Iterable[tuple[Any, ...]]", await self._execute(found))
        return [Checkpoint(*row) for row in rows]

    async def live(self, name: str) -> Checkpoint | None:
        """Return the row of the projection that is read, if there is one."""
        return next((each for each in await self.read([name]) if not each.building), None)

    # --- one that is made beside it ---

    async def begin(self, hold: Hold) -> bool:
        """Begin to build one anew, from the beginning; False where another process is at it."""
        column = self._column
        values: dict[str, Any] = {"version": hold.version, "position": 0, "status": RUNNING, "failed_event": None}
        values |= {"error": None} | {"owner": hold.owner, "until": at(self._lease), "updated_at": now()}
        begun = (
            self._insert()
            .values(name=hold.name, building=True, **values)
            .on_conflict_do_update(
                index_elements=[column.name, column.building],
                set_=values,
                where=or_(column.owner.is_(None), column.until < now()),
            )
        )
        return bool((await self._execute(begun)).rowcount)

    async def lock_both(self, connection: AsyncConnection, hold: Hold) -> int | None:
        """Keep others from both rows; return how far the one is that is read, or None where the build is not ours."""
        ours = select(self._column.position).where(self._is_ours(hold)).with_for_update()
        if (await connection.execute(ours)).first() is None:
            return None
        live = select(self._column.position).where(self._is_row(hold.name, building=False)).with_for_update()
        return int((await connection.execute(live)).scalar_one())

    async def swap(self, connection: AsyncConnection, hold: Hold, position: int) -> None:
        """Let the row that is read say what was built, and how far that is; one that is paused stays so."""
        column = self._column
        status = case((column.status == STOPPED, RUNNING), else_=column.status)
        values: dict[str, Any] = {"version": hold.version, "position": position, "status": status}
        values |= {"failed_event": None, "error": None} | {"owner": None, "until": None, "updated_at": now()}
        await connection.execute(update(self._table).where(self._is_row(hold.name, building=False)).values(**values))
        await connection.execute(delete(self._table).where(self._is_ours(hold)))

    async def end(self, hold: Hold) -> None:
        """Forget one that was being built, if it is ours."""
        await self._execute(delete(self._table).where(self._is_ours(hold)))
