"""What the relay asks of its tables, each one statement: leases, rows, marks."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    CursorResult,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import any_ as any_of
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.base import Executable

from rabbitevents import facts
from rabbitevents_outbox.rows import Row
from rabbitevents_outbox.tables import Tables
from rabbitevents_sql import age, at, backend_of, now, turn_of

DEADLINE: Final = 10.0
"""Seconds that a statement may take."""

COUNTED: Final = 10_000
"""Up to how many rows are counted: a backlog that is larger needs no exact number, and a count has to read them all."""

PURGED: Final = 5_000
"""How many rows are deleted at a time, of those that were kept long enough."""


_OLDEST: Final = func.txid_snapshot_xmin(func.txid_current_snapshot(), type_=BigInteger)
_NEXT: Final = func.txid_snapshot_xmax(func.txid_current_snapshot(), type_=BigInteger)


def _before(transaction: ColumnElement[int]) -> ColumnElement[bool]:
    """Say that a row was written by a transaction before another one: of its number a row keeps 32 bits, which go round."""
    written_by = cast(cast(literal_column("xmin"), Text), BigInteger)
    return (written_by - transaction).op("&")(literal_column("4294967295")) >= literal_column("2147483648")


class Lease(msgspec.Struct, frozen=True):
    """A shard that is ours: marks carry its ``epoch``, and so come to nothing once the shard is another relay's."""

    shard: int
    epoch: int
    until: float
    """Until when we may send, on the event loop's clock: reckoned from before the database was asked."""


class Shards:
    """The outbox's tables, as one relay uses them: each call is one statement, committed by itself."""

    def __init__(self, engine: AsyncEngine, tables: Tables, lease: float) -> None:
        self.me: UUID = uuid4()
        self.name: str = tables.outbox.name
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._turn = turn_of(engine)
        self._tables = tables
        self._rows = tables.outbox.c
        self._lease = lease
        self._is_postgresql = backend_of(engine) == "postgresql"
        self._reading: dict[tuple[bool, bool, bool], Executable] = {}
        self._marking: dict[bool, Executable] = {}

    async def _execute(self, statement: Executable, values: Any = None) -> CursorResult[Any]:
        async with self._turn, asyncio.timeout(DEADLINE), self._engine.connect() as connection:
            return await connection.execute(statement, values)

    # --- leases ---

    async def make(self, shards: int) -> None:
        """Make the rows of the leases that are missing."""
        insert = insert_postgresql if self._is_postgresql else insert_sqlite
        values = [{"shard": shard} for shard in range(shards)]
        await self._execute(insert(self._tables.lease).on_conflict_do_nothing(), values)

    async def acquire(self, held: Iterable[int] = ()) -> Lease | None:
        """Take one shard that is nobody's, or was ours before and is not ``held`` now; None where there is none."""
        lease = self._tables.lease
        is_free = and_(or_(lease.c.until < now(), lease.c.owner == self.me), lease.c.shard.not_in(list(held)))
        free = select(lease.c.shard).where(is_free).order_by(lease.c.shard).limit(1)
        taken = (
            update(lease)
            .where(lease.c.shard == free.with_for_update(skip_locked=True).scalar_subquery(), is_free)
            .values(owner=self.me, epoch=lease.c.epoch + 1, until=at(self._lease))
            .returning(lease.c.shard, lease.c.epoch)
        )
        asked = asyncio.get_running_loop().time()
        found = (await self._execute(taken)).first()
        return None if found is None else Lease(found.shard, found.epoch, asked + self._lease)

    async def renew(self, held: Lease) -> Lease | None:
        """Keep a shard for another while; None where it is another relay's already."""
        lease = self._tables.lease
        asked = asyncio.get_running_loop().time()
        kept = update(lease).where(self._is_ours(held)).values(until=at(self._lease))
        done = (await self._execute(kept)).rowcount
        return Lease(held.shard, held.epoch, asked + self._lease) if done else None

    async def release(self, held: Lease) -> None:
        """Let another relay have a shard at once."""
        await self._execute(update(self._tables.lease).where(self._is_ours(held)).values(owner=None, until=now()))

    def _is_ours(self, held: Lease) -> ColumnElement[bool]:
        lease = self._tables.lease.c
        return and_(lease.shard == held.shard, lease.owner == self.me, lease.epoch == held.epoch)

    # --- rows ---

    async def read(
        self, shard: int, *, after: int, ended: int | None, limit: int, known: Collection[int], full: Collection[str]
    ) -> tuple[list[Row], int]:
        """Return rows to be sent, in order, with an id above ``after``; and the oldest transaction that was writing.

        With ``ended``, they are of transactions before that one: whatever appeared since is left out.

        Left out are those that are ``known``, those of entities that are ``full``, those that wait for their next try, and
        those of an entity of which an earlier row has failed.
        """
        values: dict[str, Any] = {"shard": shard, "after": after, "limit": limit}
        values |= {} if ended is None else {"ended": ended}
        values |= {"known": list(known)} if known else {}
        values |= {"full": list(full)} if full else {}
        now = asyncio.get_running_loop().time()
        found: list[Any] = list(
            await self._execute(self._statement(bool(known), bool(full), ended is not None), values)
        )
        read: list[tuple[Any, ...]] = [(*each[1:-1], now - each[-1]) for each in found]
        return [Row(*each) for each in read], found[0][0] if found else 0

    def _statement(self, known: bool, full: bool, ended: bool) -> Executable:
        made = self._reading.get((known, full, ended))
        if made is None:
            made = self._reading[known, full, ended] = self._reads(known, full, ended)
        return made

    def _reads(self, known: bool, full: bool, ended: bool) -> Executable:
        row = self._rows
        earlier = self._tables.outbox.alias("earlier").c
        held = exists().where(
            earlier.entity == row.entity, earlier.id < row.id, earlier.attempts > 0, earlier.sent_at.is_(None)
        )
        wanted = [
            row.shard == bindparam("shard"),
            row.sent_at.is_(None),
            row.dead_at.is_(None),
            row.id > bindparam("after"),
            or_(row.next_try_at.is_(None), row.next_try_at <= now()),
            or_(row.entity.is_(None), ~held),
        ]
        if known:
            wanted.append(~self._among(row.id, "known"))
        if full:
            wanted.append(or_(row.entity.is_(None), ~self._among(row.entity, "full")))
        if ended and self._is_postgresql:
            wanted.append(_before(bindparam("ended", type_=BigInteger)))
        columns = [row[name] for name in Row.__struct_fields__[:-1]]
        oldest = select(_OLDEST if self._is_postgresql else literal(0)).scalar_subquery()  # once, and not for each row
        return select(oldest, *columns, age(row.created_at)).where(*wanted).order_by(row.id).limit(bindparam("limit"))

    def _among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """Say that a column is one of several: an array where there are some, so that one statement serves any number."""
        if self._is_postgresql:
            return column == any_of(bindparam(name, type_=ARRAY(column.type)))
        return column.in_(bindparam(name, expanding=True))

    async def transactions(self) -> tuple[int, int]:
        """Return the oldest transaction that writes, and the first that has not begun. SQLite has but one at a time."""
        if not self._is_postgresql:
            return 0, 0
        found = (await self._execute(select(_OLDEST.label("oldest"), _NEXT.label("next_one")))).one()
        return found.oldest, found.next_one

    async def holds_back(self, shard: int) -> bool:
        """Say whether a row has failed and is not sent yet."""
        row = self._rows
        failed = exists().where(row.shard == shard, row.attempts > 0, row.sent_at.is_(None))
        return bool((await self._execute(select(failed))).scalar())

    async def done(self, held: Lease, ids: Sequence[int], keep: timedelta | None) -> int:
        """Mark rows as sent, if the shard is still ours; return how many were marked."""
        made = self._marking.get(keep is not None)
        if made is None:
            made = self._marking[keep is not None] = self._marks(keeping=keep is not None)
        values = {"ids": list(ids), "held_shard": held.shard, "held_epoch": held.epoch}
        return (await self._execute(made, values)).rowcount

    def _marks(self, *, keeping: bool) -> Executable:
        table, lease = self._tables.outbox, self._tables.lease.c
        ours = exists().where(
            lease.shard == bindparam("held_shard"), lease.owner == self.me, lease.epoch == bindparam("held_epoch")
        )
        which = and_(self._among(self._rows.id, "ids"), ours)
        return update(table).where(which).values(sent_at=now()) if keeping else delete(table).where(which)

    async def failed(self, held: Lease, row: Row, error: str, *, pause: float, dead: bool) -> int:
        """Note that a row has failed by itself, and when it is tried again; return 0 where the shard is not ours."""
        column = self._rows
        values = {
            column.attempts: column.attempts + 1,
            column.last_error: error,
            column.next_try_at: at(pause),
            column.dead_at: now() if dead else None,
        }
        which = and_(column.id == row.id, exists().where(self._is_ours(held)))
        return (await self._execute(update(self._tables.outbox).where(which).values(values))).rowcount

    async def purge(self, keep: timedelta) -> int:
        """Delete some of the rows that were sent longer than ``keep`` ago; return how many."""
        row, table = self._rows, self._tables.outbox
        old = select(row.id).where(row.sent_at < at(-keep.total_seconds())).order_by(row.id).limit(PURGED)
        return (await self._execute(delete(table).where(row.id.in_(old)))).rowcount

    async def backlog(self, shards: Iterable[int]) -> facts.Backlog:
        """Count what is to be sent, and what is dead."""
        row = self._rows
        todo = and_(row.shard.in_(list(shards)), row.sent_at.is_(None), row.dead_at.is_(None))
        few = select(row.id).where(todo).limit(COUNTED).subquery()
        oldest = select(age(row.created_at)).where(todo).order_by(row.id).limit(1).scalar_subquery()
        dead = select(func.count()).where(row.attempts > 0, row.sent_at.is_(None), row.dead_at.is_not(None))
        pending = select(func.count()).select_from(few).scalar_subquery()
        found = (
            await self._execute(
                select(pending.label("pending"), oldest.label("lag"), dead.scalar_subquery().label("dead"))
            )
        ).one()
        return facts.Backlog(self._tables.outbox.name, found.pending, max(0.0, float(found.lag or 0.0)), found.dead)
