"""Projections, run while a bus runs: tables that are made of events, and follow them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import ClassVar, Final
from uuid import UUID

from rabbitevents import Check, ConfigurationError, Finding, Host, Look, Plugin
from rabbitevents.arguments import Seconds, instance, seconds, several
from rabbitevents_eventstore.checkpoints import Checkpoints, standing
from rabbitevents_eventstore.following import Following
from rabbitevents_eventstore.projection import Projection
from rabbitevents_eventstore.rebuilding import Progress, Rebuild
from rabbitevents_eventstore.store import EventStore
from rabbitevents_sql import AWAY, Listener, reason, where

STOPPING: Final = 5.0
"""Seconds that projections have to finish what is under way when their bus stops."""

_DEADLINE: Final = 10.0
"""Seconds that the database has at start."""


class Projections(Plugin):
    """Make tables of events, and let them follow what is appended.

    ::

        bus = Bus(url, orders, plugins=[DeadLetter(), Retry(), store, Projections(store, [order_summary]), outbox])

    Each projection applies every event that it asks for, once and in order, in a transaction that keeps how far it is. Of
    several processes one has a projection; another one takes over within ``lease``. An event that cannot be applied stops
    its projection before it, which health, a line in the log and ``rabbitevents projection list`` say; others go on.

    :param store: Whose events they are made of. The tables are in its database.
    :param projections: What `projection` has made.
    :param lease: For how long a process has a projection that does not renew that: 30 s.

    Raises `ConfigurationError`; at start too, for tables that are missing.
    """

    role: ClassVar[str] = "projections"

    def __init__(self, store: EventStore, projections: Iterable[Projection], *, lease: Seconds = 30) -> None:
        self.store: EventStore = instance("Projections: store", store, EventStore, "give an EventStore(engine, ...)")
        self.projections: tuple[Projection, ...] = several(
            "Projections: projections", projections, Projection, "[order_summary], made by @projection(...)"
        )
        self.lease: float = seconds("Projections: lease", lease, least=1.0)
        self.checkpoints: Checkpoints = Checkpoints(store.engine, store.tables, self.lease)
        """Where it is kept how far they are."""
        self._at_work: list[Following] = []
        for each in self.projections:
            store.shelf.names(each.classes)
        _apart("name", ((each.name, each.name) for each in self.projections))
        _apart("table", ((each.name, table.fullname) for each in self.projections for table in each.tables))

    def named(self, name: str) -> Projection:
        """Return one of the projections. Raises `ConfigurationError` where there is none of that name.

        :param name: Its name.
        """
        for each in self.projections:
            if each.name == name:
                return each
        names = ", ".join(each.name for each in self.projections)
        raise ConfigurationError(f"there is no projection {name!r}: there are {names or 'none'}")

    async def rebuild(
        self, name: str, *, skip: Collection[UUID] = (), tell: Callable[[Progress], None] | None = None
    ) -> Progress:
        """Make a projection anew from all events, beside the one that is read, and let it take its place.

        What is read stays as it is until then, and is kept going by whoever runs it. Both change places in one transaction,
        in which the new one has caught up with the old one. It may take a higher version, or the same one again.

        :param name: The projection's.
        :param skip: Ids of events that are left out, since they cannot be applied.
        :param tell: Is told how far it is, after each page.

        Raises `RebuildError`, which leaves all as it was, and `ConfigurationError` where a newer version is live.
        """
        return await Rebuild(self.store, self.named(name), self.checkpoints, skip, tell or (lambda _: None)).run()

    # --- as a plugin ---

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the tables, and follow the store as long as the bus runs."""
        await self._look(make=True)
        store, checkpoints = self.store, self.checkpoints
        store.reader.fresh.is_wanted = True
        self._at_work = [Following(store, each, checkpoints, self.lease, host.report) for each in self.projections]
        tasks = [asyncio.create_task(each.run(), name=f"projection {each.name}") for each in self._at_work]
        listening = (
            None if store.channel is None else asyncio.create_task(Listener(store.channel, store.watermark.wake).run())
        )
        try:
            yield
        finally:
            if listening is not None:
                listening.cancel()
                await asyncio.wait({listening})
            for each in self._at_work:
                each.stop()
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=STOPPING)
                for task in late:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            self._at_work = []
            store.reader.fresh.is_wanted = False
            store.reader.fresh.clear()

    async def _look(self, *, make: bool = False) -> None:
        """Raise `ConfigurationError` where the database cannot be used."""
        tables = self.store.tables
        try:
            async with asyncio.timeout(_DEADLINE), self.store.engine.connect() as connection:
                await connection.run_sync(tables.check, tables.projections)
            if make:
                for each in self.projections:
                    await self.checkpoints.make(each.name, each.version)
        except AWAY as error:
            raise ConfigurationError(
                f"the projections' database {where(self.store.engine)} does not answer: {reason(error)}"
            ) from error

    def health(self) -> Iterable[Check]:
        """Say of each projection whether it goes on."""
        for each in self._at_work:
            trouble = each.trouble
            yield Check(f"projection {each.name}", not trouble, trouble, degraded=bool(trouble))

    def busy(self) -> str:
        """Name a projection that has not applied all that was appended here."""
        return next((f"projection {each.name}" for each in self._at_work if each.is_busy), "")

    async def diagnose(self, look: Look) -> Iterable[Finding]:
        """Look at the tables, and whether any projection stands."""
        try:
            await self._look()
            found = await self.checkpoints.read(each.name for each in self.projections)
        except ConfigurationError as error:
            return [Finding("wrong", "Projections", str(error), "make the tables by a migration")]
        finally:
            await self.store.engine.dispose()
        said = [(each.name, standing(each, self.named(each.name).version)) for each in found if not each.building]
        return [Finding("wrong", f"projection {name}", trouble) for name, trouble in said if trouble]


def _apart(what: str, named: Iterable[tuple[str, str]]) -> None:
    """Raise `ConfigurationError` where two projections have the same; ``named`` says who has what."""
    taken: dict[str, str] = {}
    for owner, name in named:
        if name in taken:
            raise ConfigurationError(
                f"Projections: {taken[name]!r} and {owner!r} have one {what}, {name!r}: each has its own"
            )
        taken[name] = owner
