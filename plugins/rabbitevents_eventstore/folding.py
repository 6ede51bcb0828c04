"""Folding: an entity's state is what its events come to, from the first one on, or from a snapshot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from rabbitevents import EncodeError
from rabbitevents_eventstore.appending import Database
from rabbitevents_eventstore.errors import entity
from rabbitevents_eventstore.fresh import Row
from rabbitevents_eventstore.reading import Reader
from rabbitevents_eventstore.snapshots import Album, Kept, Snapshots
from rabbitevents_eventstore.stored import Shelf
from rabbitevents_sql import AWAY, after_commit, reason

S = TypeVar("S")

Apply = Callable[[S, Any], S]
"""What an event makes of a state: a pure function of both, which returns the new state."""

_LOG: Final = logging.getLogger("rabbitevents.eventstore")


class Folded(msgspec.Struct, Generic[S], frozen=True):
    """A state, the version of the last event in it, and that event's row; how many events were applied."""

    state: S
    version: int
    last: Row | None
    applied: int


class Folding:
    """Makes states of the events of a store.

    :param reader: Reads them.
    :param shelf: Makes events of rows.
    :param album: Has the snapshots.
    """

    def __init__(self, reader: Reader, shelf: Shelf, album: Album) -> None:
        self._reader = reader
        self._shelf = shelf
        self._album = album
        self._later: dict[tuple[str, str, str], asyncio.Task[None]] = {}

    async def fold(
        self,
        entity_type: str,
        entity_id: str,
        apply: Apply[S],
        initial: S,
        session: Database | None,
        snapshots: Snapshots | None,
    ) -> tuple[S, int]:
        """Return an entity's state, and its version."""
        rows = partial(self._reader.load, entity_type, entity_id, session=session)
        if snapshots is None:
            folded = await self._from(rows(after=0), apply, initial)
            return folded.state, folded.version
        key = entity_type, entity_id, snapshots.mark(apply, initial, self._shelf.versions)
        kept = await self._album.find(session, key, snapshots)
        found = None if kept is None else await self._on(rows(after=kept.version - 1), apply, kept)
        folded = found or await self._from(rows(after=0), apply, initial)
        if folded.applied >= snapshots.every:
            if session is None:
                await self._keep(key, folded, snapshots)
            elif isinstance(session, AsyncSession):
                # What it has read may be its own, and not there at last: it is folded again, of what is committed.
                again = partial(self.fold, entity_type, entity_id, apply, initial, None, snapshots)
                after_commit(session.sync_session, partial(self._keep_later, key, again))
        return folded.state, folded.version

    async def _from(self, rows: AsyncGenerator[Row], apply: Apply[S], initial: S) -> Folded[S]:
        """Apply all rows to a state."""
        state, last, applied = initial, None, 0
        async with aclosing(rows):
            async for row in rows:
                state, last, applied = apply(state, self._shelf.stored(row).payload), row, applied + 1
        return Folded(state, 0 if last is None else last["version"], last, applied)

    async def _on(self, rows: AsyncGenerator[Row], apply: Apply[Any], kept: Kept) -> Folded[Any] | None:
        """Apply rows behind a snapshot, the first of which is to be that of its event; None where it is not."""
        first = await anext(rows, None)
        if first is None or (first["version"], first["event_id"]) != (kept.version, kept.event_id):
            await rows.aclose()
            return None
        folded = await self._from(rows, apply, kept.state)
        return folded if folded.last is not None else Folded(kept.state, kept.version, first, 0)

    # --- keeping ---

    async def _keep(self, key: tuple[str, str, str], folded: Folded[Any], snapshots: Snapshots) -> None:
        """Keep a snapshot. That this cannot be is no reason for anybody to fail."""
        try:
            if folded.last is not None:
                body = snapshots.write(folded.state)
                await self._album.keep(key, folded.version, folded.last["event_id"], body)
        except EncodeError as error:
            _LOG.warning("no snapshot of %s is kept: %s", entity(*key[:2]), error)
        except AWAY as error:
            _LOG.warning("no snapshot of %s is kept: %s", entity(*key[:2]), reason(error))

    def _keep_later(self, key: tuple[str, str, str], again: Callable[[], Any]) -> None:
        if key not in self._later:
            task = self._later[key] = asyncio.get_running_loop().create_task(again(), name="rabbitevents snapshot")
            task.add_done_callback(partial(self._kept, key))

    def _kept(self, key: tuple[str, str, str], task: asyncio.Task[Any]) -> None:
        del self._later[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.warning("no snapshot of %s is kept: %s", entity(*key[:2]), reason(error))

    async def settled(self) -> None:
        """Wait until snapshots are kept that were to be, after commits."""
        if self._later:
            await asyncio.wait(self._later.values())
