"""What every event store does: the same events, the same phases, the same clock.

A contender is a small module beside this one that says how its library appends, reads and projects. ``compete`` runs one phase
of it in this process, and prints what came out as one line of JSON, which ``benchmarks/event_store.py`` reads.
"""

import argparse
import json
import logging
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from benchmarks.workload import Clock, quantiles, version_of

Document = dict[str, Any]

CUSTOMERS = 997
ENTITY = 100
"""How many events an order has that is there before."""
PAST = 10_000
"""How many events an entity has that is decided on."""
BLOCK = 500
"""How many events are written at a time by `fill`."""


def document(number: int) -> Document:
    """Return what the event of that number says: about 250 bytes of JSON."""
    return {
        "number": number,
        "customer_id": f"customer-{number % CUSTOMERS:05d}",
        "total": 25,
        "note": "Please leave it with the neighbours. " * 4,
    }


class Contender(ABC):
    """An event store, as far as the benchmark needs it. Its projection counts events, and adds totals, by customer."""

    packages: ClassVar[tuple[str, ...]]
    """The distributions whose versions belong beside the figures."""
    ways: ClassVar[tuple[str, ...]]
    """The forms of a projection that it has."""
    pasts: ClassVar[tuple[str, ...]] = ("whole", "snapshot")
    """From where it takes the state that is decided on: from all events, or from a snapshot that is kept of them."""

    def __init__(self, postgres: str) -> None:
        self.postgres = postgres
        """An URL of libpq."""

    @abstractmethod
    def append(self, writers: int, events: int) -> float:
        """Append one event at a time, each in a transaction, by so many writers, each to its own entity; return seconds."""

    @abstractmethod
    def fill(self, events: int) -> None:
        """Write events, many in a transaction."""

    @abstractmethod
    def read(self) -> int:
        """Read all events, each as its class; return how many there were."""

    @abstractmethod
    def rebuild(self, way: str, events: int) -> None:
        """Let the projection apply all events, from the first one on."""

    @abstractmethod
    def latency(self, way: str, events: int, rate: int) -> list[float]:
        """Append so many a second, and return for each event the seconds from before its append to its projection."""

    @abstractmethod
    def decide(self, way: str, decisions: int) -> list[float]:
        """Load an entity with `PAST` events, and append one to it, so many times; return for each how long it took."""

    @abstractmethod
    def totals(self) -> tuple[int, int]:
        """Return how many events the projection has counted, and the sum of their totals."""


def append(contender: Contender, told: argparse.Namespace) -> Document:
    """Append, and say how many a second."""
    contender.append(told.writers, told.writers * 5)  # connections are made
    cpu = time.process_time()
    seconds = contender.append(told.writers, told.events)
    return {"rate": told.events / seconds, "cpu_us": (time.process_time() - cpu) / told.events * 1e6}


def read(contender: Contender, told: argparse.Namespace) -> Document:
    """Read a store that is filled."""
    contender.fill(told.events)
    clock = Clock()
    found = contender.read()
    reading = _rates(clock, told.events)
    if found != told.events:
        raise RuntimeError(f"{found} events read, {told.events} expected")
    return reading


def rebuild(contender: Contender, told: argparse.Namespace) -> Document:
    """Let a projection apply a store that is filled."""
    contender.fill(told.events)
    before = memory()
    clock = Clock()
    contender.rebuild(told.way, told.events)
    reading = _rates(clock, told.events)
    if contender.totals() != (told.events, told.events * 25):
        raise RuntimeError(f"the projection says {contender.totals()}, of {told.events} events")
    return {**reading, "grown_mb": memory() - before}


def _rates(clock: Clock, events: int) -> Document:
    reading = clock.reading(events)
    return {name: reading[name] for name in ("rate", "cpu_us")}


def latency(contender: Contender, told: argparse.Namespace) -> Document:
    """Append at a steady rate, and see when each event is projected."""
    clock = Clock()
    delays = contender.latency(told.way, told.events, told.rate)[told.rate // 2 :]
    cpu = clock.reading(told.events)["cpu_us"]
    return {**quantiles(delays, ("p50_ms", "p99_ms")), "cpu_us": cpu}


def decide(contender: Contender, told: argparse.Namespace) -> Document:
    """Decide on an entity with a long past."""
    delays = contender.decide(told.way, told.events)
    return quantiles(delays, ("p50_ms", "p99_ms"))


def describe(contender: Contender, _told: argparse.Namespace) -> Document:
    """Say what this contender is."""
    return {
        "ways": contender.ways,
        "pasts": contender.pasts,
        "versions": {package: version_of(package) for package in contender.packages},
    }


def memory() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PHASES: dict[str, Callable[[Contender, argparse.Namespace], Document]] = {
    "describe": describe,
    "append": append,
    "read": read,
    "rebuild": rebuild,
    "latency": latency,
    "decide": decide,
}


def compete(make: Callable[[str], Contender]) -> None:
    """Run the phase that the command line names, and print its result as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--phase", choices=PHASES, required=True)
    parser.add_argument("--postgres", default="postgresql://test@127.0.0.1:1/none")
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--writers", type=int, default=1)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--way", default="single")
    told = parser.parse_args()
    logging.disable(logging.WARNING)
    print(json.dumps(PHASES[told.phase](make(told.postgres), told)), flush=True)
