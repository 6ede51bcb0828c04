"""Connections that flap under a service whose handlers fail: does each event run as often as its attempts say?

``python -m tests.flapping --minutes 5 --events 2000 --every 2 --seed 1`` prints its judgement as a line of JSON, and
ends with 1 where something is wrong. All connections of the service lead through a proxy that ends them again and
again; those who publish and who count do not. Every tenth event of a kind fails, three times; it waits at the broker
in between (``shop.at_broker``) or in the process (``shop.in_process``).

Four ledgers are kept outside of the bus, append-only, all on the event loop's clock: the runs, written by the handler;
the facts, as the bus reports them; the cuts, by who made them; and what the broker says itself of every message that
was published to it and of every one that it delivered (its firehose). From them is known **exactly**:

* how many copies of an event were published for an attempt, and how many dead letters;
* how often each copy was delivered. Once the queues are empty, a copy was delivered once for good, and each delivery
  before that was cut off: its channel went before the broker took its settlement;
* which runs belong to a delivery that was cut off. Without them, an event must have run as often as its attempts say;
* that no run began on a delivery that was known to be stale, and none was repeated without a cut in between.

**A bound** is all that there can be for a cut that falls between a failing run's end and the moment when the broker
takes the acknowledgement: the copy may be safe although its delivery comes again, and then there are two (delivery is
at least once). At most one such copy for each such run is let pass, and one for each cut before the broker has
confirmed it, counted as ``doubled``. The moment when the broker takes the acknowledgement cannot be seen: it is assumed
to be at most `flapping_ledger.TAKEN` after it was written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import aio_pika
from attrs import frozen
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Delivery, Fact, Plugin, Router, event
from rabbitevents.facts import Forwarded
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from tests.bed.node import NodeError
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.flapping_ledger import ATTEMPTS, Ledger, Run, judge

FAILING = 10
"""Every one of so many events of a kind fails."""

AT_BROKER, IN_PROCESS = "shop.at_broker", "shop.in_process"
WAITING = "delay.500"
"""Where a copy waits: half a second is the shortest time that there is a queue for."""


@event("order.shipped", entity="order", key="order_id")
@frozen
class Shipped:
    order_id: str
    fails: bool
    takes: float


@event("order.billed", entity="order", key="order_id")
@frozen
class Billed:
    order_id: str
    fails: bool
    takes: float


class Watching(Plugin):
    """Write down when a copy was safe and the acknowledgement of its delivery written."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, Forwarded):
            self._ledger.forwarded.append((fact.id, _now()))


@asynccontextmanager
async def firehose(node: RabbitNode, ledger: Ledger) -> AsyncGenerator[None]:
    """Have the broker tell of everything that is published to it and of everything that it delivers."""
    node.eval('rabbit_trace:start(<<"/">>)')
    async with await aio_pika.connect(node.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("told", exclusive=True)
        await queue.bind("amq.rabbitmq.trace", "publish.#")
        await queue.bind("amq.rabbitmq.trace", "deliver.shop.#")

        async def write_down(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            told = cast("Mapping[str, Any]", message.headers)
            id, attempt = told["properties"].get("message_id"), told["properties"].get("headers", {}).get("attempt", 1)
            dead = str(told["routing_keys"][0]).endswith(".dead")
            if (message.routing_key or "").startswith("publish."):
                ledger.copies[id, 0 if dead else attempt] += 1
            else:
                ledger.delivered[id, attempt] += 1

        await queue.consume(write_down, no_ack=True)
        yield


# --- what is done ----------------------------------------------------------------------------------------------------


def service(url: str, ledger: Ledger) -> Bus:
    """Return the service: two handlers that fail where the event says so."""
    router = Router("shop")
    stop, wait = stop_after_attempt(ATTEMPTS), wait_fixed(0.1)

    async def handle(order: Shipped | Billed, delivery: Delivery) -> None:
        began, began_stale = _now(), delivery.stale
        try:
            await asyncio.sleep(order.takes)
            if order.fails:
                raise ConnectionError
        finally:
            place, copy = (delivery.generation, delivery.tag), cast("int", delivery.headers.get("attempt", 1))
            id, attempt = str(delivery.id), delivery.attempt
            run = Run(id, copy, attempt, place, began, began_stale, _now(), delivery.stale, order.fails)
            ledger.runs.append(run)

    @router.on(Shipped, concurrency=20)
    async def at_broker(order: Shipped, delivery: Delivery) -> None:
        await handle(order, delivery)

    @router.on(Billed, concurrency=20, plugins=[Retry(stop=stop, wait=wait, inline_below=1.0)])
    async def in_process(order: Billed, delivery: Delivery) -> None:
        await handle(order, delivery)

    return Bus(url, router, plugins=[Watching(ledger), DeadLetter(), Retry(stop=stop, wait=wait, inline_below=0)])


async def publish(bus: Bus, ledger: Ledger, events: int, seconds: float, dice: random.Random) -> None:
    """Publish, spread over the time. What fails takes longer, so that the cuts find it at work."""
    start = _now()
    for number in range(events):
        fails = number // 2 % FAILING == 0
        takes = dice.uniform(0.05, 0.25) if fails else dice.uniform(0.001, 0.03)
        kind = Billed if number % 2 else Shipped
        published = await bus.publish(kind(f"o-{number}", fails, takes))
        ledger.confirmed[str(published.id)] = ATTEMPTS if fails else 1
        if kind is Billed:
            ledger.in_process.add(str(published.id))
        await asyncio.sleep(start + seconds * (number + 1) / events - _now())


async def flap(proxy: Proxy, ledger: Ledger, every: float, dice: random.Random) -> None:
    """End all connections again and again: mostly by RST, as a cable or a firewall does, else by FIN."""
    while True:
        await asyncio.sleep(every * dice.uniform(0.75, 1.25))
        ledger.cuts.append(_now())
        if dice.random() < 0.75:
            proxy.cut()
        else:
            proxy.close()


async def at_rest(node: RabbitNode, ledger: Ledger, seconds: float) -> dict[str, int]:
    """Wait until all is settled and nothing is in any queue, seen twice; return what is left if that takes longer."""
    deadline, seen = _now() + seconds, 0
    while _now() < deadline and seen < 2:
        left = await asyncio.to_thread(_left, node)
        seen = seen + 1 if not left and ledger.settled() else 0
        await asyncio.sleep(0.7)
    return await asyncio.to_thread(_left, node)


def _left(node: RabbitNode) -> dict[str, int]:
    found: dict[str, int] = {}
    for queue in (AT_BROKER, WAITING, IN_PROCESS):
        try:
            counts = node.queue_counts(queue, node.url)
        except NodeError:
            continue  # nothing has waited yet
        found[queue] = counts.ready + counts.unacked
    return {queue: number for queue, number in found.items() if number}


async def bury(node: RabbitNode, ledger: Ledger) -> None:
    """Count the dead letters, and take them out."""
    async with await aio_pika.connect(node.url) as connection:
        channel = await connection.channel()
        for name in (AT_BROKER, IN_PROCESS):
            queue = await channel.get_queue(f"{name}.dead")
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                ledger.dead[message.message_id or ""] += 1


async def flapping(node: RabbitNode, *, events: int, seconds: float, every: float, seed: int) -> dict[str, Any]:
    """Run the whole on a node of its own, and return the judgement."""
    ledger, dice = Ledger(), random.Random(seed)
    async with Proxy.before(node.url) as proxy, firehose(node, ledger), Bus(node.url, name="publisher") as publisher:
        async with service(proxy.url_for(node.url), ledger):
            cutting = asyncio.create_task(flap(proxy, ledger, every, random.Random(seed)))
            try:
                await publish(publisher, ledger, events, seconds, dice)
            finally:
                cutting.cancel()
            left = await at_rest(node, ledger, 60)
        await bury(node, ledger)
    return {"seed": seed, "every": every, "seconds": seconds, **judge(ledger), "left": left}


def _now() -> float:
    return asyncio.get_running_loop().time()


def main(words: Sequence[str] | None = None, say: Callable[[str], object] = print) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.flapping")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--every", type=float, default=2, help="seconds between two cuts, give or take a quarter")
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args(words)
    logging.getLogger("rabbitevents").setLevel(logging.CRITICAL)
    with RabbitNode() as node:
        judgement = asyncio.run(
            flapping(node, events=told.events, seconds=told.minutes * 60, every=told.every, seed=told.seed)
        )
    say(json.dumps(judgement))
    return 1 if judgement["faults"] or judgement["left"] else 0


if __name__ == "__main__":
    sys.exit(main())
