"""What has to be looked at, again and again: how late the event loop is, what is under way, and how deep the queues are.

Everything is read on the event loop and handed to the meter there: an exporter may collect in any thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from rabbitevents import Host, RabbitEventsError, Subscription
from rabbitevents_metrics.instruments import Instruments
from rabbitevents_metrics.tally import Tally

TICK: Final = 0.25
"""Seconds between two looks at the event loop's lateness."""

EVERY: Final = 4
"""Ticks between two looks at everything in this process."""

FIRST_LOOK: Final = 1.0
"""Seconds after which the queues are looked into first."""

DEADLINE: Final = 5.0
"""Seconds that the broker has to answer about one queue."""


class Sampling:
    """Looks at some subscriptions of a bus while it runs, and at the bus itself.

    ``in_flight`` says how many publishes are under way; without it, somebody else looks at the bus itself.
    """

    def __init__(
        self,
        host: Host,
        subscriptions: Sequence[Subscription],
        instruments: Instruments,
        tally: Tally,
        in_flight: Callable[[], int] | None,
    ) -> None:
        self._host = host
        self._subscriptions = subscriptions
        self._instruments = instruments
        self._tally = tally
        self._in_flight = in_flight
        self._bus = {"rabbitevents.bus": host.name}

    async def sample(self) -> None:
        """Look at the process, until cancelled."""
        now = asyncio.get_running_loop().time
        due, ticks = now() + TICK, 0
        while True:
            await asyncio.sleep(due - now())
            if self._in_flight is not None:
                self._instruments.state.lag.record(max(0.0, now() - due), self._bus)
            due = max(due + TICK, now())  # what was missed is not made up for
            ticks += 1
            if ticks % EVERY == 0:
                self.look()

    def look(self) -> None:
        """Hand over what was counted, and what is under way now."""
        self._tally.hand_over()
        state, loads = self._instruments.state, self._host.load
        for subscription in self._subscriptions:
            load = loads.get(subscription.name)
            if load is not None:
                labels = {"rabbitevents.subscription": subscription.name}
                state.queued.set(load.queued, labels)
                state.running.set(load.running, labels)
                state.held.set(load.held, labels)
        if self._in_flight is not None:
            names = {f"consumer {subscription.queue}" for subscription in self._host.subscriptions}
            running = [check for check in self._host.health().checks if check.name in names and check.ok]
            state.publishes.set(self._in_flight(), self._bus)
            state.expected.set(len(names), self._bus)
            state.consumers.set(len(running), self._bus)

    def leave(self) -> None:
        """Hand over what was counted last; nothing is under way any more."""
        self._tally.hand_over()
        state = self._instruments.state
        for subscription in self._subscriptions:
            for gauge in (state.queued, state.running, state.held):
                gauge.set(0, {"rabbitevents.subscription": subscription.name})
        if self._in_flight is not None:
            for gauge in (state.publishes, state.expected, state.consumers):
                gauge.set(0, self._bus)

    async def look_into_queues(self, interval: float) -> None:
        """Ask the broker how deep the queues are, every ``interval`` seconds, until cancelled."""
        await asyncio.sleep(FIRST_LOOK)  # the queues are declared, and consumed, after the plugins have begun
        while True:
            for subscription in self._subscriptions:
                await self._look_into(subscription.queue)
                await self._look_into(subscription.dead_queue)
            if self._in_flight is not None and self._subscriptions:
                await self._look_into("delay.lost")  # the dead letters of no queue that is there
            await asyncio.sleep(interval)

    async def _look_into(self, queue: str) -> None:
        attributes = {"rabbitevents.queue": queue}
        try:
            async with asyncio.timeout(DEADLINE):
                depth = await self._host.depth(queue)
        except (RabbitEventsError, TimeoutError):
            depth = None  # the broker is away, or busy: the next look may tell
        if depth is None:
            self._tally.of(self._instruments.counts.looks_failed, attributes).number += 1
            return
        self._instruments.state.depth.set(depth.ready, attributes)
        self._instruments.state.readers.set(depth.consumers, attributes)
