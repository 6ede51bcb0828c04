"""What handlers may ask for besides their event: values, and factories that make one for each delivery."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, cast

import msgspec

from rabbitevents.arguments import kind_of
from rabbitevents.consuming.callables import signature_of
from rabbitevents.errors import ConfigurationError
from rabbitevents.events import Event, is_event
from rabbitevents.message import Delivery

Factory = Callable[[Delivery], Any]
"""Makes what a handler asked for: a value, something to be awaited for it, or what is entered around the handler (a
context manager or a generator, async or not)."""


class Provided(msgspec.Struct, frozen=True):
    """What handlers may ask for by type: a value, or a factory of one for each delivery."""

    value: Any = None
    factory: Factory | None = None


def check_kind(kind: object) -> str:
    """Return how a class that handlers are to ask for is named in errors. Raises `ConfigurationError` for what none can."""
    if not isinstance(kind, type):
        raise ConfigurationError(
            f"provide(...) was given {kind_of(kind)} to be asked for: it takes the class, then a value or factory=, "
            "as in bus.provide(Database, database)"
        )
    if kind in (Event, Delivery) or is_event(kind):
        raise ConfigurationError(
            f"provide({kind.__name__}): what handlers get for {kind.__name__} is what came; provide a class of your own"
        )
    return f"provide({kind.__name__})"


def check_factory(factory: Any, where: str) -> None:
    """Refuse what cannot be called with a delivery. Raises `ConfigurationError`."""
    if not callable(factory):
        raise ConfigurationError(
            f"{where}: the factory is {kind_of(factory)}, which nobody can call; write factory=lambda delivery: ..."
        )
    try:
        signature, _ = signature_of(factory)
    except (ValueError, TypeError):  # some that are written in C do not say
        return
    try:
        signature.bind("delivery")
    except TypeError:
        raise ConfigurationError(
            f"{where}: the factory is called with the delivery, and takes {signature}; "
            "write one that takes it, such as factory=lambda delivery: ..."
        ) from None


async def make(stack: AsyncExitStack, factories: Mapping[type, Factory], delivery: Delivery) -> dict[type, Any]:
    """Make what is asked for, in order; what has to be left at the end is left with ``stack``."""
    return {kind: await _opened(stack, factory(delivery)) for kind, factory in factories.items()}


async def _opened(stack: AsyncExitStack, made: Any) -> Any:
    """Await, or enter, what a factory made; what can be both (a pool's connection) is entered, so that it is left."""
    if inspect.isawaitable(made) and not hasattr(type(made), "__aenter__"):
        made = await made
    if inspect.isgenerator(made) or inspect.isasyncgen(made):
        made = _around(made)
    kind = cast("Any", type(made))
    if hasattr(kind, "__aenter__"):
        leave = kind.__aexit__
        value = await kind.__aenter__(made)
    elif hasattr(kind, "__enter__"):
        leave = kind.__exit__
        value = kind.__enter__(made)
    else:
        return made
    stack.push_async_exit(_leaving(partial(leave, made)))
    return value


def _around(generator: Generator[Any, Any, Any] | AsyncGenerator[Any, Any]) -> Any:
    """Return a generator as the context manager that its decorator would have made of it."""
    if isinstance(generator, AsyncGenerator):
        return asynccontextmanager(lambda: generator)()
    return contextmanager(lambda: generator)()


def _leaving(leave: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return what leaves a context manager, which sees the handler's failure, and never makes a success of it."""

    async def left(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        answer = leave(kind, error, trace)  # whether it swallows the failure is not asked
        if inspect.isawaitable(answer):
            await answer

    return left
