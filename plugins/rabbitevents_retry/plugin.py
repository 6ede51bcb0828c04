"""`Retry`: what happens after a handler failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import ClassVar, Final, cast

import msgspec
from tenacity.retry import RetryBaseT
from tenacity.stop import StopBaseT
from tenacity.wait import WaitBaseT

from rabbitevents import (
    ConfigurationError,
    Consume,
    Delivery,
    EncodeError,
    Host,
    LineFilter,
    Message,
    Outcome,
    Plugin,
    Settlement,
    Subscription,
    event_fields,
    facts,
    forward,
)
from rabbitevents.arguments import Seconds, seconds, wrong
from rabbitevents_retry.policy import MOST, Policy, bounded
from rabbitevents_retry.rules import RETRY, STOP, WAIT, Action, Discarding, Postponement, Rule, Rules
from rabbitevents_retry.timetable import Timetable, check, described, timetable, waits

log: logging.Logger = logging.getLogger("rabbitevents.retry")
log.addFilter(LineFilter())

SINCE: Final = "retry-since"
"""The header with the time of the first failure, in milliseconds since 1970."""

WAITED: Final = "retry-waited"
"""The header with what was waited since then, in milliseconds: a lower bound of the time that has passed, for clocks
that disagree, and for an embedded broker whose clock was moved."""

_GIVEN_UP_KEPT = 1000

EXHAUSTED_TIMEOUT: Final = 10.0
"""Seconds that what is told of an event that is given up on may take."""

Exhausted = Callable[[Delivery, BaseException], Awaitable[object] | None]
"""Is told of an event that is given up on, once, with the exception."""


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


class Pause(msgspec.Struct, frozen=True):
    """How long to wait before the next handling, in seconds, and whether that is another attempt."""

    seconds: float
    is_attempt: bool


class Retry(Plugin):
    """Try again what failed: after a short wait in this process, after a long one by way of the broker.

    ::

        Retry(
            on(TimeoutError, ConnectionError).retry(stop=stop_after_attempt(8), wait=wait_exponential(max=600)),
            on(Throttled).postpone(lambda error: error.after),
            on(ValidationError).dead_letter(),
            on(Gone).discard(),
            otherwise.retry(stop=stop_after_attempt(3)),
        )
        Retry(stop=stop_after_attempt(8), wait=wait_exponential(max=600))  # the same for all failures

    A short wait takes place in the process, where it holds one worker and one place of the window; a longer one at the
    broker, where it holds neither and outlives the process. Attempts are counted by ourselves, across both.

    What is given up on propagates: `DeadLetter` takes it, or the core holds it and tries once more after each pause.
    Never tried again are `Fatal`, what cannot be decoded or encoded, and what is wrong in the code
    (`ConfigurationError`); a handler says when by raising `RetryLater`.

    :param rules: What to do about which failure, as sentences (`on`, `otherwise`): the first that fits decides. What none
        of them is for is tried again by the default policy.
    :param stop: When to give up, where there are no rules: a strategy of tenacity's, or a function of a
        `tenacity.RetryCallState`. By default ``stop_after_attempt(5)``.
    :param wait: How long to wait, in the same way. By default about 1 s, then 4, 32 and 256 s, with up to half as much
        on top by chance, an hour and a half at most.
    :param retry: Which failures to try again, in the same way. By default all.
    :param exhausted: Told of an event that is given up on, once, with the delivery and the exception: a function, async
        or not, for an alarm or a compensation. What it raises is logged, and after 10 s it is not waited for.
    :param inline_below: A shorter wait than this takes place in the process: seconds (1), or a timedelta; 0 is none.

    Raises `ConfigurationError` for what is no strategy; at start for waits of more than 30 days, and for a policy
    that would keep an event in the process longer than the broker lets it.
    """

    role: ClassVar[str] = "retry"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter"})

    def __init__(
        self,
        *rules: Rule,
        stop: StopBaseT = STOP,
        wait: WaitBaseT = WAIT,
        retry: RetryBaseT = RETRY,
        inline_below: Seconds = 1.0,
        exhausted: Exhausted | None = None,
    ) -> None:
        if rules and (stop, wait, retry) != (STOP, WAIT, RETRY):
            raise ConfigurationError(
                "Retry(...): stop=, wait= and retry= beside rules say two things: write otherwise.retry(...)"
            )
        if exhausted is not None and not callable(exhausted):
            raise wrong("Retry: exhausted", exhausted, "say a function of the delivery and the exception")
        self._rules = Rules(rules or [Rule((), Policy(stop, wait, retry))])
        self._exhausted = exhausted
        self._inline_below = seconds("Retry: inline_below", inline_below)
        self._stay = float("inf")
        self._ordered: set[str] = set()
        """The queues whose subscriptions keep an order: what waits there waits in its place, and holds no worker."""
        self._host: Host | None = None
        self._given_up: dict[tuple[str, int, int], Progress] = {}

    def timetable(self) -> Timetable:
        """Return the whole policy, with its waits attempt by attempt; ``print()`` it."""
        return timetable(self._rules, self._inline_below)

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the policy with the broker's limits in mind. Raises `ConfigurationError`."""
        limit = host.consumer_timeout.total_seconds()
        for subscription in host.subscriptions_of(self):
            timeout = subscription.options.timeout
            for policy in self._rules.policies:
                check(
                    policy,
                    self._inline_below,
                    consumer_timeout=limit,
                    handling=timeout.total_seconds() if timeout is not None else 0.0,
                    where=f"subscription {subscription.name!r}",
                )
        self._host = host
        self._ordered = {each.queue for each in host.subscriptions_of(self) if each.options.ordered is not False}
        self._stay = limit / 2
        self._given_up.clear()
        yield

    def describe(self, subscription: Subscription) -> Iterable[tuple[str, str]]:
        """Say what is done about which failure, wait by wait."""
        return described(self.timetable())

    def waits(self, subscription: Subscription) -> Iterable[tuple[timedelta, timedelta]]:
        """Say which waits take place at the broker."""
        return waits(self.timetable(), self._inline_below)

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Handle a delivery, and again where the wait is short; the answer may be that it comes back later."""
        progress = self._given_up.pop(delivery.place, None) if self._given_up else None
        if progress is not None:  # held by the core since it was given up on: no new start, but one attempt more
            delivery = _next(delivery, progress)
        was_given_up = progress is not None
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
                    if not was_given_up:
                        await self._tell(delivery, error)
                    raise
                if isinstance(answer, Settlement):
                    return answer
            await asyncio.sleep(answer.seconds)
            progress.waited += answer.seconds
            delivery = _next(delivery, progress) if answer.is_attempt else delivery

    def _decide(self, delivery: Delivery, error: BaseException, progress: Progress) -> Pause | Settlement | None:
        """Return how long to wait here; or what becomes of it, as it comes back later; or None: it is given up."""
        action = self._rules.action(error, lost=delivery.oversize > 0)  # a body that was not kept cannot be copied
        if isinstance(action, Discarding):
            return self._discard(delivery, error, progress)
        pause = self._pause(action, delivery, error, progress)
        if pause is not None and pause.seconds < self._inline_below and self._may_stay(progress, pause.seconds):
            self._say(delivery, error, progress, pause, inline=True)
            return pause
        copy = self._copy(delivery, progress, pause) if pause is not None else None
        if pause is None or copy is None:
            self._give_up(delivery, error, progress)
            return None
        self._say(delivery, error, progress, pause, inline=False)
        return forward(copy, error=error)

    def _pause(self, action: Action, delivery: Delivery, error: BaseException, progress: Progress) -> Pause | None:
        """Ask the policy. What a strategy raises goes on, with the handler's exception as its context."""
        if isinstance(action, Postponement):
            return Pause(bounded(seconds("postpone: what it was told", action.after(error))), is_attempt=False)
        if not isinstance(action, Policy):
            return None
        state = action.state(progress.attempt, error, elapsed=progress.elapsed, idle=progress.waited, delivery=delivery)
        wait = action.pause(error, state)
        return None if wait is None else Pause(wait, is_attempt=True)

    def _discard(self, delivery: Delivery, error: BaseException, progress: Progress) -> Settlement:
        log.info(
            "%s failed with %s at attempt %d and is discarded", delivery.describe(), _named(error), progress.attempt,
            extra={**event_fields(delivery), "attempt": progress.attempt},
        )  # fmt: skip
        if self._host is not None:
            type, id = delivery.type, str(delivery.id)
            self._host.report(facts.Discarded(delivery.queue, type, id, progress.attempt, _named(error)))
        return Settlement(Outcome.ACK, error=error)

    async def _tell(self, delivery: Delivery, error: BaseException) -> None:
        """Tell who asked to be told that an event is given up on. What comes of it is nobody's failure here."""
        if self._exhausted is None:
            return
        try:
            async with asyncio.timeout(EXHAUSTED_TIMEOUT):
                told = self._exhausted(delivery, error)
                if told is not None:
                    await told
        except Exception:
            # Its own trouble, be it that it took too long: the event is given up on all the same.
            log.exception(
                "exhausted=%s failed for %s", getattr(self._exhausted, "__name__", "..."), delivery.describe(),
                extra=event_fields(delivery),
            )  # fmt: skip

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

    def _copy(self, delivery: Delivery, progress: Progress, pause: Pause) -> Message | None:
        """Return the copy that waits; None for one that is over the limits with what it has to carry, or would be late."""
        try:
            copy = _later(delivery, progress, pause)
            if self._host is not None:
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
        self._given_up[delivery.place] = progress
        if len(self._given_up) > _GIVEN_UP_KEPT:
            del self._given_up[next(iter(self._given_up))]

    def _say(self, delivery: Delivery, error: BaseException, progress: Progress, pause: Pause, *, inline: bool) -> None:
        where = "in this process" if inline else "in its place" if delivery.queue in self._ordered else "at the broker"
        what = "tried again after" if pause.is_attempt else "postponed, which is no attempt, by"
        log.info(
            "%s failed with %s at attempt %d and is %s %.3g s %s",
            delivery.describe(), _named(error), progress.attempt, what, pause.seconds, where,
            extra={**event_fields(delivery), "attempt": progress.attempt},
        )  # fmt: skip
        if self._host is not None:
            kind = facts.Retried if pause.is_attempt else facts.Postponed
            type, id = delivery.type, str(delivery.id)
            self._host.report(kind(delivery.queue, type, id, progress.attempt, pause.seconds, _named(error), inline))


def _next(delivery: Delivery, progress: Progress) -> Delivery:
    progress.attempt = min(progress.attempt + 1, MOST)
    return delivery.marked(attempt=progress.attempt)


def _later(delivery: Delivery, progress: Progress, pause: Pause) -> Message:
    attempt = min(progress.attempt + pause.is_attempt, MOST)
    copy = delivery.replace(attempt=attempt, after=timedelta(seconds=pause.seconds))
    since, waited = round(progress.since * 1000), round((progress.waited + pause.seconds) * 1000)
    return copy.replace(headers={SINCE: since, WAITED: waited})


def _seconds(milliseconds: object) -> float:
    """Return what a header says; 0 where it says nothing that can be so."""
    there = isinstance(milliseconds, int) and 0 < milliseconds < 2**53
    return cast("int", milliseconds) / 1000 if there else 0.0


def _named(error: BaseException) -> str:
    """Name an error by its class: its text may hold what was in the event."""
    return type(error).__name__
