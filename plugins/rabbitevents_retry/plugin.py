"""`Retry`: what happens after a handler failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import ClassVar, Final, cast

from tenacity import retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random_exponential
from tenacity.retry import RetryBaseT
from tenacity.stop import StopBaseT
from tenacity.wait import WaitBaseT

from rabbitevents import (
    ConfigurationError,
    Consume,
    DecodeError,
    Delivery,
    EncodeError,
    Host,
    LineFilter,
    Message,
    Plugin,
    Settlement,
    event_fields,
    facts,
    forward,
)
from rabbitevents.arguments import Seconds, seconds
from rabbitevents_retry.policy import MOST, Policy
from rabbitevents_retry.raised import Fatal, members
from rabbitevents_retry.timetable import Timetable, check, timetable

log: logging.Logger = logging.getLogger("rabbitevents.retry")
log.addFilter(LineFilter())

SINCE: Final = "retry-since"
"""The header with the time of the first failure, in milliseconds since 1970."""

WAITED: Final = "retry-waited"
"""The header with what was waited since then, in milliseconds: a lower bound of the time that has passed, for clocks
that disagree, and for an embedded broker whose clock was moved."""

STOP: Final = stop_after_attempt(5)
WAIT: Final = wait_exponential(multiplier=0.5, exp_base=8, max=3600) + wait_random_exponential(
    multiplier=0.25, exp_base=8, max=1800
)
"""The first retry within a second, for what passes at once; then 4, 32 and 256 s, with more attempts an hour, and up to
half as much on top. The jitter grows with the wait: what is spread over less than a waiting queue's step comes back
together."""
RETRY: Final = retry_if_exception_type(BaseException)
"""Every failure, a CancelledError that nobody asked for and groups of such among them."""

NEVER = (Fatal, DecodeError, EncodeError, ConfigurationError)
"""What is never tried again, whatever the policy says: it would fail in the same way."""

_GIVEN_UP_KEPT = 1000

Place = tuple[str, int, int]


class Progress:
    """How far one delivery has come: the attempt that runs, and when the first one failed (seconds since 1970).

    ``waited`` are the waits since then, ``here`` is when it first failed in this process, both in seconds.
    """

    __slots__ = ("attempt", "here", "since", "waited")

    def __init__(self, delivery: Delivery) -> None:
        self.attempt: int = min(int(delivery.attempt), MOST)
        self.here: float = time.monotonic()
        now = time.time()
        # Of a first attempt they say nothing: it is new, or it was replayed.
        again = self.attempt > 1
        self.since: float = min((again and _seconds(delivery.headers.get(SINCE))) or now, now)
        self.waited: float = _seconds(delivery.headers.get(WAITED)) if again else 0.0

    @property
    def elapsed(self) -> float:
        """How long ago it first failed, in seconds."""
        return max(time.time() - self.since, self.waited)


class Retry(Plugin):
    """Try again what failed: after a short wait in this process, after a long one by way of the broker.

    ::

        Retry(stop=stop_after_attempt(8), wait=wait_exponential(max=600), retry=retry_if_exception_type(OSError))

    A short wait takes place in the process, where it holds one worker and one place of the window; a longer one at the
    broker, where it holds neither and outlives the process. Attempts are counted by ourselves, across both.

    What is given up on propagates: `DeadLetter` takes it, or the core holds it and tries once more after each pause.
    Never tried again are `Fatal`, what cannot be decoded or encoded, and what is wrong in the code
    (`ConfigurationError`); a handler says when by raising `RetryLater`.

    :param stop: When to give up: a strategy of tenacity's, or a function of a `tenacity.RetryCallState`. By default
        ``stop_after_attempt(5)``.
    :param wait: How long to wait, in the same way. By default about 1 s, then 4, 32 and 256 s, with up to half as much
        on top by chance, an hour and a half at most.
    :param retry: Which failures to try again, in the same way. By default all.
    :param inline_below: A shorter wait than this takes place in the process: seconds (1), or a timedelta; 0 is none.

    Raises `ConfigurationError` for what is no strategy; at start for waits of more than 30 days, and for a policy
    that would keep an event in the process longer than the broker lets it.
    """

    role: ClassVar[str] = "retry"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter"})

    def __init__(
        self,
        *,
        stop: StopBaseT = STOP,
        wait: WaitBaseT = WAIT,
        retry: RetryBaseT = RETRY,
        inline_below: Seconds = 1.0,
    ) -> None:
        self._policy = Policy(stop, wait, retry)
        self._inline_below = seconds("Retry: inline_below", inline_below)
        self._stay = float("inf")
        self._host: Host | None = None
        self._given_up: dict[Place, Progress] = {}

    def timetable(self) -> Timetable:
        """Return the waits of this policy, attempt by attempt; ``print()`` it."""
        return timetable(self._policy, self._inline_below)

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the policy with the broker's limits in mind. Raises `ConfigurationError`."""
        limit = host.consumer_timeout.total_seconds()
        for subscription in host.subscriptions_of(self):
            timeout = subscription.options.timeout
            check(
                self._policy,
                self._inline_below,
                consumer_timeout=limit,
                handling=timeout.total_seconds() if timeout is not None else 0.0,
                where=f"subscription {subscription.name!r}",
            )
        self._host = host
        self._stay = limit / 2
        self._given_up.clear()
        yield

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Handle a delivery, and again where the wait is short; the answer may be that it comes back later."""
        progress = self._given_up.pop(_place(delivery), None) if self._given_up else None
        if progress is not None:  # held by the core since it was given up on: no new start, but one attempt more
            delivery = _next(delivery, progress)
        while True:
            try:
                return await proceed(delivery)
            except BaseException as error:
                # Any failure, a stray CancelledError too. What ends the process goes on, and with it whatever a
                # handler raises that is being cancelled: nothing is tried again or given up on because of a stop.
                if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)) or self._is_cancelled():
                    raise
                progress = progress or Progress(delivery)
                answer = self._decide(delivery, error, progress)
                if answer is None:
                    raise
                if isinstance(answer, Settlement):
                    return answer
            await asyncio.sleep(answer)
            progress.waited += answer
            delivery = _next(delivery, progress)

    def _decide(self, delivery: Delivery, error: BaseException, progress: Progress) -> float | Settlement | None:
        """Return how long to wait here, in seconds; or how it comes back later; or None: it is given up."""
        wait = None if _is_final(delivery, error) else self._pause(delivery, error, progress)
        if wait is not None and wait < self._inline_below and self._may_stay(progress, wait):
            self._say(delivery, error, progress, wait, inline=True)
            return wait
        copy = self._copy(delivery, progress, wait) if wait is not None else None
        if wait is None or copy is None:
            self._give_up(delivery, error, progress)
            return None
        self._say(delivery, error, progress, wait, inline=False)
        return forward(copy, error=error)

    def _pause(self, delivery: Delivery, error: BaseException, progress: Progress) -> float | None:
        """Ask the policy. What a strategy raises goes on, with the handler's exception as its context."""
        state = self._policy.state(
            progress.attempt, error, elapsed=progress.elapsed, idle=progress.waited, delivery=delivery
        )
        return self._policy.pause(error, state)

    def _is_cancelled(self) -> bool:
        """Say whether the grace period is over, and this task cancelled."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0 and self._host is not None and self._host.stopping

    def _may_stay(self, progress: Progress, wait: float) -> bool:
        """Say whether there is time to wait here: a stop would cut it short, and the broker takes the delivery away.

        Half of its timeout is what the core gives a held delivery, too.
        """
        stopping = self._host is not None and self._host.stopping
        return not stopping and time.monotonic() - progress.here + wait < self._stay

    def _copy(self, delivery: Delivery, progress: Progress, wait: float) -> Message | None:
        """Return the copy that waits; None for one that is over the limits, with what it has to carry besides."""
        copy = _later(delivery, progress, wait)
        if self._host is not None:
            try:
                self._host.limits.check_message(copy)
            except EncodeError as why:
                log.warning(
                    "%s cannot wait at the broker, and is given up: %s",
                    delivery.describe(), why, extra={**event_fields(delivery), "attempt": progress.attempt},
                )  # fmt: skip
                return None
        return copy

    def _give_up(self, delivery: Delivery, error: BaseException, progress: Progress) -> None:
        """Remember how far it came, should the core have to hold it: it must not begin again after each pause."""
        log.info(
            "%s failed with %s at attempt %d and is given up", delivery.describe(), _named(error), progress.attempt,
            extra={**event_fields(delivery), "attempt": progress.attempt},
        )  # fmt: skip
        self._given_up[_place(delivery)] = progress
        if len(self._given_up) > _GIVEN_UP_KEPT:
            del self._given_up[next(iter(self._given_up))]

    def _say(self, delivery: Delivery, error: BaseException, progress: Progress, wait: float, *, inline: bool) -> None:
        where = "in this process" if inline else "at the broker"
        log.info(
            "%s failed with %s at attempt %d and is tried again after %.3g s %s",
            delivery.describe(), _named(error), progress.attempt, wait, where,
            extra={**event_fields(delivery), "attempt": progress.attempt},
        )  # fmt: skip
        if self._host is not None:
            type, id = delivery.type, str(delivery.id)
            self._host.report(facts.Retried(delivery.queue, type, id, progress.attempt, wait, _named(error), inline))


def _is_final(delivery: Delivery, error: BaseException) -> bool:
    """Say whether it is not to be tried again, whatever the policy says. A body that was not kept cannot be copied."""
    return delivery.oversize > 0 or any(isinstance(each, NEVER) for each in members(error))


def _place(delivery: Delivery) -> Place:
    """Return what tells a delivery from every other one in this process."""
    return delivery.queue, delivery.generation, delivery.tag


def _next(delivery: Delivery, progress: Progress) -> Delivery:
    progress.attempt = min(progress.attempt + 1, MOST)
    return delivery.marked(attempt=progress.attempt)


def _later(delivery: Delivery, progress: Progress, wait: float) -> Message:
    attempt = min(progress.attempt + 1, MOST)
    copy = delivery.replace(attempt=attempt, after=timedelta(seconds=wait))
    since, waited = round(progress.since * 1000), round((progress.waited + wait) * 1000)
    return copy.replace(headers={SINCE: since, WAITED: waited})


def _seconds(milliseconds: object) -> float:
    """Return what a header says; 0 where it says nothing that can be so."""
    there = isinstance(milliseconds, int) and 0 < milliseconds < 2**53
    return cast("int", milliseconds) / 1000 if there else 0.0


def _named(error: BaseException) -> str:
    """Name an error by its class: its text may hold what was in the event."""
    return type(error).__name__
