"""The plugin: what is given up on goes to its dead letter queue, labelled, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from rabbitevents import (
    Bus,
    Check,
    ConfigurationError,
    Consume,
    DecodeError,
    Delivery,
    EncodeError,
    Fact,
    Headers,
    Host,
    LineFilter,
    Message,
    Outcome,
    Plugin,
    RabbitEventsError,
    Settlement,
    Subscription,
    event_fields,
    facts,
    forward,
)
from rabbitevents.arguments import Seconds, flag, span
from rabbitevents.partitions import undivided
from rabbitevents.texts import cut, name_of, text_of
from rabbitevents_deadletter import labels
from rabbitevents_deadletter.announcement import PROCESSING_FAILED, EventProcessingFailed, announce
from rabbitevents_deadletter.labels import MESSAGE, MESSAGE_LIMIT, TRACEBACK, dead_queue_of, moment, traceback_of
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.tending import Tending

log: logging.Logger = logging.getLogger("rabbitevents.deadletter")
log.addFilter(LineFilter())

_ATTEMPT: ContextVar[int] = ContextVar("rabbitevents_deadletter_attempt", default=0)
"""The attempt that runs in the current task, where an earlier one was repeated in this process; 0: as the delivery says."""

GIVEN_UP = "given up on"
"""Under what ``rabbitevents explain`` says where an event goes in the end."""

_SHORTER = ((), (TRACEBACK,), (TRACEBACK, MESSAGE))
"""What is left off, step by step, where the labels do not fit beside an event's own headers."""


class DeadLetter(Plugin):
    """Send what is given up on to ``<queue>.dead``, with headers that say why; stands outermost.

    What no copy can carry (a header that cannot be read, a body over the limit) is rejected instead: the broker's own
    dead-lettering takes it to the same queue, as it came. Nothing is dead-lettered because a process stops.

    :param traceback: Whether the headers say the places in the code: True.
    :param message: Whether headers and log say the exceptions' texts: True. They may hold personal data.
    :param announce: Whether `EventProcessingFailed` is published besides: False.
    :param keep: How long a dead letter stays in its queue, seconds or a timedelta: for ever.
    :param archive: The folder in which older ones are written to new files before they are taken out; goes with ``keep``.
    """

    role: ClassVar[str] = "dead-letter"

    def __init__(
        self,
        *,
        traceback: bool = True,
        message: bool = True,
        announce: bool = False,
        keep: Seconds | None = None,
        archive: str | os.PathLike[str] | None = None,
    ) -> None:
        if (keep is None) != (archive is None):
            raise ConfigurationError(
                "DeadLetter(keep=..., archive=...) go together: what is older than keep is written to a file in the "
                "folder archive before it is taken out"
            )
        if archive is not None and not os.access(archive, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"DeadLetter(archive={str(archive)!r}): there is no such folder, or it cannot be written"
            )
        self._keep = None if keep is None else span("DeadLetter: keep", keep, positive=True)
        self._archive = None if archive is None else Path(archive)
        self._with_traceback = flag("DeadLetter: traceback", traceback)
        self._with_message = flag("DeadLetter: message", message)
        self._announces = flag("DeadLetter: announce", announce)
        self._hostname = cut(platform.node(), 255)
        self._running: Host | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._tending: Tending | None = None

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Learn what the bus consumes, and look after its dead letter queues."""
        self._running = host
        here = host.subscriptions  # letters of before a rename say the former name, those of partitions the whole's
        self._subscriptions = {name: each for each in here for name in (each.former, each.whole, each.queue) if name}
        mine = list(dict.fromkeys(undivided(each.queue) for each in host.subscriptions_of(self)))
        if not isinstance(host, Bus) or not mine:
            yield
            return
        self._tending = Tending(host, mine, self._found, self._keep, self._archive)
        async with self._tending.at_work():
            yield

    def health(self) -> Iterable[Check]:
        """Say how many dead letters there are; none of them keeps the service from its work."""
        return () if self._tending is None else self._tending.checks()

    def describe(self, subscription: Subscription) -> Iterable[tuple[str, str]]:
        """Say where what is given up on goes."""
        yield GIVEN_UP, f"{subscription.dead_queue} (rabbitevents dlq)"

    def observe(self, fact: Fact) -> None:
        """Count the attempts that are repeated in this process: the delivery that we see knows only the first of them."""
        if isinstance(fact, facts.Retried) and fact.inline:
            _ATTEMPT.set(fact.attempt + 1)

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Proceed; whatever comes out of it as an exception, decide here what becomes of the delivery."""
        _ATTEMPT.set(0)
        try:
            return await proceed(delivery)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            # This is where it is decided what a failure comes to. A CancelledError that nobody asked for, and what
            # test libraries raise, are a handler's failure like another.
            if self._is_a_stop(error):
                raise
            return await self._give_up(delivery, error)

    @property
    def _host(self) -> Host:
        if self._running is None:
            raise ConfigurationError("DeadLetter() has no bus: put it into Bus(plugins=[...])")
        return self._running

    def _is_a_stop(self, error: BaseException) -> bool:
        """Say whether a handler was broken off, because the process stops; whatever it made of the cancellation."""
        task = asyncio.current_task()
        cancelled = isinstance(error, asyncio.CancelledError) or (task is not None and task.cancelling() > 0)
        return cancelled and self._host.stopping

    async def _give_up(self, delivery: Delivery, error: BaseException) -> Settlement:
        failed = self._failure(delivery, error)
        settlement, why_not = self._settlement(delivery, failed, error)
        if self._tending is not None:
            self._tending.sent(undivided(delivery.queue))
        # Our own errors name no value; below any other one stands its traceback.
        ours = isinstance(error, RabbitEventsError)
        log.error(
            "%s was given up on after %d %s, because of %s%s; it goes to %s (rabbitevents dlq)%s",
            delivery.describe(),
            failed.attempts,
            "attempt" if failed.attempts == 1 else "attempts",
            failed.error,
            f": {text_of(error)}" if isinstance(error, DecodeError) or (self._with_message and ours) else "",
            dead_queue_of(delivery.queue),
            f", without a label, as no copy can be made: {why_not}" if why_not else "",
            extra={**event_fields(delivery), "attempt": failed.attempts},
            exc_info=error if self._with_message and not ours else None,
        )
        await self._tell(delivery, failed, type(error).__name__)
        return settlement

    async def _found(self, letter: DeadLetterMessage) -> None:
        """Say of a letter that the broker brought what is said of any other."""
        delivery, queue, type = letter.delivery, letter.queue or letter.dead_queue, letter.type
        when, handler = letter.failed_at or datetime.now(UTC), self._handler(queue, type)
        failed = EventProcessingFailed(str(delivery.id), type, queue, handler, letter.cause, delivery.attempt, when)
        said = letter.describe(), letter.cause, letter.dead_queue
        fields = event_fields(delivery)
        log.error("%s was given up on by the broker (%s), and is in %s (rabbitevents dlq)", *said, extra=fields)
        await self._tell(delivery, failed, letter.cause)

    def _failure(self, delivery: Delivery, error: BaseException) -> EventProcessingFailed:
        """Say what failed; without ids where they cannot be read."""
        try:
            type, id, attempt = delivery.type, str(delivery.id), int(delivery.attempt)
        except DecodeError:
            type, id, attempt = "", "", 1
        handler, attempts = self._handler(delivery.queue, type), max(attempt, _ATTEMPT.get())
        return EventProcessingFailed(id, type, delivery.queue, handler, name_of(error), attempts, datetime.now(UTC))

    def _handler(self, queue: str, type: str) -> str:
        """Name the function that an event of this type is for; the subscription, where only its patterns could tell."""
        subscription = self._subscriptions.get(queue)
        if subscription is None:
            return queue
        handlers = subscription.handlers
        named = handlers if len(handlers) == 1 else [each for each in handlers if type in each.routing_keys]
        if len(named) != 1:
            return subscription.name
        function = named[0].function
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
        return f"{module}.{name}" if module and name else named[0].name

    def _settlement(
        self, delivery: Delivery, failed: EventProcessingFailed, error: BaseException
    ) -> tuple[Settlement, str]:
        """Return the copy, with as many of its labels as fit; or else the rejection, and why no copy can be made."""
        why_not = ""
        said = {**dict.fromkeys(labels.LABELS), **self._labels(failed, error)}
        for dropped in _SHORTER:
            try:
                headers = {**said, **dict.fromkeys(dropped)}
                copy = Message.copy_of(delivery, queue=dead_queue_of(delivery.queue), headers=headers)
                self._host.limits.check_message(copy)
                return forward(copy, error=error), ""
            except (DecodeError, EncodeError) as why:
                why_not = str(why)
        return Settlement(Outcome.REJECT, None, error), why_not

    def _labels(self, failed: EventProcessingFailed, error: BaseException) -> Headers:
        return {
            labels.ERROR: failed.error,
            labels.FAILED_AT: moment(failed.failed_at),
            labels.ATTEMPTS: failed.attempts,
            labels.HANDLER: cut(failed.handler, 255),
            labels.HOST: self._hostname,
            MESSAGE: cut(text_of(error), MESSAGE_LIMIT) if self._with_message else None,
            TRACEBACK: traceback_of(error) if self._with_traceback else None,
        }

    async def _tell(self, delivery: Delivery, failed: EventProcessingFailed, reason: str) -> None:
        """Report what was given up on, and announce it to whoever wants to know; but no failure of those."""
        type, id = failed.event_type, failed.event_id
        self._host.report(facts.DeadLettered(failed.queue, type, id, failed.attempts, reason))
        if not self._announces or not id or type == PROCESSING_FAILED:
            return
        try:
            whose = self._subscriptions.get(failed.queue)
            identity = failed.queue if whose is None else whose.identity
            await self._host.publish(announce(delivery, failed, self._host.name, identity=identity))
        except Exception as error:
            # Whatever the plugins on the way out raise: the announcement must not keep its event from its queue.
            log.error(
                "%s is in its dead letter queue, and could not be announced as failed: %s",
                delivery.describe(),
                name_of(error),
                extra={**event_fields(delivery), "attempt": failed.attempts},
            )
