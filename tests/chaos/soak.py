"""All loads in one process, and random pairs of faults for as long as one likes: what is lost, and does anything grow?

The process is `tests.chaos.together`. Once a minute, when all loads flow, its memory, tasks and descriptors are counted,
and its connections at the broker. The first half of the time is for what fills: each connection to PostgreSQL prepares a
hundred statements at last. Of the samples of the second half, the medians of the first and the last quarter are compared.

Of memory, what is in use is counted apart from what is resident, which glibc's malloc lets grow by what each outage has
needed for a moment, unless it is told not to: see `MALLOC`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.bed.node import NodeError
from tests.bed.proxy import Proxy
from tests.chaos.events import GRACE
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.loads import LOADS
from tests.chaos.plan import Scenario, fits
from tests.chaos.process import Process
from tests.chaos.run import ENOUGH, QUIET, Count, heal, meet, summary, verdict_of
from tests.chaos.world import ROOT, Servers, World
from tests.committed import until
from tests.soak import SLACK, Sample, at_the_broker, verdict

EVERY = 60.0
"""Seconds between two samples."""

CALM = 5.0
"""Seconds without a fault before a sample."""

POOL: Final = "12"
"""How many connections to PostgreSQL an engine keeps: each has a hundred statements prepared at last, and after a fault none."""

HERE: Final = {name: load for name, load in LOADS.items() if load.workers == 1 and "shards" not in load.uses}
"""The loads that one process has: no processes of their own, and no three Redis servers."""

NOT_HERE: Final = ("service-killed", "service-stopped", "queue-full", "consumer-timeout")
"""What ends the process, has its publishers stand still, or asks for a handler that not all loads have."""

MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""What glibc's malloc is told, unless the environment says otherwise: its own figures at first, to be kept, in bytes.

Left to itself it raises both, up to 32 and 64 MiB, with each larger block that is freed. Blocks of an outage then come to
lie among those that stay, and keep their pages: after five minutes 22 MiB were free and resident, and 2 MiB with these.
"""

ALLOWED: Final = {
    **SLACK,
    "rss_kib": 4096.0,  # of some 110 MiB: Python's arenas come and go by 1 MiB each
    "in_use_kib": 4096.0,  # of some 75 MiB: what is under way in ten loads, and statements that are still prepared
    "objects": 4000.0,  # what is under way in ten loads
    "callbacks": 200.0,  # the same
    "tasks": 30.0,  # the same: a handling each
    "fds": 3.0,
    "broker_channels": 10.0,
}
"""How much more there may be at the end, in its own unit: a sample is a moment of a process that goes on meanwhile."""


def pairs() -> list[tuple[type[Fault], type[Fault]]]:
    """Return every two faults that can meet in a process that has all loads, and lives on."""
    known = [each for each in FAULTS.values() if each.lossless and not each.alone]
    known = [each for each in known if each.touches != "cluster" and each.name not in NOT_HERE]
    known = [each for each in known if any(fits(each, load) for load in HERE)]
    return [(one, other) for one, other in itertools.combinations(known, 2) if one.touches != other.touches]


@asynccontextmanager
async def started(servers: Servers, folder: Path, seed: int) -> AsyncGenerator[Soak]:
    """Start the process, with a virtual host and a ledger for each load, and one proxy before them all."""
    async with Proxy.before(servers.node.url) as proxy:
        worlds, places = dict[str, World](), dict[str, dict[str, str]]()
        for name, load in HERE.items():
            (folder / name).mkdir()
            url = await asyncio.to_thread(servers.node.add_vhost)
            worlds[name] = World(servers, proxy, url, folder / name, f"{seed} {name}")
            places[name] = {**await worlds[name].place(load), "DATABASE_POOL": POOL}
        file = folder / "places.json"
        file.write_bytes(msgspec.json.encode(places))
        malloc = {name: os.environ.get(name, figure) for name, figure in MALLOC.items()}
        process = Process(["tests.chaos.together", str(file)], malloc, folder / "process.log", ROOT, sys.executable)
        try:
            await process.start()
            await until(lambda: "runs on" in process.said or process.status is not None, "the process", 120, every=0.1)
            if process.status is not None:
                raise NodeError(f"the process has ended: {process.said[-ENOUGH:]}")
            for there in worlds.values():
                there.services.append(process)
            yield Soak(worlds, process, random.Random(f"soak {seed}"))
        finally:
            await process.kill()


class Soak:
    """The process, the world of each load, and what came of it."""

    def __init__(self, worlds: Mapping[str, World], process: Process, dice: random.Random) -> None:
        self.samples: list[Sample] = []
        self.met: set[tuple[str, ...]] = set()
        """The names of each two faults that have met."""
        self._worlds, self._process, self._dice = worlds, process, dice
        self._counts = {load: Count(Scenario(load, ())) for load in worlds}
        self._servers = next(iter(worlds.values())).servers
        self._folder = process.output.parent

    async def live(self, seconds: float, every: float) -> None:
        """Have pairs of faults meet until the time is over, and take a sample ``every`` so many seconds."""
        began, known = time.monotonic(), pairs()
        while (now := time.monotonic()) < began + seconds and self._process.status is None:
            if now >= began + len(self.samples) * every:
                await self._sample()
                self._say()
            faults = self._dice.choice(known)
            loads = [self._dice.choice([load for load in self._worlds if fits(fault, load)]) for fault in faults]
            try:
                await self._strike(faults, loads)
            except Exception as error:
                said = f"{' + '.join(each.name for each in faults)}: {type(error).__name__}: {error}"
                self._counts[loads[0]].error += f"{said[:ENOUGH]}; "
                self._process.send(signal.SIGCONT)
                await heal(self._servers)
        await self._sample()
        self._say()

    async def _strike(self, faults: Sequence[type[Fault]], loads: Sequence[str]) -> None:
        """Have two faults meet, each in the world of a load, and wait until all loads flow again."""
        worlds, count = self._worlds.values(), self._counts[loads[0]]
        under_way, crashes = sum(each.tail.read().under_way for each in worlds), [each.crashes for each in worlds]
        there = [(fault(), self._worlds[load]) for fault, load in zip(faults, loads, strict=True)]
        seen, healed = await meet(there, self._dice)
        more = max(world.crashes - before for world, before in zip(worlds, crashes, strict=True))
        for world, before in zip(worlds, crashes, strict=True):
            world.crashes = before + more  # it is one process
        if under_way and seen:
            count.injections += 1
            self.met.add(tuple(each.name for each in faults))
        else:
            count.misses += 1
        await self._flowing(healed)
        count.recoveries.append(round(max(world.tail.recovered(healed) for world in worlds) - healed, 2))

    async def _flowing(self, since: float) -> None:
        for world in self._worlds.values():
            await world.flowing(since)

    async def _sample(self) -> None:
        """Count what there is, once all loads flow and as many connections stand as at first."""
        await asyncio.sleep(CALM)
        await self._flowing(time.monotonic())
        wanted, end = (self.samples[0].broker_connections if self.samples else 0), time.monotonic() + 30
        there = await asyncio.to_thread(at_the_broker, self._servers.node)
        while wanted and there[0] != wanted and time.monotonic() < end:
            await asyncio.sleep(0.5)
            there = await asyncio.to_thread(at_the_broker, self._servers.node)
        file = self._folder / "samples"
        known = file.stat().st_size if file.exists() else 0
        self._process.send(signal.SIGUSR1)
        await until(lambda: file.exists() and file.stat().st_size > known, "a sample", 60, every=0.1)
        last = msgspec.json.decode(file.read_bytes().splitlines()[-1], type=Sample)
        self.samples.append(msgspec.structs.replace(last, broker_connections=there[0], broker_channels=there[1]))

    async def end(self) -> None:
        """End the publishing, let all be handled, stop, and note what lies in queues."""
        self._process.send(signal.SIGUSR2)
        await until((self._folder / "published").exists, "the end of the publishing", 60, every=0.1)
        for load, world in self._worlds.items():
            await world.quiet(QUIET, LOADS[load].promises.dies)
        self._process.send(signal.SIGTERM)
        late = not await self._process.ended(GRACE + 5 + 5)
        next(iter(self._worlds.values())).late += late
        await self._process.kill()
        for world in self._worlds.values():
            await world.take_stock()

    def judged(self) -> list[Count]:
        """Return what was counted of each load."""
        for load, count in self._counts.items():
            count.verdict = verdict_of(self._worlds[load], load)
        return list(self._counts.values())

    def _say(self) -> None:
        figures = ", ".join(f"{name} {number:,.0f}" for name, number in _figures(self.samples[-1]).items())
        injections = sum(each.injections for each in self._counts.values())
        errors = "".join(each.error for each in self._counts.values())
        print(f"sample {len(self.samples)}, {injections} injections: {figures} {errors}", file=sys.stderr, flush=True)


def _figures(sample: Sample) -> dict[str, float]:
    return {name: getattr(sample, name) for name in ALLOWED}


async def soak(seed: int, minutes: float, every: float = EVERY) -> tuple[dict[str, Any], bool]:
    """Run it; return what was counted, and whether a promise was broken or anything grew."""
    async with AsyncExitStack() as stack:
        servers = Servers(stack, os.environ.get("RABBITEVENTS_TEST_ROOT"))
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        hour = await stack.enter_async_context(started(servers, folder, seed))
        await hour.live(minutes * 60, every)
        await hour.end()
        counts, growth = hour.judged(), verdict(hour.samples[len(hour.samples) // 2 :], ALLOWED)
        samples = [{"at_s": round(index * every), **_figures(each)} for index, each in enumerate(hour.samples)]
        found = {"rabbitmq": servers.node.version, "minutes": minutes, **summary(counts), "pairs": len(hour.met)}
        red = any(count.red for count in counts) or not growth["flat"]
        return {**found, "growth": growth, "samples": samples, "folder": str(folder)}, red
