"""What a process needs of the bus beside its handler: its tables are looked at, and old ends are forgotten."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import ClassVar, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import ConfigurationError, Host, LineFilter, Plugin, Subscription
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_process.keeping import Keeping
from rabbitevents_process.tables import ProcessTables
from rabbitevents_sql import AWAY, reason, where

log: logging.Logger = logging.getLogger("rabbitevents.process")
log.addFilter(LineFilter())

PURGING: Final = 3600.0
"""Seconds between two looks for what was kept long enough."""

_DEADLINE: Final = 10.0
"""Seconds that the database has at start."""


class Tending(Plugin):
    """Look after the rows of one process while a bus runs. A process brings it along; it is no plugin for others."""

    role: ClassVar[str] = "process"

    def __init__(
        self,
        name: str,
        tables: ProcessTables,
        keeping: Keeping,
        keep: timedelta,
        describe: Callable[[], Iterable[tuple[str, str]]],
    ) -> None:
        self._name = name
        self._tables = tables
        self._keeping = keeping
        self._keep = keep
        self._describe = describe

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the tables and the other plugins, and forget what ended long ago."""
        engine = self._engine(host)
        try:
            async with asyncio.timeout(_DEADLINE), engine.connect() as connection:
                await connection.run_sync(self._tables.check)
        except AWAY as error:
            raise ConfigurationError(
                f"process {self._name!r}: the database {where(engine)} does not answer: {reason(error)}"
            ) from error
        forgetting = asyncio.create_task(self._forget(engine), name=f"rabbitevents process {self._name}")
        try:
            yield
        finally:
            forgetting.cancel()
            await asyncio.wait({forgetting})

    def _engine(self, host: Host) -> AsyncEngine:
        """Return the engine of the outbox. Raises `ConfigurationError` where it, or the inbox, is missing."""
        ours = {each.name for each in host.subscriptions_of(self)}
        there = [plugin for plugin in host.plugins if ours <= {each.name for each in host.subscriptions_of(plugin)}]
        outbox = next((plugin for plugin in there if isinstance(plugin, Outbox)), None)
        if outbox is None or not any(isinstance(plugin, Inbox) for plugin in there):
            raise ConfigurationError(
                f"process {self._name!r} needs an Inbox and an Outbox, in whose transaction its state is kept: write "
                "plugins=[..., Inbox(sessions), Outbox(engine)]"
            )
        return outbox.engine

    async def _forget(self, engine: AsyncEngine) -> None:
        """Forget, hour by hour; a database that is away is asked again the next time."""
        while True:
            forgotten = 0
            try:
                forgotten = await self._keeping.forget(engine, self._keep)
            except AWAY as error:
                log.warning("process %s: those that ended are kept for another hour: %s", self._name, reason(error))
            await asyncio.sleep(0.1 if forgotten else PURGING)

    def describe(self, subscription: Subscription) -> Iterable[tuple[str, str]]:
        """Say what starts the process, and what it waits for."""
        return self._describe()
