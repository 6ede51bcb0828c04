"""What a service with a kill switch does while its database is away, on a RabbitMQ of its own.

``python -m tests.outage --minutes 10 --events 500`` publishes so many events into a service with `DeadLetter`, `Retry` and
`KillSwitch` as they are by default, whose handlers fail for so long, and prints one line of JSON: how often a handler was
called meanwhile, how long all took from the return on, how many died, and what the broker counted of their deliveries.
``scripts/rabbitmq4 trixie`` before it runs it on RabbitMQ 4.0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from rabbitevents import Bus, Delivery, Router
from rabbitevents.arguments import Seconds
from rabbitevents_deadletter import DeadLetter
from rabbitevents_flow import KillSwitch
from rabbitevents_retry import Retry
from tests.bed.rabbitmq import RabbitNode
from tests.jobs import JobGiven

PATIENCE: Final = 120.0
"""Seconds from the return on after which what is not handled by then is not waited for."""


class Outage(msgspec.Struct, frozen=True):
    """What came of it. ``late`` is how many seconds after the return the last one was handled."""

    seconds: float
    events: int
    handled: int
    calls: int
    late: float
    dead: int
    counted: int
    attempts: dict[int, int]
    degraded: list[str]
    """What health said when it had been away for half of the time."""


async def outage(url: str, *, away: float, events: int, pause: Seconds = 10, longest: Seconds = 45) -> Outage:
    """Have ``events`` come while what the handlers need is away for ``away`` seconds."""
    router, is_back, all_done, calls = Router("work"), asyncio.Event(), asyncio.Event(), [0]
    attempts, counted = dict[int, int](), list[int]()

    @router.on(JobGiven)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        if not is_back.is_set():
            calls[0] += 1
            raise ConnectionError
        attempts[job.number] = delivery.attempt
        counted.append(delivery.delivery_count)
        if len(attempts) == events:
            all_done.set()

    bus = Bus(url, router, plugins=[DeadLetter(), Retry(), KillSwitch(pause=pause, longest=longest)])
    now = asyncio.get_running_loop().time
    async with bus:
        began = now()
        await bus.publish_many([JobGiven(number) for number in range(events)])
        await asyncio.sleep(away / 2)
        degraded = [f"{check.name}: {check.detail}" for check in bus.health().problems if check.degraded]
        await asyncio.sleep(began + away - now())
        is_back.set()
        back = now()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await all_done.wait()
        late = now() - back
        dead = await bus.depth("work.do.dead")
    return Outage(
        seconds=away,
        events=events,
        handled=len(attempts),
        calls=calls[0],
        late=round(late, 2),
        dead=dead.ready if dead is not None else 0,
        counted=sum(counted),
        attempts=dict(sorted(Counter(attempts.values()).items())),
        degraded=degraded,
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.outage")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--events", type=int, default=500)
    told = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING)
    root = os.environ.get("RABBITEVENTS_TEST_ROOT")
    with RabbitNode(root=Path(root) if root is not None else None) as node:
        away = timedelta(minutes=told.minutes).total_seconds()
        found = asyncio.run(outage(node.url, away=away, events=told.events))
        version = node.eval("rabbit_misc:version()")
    print(json.dumps({"rabbitmq": version, **msgspec.structs.asdict(found)}))
    return 0 if found.handled == told.events and not found.dead else 1


if __name__ == "__main__":
    sys.exit(main())
