"""Who runs: every contender, how it is started, what it can do, and what differs from the others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "benchmarks" / "contenders"
HERE = ROOT / ".work" / "benchmarks"
"""Where all is that was made or measured."""
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins")))}
"""The environment of contenders' processes."""

PUBLISHING = frozenset({"publish_one", "publish_in_flight", "publish_batches"})
ALL = PUBLISHING | {"consume", "consume_slow", "latency"}
OURS = "rabbitevents"
REFERENCE = "faststream"


@dataclass(frozen=True)
class Contender:
    """A client library, in one way of using it."""

    name: str
    title: str
    language: str
    command: tuple[str, ...]
    pace: int
    """About how many events a second it publishes or consumes on a small machine: so many make a second's work."""
    differs: str = ""
    """What is not as with the others."""
    roles: frozenset[str] = ALL
    feeder: str = ""
    """Who fills its queue, if it does not itself."""
    chain: str = ""
    """What is in the chain, where it runs in that case only."""

    @property
    def declares(self) -> bool:
        """Whether the queue is its own, and not one that the benchmark declares."""
        return self.name.startswith(OURS)

    def environment(self) -> dict[str, str]:
        """Return the environment of its processes."""
        return dict(ENVIRONMENT)


def _python(module: str, *words: str) -> tuple[str, ...]:
    return (str(HERE / "python" / "venv" / "bin" / "python"), "-m", f"benchmarks.contenders.python.{module}", *words)


def _java(which: str) -> tuple[str, ...]:
    return ("java", "-cp", f"{HERE / 'java' / 'classes'}:{HERE / 'java' / 'lib'}/*", "Contenders", which)


SAFE = "DeadLetter, Retry, Idempotency"


def _chained(name: str, title: str, chain: str, pace: int, holds: str) -> Contender:
    return Contender(name, title, "python", _python("rabbitevents_", chain), pace, chain=f"{holds}; 100 workers")


_GO = str(HERE / "go" / "contenders")

OUR_ACKS = "acknowledges many events by one frame; writes its whole envelope: four headers, correlation, source"
AS_LET_OUT = "handles as many at a time as are let out, 100 where a handler takes 5 ms"
ONE_AT_A_TIME = "awaits each confirm, so there is no publishing in flight; handles one event at a time"

CONTENDERS: tuple[Contender, ...] = (
    Contender(OURS, "rabbitevents", "python", _python("rabbitevents_", "plain"), 25_000, OUR_ACKS),
    Contender(
        REFERENCE,
        "FastStream, pydantic",
        "python",
        _python("faststream_pydantic", "plain"),
        3_500,
        "its logger is off, as in its own benchmarks; orjson, which it uses where it is installed; no batch of its own: gather; "
        f"{AS_LET_OUT}",
    ),
    Contender(
        "librabbitmq",
        "librabbitmq",
        "c",
        (str(HERE / "c" / "librabbitmq_"),),
        25_000,
        "the limit: no JSON library, an order is written by snprintf and its id is read; nothing runs beside it",
        PUBLISHING | {"consume"},
    ),
    Contender(
        "aio-pika",
        "aio-pika by hand",
        "python",
        _python("raw_aio_pika"),
        5_000,
        f"publishes a dict; dataclasses and the standard library's json; {AS_LET_OUT}",
    ),
    Contender(
        "watermill",
        "Watermill, watermill-amqp",
        "go",
        (_GO, "watermill"),
        6_000,
        "a subscriber handles one event after the other; a channel for each event in flight, as a publish takes one until it is "
        "confirmed; no message id or timestamp, headers are texts; no batch that is confirmed together",
        ALL - {"publish_batches"},
    ),
    Contender(
        "spring",
        "Spring AMQP",
        "java",
        _java("spring"),
        6_000,
        "adds a header with the class; 100 consumers with a channel each where 100 are handled at a time",
    ),
    Contender("amqp091", "amqp091-go", "go", (_GO, "amqp091"), 15_000, "by hand; a goroutine for each event in flight"),
    Contender("java", "RabbitMQ's Java client", "java", _java("bare"), 15_000, "by hand, confirms by a listener"),
    Contender(
        "faststream-msgspec",
        "FastStream, msgspec",
        "python",
        _python("faststream_msgspec"),
        3_500,
        "as FastStream, set up as in its own benchmarks",
    ),
    Contender(
        "amqplib",
        "amqplib",
        "node",
        ("node", str(HERE / "node" / "amqplib_.js")),
        10_000,
        f"JavaScript: what JSON.parse returns has no type; {AS_LET_OUT}",
    ),
    Contender("aiormq", "aiormq by hand", "python", _python("raw_aiormq"), 8_000, "as aio-pika, one floor below"),
    Contender(
        "pika",
        "pika",
        "python",
        _python("pika_"),
        10_000,
        ONE_AT_A_TIME,
        frozenset({"publish_one", "consume"}),
        "aio-pika",
    ),
    Contender(
        "kombu",
        "kombu",
        "python",
        _python("kombu_"),
        7_000,
        ONE_AT_A_TIME,
        frozenset({"publish_one", "consume"}),
        "aio-pika",
    ),
    Contender(
        "taskiq",
        "taskiq-aio-pika",
        "python",
        _python("taskiq_"),
        3_000,
        "a task's message: no content type, id, timestamp or type; not mandatory; 100 tasks at a time",
    ),
    # --- with plugins: in the case "chain" only
    _chained("rabbitevents-bare", "rabbitevents, no plugin", "bare", 25_000, "nothing"),
    _chained("rabbitevents-traced", "rabbitevents, Tracing", "traced", 15_000, "Tracing, 1 in 100 sampled"),
    _chained("rabbitevents-memory", "rabbitevents, safe", "memory", 15_000, f"{SAFE} on a MemoryStore"),
    _chained("rabbitevents-redis", "rabbitevents, safe, Redis", "redis", 10_000, f"{SAFE} on Redis"),
    _chained(
        "rabbitevents-card", "rabbitevents, whole card", "card", 6_000, f"{SAFE} on Redis, Tracing 1 in 100, Metrics"
    ),
    Contender(
        "faststream-seeing",
        "FastStream, seeing",
        "python",
        _python("faststream_pydantic", "seeing"),
        3_000,
        chain="its middlewares for tracing, 1 in 100 sampled, and for metrics",
    ),
)

BY_NAME: Mapping[str, Contender] = {each.name: each for each in CONTENDERS}


def in_turn(them: Sequence[T], number: int) -> list[T]:
    """Return them in the order of the round of that number: in each round another one begins."""
    begin = number % len(them) if them else 0
    return [*them[begin:], *them[:begin]]
