"""All that a bus consumes: its workers, begun together and ended together, within one grace period."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from rabbitevents.brokers import Broker
from rabbitevents.consuming.threads import Threads
from rabbitevents.consuming.workers import Workers
from rabbitevents.errors import ConfigurationError
from rabbitevents.routing import Subscription
from rabbitevents.states import Check, Load

log: logging.Logger = logging.getLogger("rabbitevents.bus")


class Workforce:
    """The workers of one bus, and the threads of those whose handlers are plain functions."""

    def __init__(self) -> None:
        self.workers: list[Workers] = []
        self._threads: list[Threads] = []
        self._hurry = asyncio.Event()

    def threads(self, subscription: Subscription) -> Threads:
        """Return threads for a subscription's handlers, as many as it has workers."""
        threads = Threads(subscription.name, subscription.options.concurrency)
        self._threads.append(threads)
        return threads

    async def start(self, broker: Broker) -> None:
        """Begin to consume, everything at once. Where one cannot, the others do not begin either."""
        starting = [asyncio.ensure_future(each.start(broker)) for each in self.workers]
        try:
            await asyncio.gather(*starting)
        finally:
            for beginning in starting:
                beginning.cancel()

    async def stop(self, grace_ends: float) -> None:
        """Take nothing new, let running handlers end until ``grace_ends`` (event loop's clock), give back the rest."""
        try:
            await asyncio.gather(*(each.cancel() for each in self.workers))
            await self._drained(grace_ends)
            await asyncio.gather(*(each.close() for each in self.workers))
        finally:
            for each in self.workers:
                each.abandon()
            for threads in self._threads:
                threads.close()

    def hurry(self) -> None:
        """Do not wait for running handlers any longer."""
        self._hurry.set()

    def is_at_work(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether ``task`` is a handler's."""
        return any(each.is_at_work(task) for each in self.workers)

    async def _drained(self, grace_ends: float) -> None:
        drained = asyncio.ensure_future(_all(each.drain() for each in self.workers))
        hurry = asyncio.ensure_future(self._hurry.wait())
        left = max(0.0, grace_ends - asyncio.get_running_loop().time())
        await asyncio.wait({drained, hurry}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            running = [f"{load.running} of {name}" for name, load in self.load.items() if load.running]
            log.warning(
                "handlers did not end in time, and their events are given back: %s (Bus(grace=...) is the time they have)",
                ", ".join(running),
            )
        drained.cancel()
        hurry.cancel()

    def __getitem__(self, name: str) -> list[Workers]:
        """Return the workers of a subscription: one, or those of its partitions. Raises `ConfigurationError`."""
        if found := [each for each in self.workers if name in (each.name, each.subscription.whole)]:
            return found
        there = ", ".join(dict.fromkeys(each.subscription.whole or each.name for each in self.workers))
        raise ConfigurationError(f"there is no subscription {name!r}; there are {there or 'none'}")

    @property
    def load(self) -> Mapping[str, Load]:
        """What each subscription has in this process."""
        return {each.name: each.load for each in self.workers}

    def checks(self) -> Iterable[Check]:
        """Say how each subscription is."""
        for each in self.workers:
            yield from each.checks()


async def _all(waits: Iterable[Any]) -> None:
    await asyncio.gather(*waits)
