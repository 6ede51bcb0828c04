"""The events and small tools that the tests on real brokers share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from attrs import frozen

from rabbitevents import Delivery, Router, event
from rabbitevents.testing.bench import eventually

__all__ = ["Effects", "OrderPlaced", "eventually", "recording"]


@event("order.placed", version=1, entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str


class Effects:
    """What handlers did, by order."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.running = 0

    async def until(self, number: int, seconds: float = 30) -> None:
        """Wait until as many different orders had their effect."""
        await eventually(lambda: len(self.done) >= number, f"{number} effects, got {len(self.done)}", seconds)


def recording(
    effects: Effects,
    *,
    before: Callable[[Delivery], Awaitable[None]] | None = None,
    concurrency: int = 50,
    prefetch: int = 100,
) -> Router:
    """A router with one handler, ``shop.record``, that records its effect, after ``before`` if given."""
    router = Router("shop")

    @router.on(OrderPlaced, concurrency=concurrency, prefetch=prefetch)
    async def record(order: OrderPlaced, delivery: Delivery) -> None:
        effects.running += 1
        try:
            if before is not None:
                await before(delivery)
            effects.done[order.order_id] += 1
        finally:
            effects.running -= 1

    return router


async def nothing_left_running(before: set[asyncio.Task[object]]) -> None:
    """Wait until no task runs that did not run ``before``."""
    await eventually(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()}, "tasks to end", 5)
