"""The plugin: what is given up on goes to its dead letter queue, labelled, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Final

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
    HeaderValue,
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
from rabbitevents_deadletter import labels
from rabbitevents_deadletter.announcement import PROCESSING_FAILED, EventProcessingFailed, announce
from rabbitevents_deadletter.harmless import harmless
from rabbitevents_deadletter.labels import DEAD, MESSAGE, TRACEBACK, cut, moment, name_of, text_of, traceback_of
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.tending import Tending

log: logging.Logger = logging.getLogger("rabbitevents.deadletter")
log.addFilter(LineFilter())

_ATTEMPT: ContextVar[int] = ContextVar("rabbitevents_deadletter_attempt", default=0)
"""The attempt that runs in the current task, where an earlier one was repeated in this process; 0: as the delivery says."""

_SHORTER = ((), (TRACEBACK,), (TRACEBACK, MESSAGE))
"""What is left off, step by step, where the labels do not fit beside an event's own headers."""

LEAVING: Final = 5.0
"""Seconds that a stop waits at most for a look that is under way: the broker may be away."""


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
        self._keep: timedelta | None = None if keep is None else span("DeadLetter: keep", keep, positive=True)
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
        self._subscriptions = {each.queue: each for each in host.subscriptions}
        own = [each.queue for each in host.subscriptions if self in each.plugins]
        mine = own or [q for q, each in self._subscriptions.items() if not any(map(_is_one, each.plugins))]
        if not isinstance(host, Bus) or not mine:
            yield
            return
        self._tending = Tending(host, mine, self._found, self._keep, self._archive)
        task = asyncio.create_task(self._tending.run(), name=f"{host.name} dead letters")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=LEAVING)
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a defect: nothing that looking may meet ends it

    def health(self) -> Iterable[Check]:
        """Say how many dead letters there are; none of them keeps the service from its work."""
        return () if self._tending is None else self._tending.checks()

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

    def _is_a_stop(self, error: BaseException) -> bool:
        """Say whether a handler was broken off, because the process stops; whatever it made of the cancellation."""
        task = asyncio.current_task()
        cancelled = isinstance(error, asyncio.CancelledError) or (task is not None and task.cancelling() > 0)
        return cancelled and self._host.stopping

    async def _give_up(self, delivery: Delivery, error: BaseException) -> Settlement:
        failed = self._failure(delivery, error)
        settlement, why_not = self._settlement(delivery, failed, error)
        if self._tending is not None:
            self._tending.sent(delivery.queue)
        self._report(failed, type(error).__name__)
        self._log(delivery, failed, error, why_not)
        if self._announces and failed.event_id:
            await self._announce(delivery, failed)
        return settlement

    async def _found(self, letter: DeadLetterMessage) -> None:
        """Say of a letter that the broker brought what is said of any other."""
        delivery, queue, type = letter.delivery, letter.queue or letter.dead_queue, letter.type
        when, handler = letter.failed_at or datetime.now(UTC), self._handler(queue, type)
        failed = EventProcessingFailed(str(delivery.id), type, queue, handler, letter.cause, delivery.attempt, when)
        self._report(failed, letter.cause)
        said = (letter.describe(), letter.cause, letter.dead_queue)
        fields = event_fields(delivery)
        log.error("%s was given up on by the broker (%s), and is in %s (rabbitevents dlq)", *said, extra=fields)
        if self._announces:
            await self._announce(delivery, failed)

    def _report(self, failed: EventProcessingFailed, reason: str) -> None:
        fact = facts.DeadLettered(failed.queue, failed.event_type, failed.event_id, failed.attempts, reason)
        self._host.report(fact)

    @property
    def _host(self) -> Host:
        if self._running is None:
            raise ConfigurationError("DeadLetter() has no bus: put it into Bus(plugins=[...])")
        return self._running

    def _failure(self, delivery: Delivery, error: BaseException) -> EventProcessingFailed:
        """Say what failed; without ids where they cannot be read."""
        try:
            type, id, attempt = delivery.type, str(delivery.id), int(delivery.attempt)
        except DecodeError:
            type, id, attempt = "", "", 1
        handler = self._handler(delivery.queue, type)
        attempts = max(attempt, _ATTEMPT.get())
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

    # --- the copy ---

    def _settlement(
        self, delivery: Delivery, failed: EventProcessingFailed, error: BaseException
    ) -> tuple[Settlement, str]:
        """Return the copy to the dead letter queue; or else the rejection, and why no copy can be made."""
        try:
            if delivery.oversize:
                raise DecodeError("its body is over the limit of Bus(limits=...), and was not kept")
            return forward(self._copy(delivery, failed, error), error=error), ""
        except (DecodeError, EncodeError) as why:
            return Settlement(Outcome.REJECT, None, error), str(why)

    def _copy(self, delivery: Delivery, failed: EventProcessingFailed, error: BaseException) -> Message:
        """Return the copy with as many of its labels as fit. Raises `EncodeError` when not even the shortest do."""
        said = self._labels(failed, error)
        for dropped in _SHORTER[:-1]:
            with suppress(EncodeError):
                return self._checked(delivery, said, dropped)
        return self._checked(delivery, said, _SHORTER[-1])

    def _checked(self, delivery: Delivery, said: Headers, dropped: Sequence[str]) -> Message:
        """Return the copy, with nothing of the family but these labels. Raises `DecodeError` and `EncodeError`."""
        headers: Headers = {**dict.fromkeys(labels.LABELS), **said, **dict.fromkeys(dropped)}
        copy = Message.copy_of(delivery, queue=delivery.queue + DEAD, headers=headers)
        self._host.limits.check_message(copy)
        return copy

    def _labels(self, failed: EventProcessingFailed, error: BaseException) -> dict[str, HeaderValue]:
        said: dict[str, HeaderValue] = {
            labels.ERROR: failed.error,
            labels.FAILED_AT: moment(failed.failed_at),
            labels.ATTEMPTS: failed.attempts,
            labels.HANDLER: cut(failed.handler, 255),
            labels.HOST: self._hostname,
        }
        if self._with_message:
            said[MESSAGE] = text_of(error)
        if self._with_traceback:
            said[TRACEBACK] = traceback_of(error)
        return said

    # --- saying so ---

    def _log(self, delivery: Delivery, failed: EventProcessingFailed, error: BaseException, why_not: str) -> None:
        log.error(
            "%s was given up on after %d %s, because of %s%s; it goes to %s (rabbitevents dlq)%s",
            delivery.describe(),
            failed.attempts,
            "attempt" if failed.attempts == 1 else "attempts",
            failed.error,
            f": {harmless(text_of(error))}" if self._may_say(error) else "",
            delivery.queue + DEAD,
            f", without a label, as no copy can be made: {why_not}" if why_not else "",
            extra={**event_fields(delivery), "attempt": failed.attempts},
            exc_info=error if self._with_message and not isinstance(error, RabbitEventsError) else None,
        )

    def _may_say(self, error: BaseException) -> bool:
        """Say whether the line has an exception's text: ours names no value; below another one stands its traceback."""
        return isinstance(error, DecodeError) or (self._with_message and isinstance(error, RabbitEventsError))

    async def _announce(self, delivery: Delivery, failed: EventProcessingFailed) -> None:
        if failed.event_type == PROCESSING_FAILED:
            return
        try:
            await self._host.publish(announce(delivery, failed, self._host.name))
        except Exception as error:
            # Whatever the plugins on the way out raise: the announcement must not keep its event from its queue.
            log.error(
                "%s is in its dead letter queue, and could not be announced as failed: %s",
                delivery.describe(),
                name_of(error),
                extra={**event_fields(delivery), "attempt": failed.attempts},
            )


def _is_one(plugin: Plugin) -> bool:
    return isinstance(plugin, DeadLetter)
