"""The watermark: up to which position everything is either committed or never will be.

A position is drawn when a row is written, and seen when its transaction commits: a reader that goes by what it sees passes
over what commits late. So each append holds a shared advisory lock from before it draws its first position until it has
ended (a trigger takes it), and a reader notes first the last position drawn, H, and then who holds the lock, S. Whoever has
drawn a position up to H is in S, or had ended. Once none of S is left, everything up to H is decided. Who came later has
positions above H, and is waited for by nobody. Nothing is passed over for the time that it takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

import msgspec
from sqlalchemy import TextClause, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rabbitevents import ConfigurationError, Fact
from rabbitevents_eventstore.tables import LOCK, EventTables
from rabbitevents_sql import backend_of, where

OFTEN: Final = 0.005
SELDOM: Final = 0.1
"""Seconds between two looks, at first and at last."""

PREFIX: Final = 1000
"""How many rows are looked at for holes in one look."""

_LOG: Final = logging.getLogger("rabbitevents.eventstore")

_HELD: Final = (
    "l.locktype = 'advisory' AND l.granted "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND l.classid = :lock AND l.objid = CAST(CAST(:table AS regclass) AS oid) AND l.objsubid = 2"
)
"""Which of the server's locks those are."""

_LOOK: Final = (
    "WITH drawn AS MATERIALIZED (SELECT last_value, is_called FROM {sequence}) "  # noqa: S608 - its own words
    "SELECT last_value, is_called, pg_is_in_recovery() AS replica, ARRAY(SELECT l.virtualtransaction FROM pg_locks l "
    "WHERE drawn.last_value > CAST(:known AS bigint) AND " + _HELD + ") AS owners FROM drawn"
)
"""Asks for H, and then for S: that is looked for with H in hand, which its condition needs, and not at all where H is known."""

_WHO: Final = text(
    "SELECT l.pid, a.application_name AS application FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid "  # noqa: S608
    "WHERE l.virtualtransaction = :owner AND " + _HELD
)

_SEQUENCE: Final = text("SELECT pg_get_serial_sequence(:table, 'position')")


class StoreHeldBack(Fact, frozen=True):
    """An append has been open for long, and readers wait at the position before it.

    ``pid`` is the PostgreSQL process that it is on, None for a prepared transaction (``pg_prepared_xacts`` has those);
    ``application`` what that calls itself; ``seconds`` for how long it has been waited for.
    """

    pid: int | None
    application: str
    seconds: float

    def describe(self) -> str:
        """Say it in a line, with the way out."""
        if self.pid is None:
            return f"a prepared transaction holds readers back for {self.seconds:.0f} s: commit it, or roll it back"
        return (
            f"PostgreSQL's process {self.pid} ({self.application or 'unnamed'}) has an append open and holds readers back for "
            f"{self.seconds:.0f} s: idle_in_transaction_session_timeout ends such transactions"
        )


class _Wait(msgspec.Struct):
    """A position that will be reached once the transactions that were open have ended."""

    last: int
    owners: frozenset[str]
    since: float
    said: bool = False


class Watermark:
    """Up to where all readers of a process may read. A look is one statement, made once for all of them.

    :param engine: The store's, by which each statement is a transaction.
    :param tables: The store's.
    :param patience: Seconds after which an append that is still open is said to hold readers back.
    :param report: Is told of an append that holds readers back.
    """

    def __init__(
        self, engine: AsyncEngine, tables: EventTables, patience: float, report: Callable[[StoreHeldBack], None]
    ) -> None:
        self.value: int = 0
        """Everything up to here is decided."""
        self.last: int = 0
        """The last position that was drawn, as far as is known."""
        self.held_back: StoreHeldBack | None = None
        """What holds readers back for long, at this moment."""
        self.news: int = 0
        """How often something was appended by this process, as far as is known."""
        self.waking: asyncio.Event = asyncio.Event()
        """Set once there is something to look for."""
        self._engine = engine
        self._table = tables.events
        self._named = engine.dialect.identifier_preparer.format_table(self._table)
        self._patience = patience
        self._report = report
        self._look = self._look_postgresql if backend_of(engine) == "postgresql" else self._look_sqlite
        self._asked: TextClause | None = None
        self._wait: _Wait | None = None
        self._turn = asyncio.Lock()
        self._looked = 0.0

    def committed(self, first: int, last: int, count: int) -> bool:
        """Take note of what this process has appended, from one position to another, and let those who rest look at once.

        Where it follows on what is decided it is decided itself, and nobody has to look for it: say whether it does.
        """
        follows = first == self.value + 1 and last - first < count
        self.news += 1
        self.last = max(self.last, last)
        if follows:
            self.value = last
        self.wake()
        return follows

    def wake(self) -> None:
        """Let those who rest look at once."""
        self.waking.set()
        self.waking = asyncio.Event()

    async def rest(self, waking: asyncio.Event, seconds: float) -> None:
        """Wait for what was `waking` before one looked, ``seconds`` at most: what came since then has set it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await waking.wait()

    async def look(self) -> None:
        """See how far it is, unless somebody has just seen. Raises what the database does."""
        asked = monotonic()
        async with self._turn:
            if self._looked >= asked:  # while this one waited for its turn
                return
            began = monotonic()
            async with self._engine.connect() as connection:
                await self._look(connection)
            self._looked = began

    async def _look_sqlite(self, connection: AsyncConnection) -> None:
        """One transaction writes at a time, so they commit in the order of their positions."""
        known = self.value
        self._drawn(await connection.scalar(select(func.coalesce(func.max(self._table.c.position), 0))) or 0, known)
        self.value = self.last

    async def _look_postgresql(self, connection: AsyncConnection) -> None:
        known, wait = self.value, self._wait
        last, owners = await self._last(connection, known if wait is None else -1)
        self._drawn(last, known)
        if wait is None and last <= self.value:
            return
        if wait is not None and not wait.owners & owners:
            self.value, self._wait = max(self.value, wait.last), None
        if not owners:
            self.value, self._wait = max(self.value, last), None
        elif self._wait is None and last > self.value:
            self._wait = _Wait(last, owners, monotonic())
        if self._wait is None:
            self.held_back = None
            return
        await self._judge(connection, self._wait, owners)
        reached = await self._without_holes(connection)
        if reached > self.value:  # and so drawn, be it since the last one was asked for
            self.value, self.last = reached, max(self.last, reached)

    def _drawn(self, last: int, known: int) -> None:
        """Note the last position that was drawn. Less than was known to be decided when it was asked for: it is an older store.

        What was decided since then, by commits of this process, is not what the answer knows.
        """
        self.last = last if last < known else max(last, self.value)

    async def _last(self, connection: AsyncConnection, known: int) -> tuple[int, frozenset[str]]:
        """Return the last position that was drawn, and if it is not known yet, the transactions that held the lock then.

        Raises `ConfigurationError` at a replica.
        """
        if self._asked is None:
            sequence = await connection.scalar(_SEQUENCE, {"table": self._named})
            self._asked = text(_LOOK.format(sequence=sequence))
        row = (await connection.execute(self._asked, {"lock": LOCK, "table": self._named, "known": known})).one()
        if row.replica:
            raise ConfigurationError(
                f"{where(self._engine)} is a replica, which does not know what is being appended: read from the primary"
            )
        return int(row.last_value) if row.is_called else 0, frozenset(row.owners)

    async def _without_holes(self, connection: AsyncConnection) -> int:
        """Return up to where every position is there: what is seen is committed, whoever else is still at work."""
        position = self._table.c.position
        rows = select(position).where(position > self.value).order_by(position).limit(PREFIX)
        reached = self.value
        for found in (await connection.execute(rows)).scalars():
            if found != reached + 1:
                break
            reached = found
        return reached

    async def _judge(self, connection: AsyncConnection, wait: _Wait, owners: frozenset[str]) -> None:
        """Say once that somebody holds readers back, after a while."""
        seconds = monotonic() - wait.since
        if wait.said or seconds < self._patience:
            return
        told = {"lock": LOCK, "table": self._named, "owner": min(wait.owners & owners)}
        one = (await connection.execute(_WHO, told)).first()
        if one is None:  # it has just ended
            return
        wait.said = True
        self.held_back = StoreHeldBack(one.pid, one.application or "", seconds)
        _LOG.warning("%s", self.held_back.describe())
        self._report(self.held_back)
