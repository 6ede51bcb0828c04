"""A subscription at work: N workers over what was delivered, and the one place where a delivery is settled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic

import msgspec

from rabbitevents.brokers import Broker, Consumer, Verdict
from rabbitevents.consuming.dispatch import CURRENT
from rabbitevents.consuming.holding import Holding, Holdings
from rabbitevents.errors import DecodeError, RabbitEventsError
from rabbitevents.facts import Fact, Forwarded, Paused, Report, Resumed, Stale
from rabbitevents.message import Delivery, Message, Outcome, Settlement
from rabbitevents.plugin import Consume
from rabbitevents.routing import Subscription
from rabbitevents.states import Check, Load
from rabbitevents.wire import identify

log: logging.Logger = logging.getLogger("rabbitevents.consumer")

SUSPECT_COUNT = 3
"""From this broker's delivery count on, an event may be what crashes the process, and is handled alone."""


def trusted(delivery: Delivery) -> bool:
    """Say whether ``delivery`` came back so seldom that it cannot be what crashed the process."""
    try:
        return delivery.delivery_count < SUSPECT_COUNT
    except DecodeError:
        return True  # unreadable properties are decoded in the chain, where they crash nothing


class Workers:
    """Works one subscription off: takes what is delivered, runs the chain, settles, holds what failed, drains."""

    def __init__(
        self,
        subscription: Subscription,
        chain: Consume,
        *,
        forward: Callable[[Message], Awaitable[None]],
        amend: Callable[[Delivery, Message], Message] | None = None,
        report: Report | None,
        overdue: Callable[[], int] = lambda: 0,
        consumer_timeout: float,
    ) -> None:
        self.subscription = subscription
        self.name: str = subscription.name
        self.paused: str | None = None
        self._options = subscription.options
        self._chain = chain
        self._forward = forward
        self._amend = amend
        self._report = report
        self._overdue = overdue
        self._too_long = consumer_timeout / 2
        self._held = Holdings(
            subscription.name,
            limit=max(1, subscription.options.prefetch // 2),
            give_back_after=consumer_timeout / 2,
            retry=self._retry,
            give_back=self._give_back,
            tell=self._tell,
        )
        self._ready: deque[Delivery] = deque()
        self._retries: deque[Holding] = deque()
        self._running: dict[Delivery, float] = {}
        """What is being handled, and since when (monotonic clock)."""
        self._given_back: set[Delivery] = set()
        self._returning: list[Delivery] = []
        """What is to be given back once the broker has taken the consumer away: given back before, it would come again
        at once, and spend its delivery limit in a moment."""
        self._generation = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._workers: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._consumer: Consumer | None = None
        self._loop = asyncio.get_running_loop()

    # --- life ---

    async def start(self, broker: Broker) -> None:
        """Begin to consume. Raises `BrokerUnavailableError`."""
        self._consumer = await broker.consume(
            self.subscription.queue, prefetch=self._options.prefetch, deliver=self.deliver, trusted=trusted
        )
        if not self._stopping:
            for number in range(self._options.concurrency):
                self._add_worker(number)

    def _add_worker(self, number: int) -> None:
        worker = self._loop.create_task(self._work(), name=f"{self.name} worker {number}")
        self._workers.add(worker)
        worker.add_done_callback(lambda ended: self._worker_ended(ended, number))

    def _worker_ended(self, worker: asyncio.Task[None], number: int) -> None:
        """Put another worker in the place of one that ended otherwise than by a stop: that is a defect, and is said."""
        self._workers.discard(worker)
        if self._stopping:
            if not worker.cancelled():
                worker.exception()
            return
        error = None if worker.cancelled() else worker.exception()
        log.critical(
            "%s: a worker ended; another one takes its place",
            self.name,
            exc_info=error,
            extra={"subscription": self.name},
        )
        self._add_worker(number)

    async def pause(self, reason: str = "paused by the application") -> None:
        """Take nothing more, and give back what has not begun. What runs, runs on."""
        if self._consumer is not None and self.paused is None:
            self.paused = reason
            self._tell(Paused, self.name, reason)
            await self._cancel_consumer(self._consumer)

    async def resume(self) -> None:
        """Take deliveries again, once those that ran have ended (they belong to the channel that is left)."""
        if self._consumer is not None and self.paused is not None:
            await self._quiet.wait()
            if self._stopping:
                return
            self.paused = None
            self._returning.clear()
            await self._consumer.resume()
            self._tell(Resumed, self.name)

    async def cancel(self) -> None:
        """First step of stopping: have nothing more delivered, and give back what has not begun. Does not raise."""
        self._stopping = True
        self._retries.clear()
        for holding in self._held.all():
            if holding.delivery not in self._running:
                self._held.release(holding)
                self._returning.append(holding.delivery)
        if self._consumer is not None:
            await self._cancel_consumer(self._consumer)

    async def _cancel_consumer(self, consumer: Consumer) -> None:
        """Have the broker take the consumer away, and only then give back what has not begun."""
        self._returning.extend(self._ready)
        self._ready.clear()
        try:
            await consumer.cancel()
        finally:
            returning, self._returning = self._returning, []
            for delivery in returning:
                self._settle(delivery, Verdict.REQUEUE)

    async def drain(self) -> None:
        """Second step: wait until what runs has ended. The caller bounds the wait."""
        await self._quiet.wait()

    async def close(self) -> None:
        """Last step: end the workers, give back what still runs, and leave the queue. Does not raise."""
        await self._cancel_workers(0.5)
        for delivery in list(self._running):
            self._settle(delivery, Verdict.REQUEUE)
            self._given_back.add(delivery)  # a handler that will not be cancelled may still end, and settle: too late
        if self._consumer is not None:
            await self._consumer.close()
        await self._cancel_workers(0.5)  # the second time, a handler's thread is not waited for any more

    def abandon(self) -> None:
        """End the workers without waiting: for a stop that has run out of time."""
        self._stopping = True
        for worker in self._workers:
            worker.cancel()

    async def _cancel_workers(self, timeout: float) -> None:
        self.abandon()
        if self._workers:
            await asyncio.wait(self._workers, timeout=timeout)

    def _give_back_ready(self) -> None:
        while self._ready:
            self._settle(self._ready.popleft(), Verdict.REQUEUE)

    # --- workers ---

    def deliver(self, batch: list[Delivery]) -> None:
        """Take what arrived together."""
        if batch[0].generation != self._generation:
            self._forget_stale(batch[0].generation)
        if self._stopping or self.paused is not None:
            self._returning.extend(batch)  # what still comes after the cancel goes back with the channel
            return
        self._ready.extend(batch)
        self._wake()

    def _forget_stale(self, generation: int) -> None:
        """Let go of what an earlier channel brought and is held: the broker delivers it again."""
        self._generation = generation
        for holding in self._held.all():
            if holding.delivery.generation != generation and holding.delivery not in self._running:
                self._release(holding)

    def _wake(self) -> None:
        """Wake one worker; it wakes the next when it finds more than it can begin."""
        while self._idle:
            sleeper = self._idle.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                return

    async def _work(self) -> None:
        """Handle one after the other. A worker that never has to wait drains a whole batch in one go."""
        ready, retries = self._ready, self._retries
        while True:
            while not retries and (not ready or self._held.full):
                sleeper: asyncio.Future[None] = self._loop.create_future()
                self._idle.append(sleeper)
                await sleeper
            if retries:
                holding = retries.popleft()
                self._wake_if_more()
                await self._handle(holding.delivery, holding)
            else:
                delivery = ready.popleft()
                self._wake_if_more()
                await self._handle(delivery, None)

    def _wake_if_more(self) -> None:
        if (self._ready or self._retries) and self._idle:
            self._wake()

    async def _handle(self, delivery: Delivery, holding: Holding | None) -> None:
        """Run the chain and settle: the one place where that is decided."""
        consumer = self._consumer
        if consumer is not None and delivery.stale:
            self._drop_stale(delivery, holding)
            return
        self._running[delivery] = monotonic()
        self._quiet.clear()
        CURRENT.set(None)
        try:
            if holding is None:
                identify(delivery)
            settlement = holding.settlement if holding is not None else None
            if settlement is None:
                settlement = await self._chain(delivery)
                if self._amend is not None and settlement.message is not None:
                    settlement = msgspec.structs.replace(settlement, message=self._amend(delivery, settlement.message))
            await self._execute(delivery, settlement, holding)
        except asyncio.CancelledError as error:
            self._cancelled(delivery, holding, error)
        except Exception as error:
            # Whatever a handler or a plugin raised ends here: held, said, tried again. Nothing is dropped.
            self._hold(delivery, holding, error, None)
        except BaseException as error:
            # A group that holds a CancelledError, what test libraries raise: no less a failure. Those that end the
            # process do so, and the delivery comes again.
            self._hold(delivery, holding, error, None)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        finally:
            del self._running[delivery]
            if not self._running:
                self._quiet.set()

    def _cancelled(self, delivery: Delivery, holding: Holding | None, error: asyncio.CancelledError) -> None:
        """Tell our own cancellation (the end of the grace period) from one that a handler let loose."""
        task = asyncio.current_task()
        if self._stopping and task is not None and task.cancelling():
            self._settle(delivery, Verdict.REQUEUE)
            raise error
        while task is not None and task.cancelling():
            task.uncancel()
        self._hold(delivery, holding, error, None)

    # --- settling ---

    async def _execute(self, delivery: Delivery, settlement: Settlement, holding: Holding | None) -> None:
        outcome = settlement.outcome
        if outcome is Outcome.ACK:
            self._settle(delivery, Verdict.ACK)
        elif outcome is Outcome.FORWARD and settlement.message is not None:
            try:
                await self._forward(settlement.message)
            except RabbitEventsError as error:
                self._hold(delivery, holding, error, settlement)
                return
            self._settle(delivery, Verdict.ACK)
            if self._report is not None:
                self._forwarded(delivery, settlement.message)
        else:
            self._settle(delivery, Verdict.REQUEUE if outcome is Outcome.REQUEUE else Verdict.REJECT)
        if holding is not None:
            self._release(holding)

    def _forwarded(self, delivery: Delivery, message: Message) -> None:
        after = message.after.total_seconds() if message.after is not None else 0.0
        to = message.exchange or message.routing_key
        self._tell(Forwarded, self.name, message.type, message.id, to, after)

    def _settle(self, delivery: Delivery, verdict: Verdict) -> None:
        if delivery in self._given_back:
            return
        if self._consumer is not None and not self._consumer.settle(delivery, verdict):
            self._tell(Stale, self.subscription.queue, True)

    def _drop_stale(self, delivery: Delivery, holding: Holding | None) -> None:
        if holding is not None:
            self._release(holding)
        self._tell(Stale, self.subscription.queue, holding is not None)

    # --- holding ---

    def _hold(
        self, delivery: Delivery, holding: Holding | None, error: BaseException, settlement: Settlement | None
    ) -> None:
        """Hold what nobody took care of; while stopping, give it back."""
        if self._stopping:
            self._settle(delivery, Verdict.REQUEUE)
        else:
            self._held.hold(delivery, holding, error, settlement)

    def _retry(self, holding: Holding) -> None:
        self._retries.append(holding)
        self._wake()

    def _give_back(self, holding: Holding) -> None:
        if self._held.full:
            self._give_back_ready()
        self._release(holding)
        self._settle(holding.delivery, Verdict.REQUEUE)

    def _release(self, holding: Holding) -> None:
        self._held.release(holding)
        self._wake()

    def _tell(self, fact: Callable[..., Fact], *values: object) -> None:
        if self._report is not None:
            self._report(fact(*values))

    # --- health ---

    @property
    def load(self) -> Load:
        """How many deliveries there are in this process."""
        return Load(len(self._ready), len(self._running), len(self._held))

    def checks(self) -> list[Check]:
        """Say how the subscription is."""
        stuck = [*([self.paused] if self.paused is not None else []), *self._stuck()]
        problems = [*stuck, *self._held.problems()]
        degraded = bool(problems) and not stuck and not self._held.full
        return [Check(f"subscription {self.name}", not problems, "; ".join(problems), degraded)]

    def _stuck(self) -> Iterator[str]:
        """Say which handlers do not end: their events are settled by nobody, and their workers do nothing else."""
        if overdue := self._overdue():
            yield f"{overdue} running on past the timeout"
        latest = monotonic() - self._too_long
        if too_long := sum(1 for since in self._running.values() if since < latest):
            yield f"{too_long} running for more than half of the consumer timeout"
