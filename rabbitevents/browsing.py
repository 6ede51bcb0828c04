"""Looking into a queue: what it holds, in order, without taking it, unless it is said to be dealt with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from rabbitevents.brokers import Broker, Consumer, Verdict
from rabbitevents.brokers.home import Home
from rabbitevents.errors import BrokerError, ConfigurationError
from rabbitevents.message import Delivery

HOLD: Final = 1000
"""How many messages a look keeps at most, unless it is told otherwise; quorum queues let 2,000 out at a time."""

PATIENCE: Final = 3.0
"""Seconds without a further message after which what a queue holds is with somebody else."""

CHANNEL: Final = 10_000
"""How many messages are passed over on one channel, at the least: for each acknowledgement the broker walks through
those of its channel that came before (3.10: 60 in a second at 150,000, 500 at 10,000)."""

RETURN: Final = 2.0
"""Seconds that leaving waits at most until what goes back is there again (somebody else may have taken it)."""

LEAVE: Final = 10.0
"""Seconds that one who is cut off while leaving waits at most until the consumer is gone; it goes in any case."""


class Browsing:
    """One look into a queue, bounded by what it held when the look began: iterate over it for its deliveries.

    Each is kept until it is acknowledged, and whatever was not goes back to its place at the end. While ``hold`` are
    kept, no further one comes, and the iteration ends; after `pass_over` it goes on, and `through` does both. Made by
    `Bus.browse`, as an async context manager. Wherever it is cut off, nothing is left at the broker.
    """

    def __init__(self, broker: Broker, queue: str, hold: int, home: Home) -> None:
        if not 1 <= hold <= 2000:
            raise ConfigurationError(f"hold={hold}: say 1 to 2000 (quorum queues let 2000 out at a time)")
        self.queue = queue
        self.depth: int = 0
        """How many messages were ready when the look began."""
        self.others: int = 0
        """How many consumers the queue had when the look began: what they hold cannot be seen. One that was cancelled, and
        still holds something, is counted too."""
        self._broker = broker
        self._home = home
        self._hold = hold
        self._consumer: Consumer | None = None
        self._earlier: list[Consumer] = []
        """Those that brought what was passed over on other channels: they hold it, and have nothing more."""
        self._leaving: asyncio.Task[None] | None = None
        self._arrived: asyncio.Queue[Delivery] = asyncio.Queue()  # bounded by the prefetch
        self._kept: set[Delivery] = set()
        self._seen = 0
        self._acknowledged = 0
        self._passed = 0
        self._generation: int | None = None

    async def __aenter__(self) -> Self:
        if self._consumer is not None or self._leaving is not None:
            raise ConfigurationError(f"this look into queue {self.queue!r} was entered before; ask the bus for another")
        self._home.check()
        depth = await self._broker.depth(self.queue)
        if depth is None:
            raise ConfigurationError(f"there is no queue {self.queue!r} at this broker (in this virtual host)")
        self.depth, self.others = depth.ready, depth.consumers
        if depth.ready:
            # The last thing that is awaited: a broker whose `consume` is cut off leaves nothing behind.
            self._consumer = await self._consume()
        return self

    def _consume(self) -> Awaitable[Consumer]:
        return self._broker.consume(self.queue, prefetch=self._hold, deliver=self._deliver, trusted=None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is None:
            return
        self._leaving = asyncio.ensure_future(self._leave([*self._earlier, self._consumer]))
        try:
            await asyncio.shield(self._leaving)
            await self._until_ready(self.depth - self._acknowledged)
        finally:
            await asyncio.wait({self._leaving}, timeout=LEAVE)  # done, unless it was cut off

    async def _leave(self, consumers: Sequence[Consumer]) -> None:
        """Have nothing more, and give back what is kept: in steps, where it came by several consumers."""
        await consumers[-1].cancel()
        with suppress(BrokerError):
            for consumer in consumers if self._passed else ():
                while (depth := await self._broker.depth(self.queue)) and (number := consumer.give_back()):
                    await self._until_ready(depth.ready + number)
        await asyncio.gather(*(consumer.close() for consumer in consumers))

    async def _until_ready(self, number: int) -> None:
        """Wait a moment until what was kept is back: the broker gives it back after the channel has ended."""
        end = asyncio.get_running_loop().time() + RETURN
        with suppress(BrokerError):
            while asyncio.get_running_loop().time() < end:
                depth = await self._broker.depth(self.queue)
                if depth is None or depth.ready >= number:
                    return
                await asyncio.sleep(0.002)

    def _deliver(self, batch: list[Delivery]) -> None:
        for delivery in batch:
            self._arrived.put_nowait(delivery)

    @property
    def full(self) -> bool:
        """Whether as many are kept as may be: those behind them cannot be seen, unless it passes over these."""
        return len(self._kept) >= self._hold

    async def pass_over(self) -> None:
        """Make room for as many more, where no more could be kept; what is kept goes back at the end all the same.

        The look forgets them, but for some 100 bytes each; the broker holds them until the look ends.
        """
        if self._consumer is None or not self.full:
            return
        self._passed += len(self._kept)
        self._kept.clear()
        await self._consumer.cancel()  # it has no room left; the next one has
        if self._passed < CHANNEL * (len(self._earlier) + 1):
            await self._consumer.resume()
        else:
            self._earlier.append(self._consumer)
            self._consumer = await self._consume()

    async def through(self) -> AsyncGenerator[Delivery]:
        """Yield all that the queue held, however many: `pass_over` wherever no more can be kept."""
        while True:
            async for delivery in self:
                yield delivery
            if not self.full or self._seen >= self.depth:
                return
            await self.pass_over()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        if self._consumer is None or self._leaving is not None or self._seen >= self.depth or self.full:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(PATIENCE):
                delivery = await self._arrived.get()
        except TimeoutError:
            self._check(self._consumer)
            raise StopAsyncIteration from None
        if delivery.stale or delivery.generation != (self._generation or delivery.generation):
            raise _broken_off(self.queue)
        self._generation = delivery.generation
        self._seen += 1
        self._kept.add(delivery)
        return delivery

    def _check(self, consumer: Consumer) -> None:
        if not consumer.running or any(each.stale for each in self._kept):
            raise _broken_off(self.queue)

    def acknowledge(self, delivery: Delivery) -> None:
        """Take a message out of the queue for good, once it is dealt with. Raises `BrokerError` if it went back meanwhile."""
        self._kept.discard(delivery)
        holders = () if self._consumer is None else (self._consumer, *self._earlier)
        if not any(consumer.settle(delivery, Verdict.ACK) for consumer in holders):
            raise _broken_off(self.queue)
        self._acknowledged += 1


def _broken_off(queue: str) -> BrokerError:
    return BrokerError(
        f"the look into queue {queue!r} was broken off with its connection; nothing is lost, what was kept is back there: look again"
    )
