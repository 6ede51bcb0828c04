"""One consumer on one channel with one lane: from its opening to its end, it never comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, Literal, TypeVar

import aiormq
import msgspec
from aiormq.abc import AbstractChannel

from rabbitevents.brokers import Deliver
from rabbitevents.brokers.rabbitmq.calls import RPC_DEADLINE, within
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.inbound import InboundLane
from rabbitevents.brokers.rabbitmq.rights import Lack, addition
from rabbitevents.brokers.rabbitmq.tags import tag
from rabbitevents.errors import BrokerError

T = TypeVar("T")

SETTLE_PAUSE: Final = 0.1
"""Seconds between the last settlement and the end of a channel: on quorum queues, settlements written just before
the end are lost otherwise (967 of 1,000 came back, measured on 3.10, 4.0 and 4.3)."""


class Source(msgspec.Struct, frozen=True):
    """Where a queue's deliveries come out of: itself, or what stands in for it; and what is declared for it (`tags.mark`)."""

    queue: str
    mark: str


State = Literal["idle", "consuming", "ended"]
"""Whether the broker has our consumer. An idle registration still settles what it was delivered."""


class Registration:
    """A channel that was opened for one queue. Its lane ends before the channel does, whoever closes it."""

    def __init__(
        self, connection: Connection, channel: AbstractChannel, lane: InboundLane, queue: str, mark: str
    ) -> None:
        self.connection = connection
        self.lane = lane
        self.window: int = 0
        """How many deliveries may be unsettled, as far as the broker was told."""
        self._channel = channel
        self._queue = queue
        self._mark = mark
        self._tag = ""

    @classmethod
    async def open(
        cls, connection: Connection, source: Source, queue: str, *, generation: int, deliver: Deliver, body_limit: int
    ) -> Registration:
        """Open a channel for ``queue``, whose deliveries come out of ``source``. Raises `BrokerError`."""
        channel = await connection.channel()
        lane = InboundLane(
            channel.number,
            connection.transport,
            queue=queue,
            generation=generation,
            deliver=deliver,
            body_limit=body_limit,
            turn=connection.turn,
        )
        connection.attach(lane)
        return cls(connection, channel, lane, source.queue, source.mark)

    @property
    def state(self) -> State:
        """Whether the broker has our consumer at this moment."""
        if not self.lane.open:
            return "ended"
        return "consuming" if self._tag else "idle"

    async def consume(self, window: int) -> None:
        """Have up to ``window`` unsettled deliveries from now on. Raises `BrokerError`, and has ended then.

        RabbitMQ applies a prefetch to consumers that come after it, so one that consumes already is replaced: for the
        moment that this takes, it counts as there.
        """
        if self._tag:
            await self._cancel()
        self.lane.end_window()
        what = f"consuming from {self._queue!r}"
        told = tag(self._mark)
        await self._ask(self._channel.basic_qos(prefetch_count=window), what)
        await self._ask(self._channel.basic_consume(self._queue, _nobody, consumer_tag=told), what)
        self._tag, self.window = told, window

    async def cancel(self) -> None:
        """Have nothing more delivered. Raises `BrokerError`, and has ended then."""
        if self._tag:
            await self._cancel()
            self._tag = ""

    async def _cancel(self) -> None:
        await self._ask(self._channel.basic_cancel(self._tag), f"cancelling the consumer of {self._queue!r}")

    async def _ask(self, question: Awaitable[T], what: str) -> T:
        try:
            return await within(RPC_DEADLINE, question, what)
        except BrokerError as refused:
            error = refused if refused.code != 403 else self._may_not_read(refused)
            # The client library closes a channel whose question is broken off: nothing may be written to it any more.
            self.lane.lost(str(error))
            raise error from refused

    def _may_not_read(self, refused: BrokerError) -> BrokerError:
        """Say which right is missing: to consume takes only one."""
        way_out = addition(Lack("read", self._queue), self.connection.address)
        return BrokerError(f"consuming from {self._queue!r} is refused: {way_out}", code=refused.code)

    async def leave(self) -> None:
        """Write out what was settled, and close the channel, which gives back the rest. Does not raise."""
        written = self.lane.open
        self.lane.leave("the channel was left")
        if written:
            await asyncio.sleep(SETTLE_PAUSE)
        await self.connection.close_channel(self._channel, self.lane)


async def _nobody(message: aiormq.abc.DeliveredMessage) -> None:
    """Take nothing: deliveries go to the lane, never to the client library."""
