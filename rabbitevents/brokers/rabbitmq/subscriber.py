"""The consuming half of RabbitMQ: one queue, one channel, one consumer, never silently gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from uuid import uuid4

import aiormq
from aiormq.abc import AbstractChannel

from rabbitevents.brokers import Deliver, Trusted, Verdict
from rabbitevents.brokers.rabbitmq.connection import RPC_DEADLINE, Wire, within
from rabbitevents.brokers.rabbitmq.inbound import InboundLane
from rabbitevents.brokers.rabbitmq.link import Link
from rabbitevents.errors import BrokerError, TopologyError
from rabbitevents.facts import ConsumerLost, ConsumerRestored, Report
from rabbitevents.message import Delivery
from rabbitevents.states import Check

log: logging.Logger = logging.getLogger("rabbitevents.broker")

SETTLE_PAUSE = 0.1
"""Seconds between the last settlement and the end of a channel: on quorum queues, settlements written just before
the end are lost otherwise (967 of 1,000 came back, measured on 3.10, 4.0 and 4.3)."""

CANCEL_DEADLINE = 2.0
"""Seconds that the broker has to take a consumer away; stopping waits for it."""

_RETRY_PAUSE = 0.1
_RETRY_PAUSE_MAX = 3.0
_STOOD_WELL = 5.0
"""Seconds after which a consumer that is lost was a good one, and is registered again without a pause."""
_MISMATCH_PAUSE_MAX = 30.0
"""Seconds between two tries: what stands there with other arguments will not change by itself."""


class Subscriber:
    """Keeps a consumer registered on its queue, on a fresh channel with a fresh tag whenever the last one ended.

    The window is one delivery wide at first and opens to ``prefetch`` at the first delivery that is trusted: an event
    that crashes the process must not cost its neighbours a delivery each time. (The one that opened it does not count
    in the new window, so there is one more until it is settled.)
    """

    def __init__(
        self,
        link: Link,
        queue: str,
        *,
        prefetch: int,
        deliver: Deliver,
        trusted: Trusted | None,
        body_limit: int,
        declare: Callable[[Wire, str], Awaitable[TopologyError | None]],
        report: Report | None,
    ) -> None:
        self.queue = queue
        self.detail: str = "not registered yet"
        self._link = link
        self._prefetch = prefetch
        self._deliver = deliver
        self._trusted = trusted
        self._body_limit = body_limit
        self._declare = declare
        self._report = report
        self._lane: InboundLane | None = None
        self._channel: AbstractChannel | None = None
        self._wire: Wire | None = None
        self._tag = ""
        self._generation = 0
        self._opening: asyncio.Task[None] | None = None
        self._down_since = asyncio.get_running_loop().time()
        self._task: asyncio.Task[None] | None = None
        self._registered = asyncio.Event()
        self._tried = asyncio.Event()
        self._cancelled = False

    # --- the seam ---

    @property
    def running(self) -> bool:
        """Whether the broker has our consumer at this moment."""
        return self._registered.is_set()

    def is_stale(self, delivery: Delivery) -> bool:
        """Whether the channel that brought ``delivery`` is gone."""
        lane = self._lane
        return lane is None or delivery.generation != lane.generation or not lane.open

    def settle(self, delivery: Delivery, verdict: Verdict) -> bool:
        """Settle, unless the delivery is stale."""
        lane = self._lane
        if lane is None or delivery.generation != lane.generation or not lane.open:
            return False
        if verdict is Verdict.ACK:
            lane.ack(delivery.tag)
        elif verdict is Verdict.REQUEUE:
            lane.requeue(delivery.tag)
        else:
            lane.reject(delivery.tag)
        return True

    async def cancel(self) -> None:
        """Have nothing more delivered; what is delivered can still be settled."""
        self._cancelled = True
        if self._opening is not None:
            await asyncio.wait(
                {self._opening}, timeout=CANCEL_DEADLINE
            )  # cancelled in the middle, it would cost the channel
        if not self.running:
            await self._leave_channel()  # it may be about to register
            return
        channel, lane = self._channel, self._lane
        self._registered.clear()
        if channel is not None and lane is not None and lane.open and self._tag:
            with suppress(BrokerError):
                await within(
                    CANCEL_DEADLINE, channel.basic_cancel(self._tag), f"cancelling the consumer of {self.queue!r}"
                )

    async def resume(self) -> None:
        """Register again, on a fresh channel."""
        self._cancelled = False
        await self._leave_channel()
        self.start()

    async def close(self) -> None:
        """Write out what was settled, then close the channel, which gives back the rest."""
        self._cancelled = True
        await self._leave_channel()

    async def _leave_channel(self) -> None:
        lane = self._lane
        if lane is not None and lane.open:
            lane.write_acks()
            await asyncio.sleep(SETTLE_PAUSE)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        await self._drop_channel()

    # --- supervision ---

    def start(self) -> None:
        """Begin to register."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._supervise(), name=f"rabbitevents consumer of {self.queue}"
            )

    async def tried(self, timeout: float) -> None:
        """Wait until the consumer is registered, or could not be; at most ``timeout`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._tried.wait()

    async def _supervise(self) -> None:
        """Register, wait until the channel ends, and again, until nothing more is wanted."""
        pause = _RETRY_PAUSE
        while not self._cancelled:
            await self._link.running.wait()
            try:
                lane = await self._register()
                stood = await self._watch(lane)
                pause = _RETRY_PAUSE if stood > _STOOD_WELL else min(2 * pause, _RETRY_PAUSE_MAX)
                if stood <= _STOOD_WELL:
                    await asyncio.sleep(pause)
            except Exception as error:
                # Whatever went wrong, this supervisor tries again: a consumer must not be silently gone.
                if isinstance(error, TopologyError):
                    if str(error) != self.detail:
                        log.error("%s", error, extra={"subscription": self.queue})
                elif not isinstance(error, BrokerError):
                    log.exception(
                        "the consumer of %r could not be registered", self.queue, extra={"subscription": self.queue}
                    )
                self.detail = str(error)
                self._tried.set()
                await self._drop_channel()
                lasting = isinstance(error, TopologyError) and error.code == 406
                pause = min(2 * pause, _MISMATCH_PAUSE_MAX if lasting else _RETRY_PAUSE_MAX)
                await asyncio.sleep(pause)

    async def _register(self) -> InboundLane:
        wire = self._link.wire
        if wire is None:
            raise BrokerError("there is no connection to the broker")
        mismatch = await self._declare(wire, self.queue)
        if mismatch is not None:
            raise mismatch
        self._wire = wire
        self._channel = channel = await wire.channel()
        self._generation += 1
        self._lane = lane = InboundLane(
            channel.number,
            wire.transport,
            queue=self.queue,
            generation=self._generation,
            deliver=self._deliver if self._trusted is None or self._prefetch == 1 else self._first_delivery,
            body_limit=self._body_limit,
        )
        wire.attach(lane)
        await self._consume(channel, 1 if self._trusted is not None else self._prefetch)
        return lane

    async def _consume(self, channel: AbstractChannel, prefetch: int) -> None:
        what = f"consuming from {self.queue!r}"
        tag = f"rabbitevents-{uuid4().hex}"  # a fresh one each time: 4.3 answers a tag that was cancelled with 530
        await within(RPC_DEADLINE, channel.basic_qos(prefetch_count=prefetch), what)
        self._tag = tag  # before the broker answers: the first delivery may come together with its answer
        await within(RPC_DEADLINE, channel.basic_consume(self.queue, _nobody, consumer_tag=tag), what)

    async def _watch(self, lane: InboundLane) -> float:
        """Wait until the channel ends; return how long it stood, in seconds."""
        self.detail = ""
        self._registered.set()
        self._tried.set()
        now = asyncio.get_running_loop().time
        since = now()
        if self._report is not None:
            self._report(ConsumerRestored(self.queue, since - self._down_since))
        try:
            reason = await asyncio.shield(lane.ended)
        finally:
            self._down_since = now()
            self._registered.clear()
        self.detail = reason
        log.warning("the consumer of %r is gone: %s", self.queue, reason, extra={"subscription": self.queue})
        if self._report is not None:
            self._report(ConsumerLost(self.queue, reason))
        await self._drop_channel()
        return self._down_since - since

    async def _drop_channel(self) -> None:
        """Leave the channel for good: after a cancel nothing more may be settled on it (on 4.3 a late ack revives it)."""
        wire, channel, lane = self._wire, self._channel, self._lane
        self._channel, self._tag = None, ""
        if self._opening is not None:
            self._opening.cancel()
        if lane is not None:
            lane.lost("the channel was left")
        if wire is not None and channel is not None:
            await wire.close_channel(channel, lane)

    # --- the window ---

    def _first_delivery(self, batch: list[Delivery]) -> None:
        """Deliver, and open the window at the first delivery that is trusted."""
        lane, channel = self._lane, self._channel
        trusted = self._trusted is None or any(map(self._trusted, batch))
        if self._opening is None and lane is not None and channel is not None and trusted:
            self._opening = asyncio.get_running_loop().create_task(self._open_window(lane, channel))
            self._opening.add_done_callback(self._opened)
        self._deliver(batch)

    async def _open_window(self, lane: InboundLane, channel: AbstractChannel) -> None:
        """Register again with the full window: RabbitMQ applies a prefetch to consumers that come after it."""
        try:
            await within(RPC_DEADLINE, channel.basic_cancel(self._tag), f"opening the window of {self.queue!r}")
            await self._consume(channel, self._prefetch)
        except BrokerError as error:
            lane.lost(f"the window could not be opened: {error}")

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        lane = self._lane
        if not task.cancelled() and lane is not None and lane.open:
            lane.deliver_to(self._deliver)

    # --- health ---

    def check(self) -> Check:
        """Say whether the consumer is there."""
        ok = self.running or self._cancelled
        return Check(f"consumer {self.queue}", ok, self.detail if not ok else "")


async def _nobody(message: aiormq.abc.DeliveredMessage) -> None:
    """Take nothing: deliveries go to the lane, never to the client library."""
