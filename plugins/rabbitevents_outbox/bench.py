"""What people do with rows by hand: count them, look at one, send it again, or give it up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, and_, case, delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import ConfigurationError, DecodeError, decode_properties
from rabbitevents_outbox.outbox import Outbox
from rabbitevents_outbox.tables import Tables
from rabbitevents_sql import reason, where


class Which(msgspec.Struct, frozen=True):
    """Which rows are meant: by their numbers, or all that are dead; of one type, if that is said."""

    ids: tuple[int, ...] = ()
    dead: bool = False
    kind: str | None = None


class Group(msgspec.Struct, frozen=True):
    """Rows that are alike: how many, since when, and the first one's number."""

    type: str
    state: str
    error: str
    count: int
    oldest: datetime
    first: int

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can say."""
        return {**msgspec.structs.asdict(self), "oldest": self.oldest.isoformat()}


class Kept(msgspec.Struct, frozen=True):
    """One row."""

    id: int
    shard: int
    entity: str | None
    event_id: UUID
    type: str
    exchange: str | None
    routing_key: str
    properties: bytes
    body: bytes
    delay_ms: int | None
    created_at: datetime
    attempts: int
    next_try_at: datetime | None
    last_error: str | None
    dead_at: datetime | None
    sent_at: datetime | None

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield what is to be seen of it, but for the body."""
        for name, value in msgspec.structs.asdict(self).items():
            if name not in ("properties", "body") and value is not None:
                yield name.replace("_", " "), str(value)
        yield from self.headers().items()

    def headers(self) -> dict[str, str]:
        """Return properties and headers as texts; what cannot be read of them is said so."""
        try:
            properties = decode_properties(self.properties)
            named = {name: getattr(properties, name) for name in ("content_type", "correlation_id", "app_id")}
            headers = {f"header {name}": value for name, value in dict(properties.headers).items()}
        except DecodeError as error:
            return {"properties": f"unreadable: {error}"}
        return {name.replace("_", " "): str(value) for name, value in {**named, **headers}.items() if value is not None}

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can say; the body as text, with escapes for what is no UTF-8."""
        plain = {name: str(value) for name, value in self.lines()}
        return {**plain, "id": self.id, "body": self.body.decode("utf-8", "backslashreplace")}


class Bench:
    """The rows of an outbox, for people. Raises `ConfigurationError` for a database that cannot be used."""

    def __init__(self, engine: AsyncEngine, tables: Tables) -> None:
        self._engine = engine
        self._table = tables.outbox

    @staticmethod
    def of(outbox: Outbox) -> Bench:
        """Return the bench of an outbox."""
        return Bench(outbox.engine, outbox.tables)

    async def groups(self) -> list[Group]:
        """Count the rows that are not sent, by type, state and error."""
        row = self._table.c
        state = case((row.dead_at.is_not(None), "dead"), (row.attempts > 0, "failed"), else_="waiting").label("state")
        error = func.coalesce(row.last_error, "").label("error")
        counted = (
            select(row.type, state, error, func.count(), func.min(row.created_at), func.min(row.id))
            .where(row.sent_at.is_(None))
            .group_by(row.type, state, error)
            .order_by(func.min(row.id))
        )
        return [Group(*each) for each in await self._read(counted)]

    async def row(self, id: int) -> Kept | None:
        """Return a row; None where there is none of that number."""
        columns = [self._table.c[name] for name in Kept.__struct_fields__]
        found = await self._read(select(*columns).where(self._table.c.id == id))
        return Kept(*found[0]) if found else None

    async def count(self, which: Which) -> int:
        """Count the rows that are meant."""
        return int((await self._read(select(func.count()).where(self._meant(which))))[0][0])

    async def retry(self, which: Which) -> int:
        """Let rows be sent as if they had never failed; return how many."""
        new = {"attempts": 0, "next_try_at": None, "last_error": None, "dead_at": None}
        return await self._write(update(self._table).where(self._meant(which)).values(new))

    async def drop(self, which: Which) -> int:
        """Delete rows; return how many."""
        return await self._write(delete(self._table).where(self._meant(which)))

    def _meant(self, which: Which) -> ColumnElement[bool]:
        row = self._table.c
        wanted: list[ColumnElement[bool]] = [row.sent_at.is_(None)]
        if which.ids:
            wanted.append(row.id.in_(which.ids))
        if which.dead:
            wanted.append(row.dead_at.is_not(None))
        if which.kind is not None:
            wanted.append(row.type == which.kind)
        return and_(*wanted)

    async def _read(self, statement: Any) -> list[Any]:
        try:
            async with self._engine.connect() as connection:
                return list(await connection.execute(statement))
        except (SQLAlchemyError, OSError) as error:
            raise self._unusable(error) from error
        finally:
            await self._engine.dispose()

    async def _write(self, statement: Any) -> int:
        try:
            async with self._engine.begin() as connection:
                return (await connection.execute(statement)).rowcount
        except (SQLAlchemyError, OSError) as error:
            raise self._unusable(error) from error
        finally:
            await self._engine.dispose()

    def _unusable(self, error: BaseException) -> ConfigurationError:
        return ConfigurationError(f"table {self._table.fullname!r} of {where(self._engine)}: {reason(error)}")
