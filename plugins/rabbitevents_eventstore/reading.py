"""Reading: rows in the order of their positions, a page at a time, up to the watermark and never beyond it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents_eventstore.appending import Database
from rabbitevents_eventstore.errors import StoreRestoredError
from rabbitevents_eventstore.tables import EventTables
from rabbitevents_eventstore.watermark import OFTEN, SELDOM, Watermark

PAGE: Final = 1000
"""How many events are in memory at a time."""

REACH: Final = 50_000
"""How many positions one statement looks through for the types that are wanted: a rare one takes many short statements."""

Row: TypeAlias = Mapping[str, Any]
"""What a row says, by its columns' names."""


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
        self.watermark: Watermark = watermark

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
        rows = await self._page(self._between(position, upper, names, entity_type, limit), None)
        return Page(rows, rows[-1]["position"] if len(rows) == limit else upper)

    async def _follow(
        self, position: int, names: Sequence[str], entity_type: str | None, last: int | None
    ) -> AsyncGenerator[Row]:
        pause = OFTEN
        while last is None or position < last:
            page = await self.page(position, names, last=last, entity_type=entity_type)
            if page.upto == position:
                await self.watermark.rest(pause)
                pause = min(SELDOM, pause * 2)
                continue
            pause = OFTEN
            for row in page.rows:
                yield row
            position = page.upto

    def _between(
        self, position: int, upper: int, names: Sequence[str], entity_type: str | None, limit: int
    ) -> Select[Any]:
        column = self._table.c
        wanted = select(self._table).where(column.position > position, column.position <= upper, column.type.in_(names))
        if entity_type is not None:
            wanted = wanted.where(column.entity_type == entity_type)
        return wanted.order_by(column.position).limit(limit)

    async def _page(self, statement: Select[Any], session: Database | None) -> Sequence[Row]:
        if session is not None:
            return cast("Sequence[Row]", (await session.execute(statement)).mappings().all())
        async with self._engine.connect() as connection:
            return cast("Sequence[Row]", (await connection.execute(statement)).mappings().all())

    def _check(self, position: int) -> None:
        """Raise `StoreRestoredError` for a reader that has read what is not there."""
        last = self.watermark.last
        if last < max(position, self.watermark.value):
            raise StoreRestoredError(self._table.fullname, max(position, self.watermark.value), last)
