"""How a handler is called: on the event loop or in a thread, and what it begins there is ended on the event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from contextvars import Context, copy_context
from typing import Any, cast

import msgspec

from rabbitevents.consuming.callables import is_async, is_async_generator
from rabbitevents.consuming.threads import Threads


def awaitable(
    function: Callable[..., Any], threads: Callable[[], Threads], *, promises: bool
) -> Callable[..., Awaitable[Any]]:
    """Return what can be called on the event loop, and its result awaited.

    A coroutine function is that itself, and so is a plain function that says that it ``promises`` an awaitable.
    Every other one runs in a thread.
    """
    if is_async_generator(function):
        return _collecting(function)
    return function if promises or is_async(function) else _in_thread(function, threads())


def _collecting(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def handler(*args: Any, **kwargs: Any) -> Any:
        return await _collected(function(*args, **kwargs))

    return handler


async def _collected(generator: Any) -> list[Any]:
    async with aclosing(generator):
        return [item async for item in generator]


class _Begun(msgspec.Struct, frozen=True):
    """What a thread began, and the event loop has to end: an awaitable or async generator, and its context."""

    result: Any
    context: Context


def _in_thread(function: Callable[..., Any], threads: Threads) -> Callable[..., Awaitable[Any]]:
    """Return a coroutine function that calls ``function`` in a thread. Cancelling waits for the thread to end.

    What a wrapper around a coroutine function returns is awaited on the event loop, with the context variables that
    the wrapper has set.
    """

    def call(*args: Any, **kwargs: Any) -> object:
        result: object = function(*args, **kwargs)
        if inspect.isawaitable(result) or inspect.isasyncgen(result):
            return _Begun(result, copy_context())
        if isinstance(result, Iterator):
            return list(cast("Iterator[object]", result))  # a generator runs here too, in the thread
        return result

    async def handler(*args: Any, **kwargs: Any) -> Any:
        ended = threads.run(call, *args, **kwargs)
        try:
            result = await asyncio.shield(ended)
        except asyncio.CancelledError:
            ended.add_done_callback(_give_up)
            await asyncio.wait({ended})  # a thread cannot be cancelled: until it ends, its event is being handled
            raise
        return await _end(result) if isinstance(result, _Begun) else result

    return handler


async def _end(begun: _Begun) -> Any:
    for variable, value in begun.context.items():
        if variable.get(None) is not value:
            variable.set(value)
    return await (_collected(begun.result) if inspect.isasyncgen(begun.result) else begun.result)


def _give_up(ended: asyncio.Future[Any]) -> None:
    """Close a coroutine that nobody awaits any more."""
    result = None if ended.cancelled() or ended.exception() is not None else ended.result()
    if isinstance(result, _Begun) and inspect.iscoroutine(result.result):
        result.result.close()
