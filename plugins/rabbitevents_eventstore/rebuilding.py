"""A rebuild: a projection is made anew beside the one that is read, catches up with it, and takes its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from time import monotonic
from typing import Final
from uuid import UUID, uuid4

import msgspec
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from rabbitevents import ConfigurationError, RabbitEventsError
from rabbitevents_eventstore.beside import Beside, beside
from rabbitevents_eventstore.checkpoints import Checkpoints, Hold
from rabbitevents_eventstore.following import said
from rabbitevents_eventstore.projecting import FailedError, LostError, Projector, is_passing
from rabbitevents_eventstore.projection import Projection
from rabbitevents_eventstore.reading import Page
from rabbitevents_eventstore.store import EventStore
from rabbitevents_sql import AWAY, reason, turn_of, where

TRIES: Final = 30
"""How often a swap is tried that somebody's long reading of the tables keeps from its locks."""


PAUSE: Final = 0.5
"""Seconds between two tries."""


class _NotYetError(Exception):
    """It could not be swapped, and may be once more has been applied."""


class RebuildError(RabbitEventsError):
    """A projection could not be built anew; the one that is read is as it was."""


class Progress(msgspec.Struct, frozen=True):
    """How far a rebuild is: at which of the store's positions, the last of which is ``last``, after how many seconds."""

    projection: str
    version: int
    position: int
    last: int
    seconds: float
    done: bool = False

    @property
    def rate(self) -> float:
        """Positions a second."""
        return self.position / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float:
        """Seconds to go, as far as is known."""
        return (self.last - self.position) / self.rate if self.rate else 0.0


Tell = Callable[[Progress], None]
"""Is told how far it is, after each page."""


class Rebuild:
    """Builds one projection anew.

    :param store: The store.
    :param projection: The projection, in the version that it is to have.
    :param checkpoints: Where it is kept how far projections are.
    :param skip: Ids of events that are left out.
    :param tell: Is told how far it is.
    """

    def __init__(
        self, store: EventStore, projection: Projection, checkpoints: Checkpoints, skip: Collection[UUID], tell: Tell
    ) -> None:
        self._store = store
        self._projection = projection
        self._checkpoints = checkpoints
        self._skip = frozenset(skip)
        self._tell = tell
        self._hold = Hold(projection.name, projection.version, uuid4(), building=True)
        self._beside: Beside = beside(store.engine, store.tables, projection.tables)
        self._projector = Projector(
            projection, store.shelf, checkpoints, self._beside.transaction, store.engine, stopping=lambda: False
        )
        self._names = store.shelf.names(projection.classes)
        self._began = monotonic()

    async def run(self) -> Progress:
        """Build it, and let it take the place of the one that is read.

        Raises `RebuildError`, and `ConfigurationError` where a newer version is live.
        """
        try:
            await self._begin()
            async with self._beside.opened():
                position = await self._swapped(await self._fill(0))
        except FailedError as failed:
            raise self._because_of(failed) from failed.__cause__
        except LostError:
            raise RebuildError(f"another process has begun to build projection {self._projection.name}") from None
        except AWAY as error:
            raise RebuildError(
                f"projection {self._projection.name} cannot be built in {where(self._store.engine)}: {reason(error)}"
            ) from error
        finally:
            with suppress(*AWAY):  # otherwise it is free when its lease is over
                await self._checkpoints.end(self._hold)
        return self._progress(position, done=True)

    async def _begin(self) -> None:
        name, version = self._projection.name, self._projection.version
        await self._checkpoints.make(name, version)
        live = await self._checkpoints.live(name)
        if live is not None and live.version > version:
            raise ConfigurationError(
                f"projection {name}: version {live.version} is live, and this is version {version}: say a higher version= in "
                "@projection(...) to build what it makes now"
            )
        if not await self._checkpoints.begin(self._hold):
            raise RebuildError(
                f"another process builds projection {name}; `rabbitevents projection list` says how far it is"
            )

    async def _fill(self, position: int) -> int:
        """Apply everything behind a position, until less than a page is left; return how far it is."""
        while True:
            page = await self._page(position)
            if page.upto == position:
                return position
            position = await self._projector.advance(self._hold, position, page)
            self._tell(self._progress(position))
            if len(page.rows) < self._projector.size and position >= self._store.watermark.value:
                return position

    async def _page(self, position: int) -> Page:
        page = await self._store.reader.page(position, self._names, limit=self._projector.size)
        if not self._skip:
            return page
        return Page([row for row in page.rows if row["event_id"] not in self._skip], page.upto)

    async def _swapped(self, position: int) -> int:
        """Swap, once the locks can be had; return how far it is then."""
        why: BaseException | None = None
        for _ in range(TRIES):
            try:
                return await self._swap(position)
            except _NotYetError as error:
                why = error.__cause__
            except DBAPIError as error:
                if not is_passing(error):
                    raise
                why = error
            await asyncio.sleep(PAUSE)
            position = await self._fill(position)
        raise RebuildError(
            f"projection {self._projection.name} is built, and cannot take the place of the one that is read, since somebody "
            f"always uses that: {'' if why is None else reason(why)}; end that, and begin anew"
        )

    async def _swap(self, position: int) -> int:
        """Apply what is left, and change places, in one transaction; the one that is read stands still meanwhile."""
        async with turn_of(self._store.engine), self._beside.transaction() as connection:
            live = await self._checkpoints.lock_both(connection, self._hold)
            if live is None:
                raise LostError
            while position < live:
                page = await self._page(position)
                if page.upto == position:  # what is behind it is not known to be decided here
                    raise _NotYetError
                await self._rest(connection, page)
                position = page.upto
            await self._beside.swap(connection)
            await self._checkpoints.swap(connection, self._hold, position)
        return position

    async def _rest(self, connection: AsyncConnection, page: Page) -> None:
        rows = page.rows
        while rows:
            try:
                done = await self._projector.apply(connection, rows)
            except Exception as error:
                # Nothing of it stays: outside of the swap it is seen which event it is.
                raise _NotYetError from error
            rows = rows[done:]

    def _because_of(self, failed: FailedError) -> RebuildError:
        row, error = failed.row, failed.__cause__ or failed
        return RebuildError(
            f"projection {self._projection.name} version {self._projection.version} cannot be built, because of event "
            f"{row['event_id']} ({row['type']}, position {row['position']}): {said(error)}; what is read is as it was. Mend it "
            "and begin anew, or leave the event out (--skip)"
        )

    def _progress(self, position: int, *, done: bool = False) -> Progress:
        last = max(position, self._store.watermark.last)
        return Progress(
            self._projection.name, self._projection.version, position, last, monotonic() - self._began, done=done
        )
