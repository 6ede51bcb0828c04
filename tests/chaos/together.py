"""All loads in one process, each in a place of its own: ``python -m tests.chaos.together PLACES.json``.

The file says for each load where its broker, its ledger and its servers are. SIGUSR1 has a `tests.soak.Sample` of the
process appended to ``samples`` beside it; SIGUSR2 ends the publishing, and ``published`` is there once all is answered;
SIGTERM ends the process.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from rabbitevents import Bus
from tests.chaos import publishers
from tests.chaos.events import place
from tests.chaos.lanes import Pace, pace
from tests.chaos.loads import LOADS, Load
from tests.soak import count

LANES, PAUSE = 2, 0.15
"""So many lanes publish for each load, with so many seconds between two events on average: the machine goes on for long."""


class Together:
    """The loads of a process, and what signals ask of it."""

    def __init__(self, file: Path) -> None:
        self._folder = file.parent
        self._places = msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, str]])
        self._published = threading.Event()
        self._stopped = asyncio.Event()
        self._all = asyncio.Barrier(len(self._places))

    async def run(self) -> None:
        """Run all loads until SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._sample)
        loop.add_signal_handler(signal.SIGUSR2, self._published.set)
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        async with asyncio.TaskGroup() as group:  # one that fails ends all: nothing is silent
            for name, where in self._places.items():
                group.create_task(self._one(LOADS[name], where))

    async def _one(self, load: Load, where: Mapping[str, str]) -> None:
        """Run a load; what this task sets is its own."""
        place.set(where)
        pace.set(Pace(LANES, PAUSE, self._published))
        module, function = load.bus.split(":")
        bus: Bus = getattr(importlib.import_module(f"tests.chaos.{module}"), function)()
        async with bus:
            if await self._all.wait() == 0:
                print("runs on", flush=True)
            await _publish(load.publisher)
            if await self._all.wait() == 0:
                (self._folder / "published").touch()
            await self._stopped.wait()

    def _sample(self) -> None:
        with (self._folder / "samples").open("ab") as file:
            file.write(msgspec.json.encode(count()) + b"\n")


async def _publish(name: str) -> None:
    if name == publishers.publish_from_threads.__name__:
        await asyncio.to_thread(publishers.publish_from_threads)
    else:
        await {each.__name__: each for each in publishers.PUBLISHERS}[name]()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(Together(Path(sys.argv[1])).run())
