"""The roles of Python's contenders: what each publishes or consumes while the clock runs.

`compete` runs one of them in this process, and prints what came out as one line of JSON. `README.md` has the words.
"""

import asyncio
import json
import platform
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from benchmarks.workload import (
    IN_FLIGHT,
    QUIET,
    Clock,
    Contender,
    Publish,
    Reading,
    SynchronousContender,
    Tally,
    Told,
    at_a_rate,
    quantiles,
    settle_the_collector,
    version_of,
)

PublishAll = Callable[[Publish, Sequence[Any]], Coroutine[None, None, None]]


async def _published(contender: Contender, publish_all: PublishAll) -> Reading:
    told = contender.told
    orders = [contender.order(document) for document in told.documents()]
    settle_the_collector()
    async with contender.publisher() as publish:
        await publish_all(publish, orders[: told.warm_up])
        clock = Clock()
        await publish_all(publish, orders[told.warm_up :])
        return clock.reading(told.events)


async def publish_one(contender: Contender) -> Reading:
    """Publish one after the other, each awaited."""

    async def publish_all(publish: Publish, orders: Sequence[Any]) -> None:
        for order in orders:
            await publish(order)

    return await _published(contender, publish_all)


async def publish_in_flight(contender: Contender) -> Reading:
    """Publish from 500 tasks, each of which awaits its confirm before it goes on: 500 are in flight at any time."""

    async def publish_all(publish: Publish, orders: Sequence[Any]) -> None:
        remaining = iter(orders)

        async def publish_the_next() -> None:
            for order in remaining:
                await publish(order)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(publish_the_next())

    return await _published(contender, publish_all)


async def publish_batches(contender: Contender) -> Reading:
    """Publish 500 at once, and the next when all are confirmed."""

    async def publish_all(publish: Publish, orders: Sequence[Any]) -> None:
        for start in range(0, len(orders), IN_FLIGHT):
            await contender.publish_all(publish, orders[start : start + IN_FLIGHT])

    return await _published(contender, publish_all)


async def consume(contender: Contender) -> Reading:
    """Consume what is in the queue."""
    told = contender.told
    tally = Tally(told.total, told.warm_up, told.first)
    settle_the_collector()
    async with contender.consumer(tally):
        await tally.complete.wait()
        for _ in range(10):  # whoever is about to acknowledge gets a turn of the loop to do it
            await asyncio.sleep(0)
        reading = tally.reading()
        await asyncio.sleep(QUIET)
    return reading | tally.counts()


async def latency(contender: Contender) -> Reading:
    """Publish so many orders a second and time each from before ``publish`` until its handler runs, in one process."""
    told = contender.told
    orders = [contender.order(document) for document in told.documents()]
    published = [0.0] * told.total
    delays: list[float] = []
    complete = asyncio.Event()

    def handle(order_id: str) -> None:
        delays.append(time.perf_counter() - published[int(order_id[6:]) - told.first])
        if len(delays) == told.total:
            complete.set()

    settle_the_collector()
    async with contender.consumer(handle), contender.publisher() as publish:

        async def publish_it(number: int) -> None:
            published[number] = time.perf_counter()
            await publish(orders[number])

        await at_a_rate(told.rate, told.total, publish_it)
        await complete.wait()
        await asyncio.sleep(QUIET)
    return {"events": told.events, **quantiles(delays[told.warm_up :])}


def publish_one_synchronously(contender: SynchronousContender) -> Reading:
    told = contender.told
    orders = list(told.documents())
    settle_the_collector()
    with contender.publisher() as publish:
        for order in orders[: told.warm_up]:
            publish(order)
        clock = Clock()
        for order in orders[told.warm_up :]:
            publish(order)
        return clock.reading(told.events)


def consume_synchronously(contender: SynchronousContender) -> Reading:
    told = contender.told
    tally = Tally(told.total, told.warm_up, told.first)
    found: Reading = {}

    def complete() -> bool:
        if tally.handled == told.total and not found:
            found.update(tally.reading())
        return bool(found)

    settle_the_collector()
    contender.consume(tally, complete)
    return found | tally.counts()


ROLES: Mapping[str, Callable[[Contender], Coroutine[None, None, Reading]]] = {
    "publish_one": publish_one,
    "publish_in_flight": publish_in_flight,
    "publish_batches": publish_batches,
    "consume": consume,
    "consume_slow": consume,
    "latency": latency,
}
SYNCHRONOUS_ROLES: Mapping[str, Callable[[SynchronousContender], Reading]] = {
    "publish_one": publish_one_synchronously,
    "consume": consume_synchronously,
}


def run(contender: Contender | SynchronousContender) -> Reading:
    """Run the role that the contender was told."""
    if isinstance(contender, SynchronousContender):
        return SYNCHRONOUS_ROLES[contender.told.role](contender)
    return asyncio.run(ROLES[contender.told.role](contender))


def compete(made: Callable[[Told], Contender | SynchronousContender], packages: Sequence[str]) -> None:
    """Run the role that the command line names, print its result as one line of JSON, and wait for the input's end."""
    if sys.argv[-1] == "versions":
        versions = {"python": platform.python_version(), **{package: version_of(package) for package in packages}}
        print(json.dumps(versions), flush=True)
        return
    print(json.dumps(run(made(Told.of(sys.argv[-10:])))), flush=True)
    sys.stdin.read()
