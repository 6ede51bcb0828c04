"""What people look at: which processes run, since when nothing has happened to them, and what they wait for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import Bus, ConfigurationError
from rabbitevents_outbox import Outbox
from rabbitevents_process.keeping import read_timeouts
from rabbitevents_process.process import Process
from rabbitevents_sql import at, reason, where


class Seen(msgspec.Struct, frozen=True):
    """One process, as it is in the database."""

    process: str
    key: str
    version: int
    started_at: datetime
    changed_at: datetime
    done_at: datetime | None
    timeouts: dict[str, datetime]
    """When each is due, by the clock of whoever set it."""
    state: Any
    """The document, as it was written; None where it ended before it had one."""

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can say."""
        return {name: msgspec.to_builtins(value) for name, value in msgspec.structs.asdict(self).items()}


class Lookout:
    """The processes of a bus, for people. Raises `ConfigurationError` for a bus without any, or without an outbox.

    :param bus: The bus, which does not run.
    :param reference: How it is called in errors.
    """

    def __init__(self, bus: Bus, reference: str) -> None:
        self.processes: Sequence[Process] = [each for each in bus.routers if isinstance(each, Process)]
        if not self.processes:
            raise ConfigurationError(f"{reference} has no Process(...) among its routers")
        engine = next((plugin.engine for plugin in bus.plugins if isinstance(plugin, Outbox)), None)
        if engine is None:
            raise ConfigurationError(f"{reference} has no Outbox() among its plugins, whose database has the processes")
        self._engine: AsyncEngine = engine

    def named(self, name: str) -> Process:
        """Return a process of the bus. Raises `ConfigurationError`."""
        for each in self.processes:
            if each.name == name:
                return each
        there = ", ".join(each.name for each in self.processes)
        raise ConfigurationError(f"the bus has no process {name[:40]!r}; it has {there}")

    async def running(self, names: Sequence[str], older: timedelta, limit: int) -> list[Seen]:
        """Return those that run and to which nothing has happened for so long, what is longest ago first.

        :param names: Of which processes; of all, where there are none.
        :param older: For how long.
        :param limit: How many at most.
        """
        found: list[Seen] = []
        for process in [self.named(name) for name in names] or self.processes:
            row = process.tables.process.c
            still = and_(row.done_at.is_(None), row.changed_at <= at(-older.total_seconds()))
            found += await self._read(process, still, limit)
        return sorted(found, key=lambda each: each.changed_at)[:limit]

    async def one(self, name: str, key: str) -> Seen | None:
        """Return one process, be it that it has ended; None where there is none."""
        process = self.named(name)
        found = await self._read(process, process.tables.process.c.key == key, 1)
        return found[0] if found else None

    async def _read(self, process: Process, those: ColumnElement[bool], limit: int) -> list[Seen]:
        table = process.tables.process
        statement = (
            select(table).where(table.c.process == process.name, those).order_by(table.c.changed_at).limit(limit)
        )
        try:
            async with self._engine.connect() as connection:
                return [_seen(row) for row in (await connection.execute(statement)).mappings()]
        except (SQLAlchemyError, OSError) as error:
            raise ConfigurationError(f"table {table.fullname!r} of {where(self._engine)}: {reason(error)}") from error
        finally:
            await self._engine.dispose()


def _seen(row: Any) -> Seen:
    return Seen(
        row["process"],
        row["key"],
        row["schema_version"],
        _aware(row["started_at"]),
        _aware(row["changed_at"]),
        None if row["done_at"] is None else _aware(row["done_at"]),
        {name: each.due for name, each in read_timeouts(row["timeouts"]).items()},
        msgspec.json.decode(bytes(row["state"]))["state"] if row["state"] else None,
    )


def _aware(at: datetime) -> datetime:
    """Return a moment in UTC: SQLite keeps no time zone."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
