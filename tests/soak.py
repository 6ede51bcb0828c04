"""A service under everything that a day brings, for as long as one likes: does anything in it grow?

``python -m tests.soak --minutes 60 --json`` runs one process with two buses and a RabbitMQ of its own: one bus behind a
proxy, whose connections are cut every 15 s or so, and one that stays connected, since what leaks on a connection goes
with it. Each second brings, on either, a few of: a look at health, at a queue's depth, into a dead letter queue (some
broken off in the middle), a pause and a resume (some callers cut off), a publish. Metrics look every second. Once a
minute everything is counted: see `Sample`.

At the end the medians of the first and the last quarter of the samples are compared. A thing is flat when it grew by
less than `FLAT`, or by no more than what `SLACK` allows, where the reason for each figure stands.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence, Sized
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

import msgspec
from aio_pika.tools import CallbackCollection
from attrs import frozen
from opentelemetry.sdk.metrics import MeterProvider
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, RabbitEventsError, Router, event
from rabbitevents_deadletter import DeadLetter
from rabbitevents_metrics import Metrics
from rabbitevents_retry import Retry
from tests.bed.node import NodeError
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.heap import heap

FLAT: Final = 0.02
"""How much the median of the last quarter may be above that of the first."""

SLACK: Final = {
    "rss_kib": 1024.0,  # the allocator's arenas come and go by 256 KiB; 3 KiB a second would be 8 MiB in 45 min
    "in_use_kib": 1024.0,  # what is under way; the same 3 KiB a second
    "objects": 200.0,  # what happens to be under way; one object an operation would be thousands
    "callbacks": 20.0,  # a publish or a look that happens to be under way has a few
    "tasks": 2.0,  # the same: a look's deadline
    "fds": 1.0,  # a connection that is just being made
    "broker_connections": 0.0,
    "broker_channels": 1.0,  # a look that is under way
}
"""What may be there more, in its own unit, because a sample is a moment and what is under way is counted with it."""

QUEUES = ("soak.take", "soak.other", "soak.take.dead", "soak.other.dead", "soak.no_such_queue")
LETTERS = 20
"""So many dead letters lie there, for looks to look at."""


@event("soak.taken", entity="thing", key="thing_id")
@frozen
class Taken:
    thing_id: str
    fails: bool = False


@event("soak.passed", entity="thing", key="thing_id")
@frozen
class Passed:
    thing_id: str


class Sample(msgspec.Struct, frozen=True):
    """What is there at one moment. ``callbacks`` are those that wait on a future, or on aio-pika's collections."""

    rss_kib: float
    """What is resident: what is in use, what the allocators keep, and the pages of files."""
    in_use_kib: float
    """What was asked for, and not given back, wherever from: see `tests.heap`."""
    objects: float
    callbacks: float
    tasks: float
    fds: float
    broker_connections: float
    broker_channels: float
    types: dict[str, int]
    """How many objects there are of a type that the collector tracks."""


def _service(url: str) -> Bus:
    router = Router("soak")

    @router.on(Taken, concurrency=5, prefetch=20)
    async def take(thing: Taken) -> Passed:
        await asyncio.sleep(0.005)
        if thing.fails:
            raise ConnectionError
        return Passed(thing.thing_id)

    @router.on(Passed, concurrency=5, prefetch=20)
    async def other(thing: Passed) -> None:
        await asyncio.sleep(0.001)

    retry = Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.01))
    provider = MeterProvider(shutdown_on_exit=False)
    metrics = Metrics(meter_provider=provider, interval=timedelta(seconds=1))
    return Bus(url, router, plugins=[DeadLetter(), retry, metrics])


class Day:
    """What a day brings: each method is one piece of it. ``dice`` says what comes."""

    def __init__(
        self, node: RabbitNode, proxy: Proxy, buses: Sequence[Bus], dice: random.Random, without: Collection[str] = ()
    ) -> None:
        self.done: Counter[str] = Counter()
        self._node, self._proxy, self._buses, self._dice = node, proxy, buses, dice
        self._bus = buses[0]
        self._published = 0
        pieces: dict[Callable[[], Awaitable[object]], int] = {
            self.health: 3,
            self.depth: 4,
            self.browse: 2,
            self.browse_broken_off: 2,
            self.pause: 1,
            self.pause_cut_off: 1,
            self.publish: 6,
        }
        self._pieces = {piece: often for piece, often in pieces.items() if _name(piece) not in without}

    async def one(self) -> None:
        """Do one of all that there is; what the broker's absence keeps from being done is counted, and is no fault."""
        self._bus = self._dice.choice(self._buses)
        [piece] = self._dice.choices(list(self._pieces), list(self._pieces.values()))
        self.done[_name(piece)] += 1
        try:
            await piece()
        except (RabbitEventsError, ExceptionGroup):
            self.done["failed"] += 1

    async def all(self) -> None:
        """Do each piece once on each bus."""
        for bus in self._buses:
            self._bus = bus
            for piece in self._pieces:
                with suppress(RabbitEventsError):
                    await piece()

    async def health(self) -> None:
        self._bus.health()

    async def depth(self) -> None:
        await self._bus.depth(self._dice.choice(QUEUES))

    async def browse(self) -> None:
        async with self._bus.browse("soak.take.dead", hold=self._dice.choice((5, 50))) as look:
            async for _ in look:
                pass

    async def browse_broken_off(self) -> None:
        await self._broken_off(self.browse())

    async def pause(self) -> None:
        name = self._dice.choice(("soak.take", "soak.other"))
        try:
            await self._bus.pause(name)
        finally:
            await self._bus.resume(name)

    async def pause_cut_off(self) -> None:
        """Cut off whoever pauses and resumes, then say that it is to go on: the wish that was said last holds."""
        await self._broken_off(self.pause())
        for name in ("soak.take", "soak.other"):
            await self._bus.resume(name)

    async def publish(self) -> None:
        self._published += 1
        await self._bus.publish(Taken(f"t-{self._published}"), timeout=10)

    async def fill(self) -> None:
        """See that there are dead letters to look at."""
        await self._bus.publish_many([Taken(f"dead-{number}", fails=True) for number in range(LETTERS)])
        await _until(self._is_filled, 20, lambda: "not all dead letters are there")

    async def _is_filled(self) -> bool:
        depth = await self._bus.depth("soak.take.dead")
        return depth is not None and depth.ready >= LETTERS

    def cut(self) -> None:
        self.done["cut"] += 1
        self._proxy.cut()

    async def _broken_off(self, work: Any) -> None:
        """Cancel ``work`` at a moment between its first step and, mostly, its last."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=self._dice.uniform(0, 0.08))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def recovered(self, seconds: float = 30) -> None:
        """Wait until health says that everything runs, and nothing is left to do. Raises TimeoutError."""
        await _until(self._is_idle, seconds, self._why)

    def _why(self) -> str:
        problems = "; ".join(f"{check.name}: {check.detail}" for bus in self._buses for check in bus.health().problems)
        return f"it did not recover: {problems or [bus.load for bus in self._buses]}"

    async def _is_idle(self) -> bool:
        loads = [load for bus in self._buses for load in bus.load.values()]
        if any(load.queued + load.running + load.held for load in loads):
            return False
        if not all(bus.health().ok for bus in self._buses):
            return False
        try:
            counts = [await self._node.aqueue_counts(name, self._node.url) for name in ("soak.take", "soak.other")]
        except NodeError:
            return False
        return not any(each.ready + each.unacked for each in counts)


async def _until(condition: Callable[[], Awaitable[bool]], seconds: float, why: Callable[[], str]) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{why()}, for {seconds:g} s")
        await asyncio.sleep(0.1)


def _name(piece: Callable[..., object]) -> str:
    return getattr(piece, "__name__", "")


@asynccontextmanager
async def day(node: RabbitNode, seed: int = 1, without: Collection[str] = ()) -> AsyncGenerator[Day]:
    """Start the service twice, once behind a proxy, with dead letters to look at."""
    async with (
        Proxy.before(node.url) as proxy,
        _service(node.url) as steady,
        _service(proxy.url_for(node.url)) as cut,
    ):
        today = Day(node, proxy, (steady, cut), random.Random(seed), without)
        await today.fill()
        yield today


async def soak(
    node: RabbitNode, *, minutes: float, every: float = 60, seed: int = 1, without: Collection[str] = ()
) -> dict[str, Any]:
    """Run it, take a sample ``every`` so many seconds, and return the verdict; what does not recover ends it."""
    samples: list[Sample] = []
    stuck = ""
    async with day(node, seed, without) as today:
        try:
            await _live(today, node, samples, minutes * 60, every)
        except TimeoutError as error:
            stuck = str(error)
    return {"minutes": minutes, "seed": seed, "stuck": stuck, "done": dict(today.done), **verdict(samples)}


async def _live(today: Day, node: RabbitNode, samples: list[Sample], seconds: float, every: float) -> None:
    now, dice = asyncio.get_running_loop().time, random.Random(0)
    ends, cut_at, sample_at = now() + seconds, now() + 15, now() + every
    while now() < ends:
        for _ in range(dice.choice((2, 3, 4))):
            await today.one()
        if now() >= cut_at:
            today.cut()
            cut_at = now() + dice.uniform(12, 18)
        if now() >= sample_at:
            await today.recovered()
            samples.append(await sample(node))
            sample_at = now() + every
        await asyncio.sleep(dice.uniform(0.6, 1.0))
    await today.recovered()


async def floor(node: RabbitNode, looks: int = 8) -> Sample:
    """Count what is there for certain: the least of several samples, for what is under way comes and goes."""
    samples: list[Sample] = []
    for _ in range(looks):
        samples.append(await sample(node))
        await asyncio.sleep(0.13)
    least = {name: min(float(getattr(each, name)) for each in samples) for name in SLACK}
    kinds = set[str]().union(*(each.types for each in samples))
    return Sample(**least, types={kind: min(each.types.get(kind, 0) for each in samples) for kind in kinds})


async def sample(node: RabbitNode) -> Sample:
    """Count what is there now, what can be collected first collected."""
    connections, channels = await asyncio.to_thread(at_the_broker, node)
    return count(connections, channels)


def count(connections: int = 0, channels: int = 0) -> Sample:
    """Count what is in this process, with what somebody has counted at the broker."""
    gc.collect()
    gc.collect()  # what the first run's finalizers let go
    there = [each for each in gc.get_objects() if not _is_cancelled_timer(each)]
    # Interned, or the samples themselves would grow by 130 KiB a minute.
    types = Counter(sys.intern(f"{type(each).__module__}.{type(each).__qualname__}") for each in there)
    callbacks = sum(map(_callbacks, there))
    del there
    return Sample(
        rss_kib=_rss(),
        in_use_kib=heap().in_use_kib,
        objects=types.total(),
        callbacks=callbacks,
        tasks=len(asyncio.all_tasks()),
        fds=len(os.listdir("/proc/self/fd")),
        broker_connections=connections,
        broker_channels=channels,
        types=dict(types),
    )


def _is_cancelled_timer(thing: object) -> bool:
    """Say whether it is a timer that was cancelled: the loop lets go of those when there are 100, or when they are due."""
    return type(thing) is asyncio.TimerHandle and thing.cancelled()


def _callbacks(thing: object) -> int:
    """Count the callbacks that wait on a future, or for the end of one of the client library's connections or channels."""
    kind = type(thing)  # asked itself, a weak proxy whose object is gone would raise
    if issubclass(kind, asyncio.Future):
        return len(getattr(thing, "_callbacks", None) or ())
    # Not issubclass: that of an abstract class keeps a weak reference to each class that it was ever asked about.
    return len(cast("Sized", thing)) if kind is CallbackCollection else 0


def at_the_broker(node: RabbitNode) -> tuple[int, int]:
    """Count the connections and channels that there are, as the node itself knows them."""
    connections = node.eval("length(rabbit_networking:connections())")
    return int(connections), int(node.eval("length(rabbit_channel:list())"))


def _rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def verdict(samples: Sequence[Sample], allowed: Mapping[str, float] = SLACK) -> dict[str, Any]:
    """Compare the last quarter with the first; ``allowed`` is how much more there may be of each."""
    quarter = max(1, len(samples) // 4)
    first, last = samples[:quarter], samples[-quarter:]
    figures: dict[str, Any] = {}
    for name, slack in allowed.items():
        before, after = _median(first, name), _median(last, name)
        flat = after - before <= max(FLAT * before, slack)
        figures[name] = {"first": before, "last": after, "flat": flat}
    types = {name for each in samples for name in each.types}
    grown = {name: _of_type(last, name) - _of_type(first, name) for name in types}
    return {
        "samples": len(samples),
        "figures": figures,
        "grown": dict(sorted(((k, v) for k, v in grown.items() if v > 0), key=lambda item: -item[1])[:10]),
        "flat": bool(samples) and all(each["flat"] for each in figures.values()),
    }


def _median(samples: Sequence[Sample], name: str) -> float:
    return median(float(getattr(each, name)) for each in samples)


def _of_type(samples: Sequence[Sample], name: str) -> float:
    return median(each.types.get(name, 0) for each in samples)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds between two samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--without", action="append", default=[], metavar="PIECE", help="leave a piece of the day out")
    told = parser.parse_args(words)
    logging.getLogger("rabbitevents").setLevel(logging.CRITICAL)
    with RabbitNode() as node:
        found = asyncio.run(soak(node, minutes=told.minutes, every=told.every, seed=told.seed, without=told.without))
    if told.json:
        print(json.dumps(found))
    else:
        for name, figure in found["figures"].items():
            print(
                f"{name:20} {figure['first']:>12,.0f} {figure['last']:>12,.0f}  {'flat' if figure['flat'] else 'GROWS'}"
            )
        print("most grown:", found["grown"])
        print(found["stuck"] and f"stuck: {found['stuck']}")
    return 0 if found["flat"] and not found["stuck"] else 1


if __name__ == "__main__":
    sys.exit(main())
