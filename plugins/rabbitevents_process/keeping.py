"""The rows of one process's lives: each is made, locked and written in the transaction of the event that is handled."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Boolean, bindparam, case, delete, func, literal, null, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from rabbitevents_process.life import Life, Pending
from rabbitevents_process.tables import ProcessTables
from rabbitevents_sql import at

PATIENCE: Final = 5.0
"""Seconds that an event waits for another one of the same process; then it fails, and is tried again."""

PURGED: Final = 5_000
"""How many rows are deleted at a time."""

_WAIT: Final = text(f"SELECT set_config('lock_timeout', '{PATIENCE:g}s', true)")


class Keeping:
    """Keeps the lives of one process, by key.

    :param tables: Where they are.
    :param process: The process's name.
    """

    def __init__(self, tables: ProcessTables, process: str) -> None:
        self._table = table = tables.process
        self._process = process
        row = table.c
        this = (row.process == process, row.key == bindparam("which"))
        self._locking = (
            select(row.state, row.schema_version, row.timeouts, row.done_at.is_not(None)).where(*this).with_for_update()
        )
        self._writing = (
            update(table)
            .where(*this)
            .values(
                state=bindparam("body"),
                schema_version=bindparam("version"),
                timeouts=bindparam("waiting"),
                started_at=case((bindparam("anew", type_=Boolean), func.now()), else_=row.started_at),
                changed_at=func.now(),
                done_at=case((bindparam("ended", type_=Boolean), func.now()), else_=null()),
            )
        )
        made: dict[str, Any] = {
            "process": process,
            "key": bindparam("which"),
            "state": b"",
            "schema_version": 0,
            "timeouts": b"{}",
        }
        self._making: Mapping[str, Any] = {
            name: insert(table).values(made).on_conflict_do_nothing().returning(literal(1))
            for name, insert in (("postgresql", insert_postgresql), ("sqlite", insert_sqlite))
        }

    async def begin(self, session: AsyncSession, key: str) -> Life | None:
        """Lock a life, and return it; None where there was none, and there is a row now."""
        connection = await _patient(session)
        making = self._making[connection.dialect.name]
        while True:  # a row that is in the way may be forgotten until it is looked for
            if (await connection.execute(making, {"which": key})).first() is not None:
                return None
            if (life := await self._locked(connection, key)) is not None:
                return life

    async def take(self, session: AsyncSession, key: str) -> Life | None:
        """Lock a life, and return it; None where there is none."""
        return await self._locked(await _patient(session), key)

    async def _locked(self, connection: AsyncConnection, key: str) -> Life | None:
        found = (await connection.execute(self._locking, {"which": key})).first()
        if found is None:
            return None
        body, version, timeouts, ended = found
        return Life(bytes(body), version, read_timeouts(timeouts), bool(ended))

    async def write(self, session: AsyncSession, key: str, life: Life, *, anew: bool) -> None:
        """Write a life that is locked; ``anew``, as one that begins now."""
        values = {
            "which": key,
            "body": life.body,
            "version": life.version,
            "waiting": msgspec.json.encode(life.timeouts),
            "ended": life.ended,
            "anew": anew,
        }
        await (await session.connection()).execute(self._writing, values)

    async def forget(self, engine: AsyncEngine, keep: timedelta) -> int:
        """Delete some of those that ended longer ago than ``keep``; return how many."""
        row = self._table.c
        old = (
            select(row.process, row.key)
            .where(row.process == self._process, row.done_at < at(-keep.total_seconds()))
            .limit(PURGED)
        )
        async with engine.begin() as connection:
            done = await connection.execute(delete(self._table).where(tuple_(row.process, row.key).in_(old)))
            return done.rowcount


def read_timeouts(document: bytes) -> dict[str, Pending]:
    """Return what a row says that a process waits for."""
    return msgspec.json.decode(bytes(document), type=dict[str, Pending])


async def _patient(session: AsyncSession) -> AsyncConnection:
    """Return the connection of a transaction, which waits for a lock as long as `PATIENCE` says.

    SQLite locks the whole database, for as long as its ``busy_timeout`` says.
    """
    connection = await session.connection()
    if connection.dialect.name == "postgresql":
        await connection.execute(_WAIT)
    return connection
