"""`KillSwitch`: a subscription rests while what its handlers need is away."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import asynccontextmanager
from time import monotonic
from typing import ClassVar, Final, cast
from uuid import UUID

from rabbitevents import (
    Check,
    ConfigurationError,
    Consume,
    DecodeError,
    Delivery,
    EncodeError,
    Host,
    LineFilter,
    Outcome,
    Plugin,
    PublishError,
    Settlement,
    facts,
    forward,
)
from rabbitevents.arguments import Seconds, kind_of, seconds, whole, wrong
from rabbitevents.failures import Fatal, RetryLater, members
from rabbitevents_flow.results import Results

log: logging.Logger = logging.getLogger("rabbitevents.killswitch")
log.addFilter(LineFilter())

NEVER: Final = (Fatal, RetryLater, DecodeError, EncodeError, ConfigurationError, PublishError)
"""What says nothing of what the handler needs: the event's own fault, the code's, the broker's, or what a handler knows
better."""

_KEPT: Final = 1000

US: Final = "its kill switch"


class Switch:
    """One subscription's switch. Closed, events go on; open, none does; in between, one at a time is a try."""

    def __init__(self, name: str, results: Results) -> None:
        self.name = name
        self.results = results
        self.opened: float | None = None
        """Since when it has not been closed (monotonic clock)."""
        self.trying = False
        self.tries = 0
        self.error = ""
        self.handled: deque[UUID] = deque(maxlen=_KEPT)
        """Events of which only what the handler returned is not published: they do not go back, to be handled again."""

    @property
    def open(self) -> bool:
        """Whether nothing is handled."""
        return self.opened is not None and not self.trying

    @property
    def outage(self) -> str:
        """Say how long it has not been closed, and why."""
        for_ = monotonic() - (self.opened or monotonic())
        return f"{self.error} for {for_:.3g} s, {self.tries} tries"


class KillSwitch(Plugin):
    """Let a subscription rest while its events fail one after the other, and try with one until it goes well again.

    ::

        plugins=[DeadLetter(), Retry(), KillSwitch()]
        plugins=[DeadLetter(), Retry(), KillSwitch(failed=0.5, of=20, pause=10, longest=45)]

    A database that is away for ten minutes fails every event. Retries alone spend their attempts on it, and the whole
    traffic ends in dead letters. With a switch, the subscription is paused once half of its last 20 events have failed;
    after the pause, one event is the try. Where it fails too, the next pause is twice as long; where it goes well, all
    goes on. An event that fails while the switch is not closed has spent neither an attempt nor a delivery, and goes to
    the end of the queue.

    It stands inside `DeadLetter`, `Retry` and `RateLimit`. Each process has its own switch for each subscription. What is open is
    said in one line of log and in health, as degraded: the process is well, and a restart would not help.

    :param failed: It trips when this share of the last events failed: 0.5. Above 0, and 1 at most.
    :param of: How many events are looked at: 20. Before so many are done it does not trip; one that fails several times
        is one.
    :param within: What is older says nothing any more: seconds, or a timedelta; 60 s.
    :param pause: How long it rests before it tries with one: seconds, or a timedelta; 10 s. Doubled with each failed try.
    :param longest: The longest of these pauses, and so how late it learns that all is well: seconds, or a timedelta; 45 s.
    :param counting: The exceptions that say so: by default all, but for `Fatal`, `RetryLater`, what cannot be read or
        written, what the broker did not confirm, and what is wrong in the code, which never count.
    """

    role: ClassVar[str] = "kill-switch"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter", "retry", "rate-limit"})

    def __init__(
        self,
        *,
        failed: float = 0.5,
        of: int = 20,
        within: Seconds = 60,
        pause: Seconds = 10,
        longest: Seconds = 45,
        counting: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    ) -> None:
        self._of = whole("KillSwitch: of", of, most=10_000)
        self._failures = _share(failed) * self._of
        self._within = seconds("KillSwitch: within", within, positive=True)
        self._pause = seconds("KillSwitch: pause", pause, positive=True)
        self._longest = seconds("KillSwitch: longest", longest, positive=True)
        if self._longest < self._pause:
            raise ConfigurationError(
                f"KillSwitch: longest={self._longest:g} s is shorter than pause={self._pause:g} s, the first one"
            )
        self._counting = _classes(counting)
        self._switches: dict[str, Switch] = {}
        self._host: Host | None = None
        self._resting: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Have a switch for each subscription, closed."""
        self._host = host
        self._switches = {
            each.queue: Switch(each.name, Results(self._of, self._within)) for each in host.subscriptions_of(self)
        }
        try:
            yield
        finally:
            for task in self._resting:
                task.cancel()

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Handle a delivery and note how it went; what comes while nothing is handled goes back."""
        switch = self._switches[delivery.queue]
        if switch.open and not delivery.oversize and delivery.id not in switch.handled:
            return _back(delivery, None)  # it was on its way, or is tried again in this process
        try:
            settlement = await proceed(delivery)
        except PublishError:
            switch.handled.append(delivery.id)
            raise
        except Exception as error:
            if not self._counts(error):
                raise
            switch.error = type(error).__name__
            switch.results.failed(delivery.id)
            if switch.opened is None and not self._is_enough(switch.results):
                raise
            if not switch.open:
                await self._rest(switch)
            if delivery.oversize:  # no copy can carry it
                raise
            return _back(delivery, error)
        if settlement.outcome is Outcome.ACK:
            switch.results.went_well()
            if switch.trying:
                self._close(switch)
        return settlement

    def _counts(self, error: Exception) -> bool:
        """Say whether a failure says that something is away."""
        return any(isinstance(each, self._counting) and not isinstance(each, NEVER) for each in members(error))

    def _is_enough(self, results: Results) -> bool:
        return results.full and results.failures >= self._failures

    async def _rest(self, switch: Switch) -> None:
        """Open the switch, or again after a try that failed."""
        if switch.opened is None:
            switch.opened, switch.tries = monotonic(), 0
            self._trip(switch)
        else:
            switch.tries += 1
        switch.trying = False
        pause = min(self._pause * 2.0 ** min(switch.tries, 60), self._longest)
        if switch.tries:
            log.info(
                "%s: a try failed with %s; the next one in %g s", switch.name, switch.error, pause, extra=_of(switch)
            )
        self._begin(self._try_after(switch, pause), switch)
        if self._host is not None:
            await self._host.pause(switch.name, by=US, reason=f"{switch.error}, {switch.tries} tries")

    def _trip(self, switch: Switch) -> None:
        failures = switch.results.failures
        log.warning(
            "%s rests: %d of its last %d events failed, the latest with %s. It tries with one in %g s, "
            "and goes on when that goes well",
            switch.name, failures, self._of, switch.error, self._pause, extra=_of(switch),
        )  # fmt: skip
        if self._host is not None:
            self._host.report(facts.Tripped(switch.name, failures, self._of, switch.error))

    async def _try_after(self, switch: Switch, pause: float) -> None:
        await asyncio.sleep(pause)
        switch.trying = True
        await self._resume(switch, one_at_a_time=True)

    def _close(self, switch: Switch) -> None:
        log.warning("%s goes on: a try went well after %s", switch.name, switch.outage, extra=_of(switch))
        switch.opened, switch.trying = None, False
        switch.results.forget()
        self._begin(self._resume(switch), switch)

    async def _resume(self, switch: Switch, *, one_at_a_time: bool = False) -> None:
        if self._host is not None:
            await self._host.resume(switch.name, by=US, one_at_a_time=one_at_a_time)

    def _begin(self, doing: Coroutine[object, object, None], switch: Switch) -> None:
        task = asyncio.get_running_loop().create_task(doing, name=f"{switch.name} kill switch")
        self._resting.add(task)
        task.add_done_callback(self._resting.discard)

    def health(self) -> Iterable[Check]:
        """Say of each subscription whether it rests."""
        for switch in self._switches.values():
            closed = switch.opened is None
            yield Check(f"kill switch {switch.name}", closed, "" if closed else switch.outage, degraded=not closed)


def _back(delivery: Delivery, error: BaseException | None) -> Settlement:
    """Return it to the end of its queue, as the attempt that it was."""
    return forward(delivery.replace(attempt=delivery.attempt), error=error)


def _of(switch: Switch) -> dict[str, str]:
    return {"subscription": switch.name}


def _share(failed: object) -> float:
    if isinstance(failed, bool) or not isinstance(failed, (int, float)) or not 0 < failed <= 1:
        raise wrong("KillSwitch: failed", failed, "say a share above 0 and up to 1, such as 0.5")
    return float(failed)


def _classes(counting: object) -> tuple[type[BaseException], ...]:
    several = cast("tuple[object, ...]", counting) if isinstance(counting, tuple) else (counting,)
    return tuple(_class(each) for each in several)


def _class(kind: object) -> type[BaseException]:
    what = kind_of(kind)
    if not isinstance(kind, type) or not issubclass(kind, BaseException):
        raise ConfigurationError(
            f"KillSwitch: counting has {what} in it: say classes of exceptions, such as (OSError, TimeoutError)"
        )
    if issubclass(kind, NEVER):
        raise ConfigurationError(
            f"KillSwitch: counting={kind.__name__} never counts: it says nothing of what a handler needs"
        )
    return kind
