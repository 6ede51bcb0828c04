"""One process, started anew whenever a file changes: for whoever is writing the service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from watchfiles import PythonFilter, watch

from rabbitevents.cli import logs
from rabbitevents.cli.crew import Crew
from rabbitevents.cli.settings import Settings
from rabbitevents.cli.worker import Worker, how_it_ended

_FRESH: Final = {"PYTHONDONTWRITEBYTECODE": "1"}
"""Bytecode is known to be stale by its source's size and second: two changes within one second would run the first."""


class Changes:
    """The files that have changed since somebody looked."""

    def __init__(self) -> None:
        self.any: asyncio.Event = asyncio.Event()
        self._names: set[str] = set()

    def add(self, paths: set[str]) -> None:
        """Note changed files."""
        here = Path.cwd()
        self._names |= {str(Path(p).relative_to(here)) if Path(p).is_relative_to(here) else p for p in paths}
        self.any.set()

    def taken(self) -> str:
        """Name them, and forget them."""
        names, self._names = self._names, set()
        self.any.clear()
        return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@asynccontextmanager
async def _watched(folder: Path) -> AsyncGenerator[Changes]:
    changes, enough, loop = Changes(), threading.Event(), asyncio.get_running_loop()

    def look() -> None:
        for found in watch(folder, watch_filter=PythonFilter(), stop_event=enough):
            loop.call_soon_threadsafe(changes.add, {path for _, path in found})

    looking = asyncio.ensure_future(asyncio.to_thread(look))
    try:
        yield changes
    finally:
        enough.set()
        await looking


class Reloader:
    """Runs the process, and another one after each change; one that ends by itself is not started before the next."""

    def __init__(self, settings: Settings, changes: Changes) -> None:
        self._settings = settings
        self._changes = changes
        self._crew = Crew()

    async def run(self) -> int:
        """Go on until a signal comes; return the exit code."""
        while not self._crew.stopping.is_set():
            worker = await self._crew.start(self._settings, _FRESH)
            await self._until_something_happens(worker)
            if self._crew.stopping.is_set():
                await worker.ended
            elif worker.ended.done():
                logs.tell(f"{worker} {how_it_ended(worker.ended.result())}; waiting for a change below {Path.cwd()}")
                await self._until_something_happens(None)
            if self._changes.any.is_set():
                logs.tell(f"{self._changes.taken()} changed; starting anew")
                await self._crew.end(worker)
        return self._crew.code

    async def _until_something_happens(self, worker: Worker | None) -> None:
        """Return at a change, at a signal, or when ``worker`` ends."""
        waits = {asyncio.ensure_future(self._changes.any.wait()), asyncio.ensure_future(self._crew.stopping.wait())}
        own = {worker.ended} if worker is not None else set[asyncio.Task[int]]()
        await asyncio.wait({*waits, *own}, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()


def reload(settings: Settings) -> int:
    """Run one process, and start it anew at each change, until a signal comes; return the exit code."""
    logs.configure(settings)
    return asyncio.run(_reload(settings))


async def _reload(settings: Settings) -> int:
    async with _watched(Path.cwd()) as changes:
        return await Reloader(settings, changes).run()
