"""A projection at work: one process at a time has it, and follows the store with it, until an event stops it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from time import monotonic
from typing import Final, Protocol
from uuid import UUID, uuid4

from rabbitevents import Fact, LineFilter, facts
from rabbitevents.texts import cut, name_of, printable
from rabbitevents_eventstore.checkpoints import STOPPED, Checkpoints, Hold, standing
from rabbitevents_eventstore.errors import StoreRestoredError
from rabbitevents_eventstore.projecting import FailedError, LostError, Projector
from rabbitevents_eventstore.projection import Projection
from rabbitevents_eventstore.store import EventStore
from rabbitevents_eventstore.watermark import OFTEN, SELDOM
from rabbitevents_sql import AWAY, reason

STANDBY: Final = 1.0
"""Seconds between two attempts at a projection that another process has, or that stands."""

AT_HOME: Final = 0.05
"""Seconds before the first look of its own after something was appended by this process, which wakes it."""

NOTING: Final = 0.25
"""Seconds between two notes of how far it is, where nothing of what it asks for comes."""

TELLING: Final = 5.0
"""Seconds between two facts that say how far it is."""

LONG: Final = 30.0
"""Seconds of one page after which it is said to take long."""

AWAY_PAUSES: Final = (0.2, 0.5, 1.0, 2.0)
"""Seconds before a database that is away is tried again; the last one for ever."""

log: logging.Logger = logging.getLogger("rabbitevents.eventstore")
log.addFilter(LineFilter())


class ProjectionStopped(Fact, frozen=True):
    """An event has stopped a projection, which stands before it until somebody mends it, or skips the event.

    ``id`` and ``type`` are the event's, None where it is not an event that has; ``error`` names the exception's class.
    """

    projection: str
    version: int
    position: int
    id: UUID | None
    type: str | None
    error: str


class Report(Protocol):
    """Takes a fact to everybody who observes."""

    def __call__(self, fact: Fact, /) -> None:
        """Report ``fact``."""
        ...


def said(error: BaseException) -> str:
    """Return what is kept of an error: its class, and what it says in a line, without statements and their values."""
    return printable(cut(f"{name_of(error)}: {reason(error)}", 500))


class Following:
    """Follows the store with one projection, in one process; of several, one at a time does.

    :param store: The store.
    :param projection: The projection.
    :param checkpoints: Where it is kept how far it is.
    :param lease: Seconds for which the projection is a process's that does not renew that.
    :param report: Is told what stops it.
    """

    def __init__(
        self, store: EventStore, projection: Projection, checkpoints: Checkpoints, lease: float, report: Report
    ) -> None:
        self.name: str = projection.name
        self._projection = projection
        self._store = store
        self._checkpoints = checkpoints
        self._renew = lease / 3
        self._report = report
        self._hold = Hold(projection.name, projection.version, uuid4())
        self._projector = Projector(
            projection, store.shelf, checkpoints, store.engine.begin, store.engine, lambda: self._stopping.is_set()
        )
        self._names = store.shelf.names(projection.classes)
        self._stopping = asyncio.Event()
        self._trouble = ""
        self._is_ours: bool | None = None
        """None: that is not known yet."""
        self._seen = -1
        """How much news there was when it last found nothing left."""
        self._applying_since: float | None = None
        self._told = -TELLING
        self._away_since: float | None = None
        self._failures = 0

    @property
    def is_busy(self) -> bool:
        """Whether something that was appended here may not be applied yet, though it is ours to do."""
        return self._is_ours is None or (self._is_ours and self._seen < self._store.watermark.news)

    @property
    def trouble(self) -> str:
        """Why it does not go on, by anybody; empty: it does."""
        applying = 0.0 if self._applying_since is None else monotonic() - self._applying_since
        return f"it has applied one page for {applying:.0f} s" if applying > LONG else self._trouble

    def stop(self) -> None:
        """Come to an end after the transaction that is under way."""
        self._stopping.set()
        self._store.watermark.wake()

    async def run(self) -> None:
        """Follow until told to stop. Whatever happens, try again, and say so once."""
        while not self._stopping.is_set():
            try:
                await self._term()
            except Exception as error:
                # The database is away, or a defect: neither may end the only one that follows.
                await self._try_again(error)

    async def _term(self) -> None:
        """Have it for a while, or wait for that."""
        position = await self._checkpoints.take(self._hold)
        self._is_there()
        if position is None:
            found = await self._checkpoints.live(self.name)
            self._trouble = "" if found is None else standing(found, self._projection.version)
            self._is_ours = False
            if found is not None and found.status == STOPPED:
                self._tell(found.position, stopped=True)
            await self._wait(STANDBY)
            return
        self._trouble, self._is_ours = "", True
        log.info("this process runs projection %s version %d", self.name, self._projection.version)
        try:
            await self._follow(position)
        except LostError:
            log.info("projection %s is not this process's any more", self.name)
        except FailedError as failed:
            await self._failed(failed)
        except StoreRestoredError as error:
            if await self._checkpoints.stop(self._hold, None, said(error)):
                log.error(
                    "projection %s stopped: %s; `rabbitevents projection rebuild` makes it anew", self.name, error
                )
                self._report(
                    ProjectionStopped(self.name, self._projection.version, error.position, None, None, name_of(error))
                )
        finally:
            self._is_ours, self._seen, self._applying_since = False, -1, None
        if self._stopping.is_set():
            await self._checkpoints.release(self._hold)

    async def _follow(self, position: int) -> None:
        """Apply what comes, until told to stop. ``position`` is how far it is; it has read up to ``read``."""
        watermark, reader = self._store.watermark, self._store.reader
        read, pause, noted = position, OFTEN, monotonic()
        reader.fresh.clear()  # of a database that has lost commits, and so it began anew, the table alone is right
        while not self._stopping.is_set():
            news, waking = watermark.news, watermark.waking
            page = await reader.page(read, self._names, limit=self._projector.size)
            if page.rows:
                self._applying_since = monotonic()
                read = position = await self._projector.advance(self._hold, position, page)
                self._applying_since = None
                self._tell(position)
                is_ours = news != self._seen
                pause, noted = (AT_HOME if is_ours else OFTEN), monotonic()
                if is_ours and position >= watermark.last:  # there is no more of it, and no need to look
                    self._seen = news
                    await watermark.rest(waking, pause)
                continue
            is_new, read = page.upto > read, page.upto
            self._tell(read)
            if read > position and monotonic() - noted >= NOTING:
                position = await self._projector.advance(self._hold, position, page)
                noted = monotonic()
            elif monotonic() - noted >= self._renew:
                if not await self._checkpoints.keep(self._hold):
                    raise LostError
                noted = monotonic()
            if not is_new:
                self._seen = news
                await watermark.rest(waking, pause)
                pause = min(SELDOM, pause * 2)
            elif read >= watermark.value:  # others append, and nothing of it is for this one: there is no hurry
                await asyncio.sleep(OFTEN)

    async def _failed(self, failed: FailedError) -> None:
        """Stop before an event, so that everybody sees it."""
        row, error = failed.row, failed.__cause__ or failed
        if not await self._checkpoints.stop(self._hold, row["event_id"], said(error)):
            return
        log.error(
            "projection %s version %d stopped before event %s (%s, position %d): %s; mend it and call `rabbitevents projection "
            "retry`, or leave the event out by `rabbitevents projection skip`",
            self.name,
            self._projection.version,
            row["event_id"],
            row["type"],
            row["position"],
            said(error),
            exc_info=error,
        )
        self._report(
            ProjectionStopped(
                self.name,
                self._projection.version,
                row["position"],
                row["event_id"],
                row["type"],
                name_of(error),
            )
        )

    # --- what is said of it ---

    def _tell(self, position: int, *, stopped: bool = False) -> None:
        """Say now and then how far it is."""
        if monotonic() - self._told >= TELLING:
            self._told = monotonic()
            behind = max(0, self._store.watermark.last - position)
            self._report(facts.Projected(self.name, behind, stopped))

    def _is_there(self) -> None:
        """Note that the database answers."""
        if self._away_since is not None:
            log.info("projection %s goes on, after %.1f s", self.name, monotonic() - self._away_since)
        self._away_since, self._failures = None, 0

    async def _try_again(self, error: Exception) -> None:
        is_away = isinstance(error, AWAY)
        self._trouble = f"the database does not do it: {reason(error)}" if is_away else f"it failed: {name_of(error)}"
        if self._away_since is None:
            self._away_since = monotonic()
            if is_away:
                log.warning("projection %s waits for its database: %s", self.name, reason(error))
            else:
                log.error("projection %s failed, and is begun again until it goes on", self.name, exc_info=error)
        await self._wait(AWAY_PAUSES[min(self._failures, len(AWAY_PAUSES) - 1)])
        self._failures += 1

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
