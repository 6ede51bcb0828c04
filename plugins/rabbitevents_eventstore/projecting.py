"""Applying events to a projection's tables: a page of them in one transaction, together with how far it is then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any, Final

from sqlalchemy import ExceptionContext, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from rabbitevents_eventstore.checkpoints import Checkpoints, Hold
from rabbitevents_eventstore.fresh import Row
from rabbitevents_eventstore.projection import Projection
from rabbitevents_eventstore.reading import Page
from rabbitevents_eventstore.stored import Shelf
from rabbitevents_sql import backend_of, turn_of

PAGE: Final = 500
"""How many events are applied in one transaction, at most."""

BOX: Final = 1.0
"""Seconds that a transaction may go on, about: one that is long keeps others waiting, and is much to repeat."""

GAP: Final = 0.2
"""For what part of a transaction's time SQLite is then left to others: who waits for its one lock only looks now and then,
each 0.1 s at last, and would never find it free between two transactions."""

_PASSING: Final = frozenset({"08", "40", "53", "55", "57"})
"""PostgreSQL's classes of errors that say nothing of an event: of the connection, deadlocks, resources, locks, a shutdown."""

_BUSY: Final = ("database is locked", "database table is locked")
"""What SQLite says where somebody else writes for too long."""

_FAILED: Final = "rabbitevents_projection_failed"
"""Where a connection notes that a statement has failed on it, be it that the projection goes on: PostgreSQL answers the
COMMIT of such a transaction with a ROLLBACK, and without an error."""

_LOOK: Final = text("SELECT 1")

Transaction = Callable[[], AbstractAsyncContextManager[AsyncConnection]]
"""Begins a transaction in which the projection's tables are those that are meant."""


def _note(context: ExceptionContext) -> None:
    if context.connection is not None and not context.connection.invalidated:
        context.connection.info[_FAILED] = True


class LostError(Exception):
    """The row is not ours any more, or not where we left it: nothing was written."""


class FailedError(Exception):
    """An event cannot be applied. ``row`` is the event's; the cause is why."""

    def __init__(self, row: Row) -> None:
        super().__init__(row["event_id"])
        self.row = row


def is_passing(error: BaseException) -> bool:
    """Say whether an error is the database's, and will pass: it says nothing of the event that met it."""
    if isinstance(error, DBAPIError):
        state = str(getattr(error.orig, "sqlstate", None) or "")
        return error.connection_invalidated or state[:2] in _PASSING or any(said in str(error.orig) for said in _BUSY)
    return isinstance(error, (PoolTimeoutError, ConnectionError))


class Projector:
    """Applies pages to one projection's tables.

    :param projection: The projection.
    :param shelf: Makes events of rows.
    :param checkpoints: Where it is kept how far it is.
    :param transaction: Begins what a page is applied in.
    :param engine: Where that is.
    :param stopping: Says whether to come to an end.
    """

    def __init__(
        self,
        projection: Projection,
        shelf: Shelf,
        checkpoints: Checkpoints,
        transaction: Transaction,
        engine: AsyncEngine,
        stopping: Callable[[], bool],
    ) -> None:
        self.size: int = PAGE
        """How many events the next page is to have, at most."""
        self._projection = projection
        self._shelf = shelf
        self._checkpoints = checkpoints
        self._transaction = transaction
        if not event.contains(engine.sync_engine, "handle_error", _note):
            event.listen(engine.sync_engine, "handle_error", _note)
        self._turn = turn_of(engine)
        self._gap = GAP if backend_of(engine) == "sqlite" else 0.0
        self._stopping = stopping

    async def advance(self, hold: Hold, position: int, page: Page) -> int:
        """Apply a page, or as much of it as there is time for; return how far it is.

        Raises `FailedError`, after all before the event have been applied; `LostError`; and what `is_passing`.
        """
        try:
            return await self._commit(hold, position, page)
        except Exception as error:
            # Whatever it is that a projection raises: it is found out which event it is.
            if not page.rows or isinstance(error, LostError) or is_passing(error):
                raise
        for row in page.rows:
            if self._stopping():
                return position
            try:
                position = await self._commit(hold, position, Page([row], row["position"]))
            except Exception as error:
                # Once more, and by itself: so it is this one.
                if isinstance(error, LostError) or is_passing(error):
                    raise
                raise FailedError(row) from error
        return position

    async def _commit(self, hold: Hold, position: int, page: Page) -> int:
        async with self._turn, self._transaction() as connection:
            began = monotonic()
            reached = page.upto
            if not await self._checkpoints.move(connection, hold, position, reached):
                raise LostError
            done = await self.apply(connection, page.rows)
            if done < len(page.rows):  # there was no more time
                reached = page.rows[done - 1]["position"]
                await self._checkpoints.move(connection, hold, page.upto, reached)
        if self._gap:
            await asyncio.sleep((monotonic() - began) * self._gap)
        return reached

    async def apply(self, connection: AsyncConnection, rows: Sequence[Row]) -> int:
        """Apply rows in the transaction that is under way, those that there is time for; return how many."""
        if not rows:
            return 0
        connection.info.pop(_FAILED, None)
        # The projection's own commit() comes to nothing: its writes stay with how far it is.
        async with AsyncSession(connection, join_transaction_mode="rollback_only", expire_on_commit=False) as session:
            try:
                done = await (self._batch if self._projection.is_batch else self._each)(session, rows)
                await session.flush()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                raise RuntimeError("it raised CancelledError, and nobody has cancelled it") from error
        if _FAILED in connection.info:
            await connection.execute(_LOOK)
        return done

    async def _each(self, session: AsyncSession, rows: Sequence[Row]) -> int:
        given, function, stored = self._projection.given, self._projection.function, self._shelf.stored
        until = monotonic() + BOX
        done = 0
        for row in rows:
            await function(given(stored(row)), session)
            done += 1
            if monotonic() > until or self._stopping():
                break
        return done

    async def _batch(self, session: AsyncSession, rows: Sequence[Row]) -> int:
        given, stored = self._projection.given, self._shelf.stored
        events: list[Any] = [given(stored(row)) for row in rows]
        began = monotonic()
        await self._projection.function(events, session)
        seconds = monotonic() - began
        if seconds > BOX:
            self.size = max(1, len(rows) // 2)
        elif seconds < BOX / 4:
            self.size = min(PAGE, self.size * 2)
        return len(rows)
