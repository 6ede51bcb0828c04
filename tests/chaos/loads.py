"""The loads, each by its name, and what each promises. What they do is in `tests.chaos.services` and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tests.chaos.events import CONCURRENCY, PARTITIONS, crashes, dies, incurable, waits
from tests.chaos.judge import Promises

QUEUE = "chaos.take"
"""The queue of the events, where it is one."""

HANG = "5"
"""Seconds for which an event loop may not turn: fewer than those after which the broker gives it up."""


class Load(msgspec.Struct, frozen=True):
    """What is run: a function of this package that returns a bus, or a program of others; who publishes; what is promised."""

    bus: str
    promises: Promises = Promises(dies=crashes)
    publisher: str = "publish"
    uses: frozenset[str] = frozenset()
    """What it needs beside the broker: servers, or the environment of others."""
    workers: int = 1
    """How many processes a service starts."""
    queue: str = QUEUE
    """A queue of its events."""

    @property
    def serving(self) -> list[str]:
        """The module and its words that handle."""
        several = ["--workers", str(self.workers), "--hang", HANG] if self.workers > 1 else []
        own = ["rabbitevents", "run", f"tests.chaos.{self.bus}", *several]
        return [self.bus, "serve"] if "peers" in self.uses else own

    @property
    def publishing(self) -> list[str]:
        """The module and its words that publish."""
        return [self.bus, "publish"] if "peers" in self.uses else ["tests.chaos.publishers", self.publisher]


def _or_crashes(dies: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda id: crashes(id) or dies(id)


_REDIS, _SHARDS, _POSTGRES = frozenset({"redis"}), frozenset({"shards"}), frozenset({"postgres"})
# One at most of each that was between its effect and its mark:
_ONCE = Promises(dies=crashes, per_crash=CONCURRENCY)
_ONE_EACH = Promises(stages=("effect", "passed"), per_crash=0)

LOADS: Final[Mapping[str, Load]] = {
    "handle": Load("services:handle"),
    "workers": Load("services:handle", workers=2),
    "sync": Load("services:handle", publisher="publish_from_threads"),
    "delayed": Load("services:handle", Promises(dies=crashes, waits=waits), publisher="delay"),
    "retries": Load("services:retries", Promises(dies=_or_crashes(dies))),
    "replayed": Load("tended:replayed", Promises(dies=_or_crashes(incurable))),
    "ordered": Load("services:ordered", Promises(dies=crashes, in_order=True)),
    "partitions": Load(
        "services:partitions",
        Promises(dies=crashes, in_order=True, moves=True),
        queue=f"{QUEUE}.0-of-{PARTITIONS}",
    ),
    "batches": Load("services:batches"),
    "idempotent": Load("services:idempotent", _ONCE, publisher="publish_some_twice", uses=_REDIS),
    "sharded": Load("services:idempotent", _ONCE, publisher="publish_some_twice", uses=_SHARDS),
    "transactions": Load("services:transactions", _ONE_EACH, publisher="commit", uses=_POSTGRES),
    "stored": Load(
        "stored:stored",
        Promises(stages=("effect", "passed"), once=("effect", "passed"), per_crash=0),
        publisher="append",
        uses=_POSTGRES,
    ),
}
