"""How a function becomes the innermost link of a chain: decode, call, publish what it returned."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from rabbitevents.consuming.calls import awaitable
from rabbitevents.consuming.current import CURRENT, Handling
from rabbitevents.consuming.factories import Provided, make
from rabbitevents.consuming.isolation import take_back_cancellations
from rabbitevents.consuming.results import events_of, failures_of, results_of
from rabbitevents.consuming.signatures import Get, Signature
from rabbitevents.consuming.threads import Threads
from rabbitevents.consuming.work import WORK
from rabbitevents.errors import (
    DecodeError,
    EncodeError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
)
from rabbitevents.events import event_type
from rabbitevents.failures import BatchError
from rabbitevents.fields import event_fields
from rabbitevents.message import ACK, REQUEUE, Delivery, Message, Outcome, Settlement
from rabbitevents.payload.codec import Codec, read_document
from rabbitevents.plugin import Publish
from rabbitevents.routing import Handler, Subscription
from rabbitevents.topics import matches
from rabbitevents.wire import Received, glean, read

log: logging.Logger = logging.getLogger("rabbitevents.consumer")

_KEPT = 1024

_PAUSES = (0.5, 1.0, 2.0, 5.0)
"""Seconds before what a handler returned is published again; the last one for ever."""

_PASSING = (NotSentError, OutcomeUnknownError, RefusedError)
"""Why a publish may fail now and succeed later."""

OVERDUE = 2.0
"""Seconds that a handler may take to end once its timeout has passed, before health says that it is stuck."""


class Invocation:
    """One handler, ready to be called."""

    def __init__(
        self,
        handler: Handler,
        where: str,
        provided: Mapping[type, Provided],
        threads: Callable[[], Threads],
        *,
        batch: bool = False,
    ) -> None:
        self.handler = handler
        self.where = where
        signature = Signature(handler, where, provided, batch=batch)
        self._shared = signature.shared
        self._takes_payload_only = signature.takes_payload_only
        self._positional = signature.positional
        self._keywords = signature.keywords
        self._factories = signature.factories
        codecs = {cls: Codec[Any](cls) for cls in signature.classes}
        self._codecs = {name: codec for cls, codec in codecs.items() for name in event_type(cls).names}
        self._otherwise: Codec[Any] | None = None
        if len(codecs) == 1 and (handler.exchange is not None or handler.keys):
            (self._otherwise,) = codecs.values()
        self._accepts_any = signature.accepts_any
        self.reads_payload: bool = signature.reads_payload
        self._function = awaitable(handler.function, threads, promises=signature.promises)

    def payload(self, received: Received) -> Any:
        """Decode what came for this handler. Raises `DecodeError`."""
        codec = self._codecs.get(received.type) or self._codecs.get(received.delivery.routing_key) or self._otherwise
        if codec is not None:
            return codec.decode(received.body, received.version)
        if self._accepts_any:
            return read_document(received.body)
        way_out = "; a handler of one class, of Event or of Delivery takes it" if self.handler.exchange else ""
        raise DecodeError(f"{self.where} knows no event type {received.type!r}{way_out}", type=received.type)

    def __call__(self, received: Received) -> Awaitable[Any]:
        """Call the handler; what is awaited is what it returns. Raises `DecodeError` at once."""
        if self._takes_payload_only:  # what most handlers do: without a coroutine in between
            return self._function(self.payload(received))
        return self._with_all_it_asks_for(received)

    async def _with_all_it_asks_for(self, received: Received) -> Any:
        payload = self.payload(received) if self.reads_payload else None
        if not self._factories:
            return await self._call(received, payload, {})
        async with AsyncExitStack() as stack:
            made = await make(stack, self._factories, received.delivery)
            result = await self._call(received, payload, made)
            # Looked at while all of that is open: what is wrong is rolled back, and a lazy one may still ask for it.
            return None if result is None else events_of(result, self.where)

    async def together(self, events: list[tuple[Received, Any]]) -> list[list[Any] | BaseException]:
        """Call a handler that takes batches with what was received and decoded.

        Returns what it returns for each event, or why that failed. What a factory has open ends well where the handler
        names those that failed: the others are done.
        """

        def value(get: Get) -> Any:
            if get in self._shared:
                return get(*events[0], made)
            return [get(received, payload, made) for received, payload in events]

        async with AsyncExitStack() as stack:
            made = await make(stack, self._factories, events[0][0].delivery)
            args = [value(get) for get in self._positional]
            try:
                result = await self._function(*args, **{name: value(get) for name, get in self._keywords.items()})
            except BatchError as error:
                return failures_of(error, len(events), self.where)
            return [*results_of(result, len(events), self.where)]  # while all of that is open, as for a single event

    def _call(self, received: Received, payload: Any, made: dict[type, Any]) -> Any:
        args = [get(received, payload, made) for get in self._positional]
        kwargs = {name: get(received, payload, made) for name, get in self._keywords.items()}
        return self._function(*args, **kwargs)


class Outward(Protocol):
    """The way out for what handlers return."""

    def prepare_all(self, events: list[Any], /) -> list[Message]:
        """Write events as messages, caused by what is handled here. Raises `EncodeError`."""
        ...

    async def send_all(self, messages: list[Message], chain: Publish, /) -> list[tuple[Message, Exception]]:
        """Publish all of them through ``chain``; return those that were not confirmed, and why."""
        ...


class Dispatch:
    """The innermost link of a subscription's chain: find the handler, call it, publish what it returns, acknowledge.

    Once a handler has succeeded it is not called again because what it returned could not be published: that alone is
    repeated, here, for up to ``patience`` seconds; after that, and for what no waiting can change, the error goes on,
    and whoever tries again in this process repeats the publishing alone.
    """

    def __init__(
        self,
        subscription: Subscription,
        provided: Mapping[type, Provided],
        threads: Callable[[], Threads],
        outward: Outward,
        *,
        owner: object,
        chain: Publish,
        stopping: Callable[[], bool],
        patience: float,
    ) -> None:
        batch = subscription.options.batch is not None
        self._stopping = stopping
        self._identity = subscription.identity
        self._outward = outward
        self._owner = owner
        self._chain = chain
        self._patience = patience
        self._invocations = [
            Invocation(handler, _where(subscription, handler), provided, threads, batch=batch)
            for handler in subscription.handlers
        ]
        self._bound_elsewhere = [each for each in self._invocations if each.handler.exchange is not None]
        self._some_read_nothing = not all(each.reads_payload for each in self._invocations)
        timeout = subscription.options.timeout
        self._timeout = timeout.total_seconds() if timeout is not None else None
        self._known: dict[str, Invocation] = {}
        self._limits: set[asyncio.Timeout] = set()

    def payload(self, delivery: Delivery) -> Any:
        """Decode a delivery, as its handler would get it. Raises `DecodeError`."""
        received = read(delivery)
        return (self._known.get(received.type) or self._find(received)).payload(received)

    async def together(self, deliveries: Sequence[Delivery]) -> list[list[Message] | BaseException]:
        """Handle deliveries by one call; return for each what is to be published for it, or why it failed.

        Raises what the handler raises, but for a `BatchError`.
        """
        came: dict[int, tuple[Received, Any]] = {}
        found: list[list[Message] | BaseException] = [[] for _ in deliveries]
        invocation = self._invocations[0]
        for place, delivery in enumerate(deliveries):
            try:
                received = read(delivery) if invocation.reads_payload else glean(delivery)
                came[place] = received, invocation.payload(received) if invocation.reads_payload else None
            except DecodeError as error:
                found[place] = error
        if not came:
            return found
        places = list(came)
        CURRENT.set(None)  # what is published in between belongs to none of them
        for place, result in zip(places, await self._limited(invocation.together(list(came.values()))), strict=True):
            is_failure = isinstance(result, BaseException)
            found[place] = result if is_failure else self._prepared(came[place][0], result)
        return found

    def _prepared(self, received: Received, events: list[Any]) -> list[Message] | BaseException:
        """Write what was returned for one event, caused by it."""
        if not events:
            return []
        token = CURRENT.set(Handling(received, self._identity, self._owner, self._chain))
        try:
            return self._outward.prepare_all(events)
        except EncodeError as error:
            return error
        finally:
            CURRENT.reset(token)

    async def send_all(self, messages: list[Message]) -> BaseException | None:
        """Publish; return the first failure."""
        failed = await self._outward.send_all(messages, self._chain)
        return failed[0][1] if failed else None

    async def __call__(self, delivery: Delivery) -> Settlement:
        """Handle a delivery. Raises `DecodeError` for one that cannot be read, and what the handler raises.

        A delivery that is stale is not handled, and its failure is nobody's to decide about: it comes again.
        """
        channel = delivery.channel
        if channel is not None and not channel.open:
            return REQUEUE
        work = WORK.get()
        if work is not None and work.unpublished is not None:
            return await self.publish(delivery, work.unpublished)
        received = glean(delivery) if self._some_read_nothing else read(delivery)
        invocation = self._known.get(received.type) or self._find(received)
        if self._some_read_nothing and invocation.reads_payload:
            received = read(delivery)  # which raises why it cannot be read, if it cannot
        handling = Handling(received, self._identity, self._owner, self._chain)
        CURRENT.set(handling)
        try:
            if self._timeout is None:
                result = await invocation(received)
            else:
                result = await self._limited(invocation(received))
            if result is None:
                return ACK
            messages = self._outward.prepare_all(events_of(result, invocation.where))
        except (Exception, asyncio.CancelledError) as error:
            await self._take_back_cancellations()
            if (settlement := self.in_vain(delivery, error)) is not None:
                return settlement
            raise
        finally:
            handling.ended = True
        await self._take_back_cancellations()
        return await self.publish(delivery, messages)

    def in_vain(self, delivery: Delivery, error: BaseException) -> Settlement | None:
        """Say what becomes of a failure that nobody is to decide about; None where the plugins further out decide."""
        return _in_vain(delivery, error) if delivery.stale and not self._stopping() else None

    async def publish(self, delivery: Delivery, messages: list[Message]) -> Settlement:
        """Publish what the handler returned, and again what was not confirmed."""
        work = WORK.get()
        now = asyncio.get_running_loop().time
        until = now() + self._patience
        pauses = itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))
        while failed := await self._outward.send_all(messages, self._chain):
            messages, error = [message for message, _ in failed], failed[0][1]
            if work is not None:
                work.unpublished, work.error = messages, f"what it returned is not published: {type(error).__name__}"
            if delivery.stale or self._stopping():
                return Settlement(Outcome.REQUEUE, error=error)
            pause = next(pauses)
            if not isinstance(error, _PASSING) or now() + pause > until:
                raise error
            log.warning(
                "%s is handled, and what it returned is published again in %g s: %s",
                delivery.describe(),
                pause,
                error,
                extra=event_fields(delivery),
            )
            await asyncio.sleep(pause)
        if work is not None:
            work.unpublished, work.error = None, ""
        return ACK

    async def _limited(self, handling: Awaitable[Any]) -> Any:
        async with asyncio.timeout(self._timeout) as limit:
            self._limits.add(limit)
            try:
                return await handling
            finally:
                self._limits.discard(limit)

    def overdue(self) -> int:
        """Count the handlers that run on after their timeout: in a thread, or since they swallow the cancellation."""
        latest = asyncio.get_running_loop().time() - OVERDUE
        return sum(1 for limit in self._limits if (ends := limit.when()) is not None and ends < latest)

    async def _take_back_cancellations(self) -> None:
        """Take back the cancellations that a handler left on its worker, unless the bus stops."""
        if not self._stopping():
            await take_back_cancellations()

    def _find(self, received: Received) -> Invocation:
        """Return the handler that a type, a binding to another team's exchange, a pattern or a routing key leads to."""
        kind, delivery = received.type, received.delivery
        found = self._first(lambda handler: kind in handler.names)
        if found is None and self._bound_elsewhere and (found := self._by_exchange(delivery)) is not None:
            return found
        found = found or self._first(lambda handler: any(matches(name, kind) for name in handler.names))
        if found is not None:
            certain = not self._bound_elsewhere or kind in found.handler.names
            if certain and len(kind) <= 255 and len(self._known) < _KEPT:
                self._known[kind] = found
            return found
        key = delivery.routing_key
        found = self._first(lambda handler: any(matches(each, key) for each in handler.source.keys))
        if found is not None:
            return found
        if len(self._invocations) == 1 and not self._invocations[0].reads_payload:
            return self._invocations[0]
        raise DecodeError(
            f"no handler of queue {delivery.queue!r} is for {kind!r}; if none is to be, the queue is still bound for it: "
            "`rabbitevents topology apply MODULE:BUS --prune` unbinds it",
            type=kind,
            unhandled=True,
        )

    def _by_exchange(self, delivery: Delivery) -> Invocation | None:
        """Return the handler whose queue is bound to where a delivery was published, which is not the bus's exchange."""
        there = [i for i in self._bound_elsewhere if (e := i.handler.exchange) and e.name == delivery.exchange]
        fitting = (i for i in there if any(matches(key, delivery.routing_key) for key in i.handler.source.keys))
        return next(fitting, there[0] if len(there) == 1 else None)  # a fanout exchange looks at no key

    def _first(self, fits: Callable[[Handler], bool]) -> Invocation | None:
        return next((each for each in self._invocations if fits(each.handler)), None)


def _in_vain(delivery: Delivery, error: BaseException) -> Settlement:
    log.warning(
        "%s failed, and its connection was lost meanwhile: the broker delivers it again",
        delivery.describe(),
        exc_info=error,
        extra=event_fields(delivery),
    )
    return Settlement(Outcome.REQUEUE, error=error)


def _where(subscription: Subscription, handler: Handler) -> str:
    """Name a handler for errors."""
    if len(subscription.handlers) == 1:
        return f"handler {subscription.name!r}"
    return f"handler {handler.name!r} of queue {subscription.queue!r}"
