"""Does a crowd of waiting retries slow down the queue that they came from?

    python -m benchmarks.waiting --url amqp://guest:guest@localhost/

Each round measures the live rate of one queue in bursts: with nothing waiting, then while ``--waiting`` events of that
queue wait for their second attempt at the broker, then with nothing waiting again, since machines drift. The rate is
events published, confirmed and handled a second; a round's ratio is that of the medians. On a machine that does other
things as well, ``--pid`` of the broker says more: the CPU time that it needs for an event.

Afterwards each event that waited must have been handled exactly twice, the second time not before its wait was over,
and each live one exactly once; otherwise the run fails. It also fails when the median ratio is below ``--least``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from attrs import frozen
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Delivery, Router, event
from rabbitevents_retry import Retry


@event("job.given")
@frozen
class JobGiven:
    number: int
    fails: bool
    text: str = "x" * 300


class Burst(NamedTuple):
    """Events a second, and microseconds of the broker's CPU for each."""

    rate: float
    cpu: float


class Run:
    """One queue, its handler, and what the handler did."""

    def __init__(self, url: str, wait: float, pid: int | None = None) -> None:
        self.wait = wait
        self.pid = pid
        self.done: Counter[int] = Counter()
        self.failed_at: dict[int, float] = {}
        self.late: list[float] = []
        self.handled = 0
        self.numbers = 0
        self.goal = 0
        self.there = asyncio.Event()
        router = Router("benchmark")

        @router.on(JobGiven, name="waiting", concurrency=50, prefetch=200)
        async def work(job: JobGiven, delivery: Delivery) -> None:
            self.handled += 1
            if self.handled >= self.goal:
                self.there.set()
            self.done[job.number] += 1
            if not job.fails:
                return
            if delivery.attempt == 1:
                self.failed_at[job.number] = time.monotonic()
                raise ConnectionError
            self.late.append(time.monotonic() - self.failed_at[job.number] - wait)

        self.bus = Bus(url, router, plugins=[Retry(stop=stop_after_attempt(3), wait=wait_fixed(wait))])

    async def publish(self, number: int, *, fails: bool) -> None:
        """Publish so many events, 500 in flight."""
        todo = iter(range(self.numbers, self.numbers + number))
        self.numbers += number

        async def some() -> None:
            for n in todo:
                await self.bus.publish(JobGiven(n, fails))

        await asyncio.gather(*(some() for _ in range(500)))

    async def live(self, number: int) -> Burst:
        """Send so many events all the way through."""
        until, started, cpu = self.handled + number, time.perf_counter(), self.broker_cpu()
        await self.publish(number, fails=False)
        await self.reach(until)
        return Burst(number / (time.perf_counter() - started), (self.broker_cpu() - cpu) / number * 1e6)

    def broker_cpu(self) -> float:
        """Return the seconds of CPU that the broker has used; 0 where it is not here."""
        if self.pid is None:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def reach(self, handled: int) -> None:
        """Wait until so many handlings have begun."""
        self.goal = handled
        self.there.clear()
        if self.handled < handled:
            async with asyncio.timeout(120):
                await self.there.wait()

    async def empty(self) -> None:
        """Wait until nothing is in the queue, and what failed is on its way."""
        async with asyncio.timeout(30):
            depth, load = await self.bus.depth("benchmark.waiting"), self.bus.load["benchmark.waiting"]
            while depth is None or depth.ready or load.running or load.queued:
                await asyncio.sleep(0.01)
                depth, load = await self.bus.depth("benchmark.waiting"), self.bus.load["benchmark.waiting"]


async def measure(
    url: str, waiting: int, wait: float, live: int, bursts: int, rounds: int, pid: int | None
) -> list[float]:
    """Print what each round did, and return the ratios of the bursts' medians."""
    ratios = list[float]()
    run = Run(url, wait, pid)
    async with run.bus:
        await run.live(live)
        for number in range(1, rounds + 1):
            alone = [await run.live(live) for _ in range(bursts)]
            before, late = run.handled, len(run.late)
            await run.publish(waiting, fails=True)
            await run.reach(before + waiting)
            await run.empty()
            beside = [await run.live(live) for _ in range(2 * bursts)]
            still = waiting - (len(run.late) - late)
            await run.reach(before + 2 * waiting + 2 * live * bursts)
            alone += [await run.live(live) for _ in range(bursts)]
            ratios.append(statistics.median(b.rate for b in beside) / statistics.median(b.rate for b in alone))
            back = [f"{end * 1000:+.0f}" for end in (min(run.late[late:]), max(run.late[late:]))]
            print(
                f"round {number}: alone {shown(alone)}; with {waiting:,} waiting {shown(beside)}: {ratios[-1]:.2f} x; "
                f"{still:,} still waited at the end of it, and came back {' to '.join(back)} ms after their {wait:g} s",
                flush=True,
            )
            if still < waiting:
                print(
                    "         (some came back while it was measured: take fewer live events, or let them wait longer)"
                )
        await asyncio.sleep(1)  # for what should not come
    check(run, rounds * waiting)
    return ratios


def shown(bursts: list[Burst]) -> str:
    """Return the median of the rates and their range, and of the broker's CPU."""
    rates = [burst.rate for burst in bursts]
    cpu = statistics.median(burst.cpu for burst in bursts)
    text = f"{statistics.median(rates):,.0f} events/s ({min(rates):,.0f} to {max(rates):,.0f})"
    return f"{text}, {cpu:.0f} us of the broker's CPU each" if cpu else text


def check(run: Run, waited: int) -> None:
    """Fail unless every event was handled as often as it should have been."""
    twice = sum(times == 2 for times in run.done.values())
    once = sum(times == 1 for times in run.done.values())
    if (twice, once + twice, len(run.done)) != (waited, run.numbers, run.numbers):
        sys.exit(f"of {run.numbers} events {once} were handled once and {twice} twice; {waited} had to wait")
    if min(run.late) < 0:
        sys.exit(f"an event came back {-min(run.late):.3f} s early")
    print(f"{once:,} live events handled once, {twice:,} that waited twice, none early")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--wait", type=float, default=30.0)
    parser.add_argument("--live", type=int, default=5_000, help="events of one burst")
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pid", type=int, help="the broker's process, to show what CPU time it needs for an event")
    parser.add_argument("--least", type=float, default=0.9)
    told = parser.parse_args()
    ratios = asyncio.run(measure(told.url, told.waiting, told.wait, told.live, told.bursts, told.rounds, told.pid))
    ratio = statistics.median(ratios)
    print(f"median: {ratio:.2f} x the rate without them")
    if ratio < told.least:
        sys.exit(f"that is below {told.least}")


if __name__ == "__main__":
    main()
