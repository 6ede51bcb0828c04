"""Run scenarios: let events flow, inflict, heal, wait for recovery, and have the judge count."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from math import ceil
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.judge import Verdict, judge
from tests.chaos.loads import LOADS
from tests.chaos.peers import PEERS
from tests.chaos.plan import Scenario
from tests.chaos.world import ROOT, Servers, World, world

QUIET = 45.0
"""Seconds without an effect, once nothing is published any more, after which what is left is stuck."""

ALL = {**LOADS, **PEERS}

ENOUGH = 500
"""How many faults of a kind are named."""


_FIRST, _HEALED_LAST = {"queue": 0, "service": 2}, {"queue": 1, "service": 2}
"""In which order faults that meet are inflicted, and healed, by what they touch."""


class Count(msgspec.Struct):
    """What came of a scenario."""

    scenario: Scenario
    injections: int = 0
    misses: int = 0
    """Injections without load in flight, or whose effect was not observed: they count for nothing."""
    verdict: Verdict = msgspec.field(default_factory=Verdict)
    recoveries: list[float] = msgspec.field(default_factory=list[float])
    """Seconds from the healing until events were confirmed, and handlings begun, again."""
    error: str = ""
    """Why it could not be run to its end."""
    seconds: float = 0.0
    folder: str = ""
    """Where its ledger and logs are, if something is wrong."""

    @property
    def red(self) -> bool:
        """Whether a promise was broken, or nobody knows."""
        return bool(self.verdict.faults or self.error)


async def run(
    scenarios: Sequence[Scenario], seed: int, *, sources: Path = ROOT, minutes: float | None = None, nodes: int = 1
) -> tuple[list[Count], str]:
    """Run scenarios one after the other, on servers of their own; return what was counted, and RabbitMQ's version.

    ``minutes``: begin none after so long. ``nodes``: how many RabbitMQ has.
    """
    began, counts = time.monotonic(), list[Count]()
    async with AsyncExitStack() as stack:
        operated = any(FAULTS[name].operated for scenario in scenarios for name in scenario.faults)
        servers = Servers(stack, os.environ.get("RABBITEVENTS_TEST_ROOT"), nodes, management=operated)
        for number, scenario in enumerate(scenarios):
            if minutes is not None and time.monotonic() - began > minutes * 60:
                break
            count = await one(servers, scenario, f"{seed} {number} {scenario.name}", sources)
            counts.append(count)
            say(count, number + 1, len(scenarios))
        return counts, servers.node.version


async def one(servers: Servers, scenario: Scenario, seed: str, sources: Path = ROOT) -> Count:
    """Run a scenario and judge it. What broke it off is in ``error``; its folder is kept where it is red."""
    count, began = Count(scenario), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        async with world(servers, folder, seed) as there:
            await there.begin(ALL[scenario.load], sources)
            try:
                for _ in range(scenario.injections):
                    await inject(there, scenario, count)
            except TimeoutError as error:  # nothing flows: what there is is judged all the same
                count.error = str(error)
            await there.end(QUIET, ALL[scenario.load].promises.dies)
            count.verdict = verdict_of(there, scenario.load)
    except Exception as error:
        # Whatever keeps a scenario from its end is said, and the next one is run: the run is a night's.
        count.error = f"{type(error).__name__}: {error}"[:ENOUGH]
        await heal(servers)
    count.seconds = round(time.monotonic() - began, 1)
    if count.red:
        count.folder = str(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return count


async def inject(there: World, scenario: Scenario, count: Count) -> None:
    """Wait for load, inflict all faults, see them, heal, and wait until events flow again."""
    await there.flowing()
    await asyncio.sleep(there.random.uniform(0.1, 1.0))
    under_way = there.tail.read().under_way
    seen, healed = await meet([(FAULTS[name](), there) for name in scenario.faults], there.random)
    if under_way and seen:
        count.injections += 1
    else:
        count.misses += 1
    await there.flowing(healed)
    count.recoveries.append(round(there.tail.recovered(healed) - healed, 2))


async def meet(faults: Sequence[tuple[Fault, World]], dice: random.Random) -> tuple[bool, float]:
    """Inflict faults on worlds at the same time; return whether all were seen, and since when all stands again."""
    # What is done to a queue needs a broker, and a process that starts needs its servers.
    faults = sorted(faults, key=lambda each: _FIRST.get(each[0].touches, 1))
    begun = list[tuple[Fault, World]]()
    try:
        for fault, there in faults:
            begun.append((fault, there))
            await fault.inflict(there)
            await asyncio.sleep(dice.uniform(0, 1.5) if len(faults) > 1 else 0)
        seen = [await fault.observed(there) for fault, there in faults]
    except Exception:
        for fault, there in begun:
            with suppress(Exception):  # what did happen is healed as far as it can be
                await fault.after(there)
        raise
    faults.sort(key=lambda each: _HEALED_LAST.get(each[0].touches, 0))
    return all(seen), max([await fault.after(there) for fault, there in faults])


def verdict_of(there: World, load: str) -> Verdict:
    """Judge what happened in a world."""
    return judge(
        there.tail.read().records,
        ALL[load].promises,
        crashes=there.crashes,
        late=there.late,
        forfeit_until=there.forfeit_until,
        forgotten_until=there.forgotten_until,
        moved_until=there.servers.moved_until,
    )


async def heal(servers: Servers) -> None:
    """Make the servers stand again after a scenario that was broken off."""
    if servers.network is not None:
        servers.network.heal()
    for node in servers.nodes:
        if node.running:
            await asyncio.to_thread(node.resume)
            await node.aset_memory_alarm(on=False)
        else:
            await node.astart()
    await asyncio.to_thread(servers.node.set_password, "guest", "guest")
    for server in servers.stores:
        if server.running:
            server.resume()
        else:
            await server.astart()


def say(count: Count, number: int, of: int) -> None:
    verdict = count.verdict
    what = ("lost", "unexpected", "excess", "stuck", "silent", "inversions")
    wrong = ", ".join(f"{each} {getattr(verdict, each)}" for each in what if getattr(verdict, each))
    said = count.error or wrong or "well"
    where = f" ({count.folder})" if count.folder else ""
    slowest = max(count.recoveries, default=0.0)
    print(
        f"{number}/{of} {count.scenario.name}: {count.injections} injections, {verdict.confirmed:,} confirmed, "
        f"recovered in {slowest:.1f} s at most, {count.seconds:.0f} s: {said}{where}",
        file=sys.stderr,
        flush=True,
    )


def summary(counts: Sequence[Count]) -> dict[str, Any]:
    """Return the one object of a run: the sums, and each scenario's own figures."""
    names: tuple[str, ...] = ("confirmed", "handled", "dead", "unknown", "recovered", "lost", "forfeited", "unexpected")
    names += ("duplicate_deliveries", "duplicate_effects", "excess", "stuck", "silent", "inversions", "moved")
    recoveries = sorted(each for count in counts for each in count.recoveries)
    return {
        "injections": sum(count.injections for count in counts),
        "misses": sum(count.misses for count in counts),
        "pairs": len({(c.scenario.load, c.scenario.faults) for c in counts if c.injections}),
        **{name: sum(getattr(count.verdict, name) for count in counts) for name in names},
        "recovery_p50_s": _quantile(recoveries, 0.5),
        "recovery_p99_s": _quantile(recoveries, 0.99),
        "broken_off": sum(bool(count.error) for count in counts),
        "scenarios": {
            count.scenario.name: {
                "injections": count.injections,
                "misses": count.misses,
                **msgspec.structs.asdict(count.verdict),
                "recoveries_s": count.recoveries,
                "seconds": count.seconds,
                **({"error": count.error} if count.error else {}),
            }
            for count in counts
        },
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, ceil(len(ordered) * share) - 1)] if ordered else 0.0
