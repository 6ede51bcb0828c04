"""The relay, the only one that sends what stands in the outbox: a commit wakes it, and nothing else sends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import Check, Host, facts
from rabbitevents.texts import name_of
from rabbitevents_outbox.shards import Shards
from rabbitevents_outbox.tables import Tables
from rabbitevents_outbox.tenure import Settings, Tenure, log
from rabbitevents_sql import AWAY, Channel, Listener, reason, where

STANDBY: Final = 1.0
"""Seconds between two attempts at a shard that another relay has."""

GLANCE: Final = 0.2
"""Seconds between two looks at what is due, while no shard is ours."""

COUNTING: Final = 5.0
"""Seconds between two counts of what is to be sent."""

PURGING: Final = 60.0
"""Seconds between two looks for rows that were kept long enough."""

AWAY_PAUSES: Final = (0.2, 0.5, 1.0, 2.0)
"""Seconds before a database that is away is tried again; the last one for ever."""

STOPPING: Final = 5.0
"""Seconds that a relay has to finish what is under way when its bus stops."""


class Relay:
    """Send what stands in an outbox, as long as it runs; of several, one at a time has a shard."""

    def __init__(
        self, engine: AsyncEngine, tables: Tables, host: Host, settings: Settings, channel: Channel | None = None
    ) -> None:
        self._shards = Shards(engine, tables, settings.lease)
        self._where = f"{tables.outbox.name} in {where(engine)}"
        self._host = host
        self._told = settings
        self._tenures: dict[int, tuple[Tenure, asyncio.Task[None]]] = {}
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._listener = None if channel is None else Listener(channel, self._wake)
        self._away_since: float | None = None
        self._away = ""
        self._failures = 0
        self._stopping = False
        self._acquire_due = self._count_due = self._purge_due = 0.0
        self._backlog: facts.Backlog | None = None

    # --- what is said of it ---

    def wake(self) -> None:
        """Look for rows at once. It may be called from any thread."""
        if threading.get_ident() == self._thread:
            self._wake()
        else:
            with suppress(RuntimeError):  # its loop is closed: whoever relays next finds them
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for tenure, _ in self._tenures.values():
            tenure.wake()

    @property
    def sends(self) -> bool:
        """Whether all shards are ours."""
        return len(self._tenures) == self._told.shards

    def busy(self) -> str:
        """Say that rows are still to be sent; empty: all that was committed is sent."""
        at_work = [tenure for tenure, _ in self._tenures.values() if not tenure.idle and not tenure.trouble]
        return f"the relay of {self._where}" if at_work or not self._acquire_due else ""

    def checks(self) -> Iterable[Check]:
        """Say whether the database answers, whether rows are sent, and whether any is dead."""
        troubles = [tenure.trouble for tenure, _ in self._tenures.values() if tenure.trouble]
        if self._away:
            detail = self._away
        elif troubles:
            detail = f"nothing is sent: {troubles[0]}"
        elif self._backlog is not None and self._backlog.dead:
            detail = f"{self._backlog.dead} dead; `rabbitevents outbox list` shows them"
        else:
            yield Check("outbox", True, "" if self._tenures else "another relay sends")
            return
        yield Check("outbox", False, detail, degraded=True)

    # --- at work ---

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Relay as long as this is entered."""
        task = asyncio.create_task(self._run(), name="rabbitevents outbox relay")
        listening = None if self._listener is None else asyncio.create_task(self._listener.run())
        try:
            yield
        finally:
            if listening is not None:
                listening.cancel()
                await asyncio.wait({listening})
            self._stopping = True
            for tenure, _ in self._tenures.values():
                tenure.stop()
            _, late = await asyncio.wait({task}, timeout=STOPPING)
            for each in late:
                each.cancel()
                await asyncio.wait({each})

    async def _run(self) -> None:
        """Supervise: whatever happens, try again, and say so once."""
        try:
            while not (self._stopping and not self._tenures):
                try:
                    if self._failures or not self._acquire_due:
                        await self._shards.make(self._told.shards)
                    await self._supervise()
                except Exception as error:
                    # The database is away, or a defect, here or in a plugin: neither may end the only one that sends.
                    await self._try_again(error)
        finally:
            await self._end()

    async def _supervise(self) -> None:
        loop_time = self._loop.time
        while not (self._stopping and not self._tenures):
            now = loop_time()
            if now >= self._acquire_due and not self._stopping:
                await self._acquire()
                self._acquire_due = now + STANDBY
            if now >= self._count_due and self._tenures:
                self._count_due = now + COUNTING
                await self._count()
            if self._told.keep is not None and now >= self._purge_due and self._tenures:
                purged = await self._shards.purge(self._told.keep)
                self._purge_due = now + (PURGING if not purged else 0.5)
            tasks = {task for _, task in self._tenures.values()}
            if tasks:
                await asyncio.wait(tasks, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(GLANCE)
            self._collect()
            self._is_there()

    async def _acquire(self) -> None:
        if self.sends:
            return
        lease = await self._shards.acquire(self._tenures)
        if lease is None:
            return
        tenure = Tenure(self._shards, lease, self._host, self._told)
        task = self._loop.create_task(tenure.run(), name=f"rabbitevents outbox shard {lease.shard}")
        self._tenures[lease.shard] = tenure, task
        if self._stopping:  # told so while the database was asked
            tenure.stop()
        log.info("this process relays shard %d of %s", lease.shard, self._where)

    def _collect(self) -> None:
        """Take leave of the tenures that have ended. Raises what the database raised there."""
        for shard, (_, task) in list(self._tenures.items()):
            if task.done():
                del self._tenures[shard]
                self._acquire_due = 0.0
                task.result()

    async def _count(self) -> None:
        self._backlog = await self._shards.backlog(self._tenures)
        self._host.report(self._backlog)

    def _is_there(self) -> None:
        """Note that it works."""
        if self._away_since is not None:
            log.info("the relay of %s goes on, after %.1f s", self._where, self._loop.time() - self._away_since)
        self._away, self._away_since, self._failures = "", None, 0

    async def _try_again(self, error: Exception) -> None:
        is_away = isinstance(error, AWAY)
        self._away = f"the database does not answer: {reason(error)}" if is_away else f"it failed: {name_of(error)}"
        if self._away_since is None:
            self._away_since = self._loop.time()
            if is_away:
                log.warning("the outbox %s waits for its database: %s", self._where, reason(error))
            else:
                log.error("the relay of %s failed, and is begun again until it goes on", self._where, exc_info=error)
        await asyncio.sleep(AWAY_PAUSES[min(self._failures, len(AWAY_PAUSES) - 1)])
        self._failures += 1

    async def _end(self) -> None:
        for _, task in self._tenures.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in self._tenures.values()), return_exceptions=True)
