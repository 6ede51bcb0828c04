"""Reading: rows in the order of their positions, a page at a time, up to the watermark and never beyond it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import Integer, Select, bindparam, literal, select
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents_eventstore.appending import Database
from rabbitevents_eventstore.errors import StoreRestoredError
from rabbitevents_eventstore.fresh import Fresh, Row
from rabbitevents_eventstore.tables import EventTables
from rabbitevents_eventstore.watermark import OFTEN, SELDOM, Watermark

PAGE: Final = 1000
"""How many events are in memory at a time."""

REACH: Final = 50_000
"""How many positions one statement looks through for the types that are wanted: a rare one takes many short statements."""


class Page(NamedTuple):
    """Some rows, and up to where there are no others of those that are asked for.

    ``upto`` is where the page was to begin if nothing behind that is decided yet.
    """

    rows: Sequence[Row]
    upto: int


class Reader:
    """Reads rows of one table.

    :param engine: The store's, by which each statement is a transaction: no snapshot stays open between two pages.
    :param tables: The store's.
    :param watermark: Up to where it may read.
    """

    def __init__(self, engine: AsyncEngine, tables: EventTables, watermark: Watermark) -> None:
        self._engine = engine
        self._table = tables.events
        self._pages: dict[tuple[tuple[str, ...], bool], Select[Any]] = {}
        self.watermark: Watermark = watermark
        self.fresh: Fresh = Fresh()
        """What was appended here, for those who follow here."""

    def committed(self, rows: Sequence[Row], positions: Sequence[int]) -> None:
        """Take note of rows that this process has committed."""
        if self.watermark.committed(positions[0], positions[-1], len(positions)):
            self.fresh.add(positions[0], [{**row, "position": at} for row, at in zip(rows, positions, strict=True)])

    async def load(self, entity_type: str, entity_id: str, after: int, session: Database | None) -> AsyncGenerator[Row]:
        """Yield the rows of an entity behind a version, in their order."""
        column = self._table.c
        while True:
            rows = await self._page(
                select(self._table)
                .where(column.entity_type == entity_type, column.entity_id == entity_id, column.version > after)
                .order_by(column.version)
                .limit(PAGE),
                session,
            )
            for row in rows:
                yield row
                after = row["version"]
            if len(rows) < PAGE:
                return

    async def until(self, position: int, names: Sequence[str], entity_type: str | None) -> AsyncGenerator[Row]:
        """Yield what was committed behind ``position`` when the first row is asked for, and then end.

        An append that is open at that moment may turn out to lie in between, and is waited for.
        """
        await self.watermark.look()
        self._check(position)
        last = self.watermark.last
        async for row in self._follow(position, names, entity_type, last):
            yield row

    async def live(self, position: int, names: Sequence[str], entity_type: str | None) -> AsyncGenerator[Row]:
        """Yield what is behind ``position``, and what comes, without an end."""
        async for row in self._follow(position, names, entity_type, None):
            yield row

    async def page(
        self,
        position: int,
        names: Sequence[str],
        *,
        last: int | None = None,
        limit: int = PAGE,
        entity_type: str | None = None,
    ) -> Page:
        """Return what comes next behind ``position``, ``limit`` rows at most; it waits for nothing.

        Raises `StoreRestoredError` where ``position`` is more than there is.
        """
        if position >= self.watermark.value:
            await self.watermark.look()
            self._check(position)
        if position >= self.watermark.value:
            return Page((), position)
        upper = min(position + REACH, self.watermark.value, self.watermark.value if last is None else last)
        fresh = self.fresh.between(position, upper)
        if fresh is not None:
            rows: Sequence[Row] = [
                row
                for row in fresh
                if row["type"] in names and (entity_type is None or row["entity_type"] == entity_type)
            ][:limit]
        else:
            rows = await self._stored(position, upper, names, entity_type, limit)
        return Page(rows, rows[-1]["position"] if len(rows) == limit else upper)

    async def _follow(
        self, position: int, names: Sequence[str], entity_type: str | None, last: int | None
    ) -> AsyncGenerator[Row]:
        pause = OFTEN
        while last is None or position < last:
            waking = self.watermark.waking
            page = await self.page(position, names, last=last, entity_type=entity_type)
            if page.upto == position:
                await self.watermark.rest(waking, pause)
                pause = min(SELDOM, pause * 2)
                continue
            pause = OFTEN
            for row in page.rows:
                yield row
            position = page.upto

    async def _stored(
        self, position: int, upper: int, names: Sequence[str], entity_type: str | None, limit: int
    ) -> Sequence[Row]:
        told: dict[str, Any] = {"behind": position, "upto": upper, "most": limit}
        if entity_type is not None:
            told["its_type"] = entity_type
        return await self._page(self._between(tuple(names), "its_type" in told), None, told)

    def _between(self, names: tuple[str, ...], entity_type: bool) -> Select[Any]:
        """Return what reads a page, made once for the types that are asked for."""
        made = self._pages.get((names, entity_type))
        if made is None:
            column = self._table.c
            made = select(self._table).where(
                column.position > bindparam("behind"),
                column.position <= bindparam("upto"),
                column.type.in_([literal(name) for name in names]),
            )
            if entity_type:
                made = made.where(column.entity_type == bindparam("its_type"))
            made = made.order_by(column.position).limit(bindparam("most", type_=Integer))
            self._pages[names, entity_type] = made
        return made

    async def _page(
        self, statement: Select[Any], session: Database | None, told: Mapping[str, Any] | None = None
    ) -> Sequence[Row]:
        if session is not None:
            return cast("Sequence[Row]", (await session.execute(statement, told)).mappings().all())
        async with self._engine.connect() as connection:
            return cast("Sequence[Row]", (await connection.execute(statement, told)).mappings().all())

    def _check(self, position: int) -> None:
        """Raise `StoreRestoredError` for a reader that has read what is not there."""
        last = self.watermark.last
        if last < max(position, self.watermark.value):
            raise StoreRestoredError(self._table.fullname, max(position, self.watermark.value), last)
