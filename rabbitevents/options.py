"""How a subscription works: how many at a time, in which order, one by one or together."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import timedelta
from typing import Any, Final, TypeAlias

import msgspec

from rabbitevents.arguments import Seconds, seconds, span, whole, wrong
from rabbitevents.errors import ConfigurationError
from rabbitevents.partitions import MOST

WINDOW: Final = 2000
"""How many deliveries a quorum queue lets out at a time, to one consumer."""

Ordered: TypeAlias = bool | Callable[[Any], Hashable | None]
"""Whether the events of an entity are handled in order; or, in place of the entity, what a payload belongs to."""


class Batch:
    """How events come together for a handler that takes several of them at once.

    ::

        @orders.on(OrderPlaced, batch=Batch(size=100, within=0.2))
        async def index(placed: list[OrderPlaced]) -> None: ...

    :param size: How many at most, 2 to 1000.
    :param within: How long the first one waits for others: seconds (0.2), or a timedelta.

    Raises `ConfigurationError`.
    """

    __slots__ = ("size", "within")

    def __init__(self, size: int = 100, within: Seconds = 0.2) -> None:
        self.size: int = whole("Batch: size", size, least=2, most=1000, why="all of it is unsettled at a time")
        self.within: float = seconds("Batch: within", within)

    def __repr__(self) -> str:
        return f"Batch(size={self.size}, within={self.within:g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and (self.size, self.within) == (other.size, other.within)

    def __hash__(self) -> int:
        return hash((self.size, self.within))


class Options(msgspec.Struct, frozen=True):
    """How a subscription works. ``timeout`` is for one handling."""

    concurrency: int = 10
    prefetch: int = 100
    timeout: timedelta | None = None
    ordered: Ordered = False
    """Whether the events of an entity, or of what the function returns for their payload, are handled one by one."""
    single_active_consumer: bool = False
    """Whether of all processes one is given events, and the others stand by."""
    batch: Batch | None = None
    """How events come together, where the handler takes several at once; ``concurrency`` counts batches then."""
    partitions: int = 0
    """How many queues the events are divided among, by their entities; 0: they are in one. ``concurrency`` and
    ``prefetch`` are of each."""

    @property
    def workers(self) -> int:
        """How many events are in handlers' hands at a time."""
        return self.concurrency if self.batch is None else self.concurrency * self.batch.size


def options_of(
    concurrency: int | None,
    prefetch: int | None,
    timeout: Seconds | None,
    ordered: object,
    single_active_consumer: object,
    batch: object,
    partitions: int | None,
) -> Options:
    """Return what ``@router.on(...)`` was told. Raises `ConfigurationError` for what cannot be meant."""
    limit = None if timeout is None else span("on(...): timeout", timeout, positive=True)
    if not isinstance(ordered, bool) and not callable(ordered):
        way_out = "say True, or a function of the payload: lambda order: order.customer_id"
        raise wrong("on(...): ordered", ordered, way_out)
    if not isinstance(single_active_consumer, bool):
        raise wrong("on(...): single_active_consumer", single_active_consumer, "say True or False")
    if batch is not None and not isinstance(batch, Batch):
        raise wrong("on(...): batch", batch, "say Batch(size=100, within=0.2)")
    usual = Options().concurrency if batch is None else 1
    calls = usual if concurrency is None else whole("on(...): concurrency", concurrency)
    ahead = max(Options().prefetch, calls) if batch is None else _ahead(calls, batch)
    if prefetch is not None:
        ahead = whole("on(...): prefetch", prefetch, most=WINDOW, why="quorum queues let 2000 out at a time")
    if batch is not None and ahead < batch.size:
        raise ConfigurationError(f"on(...): prefetch={ahead} lets no batch of {batch.size} come together")
    if partitions is None:
        return Options(calls, ahead, limit, ordered, single_active_consumer, batch)
    if callable(ordered):
        raise ConfigurationError(
            "on(...): partitions= go by the entity, which RabbitMQ reads in a header, and ordered= is a function of the "
            "payload: leave one of the two out"
        )
    total = whole("on(...): partitions", partitions, least=2, most=MOST, why="each is a queue of its own")
    return Options(calls, ahead, limit, True, True, batch, total)


def _ahead(calls: int, batch: Batch) -> int:
    """Return how many deliveries come ahead for as many calls: the next ones come together while these are handled."""
    workers = calls * batch.size
    if workers > WINDOW:
        raise ConfigurationError(
            f"on(...): concurrency={calls} batches of {batch.size} are more than {WINDOW} events at a time"
        )
    return min(WINDOW, max(Options().prefetch, 2 * workers))
