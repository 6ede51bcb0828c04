"""How a function becomes the innermost link of a chain: decode, call, publish what it returned.

Signatures are resolved here once, at start; per event there is no inspection, only what was decided.
"""

from __future__ import annotations

import asyncio
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import partial
from typing import Any, Union, cast, get_args, get_origin

import msgspec

from rabbitevents.consuming.threads import Threads
from rabbitevents.errors import ConfigurationError, DecodeError
from rabbitevents.events import Event, event_type, is_event
from rabbitevents.ids import derived_id
from rabbitevents.message import ACK, Delivery, Settlement
from rabbitevents.payload.codec import Codec, read_document
from rabbitevents.plugin import Publish
from rabbitevents.routing import Handler, Subscription, matches
from rabbitevents.wire import Received, read

Factory = Callable[[Delivery], Any]
"""Makes what a handler asked for: a value, or an async context manager that is entered around the handler."""

PublishAll = Callable[[list[Any]], Awaitable[None]]

_DISPATCH_KEPT = 1024

OVERDUE = 2.0
"""Seconds that a handler may take to end once its timeout has passed, before health says that it is stuck."""


class Provided(msgspec.Struct, frozen=True):
    """What handlers may ask for by type: a value, or a factory of one for each delivery."""

    value: Any = None
    factory: Factory | None = None


class Handling:
    """What is being handled, for what is published meanwhile: its ids derive from this one's.

    ``owner`` is the bus that handles it, ``chain`` the publish chain of its subscription.
    """

    __slots__ = ("_ordinals", "_received", "_subscription", "chain", "owner")

    def __init__(self, received: Received, subscription: str, owner: object, chain: Publish) -> None:
        self.owner: object = owner
        self.chain: Publish = chain
        self._received = received
        self._subscription = subscription
        self._ordinals: dict[str, int] = {}

    def next_id(self, type: str) -> Any:
        """Return the id of the next event of ``type``: the same ones in the same order at every attempt."""
        ordinal = self._ordinals[type] = self._ordinals.get(type, -1) + 1
        return derived_id(self._received.delivery.id, self._subscription, type, ordinal)

    @property
    def delivery(self) -> Delivery:
        """What is being handled."""
        return self._received.delivery

    @property
    def id(self) -> str:
        """The id of the event that is handled."""
        return str(self._received.delivery.id)

    @property
    def correlation_id(self) -> str:
        """What everything in this cascade shares: the handled event's correlation id, or its id."""
        return self._received.envelope(None).metadata.correlation_id or self.id


CURRENT: ContextVar[Handling | None] = ContextVar("rabbitevents_handling", default=None)
"""The handling that the current task is part of."""


class Invocation:
    """One handler, ready to be called."""

    def __init__(
        self, handler: Handler, where: str, provided: Mapping[type, Provided], threads: Callable[[], Threads]
    ) -> None:
        self.handler = handler
        self.where = where
        signature = _Signature(handler, where, provided)
        self._takes_payload_only = signature.takes_payload_only
        self._positional = signature.positional
        self._keywords = signature.keywords
        self._factories = signature.factories
        self._codecs = {event_type(cls).name: Codec[Any](cls) for cls in signature.classes}
        self._accepts_any = signature.accepts_any
        self._reads_payload = signature.reads_payload
        self._function = handler.function if _is_async(handler.function) else _in_thread(handler.function, threads())

    def payload(self, received: Received) -> Any:
        """Decode what came for this handler. Raises `DecodeError`."""
        codec = self._codecs.get(received.type)
        if codec is not None:
            return codec.decode(received.body, received.version)
        if self._accepts_any:
            return read_document(received.body)
        raise DecodeError(f"{self.where} knows no event type {received.type!r}", type=received.type)

    async def __call__(self, received: Received) -> Any:
        """Call the handler and return what it returned."""
        if self._takes_payload_only:
            return await self._function(self.payload(received))
        payload = self.payload(received) if self._reads_payload else None
        if not self._factories:
            return await self._call(received, payload, {})
        async with AsyncExitStack() as stack:
            made: dict[type, Any] = {}
            for kind, factory in self._factories.items():
                value = factory(received.delivery)
                made[kind] = await stack.enter_async_context(value) if hasattr(value, "__aenter__") else value
            return await self._call(received, payload, made)

    def _call(self, received: Received, payload: Any, made: dict[type, Any]) -> Any:
        args = [get(received, payload, made) for get in self._positional]
        kwargs = {name: get(received, payload, made) for name, get in self._keywords.items()}
        return self._function(*args, **kwargs)


class Dispatch:
    """The innermost link of a subscription's chain: find the handler, call it, publish what it returns, acknowledge."""

    def __init__(
        self,
        subscription: Subscription,
        provided: Mapping[type, Provided],
        threads: Callable[[], Threads],
        publish: PublishAll,
        *,
        owner: object,
        chain: Publish,
        stopping: Callable[[], bool],
    ) -> None:
        self._stopping = stopping
        self._name = subscription.name
        self._publish = publish
        self._owner = owner
        self._chain = chain
        self._invocations = [
            Invocation(handler, _where(subscription, handler), provided, threads) for handler in subscription.handlers
        ]
        timeout = subscription.options.timeout
        self._timeout = timeout.total_seconds() if timeout is not None else None
        self._known: dict[str, Invocation] = {}
        self._limits: set[asyncio.Timeout] = set()

    async def __call__(self, delivery: Delivery) -> Settlement:
        """Handle a delivery. Raises `DecodeError` for one that cannot be read, and what the handler raises."""
        received = read(delivery)
        invocation = self._known.get(received.type) or self._find(received)
        CURRENT.set(Handling(received, self._name, self._owner, self._chain))
        try:
            if self._timeout is None:
                result = await invocation(received)
            else:
                result = await self._limited(invocation, received)
        except BaseException:
            self._forget_cancellation()
            raise
        if result is not None:
            await self._publish(_events(result, invocation.where))
        return ACK

    async def _limited(self, invocation: Invocation, received: Received) -> Any:
        async with asyncio.timeout(self._timeout) as limit:
            self._limits.add(limit)
            try:
                return await invocation(received)
            finally:
                self._limits.discard(limit)

    def overdue(self) -> int:
        """Count the handlers that run on after their timeout: in a thread, or since they swallow the cancellation."""
        latest = asyncio.get_running_loop().time() - OVERDUE
        return sum(1 for limit in self._limits if (ends := limit.when()) is not None and ends < latest)

    def _forget_cancellation(self) -> None:
        """Take back the cancellations that a handler left on the worker, unless the bus stops.

        Before Python 3.13, a TaskGroup whose child fails while the group is being left cancels its task, and never takes
        that back: each later failure on that worker would look as if the process stopped.
        """
        task = asyncio.current_task()
        while task is not None and task.cancelling() and not self._stopping():
            task.uncancel()

    def _find(self, received: Received) -> Invocation:
        for key in (received.type, received.delivery.routing_key):
            for invocation in self._invocations:
                if any(matches(pattern, key) for pattern in invocation.handler.routing_keys):
                    if key == received.type and len(self._known) < _DISPATCH_KEPT:
                        self._known[key] = invocation
                    return invocation
        raise DecodeError(
            f"no handler of queue {received.delivery.queue!r} is for {received.type!r}", type=received.type
        )


def _where(subscription: Subscription, handler: Handler) -> str:
    """Name a handler for errors."""
    if len(subscription.handlers) == 1:
        return f"handler {subscription.name!r}"
    return f"handler {handler.name!r} of queue {subscription.queue!r}"


def _events(result: object, where: str) -> list[Any]:
    """Return what a handler returned as a list of events. Raises `ConfigurationError` for anything else."""
    if _is_payload_or_event(result):
        return [result]
    found: list[object] = [result]
    if isinstance(result, Iterable) and not isinstance(result, (str, bytes, Mapping)):
        found = list(cast("Iterable[object]", result))
    for item in found:
        if not _is_payload_or_event(item):
            raise ConfigurationError(
                f"{where} returned a {type(item).__name__}; a handler returns None, an event, or an iterable of events"
            )
    return found


def _is_payload_or_event(value: object) -> bool:
    return is_event(type(value)) or isinstance(value, Event)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_callee(function))


def _callee(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that is called in the end: that of a partial, the method of an object that can be called."""
    target = function
    while isinstance(target, partial):
        inner: Callable[..., Any] = target.func
        target = inner
    return target if inspect.isroutine(target) else getattr(target, "__call__", target)  # noqa: B004


def _in_thread(function: Callable[..., Any], threads: Threads) -> Callable[..., Awaitable[Any]]:
    """Return a coroutine function that calls ``function`` in a thread. Cancelling waits for the thread to end."""

    def call(*args: Any, **kwargs: Any) -> object:
        result: object = function(*args, **kwargs)
        if isinstance(result, Iterator):
            return list(cast("Iterator[object]", result))  # a generator runs here too, in the thread
        return result

    async def handler(*args: Any, **kwargs: Any) -> Any:
        ended = threads.run(call, *args, **kwargs)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            await asyncio.wait({ended})  # a thread cannot be cancelled: until it ends, its event is being handled
            raise

    return handler


# --- signatures ----------------------------------------------------------------------------------------------------

Get = Callable[[Received, Any, Mapping[type, Any]], Any]
"""Gets one argument: from what was received, the decoded payload, and what factories made."""


def _get_payload(received: Received, payload: Any, made: Mapping[type, Any]) -> Any:
    return payload


def _get_envelope(received: Received, payload: Any, made: Mapping[type, Any]) -> Any:
    return received.envelope(payload)


def _get_delivery(received: Received, payload: Any, made: Mapping[type, Any]) -> Any:
    return received.delivery


class _Signature:
    """What a handler's parameters ask for. Raises `ConfigurationError` for one that nobody can serve."""

    def __init__(self, handler: Handler, where: str, provided: Mapping[type, Provided]) -> None:
        self.positional: list[Get] = []
        self.keywords: dict[str, Get] = {}
        self.factories: dict[type, Factory] = {}
        self.classes: tuple[type, ...] = handler.classes
        self.accepts_any = False
        self.reads_payload = False
        self._handler = handler
        self._where = where
        self._provided = provided
        if inspect.isasyncgenfunction(_callee(handler.function)):
            raise ConfigurationError(f"{where} is an async generator; return a list of events instead")
        for parameter, hint in _parameters(handler.function, where):
            get = self._serve(parameter, hint)
            if get is None:
                continue
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                self.keywords[parameter.name] = get
            else:
                self.positional.append(get)
        self.takes_payload_only = self.positional == [_get_payload] and not self.keywords

    def _serve(self, parameter: inspect.Parameter, hint: Any) -> Get | None:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            return None
        if hint is Delivery:
            return _get_delivery
        if hint is Event or get_origin(hint) is Event:
            self._expect(_members(get_args(hint)[0]) if get_args(hint) else (), parameter)
            return _get_envelope
        members = _members(hint)
        if members and all(map(is_event, members)):
            self._expect(members, parameter)
            return _get_payload
        if isinstance(hint, type) and hint in self._provided:
            return self._get_provided(hint)
        if parameter.default is not inspect.Parameter.empty:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                return None
            default = parameter.default
            return lambda received, payload, made: default
        raise ConfigurationError(
            f"{self._where}: nobody can serve its parameter {_shown(parameter, hint)}; a handler may ask for its event class, "
            "Event, Delivery, Bus, and whatever was given to bus.provide()"
        )

    def _get_provided(self, hint: type) -> Get:
        there = self._provided[hint]
        if there.factory is None:
            return lambda received, payload, made: there.value
        self.factories[hint] = there.factory
        return lambda received, payload, made: made[hint]

    def _expect(self, members: tuple[Any, ...], parameter: inspect.Parameter) -> None:
        """Note the classes that a parameter takes; Event without one, or Event[Any], takes whatever comes."""
        self.reads_payload = True
        if not members or Any in members or object in members:
            self.accepts_any = True
            return
        wrong = next((m for m in members if not is_event(m)), None)
        if wrong is not None:
            raise ConfigurationError(
                f"{self._where}: {_shown(parameter, wrong)} is no event class; put @event(...) above it"
            )
        missing = [cls.__name__ for cls in self._handler.classes if cls not in members]
        if missing:
            raise ConfigurationError(
                f"{self._where} is registered for {', '.join(missing)}, which its parameter {parameter.name!r} does not take"
            )
        self.classes = tuple(members)


def _parameters(function: Callable[..., Any], where: str) -> list[tuple[inspect.Parameter, Any]]:
    try:
        hints = typing.get_type_hints(inspect.unwrap(_callee(function)))
    except (NameError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{where}: its annotations cannot be resolved ({error}); classes used there must be importable from the module's top level"
        ) from error
    parameters = inspect.signature(function).parameters.values()
    return [(p, hints.get(p.name, inspect.Parameter.empty)) for p in parameters]


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _shown(parameter: inspect.Parameter, hint: Any) -> str:
    if hint is inspect.Parameter.empty:
        return f"{parameter.name!r}, which has no annotation"
    return f"'{parameter.name}: {getattr(hint, '__name__', hint)}'"
