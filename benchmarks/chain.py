"""What the plugins cost that make it trustworthy: ``python -m benchmarks.chain --url amqp:// --redis redis://``.

The same orders, phases and checks as in ``end_to_end.py``: bare FastStream, which has none of all that; rabbitevents with
nothing in its chain; and with DeadLetter, Retry and Idempotency in it, on a MemoryStore and on Redis. Publishing is the
same for all of ours, what differs is the consuming. Every phase runs in a process of its own, and in each round another
contender begins (``pip install 'faststream[rabbit]' orjson``).
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aio_pika
from redis.asyncio import Redis

from benchmarks.contenders.faststream_msgspec import FastStreamMsgspec
from benchmarks.contenders.faststream_pydantic import FastStreamPydantic
from benchmarks.contenders.rabbitevents_ import OrderPlaced, RabbitEvents
from benchmarks.end_to_end import PHASES, Broker, Result, Round, table
from benchmarks.workload import PREFETCH, Contender, Handle, compete
from rabbitevents import Bus, Plugin, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, MemoryStore, RedisStore, Store
from rabbitevents_retry import Retry

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins")))}
MEASURED = [phase for phase in PHASES if phase.name in ("publish_many", "consume")]
REDIS = "RABBITEVENTS_BENCHMARK_REDIS"
"""The variable that tells a phase's process where Redis is."""


class Bare(RabbitEvents):
    """rabbitevents with nothing in its chain, and as many workers as one gives to handlers that wait for a store."""

    packages = (*RabbitEvents.packages, "redis", "tenacity")

    def plugins(self) -> Sequence[Plugin]:
        return ()

    @asynccontextmanager
    async def consumer(self, url: str, handle: Handle) -> AsyncIterator[None]:
        router = Router("bench.rabbitevents")

        @router.on(OrderPlaced, prefetch=PREFETCH, concurrency=100)
        async def on_order(order: OrderPlaced) -> None:
            handle(order.order_id)

        async with Bus(url, router, exchange=self.exchange, plugins=self.plugins()):
            yield


class OnMemory(Bare):
    """With all three, on a MemoryStore."""

    def store(self) -> Store:
        return MemoryStore()

    def plugins(self) -> Sequence[Plugin]:
        return [DeadLetter(), Retry(), Idempotency(self.store(), keep=timedelta(minutes=10))]


class OnRedis(OnMemory):
    """With all three, on Redis."""

    def store(self) -> Store:
        self._client = Redis.from_url(os.environ[REDIS])
        return RedisStore(self._client, prefix="bench:")

    @asynccontextmanager
    async def consumer(self, url: str, handle: Handle) -> AsyncIterator[None]:
        async with super().consumer(url, handle):
            yield
        await self._client.aclose()


CONTENDERS: Mapping[str, Callable[[], Contender]] = {
    "faststream_pydantic": FastStreamPydantic,
    "faststream_msgspec": FastStreamMsgspec,
    "rabbitevents_bare": Bare,
    "rabbitevents_memory": OnMemory,
    "rabbitevents_redis": OnRedis,
}


def run(name: str, phase: str, url: str, redis: str, events: int) -> Result:
    """Run one phase of a contender in a new process and return what it reported."""
    command = [sys.executable, "-m", "benchmarks.chain", name]
    options = ["--url", url, "--phase", phase, "--events", str(events)]
    finished = subprocess.run(
        command + options,
        cwd=ROOT,
        env=ENVIRONMENT | {REDIS: redis},
        stdout=subprocess.PIPE,
        timeout=120 + events / 200,
        check=True,
    )
    result: Result = json.loads(finished.stdout.splitlines()[-1])
    return result


async def take_turn(broker: Broker, url: str, redis: str, name: str, queue: str, events: int) -> dict[str, Result]:
    """Publish and consume with one contender; after each the broker is asked what is left."""
    results: dict[str, Result] = {}
    await broker.purge(queue)
    for phase in MEASURED:
        results[phase.name] = result = await asyncio.to_thread(run, name, phase.name, url, redis, events)
        print(f"  {name:22s}{phase.name:14s}" + "".join(f"{k} {v:<12,.4g}" for k, v in result.items()), file=sys.stderr)
        await broker.expect(queue, result["left"])
    return results


async def compare(url: str, redis: str, names: list[str], events: int, rounds: int) -> dict[str, Any]:
    """Run all rounds; return the contenders' versions and every single figure."""
    async with await aio_pika.connect(url) as connection:
        broker = Broker(connection)
        declared = {name: await asyncio.to_thread(run, name, "declare", url, redis, 0) for name in names}
        figures: list[Round] = []
        for number in range(rounds):
            turn = names[number % len(names) :] + names[: number % len(names)]
            figures.append({n: await take_turn(broker, url, redis, n, declared[n]["queue"], events) for n in turn})
        await broker.delete(*{name for d in declared.values() for name in (d["queue"], d["exchange"], *d["leftovers"])})
        return {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "broker": broker.version(),
            "events": events,
            "versions": {package: v for name in names for package, v in declared[name]["versions"].items()},
            "rounds": figures,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="amqp://guest:guest@localhost/", help="a RabbitMQ that may be kept busy")
    parser.add_argument("--redis", default="redis://localhost/", help="a Redis that may be kept busy")
    parser.add_argument("--events", type=int, default=20_000, help="how many to publish and consume (default: 20000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every single figure")
    arguments = parser.parse_args()

    names = [name for name in CONTENDERS if name in arguments.only]
    report = asyncio.run(compare(arguments.url, arguments.redis, names, arguments.events, arguments.rounds))
    print(table(report, names, MEASURED))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CONTENDERS:
        compete(CONTENDERS[sys.argv.pop(1)]())  # one phase of one contender
    else:
        main()
