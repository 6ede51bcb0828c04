"""What has to be looked at: how late the event loop is, which consumers there are, and how deep the queues are.

That is read on the event loop and kept as plain numbers; what is under way is read when somebody collects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from opentelemetry.metrics import Observation

from rabbitevents import Depth, Host, Load, RabbitEventsError, Subscription
from rabbitevents_metrics.backlogs import Backlogs
from rabbitevents_metrics.instruments import LAG, Instruments

TICK: Final = 0.25
"""Seconds between two looks at the event loop's lateness, and at the consumers."""

FIRST_LOOK: Final = 1.0
"""Seconds after which the queues are looked into first: they are declared, and consumed, after the plugins have begun."""

DEADLINE: Final = 5.0
"""Seconds that the broker has to answer about one queue."""

_TRIES: Final = 20


class Looking:
    """Looks at some subscriptions of a bus while it runs, and at the bus itself.

    ``bus_s`` says what gauges of the bus itself are, by the last word of their names; without it, somebody else looks at
    the bus. ``backlogs`` are those of its outboxes.
    """

    def __init__(
        self,
        host: Host,
        subscriptions: Sequence[Subscription],
        instruments: Instruments,
        bus_s: Callable[[], Mapping[str, int]] | None,
        backlogs: Backlogs,
    ) -> None:
        self._host = host
        self._subscriptions = subscriptions
        self._instruments = instruments
        self._bus_s = bus_s
        self._backlogs = backlogs
        self._bus = {"rabbitevents.bus": host.name}
        self._depths: dict[str, Depth] = {}
        self._consumers = frozenset(f"consumer {each.queue}" for each in host.subscriptions)
        self._running = 0

    @asynccontextmanager
    async def at_work(self, interval: float | None) -> AsyncGenerator[None]:
        """Look as long as the bus runs, into the queues every ``interval`` seconds; be read meanwhile."""
        looks: list[Coroutine[Any, Any, None]] = [self._look_into_queues(interval)] if interval is not None else []
        if self._bus_s is not None:
            looks.append(self._look())
        tasks = [asyncio.create_task(look, name=f"{self._host.name} metrics") for look in looks]
        self._instruments.gauging.append(self.observe)
        try:
            yield
        finally:
            self._instruments.gauging.remove(self.observe)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):  # a defect: nothing that looking may meet ends it
                raise error

    def observe(self, name: str) -> Iterator[Observation]:
        """Yield what a gauge is at this moment, in whatever thread."""
        what = name.rpartition(".")[2]
        if name.startswith("rabbitevents.deliveries."):
            loads = self._loads()
            for each in self._subscriptions:
                if each.name in loads:
                    yield Observation(getattr(loads[each.name], what), {"rabbitevents.subscription": each.name})
        elif name.startswith("rabbitevents.queue."):
            of = "ready" if what == "depth" else what
            for queue, depth in tuple(self._depths.items()):
                yield Observation(getattr(depth, of), {"rabbitevents.queue": queue})
        elif name.startswith(("rabbitevents.outbox.", "rabbitevents.projection.")):
            yield from self._backlogs.observe(name)
        elif self._bus_s is not None:
            numbers = {**self._bus_s(), "expected": len(self._consumers), "running": self._running}
            yield Observation(numbers[what], self._bus)

    def _loads(self) -> Mapping[str, Load]:
        """Return what each subscription has; counted again where one came or went meanwhile, on the event loop."""
        for _ in range(_TRIES):
            try:
                return self._host.load
            except RuntimeError:  # a dictionary changed its size
                continue
        return self._host.load

    async def _look(self) -> None:
        """Look at the process, until cancelled."""
        now = asyncio.get_running_loop().time
        due = now() + TICK
        while True:
            await asyncio.sleep(due - now())
            self._instruments.histograms[LAG].record(max(0.0, now() - due), self._bus)
            due = max(due + TICK, now())  # what was missed is not made up for
            self._running = sum(check.ok and check.name in self._consumers for check in self._host.health().checks)

    async def _look_into_queues(self, interval: float) -> None:
        """Ask the broker how deep the queues are, every ``interval`` seconds, until cancelled."""
        queues = list(dict.fromkeys(name for each in self._subscriptions for name in (each.queue, each.dead_queue)))
        if queues and self._bus_s is not None:
            queues.append("delay.lost")  # the dead letters of no queue that is there
        await asyncio.sleep(FIRST_LOOK)
        while True:
            for queue in queues:
                await self._look_into(queue)
            await asyncio.sleep(interval)

    async def _look_into(self, queue: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                depth = await self._host.depth(queue)
        except (RabbitEventsError, TimeoutError):
            depth = None  # the broker is away, or busy: the next look may tell
        if depth is None:
            self._instruments.count("rabbitevents.queue.looks.failed", {"rabbitevents.queue": queue}).number += 1
        else:
            self._depths[queue] = depth
