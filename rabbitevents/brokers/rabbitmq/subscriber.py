"""The consuming half of RabbitMQ: what is wanted of one queue, and a supervisor that makes it so.

The wish (to consume, or not; how wide) changes at once, whoever says it and whatever becomes of them. The supervisor
is one task that lives until the subscriber is closed: it looks at the wish and at the registration that there is,
does the one next thing that brings them together, and looks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from rabbitevents.brokers import Deliver, Trusted, Verdict
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.link import Link
from rabbitevents.brokers.rabbitmq.registration import Registration, Source
from rabbitevents.errors import BrokerError, TopologyError
from rabbitevents.facts import ConsumerLost, ConsumerRestored, Report
from rabbitevents.message import Delivery
from rabbitevents.states import Check

log: logging.Logger = logging.getLogger("rabbitevents.broker")

CANCEL_DEADLINE = 2.0
"""Seconds that whoever cancels, resumes or closes waits for the broker. The supervisor goes on after that."""

_RETRY_PAUSE = 0.1
_RETRY_PAUSE_MAX = 3.0
_STOOD_WELL = 5.0
"""Seconds after which a consumer that is lost was a good one, and is registered again without a pause."""
_MISMATCH_PAUSE_MAX = 30.0
"""Seconds between two tries: what stands there with other arguments will not change by itself, nor will rights."""
_LASTING = (403, 406)
"""Codes of what somebody must change."""

Prepare = Callable[[Connection, str, bool], Awaitable[Source]]
"""Makes sure that a queue can be consumed on a connection, and says where; True: look again, it may be gone.

Raises `TopologyError`.
"""


class Subscriber:
    """Keeps a consumer registered on its queue, on a fresh channel whenever the last one ended.

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
        prepare: Prepare,
        report: Report | None,
        closed: Callable[[Subscriber], None],
        known: TopologyError | None = None,
    ) -> None:
        self.queue = queue
        self.detail: str = "not registered yet" if known is None else str(known)
        self._link = link
        self._prefetch = prefetch
        self._deliver = deliver
        self._trusted = trusted
        self._body_limit = body_limit
        self._prepare = prepare
        self._report = report
        self._on_closed = closed
        self._wanted = True
        self._closed = False
        self._narrow = trusted is not None
        self._cleared: set[Delivery] = set()
        """Suspects that did not crash the process and are unsettled: each makes the narrow window one wider."""
        self._late: list[Delivery] = []
        """What waits for the supervisor: handed over once the window is open, or given back once the broker has taken
        the consumer away."""
        self._registration: Registration | None = None
        self._generation = 0
        self._pause = _RETRY_PAUSE
        self._missing = False
        """Whether the queue may be gone, and is to be declared before it is consumed again."""
        self._trouble: TopologyError | BrokerError | None = known
        """Why the queue cannot be consumed, as it was said last; ``known``, where whoever declared it said so."""
        self._said_lost = known is not None
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self._since = loop.time()
        """When the consumer was registered, or lost (event loop's clock)."""
        self._turn = asyncio.Event()
        self._tried = asyncio.Event()
        self._at_rest = asyncio.Event()
        """Set while what there is, is what is wanted."""
        link.listeners.add(self._turn.set)
        self._task = loop.create_task(self._supervise(), name=f"rabbitevents consumer of {queue}")

    # --- the seam ---

    @property
    def running(self) -> bool:
        """Whether the broker has our consumer at this moment."""
        return self._registration is not None and self._registration.state == "consuming"

    def settle(self, delivery: Delivery, verdict: Verdict) -> bool:
        """Settle, unless the delivery is stale."""
        registration = self._registration
        if registration is None or delivery.channel is not registration.lane:
            return False
        if self._cleared:
            self._cleared.discard(delivery)
        return registration.lane.settle(delivery.tag, verdict)

    def clear(self, delivery: Delivery) -> None:
        """Let one more come while ``delivery``, which did not crash the process, stays unsettled."""
        if self._narrow and not delivery.stale:
            self._cleared.add(delivery)
            self._turn.set()

    async def cancel(self) -> None:
        """Have nothing more delivered; what is delivered can still be settled."""
        self._wish(wanted=False)
        await self._until_so()

    async def resume(self) -> None:
        """Have deliveries again, one at first."""
        if not self._wanted:
            self._narrow = self._trusted is not None
            self._cleared.clear()
        self._wish(wanted=True)
        await self._until_so()

    def give_back(self) -> int:
        """Give back the first of what is unsettled, in its order, and return how many."""
        return self._registration.lane.give_back() if self._registration is not None else 0

    async def close(self) -> None:
        """Write out what was settled, then close the channel, which gives back the rest."""
        self.abandon()
        await asyncio.wait({self._task}, timeout=CANCEL_DEADLINE + 1)

    def abandon(self) -> None:
        """Be closed as soon as it can be, without waiting for it."""
        self._closed = True
        self._wish(wanted=False)
        self._link.listeners.discard(self._turn.set)
        self._on_closed(self)

    def end(self) -> None:
        """End the supervisor, which has nothing more to supervise: its connection is closed."""
        self._task.cancel()

    def _wish(self, *, wanted: bool) -> None:
        if self._wanted is not wanted:
            self._wanted = wanted
            self._at_rest.clear()
        self._turn.set()

    async def _until_so(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_DEADLINE):
                await self._at_rest.wait()

    async def tried(self, timeout: float) -> None:
        """Wait until the consumer is registered, or could not be; at most ``timeout`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._tried.wait()

    # --- supervision ---

    async def _supervise(self) -> None:
        """Bring the wish and the registration together, again and again, until it is closed."""
        while not self._closed:
            self._turn.clear()
            try:
                await self._step()
            except Exception as error:
                # Whatever went wrong, this supervisor tries again: a consumer must not be silently gone.
                self._failed(error)
                await self._drop()
                await self._rest(self._pause)
        await self._drop()

    async def _step(self) -> None:
        """Do the one next thing that there is to be done; wait where there is none."""
        registration = self._registration
        if registration is not None and registration.state == "ended":
            await self._lost(registration)
        elif registration is None and self._wanted and self._link.running.is_set():
            await self._register()
        elif registration is None:
            await self._nothing_to_do(at_rest=not self._wanted)
        elif not self._wanted and registration.state == "consuming":
            await registration.cancel()
        elif not self._wanted and self._late and self._trusted is not None:
            self._deliver_late()  # a look's go back with what it was given before, in their order
        elif self._wanted and (registration.state == "idle" or registration.window < self._window):
            await registration.consume(self._window)
        elif self._wanted and self._late:
            self._deliver_late()
        else:
            await self._nothing_to_do(at_rest=True)

    @property
    def _window(self) -> int:
        return min(self._prefetch, 1 + len(self._cleared)) if self._narrow else self._prefetch

    async def _nothing_to_do(self, *, at_rest: bool) -> None:
        if at_rest:
            self._at_rest.set()
        await self._turn.wait()
        # What woke us may be a wish; until it was looked at, nobody can say that it is fulfilled.
        self._at_rest.clear()

    async def _rest(self, seconds: float) -> None:
        """Wait before the next try; a new wish ends the wait."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._turn.wait()

    async def _register(self) -> None:
        connection = self._link.connection
        if connection is None:
            raise BrokerError("there is no connection to the broker")
        source = await self._prepare(connection, self.queue, self._missing)
        self._generation += 1
        self._narrow = self._trusted is not None
        self._cleared.clear()
        self._registration = registration = await Registration.open(
            connection,
            source,
            self.queue,
            generation=self._generation,
            deliver=self._arrived,
            body_limit=self._body_limit,
        )
        registration.lane.ended.add_done_callback(lambda _: self._turn.set())
        try:
            await registration.consume(self._window)
        except BrokerError as error:
            self._missing = error.code == 404
            raise
        self._missing = False
        self._trouble = None
        down, self._since = self._time() - self._since, self._time()
        if self._said_lost:
            self._said_lost = False
            log.warning(
                "the consumer of %r is back, after %.1f s", self.queue, down, extra={"subscription": self.queue}
            )
        self.detail = ""
        self._tried.set()
        if self._report is not None:
            self._report(ConsumerRestored(self.queue, down))

    async def _lost(self, registration: Registration) -> None:
        """Say that the consumer is gone, and leave its channel for good.

        After a cancel by the broker nothing more may be settled on it: on 4.3 a late ack revives the consumer.
        """
        reason = self.detail = registration.lane.ended.result()
        stood, self._since = self._time() - self._since, self._time()
        self._said_lost = True
        log.warning("the consumer of %r is gone: %s", self.queue, reason, extra={"subscription": self.queue})
        if not registration.connection.lost.done():
            self._missing = True
            if self._report is not None:
                self._report(ConsumerLost(self.queue, reason))
        await self._drop()
        self._pause = _RETRY_PAUSE if stood > _STOOD_WELL else min(2 * self._pause, _RETRY_PAUSE_MAX)
        if stood <= _STOOD_WELL and self._wanted:
            await self._rest(self._pause)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, TopologyError) or (isinstance(error, BrokerError) and error.code == 403):
            self._say_trouble(error)
        elif not isinstance(error, BrokerError):
            log.error(
                "the consumer of %r could not be registered",
                self.queue,
                exc_info=error,
                extra={"subscription": self.queue},
            )
        self.detail = str(error)
        self._tried.set()
        lasting = isinstance(error, TopologyError | BrokerError) and error.code in _LASTING
        self._pause = min(2 * self._pause, _MISMATCH_PAUSE_MAX if lasting else _RETRY_PAUSE_MAX)

    def _say_trouble(self, error: TopologyError | BrokerError) -> None:
        """Say once why the queue cannot be consumed: words may differ with what else was looked at, the trouble not."""
        said, self._trouble = self._trouble, error
        if said is None or said.code != error.code:
            self._said_lost = True
            log.error("%s", error, extra={"subscription": self.queue})

    async def _drop(self) -> None:
        registration, self._registration = self._registration, None
        self._late.clear()
        self._cleared.clear()
        if registration is not None:
            await registration.leave()

    # --- deliveries ---

    def _arrived(self, batch: list[Delivery]) -> None:
        """Deliver, and open the window at the first delivery that is trusted.

        That one is handed over when the window is open: acknowledged before, it would let the next one go to the
        consumer that is being replaced, and come back at the cost of one of its deliveries (3.10).
        """
        if self._narrow and self._trusted is not None and any(map(self._trusted, batch)):
            self._narrow = False
            self._late.extend(batch)
            self._turn.set()
        elif self._late or not self._wanted:
            self._late.extend(batch)
            self._turn.set()
        else:
            self._deliver(batch)

    def _deliver_late(self) -> None:
        late, self._late = self._late, []
        self._deliver(late)

    # --- health ---

    def check(self) -> Check:
        """Say whether the consumer is there."""
        ok = self.running or not self._wanted
        return Check(f"consumer {self.queue}", ok, self.detail if not ok else "")
