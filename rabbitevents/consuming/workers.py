"""A subscription at work: N workers over what was delivered, each delivery in one place until it is settled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from time import monotonic
from typing import Any, Final

from rabbitevents.brokers import Broker, Consumer, Verdict
from rabbitevents.consuming.batches import Batches
from rabbitevents.consuming.condition import Condition
from rabbitevents.consuming.current import CURRENT
from rabbitevents.consuming.holding import Holding
from rabbitevents.consuming.isolation import isolated, take_back_cancellations
from rabbitevents.consuming.lanes import KeyOf, Lanes
from rabbitevents.consuming.settling import Settling
from rabbitevents.consuming.slices import Slices
from rabbitevents.consuming.work import WORK, State, Work
from rabbitevents.errors import DecodeError
from rabbitevents.facts import DeadLettered, Fact, Paused, Report, Resumed, Stale
from rabbitevents.message import ACK, Channel, Delivery, Message, Settlement, again
from rabbitevents.plugin import Consume
from rabbitevents.routing import Subscription
from rabbitevents.states import Check, Load
from rabbitevents.wire import identify

log: logging.Logger = logging.getLogger("rabbitevents.consumer")

APPLICATION: Final = "the application"
"""Who pauses a subscription, where nobody else says that it was them."""

SUSPECT_COUNT = 3
"""From this broker's delivery count on, an event may be what crashes the process, and is handled alone."""


def trusted(delivery: Delivery) -> bool:
    """Say whether ``delivery`` came back so seldom that it cannot be what crashed the process.

    The count is the broker's word only for what it delivers again; else it is a header that anybody can send.
    """
    try:
        return not delivery.redelivered or delivery.delivery_count < SUSPECT_COUNT
    except DecodeError:
        return True  # unreadable properties are decoded in the chain, where they crash nothing


class Workers:
    """Works one subscription off: takes what is delivered, runs the chain, has it settled, holds what failed, drains.

    ``forward`` publishes a copy of a delivery; ``amend`` is what plugins do to it before. ``may_reject`` says whether the
    queue keeps what is rejected. ``overdue`` counts the handlers that do not end. ``consumer_timeout`` is the broker's,
    in seconds. With ``key_of``, of the deliveries of one key one at a time is handled, in their order.
    """

    def __init__(
        self,
        subscription: Subscription,
        chain: Consume,
        *,
        forward: Callable[[Message], Awaitable[None]],
        amend: Callable[[Delivery, Message], Message] | None = None,
        report: Report | None,
        overdue: Callable[[], int],
        may_reject: Callable[[], bool],
        consumer_timeout: float,
        key_of: KeyOf | None = None,
        batches: Batches | None = None,
    ) -> None:
        self.subscription = subscription
        self.name: str = subscription.name
        self._options = subscription.options
        self._chain = chain
        self._report = report
        self._too_long = consumer_timeout / 2
        self._settling = Settling(
            subscription.name,
            subscription.queue,
            forward=forward,
            amend=amend,
            may_reject=may_reject,
            tell=self._tell,
        )
        self._holding = Holding(
            subscription.name,
            limit=max(1, subscription.options.prefetch // 2),
            give_back_after=self._too_long,
            retry=self._due,
            give_back=self._give_back,
            tell=self._tell,
        )
        self._paused: dict[str, str] = {}
        """Who has paused us, and why."""
        self._gone = False
        """Whether the broker has taken the consumer away, as we asked."""
        self._careful: set[str] = set()
        """Who wants one delivery at a time."""
        self._works: dict[Delivery, Work] = {}
        """Every delivery that is in this process and not settled."""
        self._ready: deque[Work] = deque()
        """Those that wait for a worker, in the order in which they are to be taken."""
        self._lanes = None if key_of is None else Lanes(key_of)
        self._batches = batches
        self._condition = Condition(
            subscription,
            self._works,
            self._holding,
            self._lanes,
            overdue=overdue,
            too_long=self._too_long,
        )
        self._running = 0
        self._channel: Channel | None = None
        self._consumer: Consumer | None = None
        self._loop = asyncio.get_running_loop()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self._broker: Broker | None = None
        self._slices = Slices()
        self._draining: asyncio.Event | None = None
        self._reserved = False
        self._workers: set[asyncio.Task[None]] = set()
        self._returning: set[asyncio.Task[None]] = set()
        self._stopping = False

    # --- life ---

    async def start(self, broker: Broker) -> None:
        """Begin to consume. Raises `BrokerUnavailableError`."""
        self._broker = broker
        self._consumer = self._settling.consumer = await broker.consume(
            self.subscription.queue,
            prefetch=self._options.prefetch,
            deliver=self.deliver,
            # Whose window opens is replaced by another consumer, and another process would be the active one meanwhile.
            trusted=None if self._options.single_active_consumer else self._trusts,
        )
        if not self._stopping:
            for number in range(self._options.workers):
                self._add_worker(number)

    def _add_worker(self, number: int) -> None:
        worker = self._loop.create_task(self._work(), name=f"{self.name} worker {number}")
        self._workers.add(worker)
        worker.add_done_callback(lambda ended: self._worker_ended(ended, number))

    def _worker_ended(self, worker: asyncio.Task[None], number: int) -> None:
        """Put another worker in the place of one that ended otherwise than by a stop: that is a defect, and is said."""
        self._workers.discard(worker)
        error = None if worker.cancelled() else worker.exception()
        if self._stopping:
            return
        log.critical(
            "%s: a worker ended, which is a defect of rabbitevents; another one takes its place",
            self.name,
            exc_info=error,
            extra={"subscription": self.name},
        )
        self._add_worker(number)

    def _trusts(self, delivery: Delivery) -> bool:
        """Say whether more may come beside ``delivery``."""
        return not self._careful and trusted(delivery)

    async def pause(self, by: str = APPLICATION, reason: str = "") -> None:
        """Take nothing more, and give back what has not begun. What runs, runs on. Whoever paused resumes.

        The application's pause gives back to the old places. Another's may come often, and spends nobody's delivery
        limit: what it gives back goes to the end of the queue.
        """
        if self._consumer is None or self._stopping:
            return
        if by not in self._paused:
            self._paused[by] = reason
            self._reserve()
            self._tell(Paused, (self.name, _why(by, reason)))
        await self._consumer.cancel()
        if self._paused:  # still, or resumed meanwhile
            self._gone = True
            self._give_back_waiting()

    async def resume(self, by: str = APPLICATION, *, one_at_a_time: bool = False) -> None:
        """Take deliveries again, where nobody else has paused too."""
        if self._consumer is None or self._stopping:
            return
        was_paused = bool(self._paused)
        self._paused.pop(by, None)
        (self._careful.add if one_at_a_time else self._careful.discard)(by)
        self._reserve()
        if self._paused:
            return
        self._gone = False
        if was_paused:
            self._tell(Resumed, (self.name,))
        self._wake()
        await self._consumer.resume()

    async def cancel(self) -> None:
        """First step of stopping: have nothing more delivered, and give back what has not begun. Does not raise.

        Given back before the broker has taken the consumer away, it would come again at once, and spend its delivery
        limit in a moment. Where an order is kept, the consumer stays until the channel closes, which gives back all of
        it sorted: what is on its way when a consumer is cancelled comes back before what it had (RabbitMQ 3.10).
        """
        self._stopping = True
        self._reserve()
        if self._batches is not None:
            self._batches.hurry()
        for work in list(self._works.values()):
            self._holding.release(work)
            if work.state is State.HELD:
                work.state = State.WAITING
                self._ready.append(work)
        try:
            if self._consumer is not None and self._lanes is None:
                await self._consumer.cancel()
        finally:
            self._gone = True
            self._give_back_waiting()

    def _give_back_waiting(self) -> None:
        if self._lanes is not None:
            self._keep_order(self._lanes)
            return
        stays = None if self._stopping else State.DUE  # what was held and is due is tried again in a pause too
        works = [work for work in self._ready if work.state is not stays]
        due = [work for work in self._ready if work.state is stays]
        self._ready.clear()
        self._ready.extend(due)
        if not self._stopping and APPLICATION not in self._paused:
            self._carry_back(works)
            return
        for work in works:
            self._holding.release(work)
            del self._works[work.delivery]
            self._settling.settle(work.delivery, Verdict.REQUEUE)

    def _keep_order(self, lanes: Lanes) -> None:
        """Leave what has not begun unsettled: one by one it would come back in another order.

        While paused it stays here. While stopping it is the broker's again as the channel closes, all at once.
        """
        if self._stopping:
            lanes.clear()
            self._ready.clear()
            for work in [each for each in self._works.values() if each.state is State.WAITING]:
                self._holding.release(work)
                del self._works[work.delivery]

    async def drain(self) -> None:
        """Second step: wait until what runs has ended. The caller bounds the wait."""
        self._draining = asyncio.Event()
        if self._running:
            await self._draining.wait()

    async def close(self) -> None:
        """Last step: end the workers, give back what still runs, and leave the queue. Does not raise."""
        await self._cancel_workers(0.5)
        for work in list(self._works.values()):
            if work.state is not State.GIVEN_BACK:
                self._return(work)
                work.state = State.GIVEN_BACK  # its handler may still end, and say something: too late
        if self._consumer is not None:
            await self._consumer.close()
        await self._cancel_workers(0.5)  # the second time, a handler's thread is not waited for any more

    def _return(self, work: Work) -> None:
        """Give back one delivery, while stopping: where an order is kept, with all others as the channel closes."""
        if self._lanes is None:
            self._settling.settle(work.delivery, Verdict.REQUEUE)

    def abandon(self) -> None:
        """End the workers without waiting: for a stop that has run out of time."""
        self._stopping = True
        for task in (*self._workers, *self._returning, *self._calls):
            task.cancel()

    async def _cancel_workers(self, timeout: float) -> None:
        self.abandon()
        if self._workers:
            await asyncio.wait(self._workers, timeout=timeout)

    def is_at_work(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether ``task`` is one of the workers, and so a handler's."""
        return task in self._workers or task in self._calls

    @property
    def _calls(self) -> Collection[asyncio.Task[None]]:
        return () if self._batches is None else self._batches.tasks

    # --- what is delivered ---

    def deliver(self, batch: list[Delivery]) -> None:
        """Take what arrived together."""
        if batch[0].channel is not self._channel:
            self._forget_stale(batch[0].channel)
        works, ready, lanes = self._works, self._ready, self._lanes
        for delivery in batch:
            works[delivery] = work = Work(delivery)
            if lanes is None or lanes.enter(work):
                ready.append(work)
        if self._gone:  # it was on its way
            self._give_back_waiting()
        else:
            self._wake()

    def _forget_stale(self, channel: Channel | None) -> None:
        """Let go of what an earlier channel brought and nobody has in hand: the broker delivers it again."""
        self._channel = channel
        for work in list(self._works.values()):
            if work.state is State.HELD and work.delivery.stale:
                self._done(work)

    # --- workers ---

    def _wake(self) -> None:
        """Wake one worker; it hands on to the next one when it has to wait and there is more to do."""
        while self._idle and not self._waking:
            sleeper = self._idle.popleft()
            if not sleeper.done():
                self._waking = True
                sleeper.set_result(None)

    def _hand_on(self) -> None:
        if self._ready and self._idle:
            self._wake()

    async def _work(self) -> None:
        """Handle one after the other. A worker that never has to wait drains a whole batch in one go, slice by slice."""
        ready, slices, hand_on, task = self._ready, self._slices, self._hand_on, asyncio.current_task()
        while task is not None:
            if not ready or (self._reserved and self._takes_nothing(ready[0])):
                await self._sleep()
                continue
            now = monotonic()
            if now >= slices.ends:
                await slices.next()
                continue
            await isolated(self._handle(ready.popleft(), now), hand_on)
            if task.cancelling() and not self._stopping:
                await take_back_cancellations()

    def _reserve(self) -> None:
        """Note whether there is anything to keep in mind before a delivery is taken."""
        self._reserved = self._stopping or bool(self._paused) or bool(self._careful) or self._holding.full

    def _takes_nothing(self, first: Work) -> bool:
        """Whether nothing is begun now. What is held is tried again in a pause too, and when no more may be held."""
        waits = bool(self._paused) or self._holding.full
        return self._stopping or (waits and first.state is State.WAITING) or bool(self._careful and self._running)

    async def _sleep(self) -> None:
        sleeper: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(sleeper)
        try:
            await sleeper
        finally:
            self._waking = False
        self._slices.renew()

    async def _handle(self, work: Work, now: float) -> None:
        """Run the chain, and have done what comes of it."""
        delivery = work.delivery
        channel = delivery.channel
        if channel is not None and not channel.open:
            self._tell(Stale, (self.subscription.queue, work.state is State.DUE))
            self._done(work)
            return
        work.state, work.since = State.RUNNING, now
        self._running += 1
        WORK.set(work)
        try:
            settlement = work.settlement
            if settlement is None:
                identify(delivery)
                settlement = await self._chain(delivery if not work.tries else self._another_attempt(work))
                if settlement is not ACK:
                    settlement = self._settling.amended(delivery, settlement)
            if settlement is ACK and work.state is State.RUNNING:  # nearly always: without another await
                self._settling.settle(delivery, Verdict.ACK)
                del self._works[delivery]
                if work.tries:
                    self._let_go(work)
                if self._lanes is not None and (following := self._lanes.leave(work)) is not None:
                    self._ready.append(following)
            else:
                await self._settle(work, settlement)
        except asyncio.CancelledError as error:
            self._cancelled(work, error)
        except Exception as error:
            # Whatever a handler or a plugin raised ends here: held, said, tried again. Nothing is dropped.
            self._hold(work, error)
        except BaseException as error:
            # A group that holds a CancelledError, what test libraries raise: no less a failure. Those that end the
            # process do so, and the delivery comes again.
            self._hold(work, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        finally:
            self._running -= 1
            if self._draining is not None and not self._running:
                self._draining.set()

    def _another_attempt(self, work: Work) -> Delivery:
        """Return what was held as the attempt that it is now: whoever tries again, attempts count up.

        Where only what the handler returned is published again, it is the same one.
        """
        if work.unpublished is None:
            work.attempt += 1
        return (work.again or work.delivery).marked(attempt=work.attempt)

    async def _settle(self, work: Work, settlement: Settlement) -> None:
        if work.state is State.GIVEN_BACK or self._waits_here(work, settlement):
            return
        problem = await self._settling.carry_out(work.delivery, settlement)
        if problem is None:
            self._done(work)
        else:
            work.settlement = settlement
            self._hold(work, problem)

    def _waits_here(self, work: Work, settlement: Settlement) -> bool:
        """Keep what would wait at the broker, where an order is kept: those behind it wait too, and hold no worker.

        What would stay for longer than the broker lets it goes there all the same, and loses its place. While stopping, it is
        the broker's again as the channel closes, with those behind it: a copy would come after them.
        """
        copy, broker = settlement.message, self._broker
        if self._lanes is None or broker is None or copy is None or copy.after is None:
            return False
        if work.delivery.stale or copy.exchange or copy.routing_key != work.delivery.queue:
            return False
        if self._stopping:
            self._done(work)
            return True
        now, wait = self._loop.time(), copy.after.total_seconds()
        work.held_since = work.held_since or now
        if now + wait - work.held_since > self._too_long:
            return False
        work.again = as_it_comes_back = again(work.delivery, copy)
        identify(as_it_comes_back)
        work.attempt = as_it_comes_back.attempt - 1
        work.state, work.tries = State.HELD, max(1, work.tries)
        broker.call_later(wait, lambda: self._wait_is_over(work, as_it_comes_back))
        return True

    def _wait_is_over(self, work: Work, as_it_comes_back: Delivery) -> None:
        if work.state is State.HELD and work.again is as_it_comes_back and work.delivery in self._works:
            self._due(work)

    def _cancelled(self, work: Work, error: asyncio.CancelledError) -> None:
        """Tell our own cancellation (the end of the grace period) from one that a handler let loose."""
        self._hold(work, error)
        task = asyncio.current_task()
        if self._stopping and task is not None and task.cancelling():
            raise error

    def _done(self, work: Work) -> None:
        """Let go of a delivery: it is settled, or the broker delivers it again."""
        if self._works.pop(work.delivery, None) is None:
            return
        if work.tries:
            self._let_go(work)
        if self._lanes is not None and (following := self._lanes.leave(work)) is not None:
            self._ready.append(following)
            self._wake()

    def _let_go(self, work: Work) -> None:
        was_full = self._holding.full
        self._holding.release(work)
        if was_full and not self._holding.full and not self._stopping:
            log.warning("%s takes deliveries again: fewer are held", self.name, extra={"subscription": self.name})
        self._reserve()
        self._wake()

    # --- holding ---

    def _hold(self, work: Work, error: BaseException) -> None:
        """Hold what nobody took care of; while stopping, give it back."""
        if work.state is State.GIVEN_BACK:
            return
        if self._stopping:
            self._return(work)
            self._done(work)
        elif work.delivery.stale:
            self._tell(Stale, (self.subscription.queue, True))
            self._done(work)
        elif not self._put_aside(self._holding.in_the_way(work, error)) or not work.unhandled:
            work.attempt = max(work.attempt, _attempt_handled(work.delivery))
            self._holding.hold(work, error)
            self._reserve()
            if self._consumer is not None:
                self._consumer.clear(work.delivery)

    def _put_aside(self, works: Sequence[Work]) -> bool:
        """Hand what no handler is for to the broker's dead-lettering; False where nothing was, or nothing is known to keep it."""
        if not works or self._settling.reject(works[0].delivery) is not None:
            return False
        for each in works[1:]:
            self._settling.reject(each.delivery)
        log.error(
            "%d deliveries that no handler of %s is for are put aside, to %s (rabbitevents dlq), the last of type %r: if none is to "
            "be, `rabbitevents topology apply MODULE:BUS --prune` unbinds the queue",
            len(works),
            self.name,
            self.subscription.dead_queue,
            works[-1].delivery.type,
            extra={"subscription": self.name},
        )
        for each in works:
            told = (each.delivery.queue, each.delivery.type, str(each.delivery.id), max(1, each.attempt), "DecodeError")
            self._tell(DeadLettered, told)
            self._done(each)
        return True

    def _due(self, work: Work) -> None:
        work.state = State.DUE
        self._ready.appendleft(work)
        self._wake()

    def _give_back(self, work: Work) -> None:
        """Give back what was held for too long; and what waits behind it, which has been here as long."""
        works = [work]
        if self._holding.full:
            works.extend(self._ready)
            self._ready.clear()
        self._carry_back(works)

    def _carry_back(self, works: list[Work]) -> None:
        """Give back without spending a delivery limit, in the background."""
        for each in works:
            self._done(each)
        returning = self._loop.create_task(self._give_all_back([each.delivery for each in works]))
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)

    async def _give_all_back(self, deliveries: list[Delivery]) -> None:
        await asyncio.gather(*map(self._settling.give_back, deliveries))

    def _tell(self, fact: Callable[..., Fact], values: tuple[object, ...]) -> None:
        if self._report is not None:
            self._report(fact(*values))

    # --- health ---

    @property
    def load(self) -> Load:
        """How many deliveries there are in this process."""
        return self._condition.load

    def checks(self) -> list[Check]:
        """Say how the subscription is."""
        pauses = [_why(by, reason) for by, reason in self._paused.items()]
        return [self._condition.check(pauses, stands_still=APPLICATION in self._paused)]


def _why(by: str, reason: str) -> str:
    return f"paused by {by}: {reason}" if reason else f"paused by {by}"


def _attempt_handled(delivery: Delivery) -> int:
    """Return the number of the attempt that was handled here: further in, plugins may have repeated some; 0 if none was."""
    handled = CURRENT.get()
    if handled is None or (handled.delivery.queue, handled.delivery.tag) != (delivery.queue, delivery.tag):
        return 0
    return handled.delivery.attempt
