"""What Python lets one call, and what it asks for: looked at once, at start.

Functions and methods, partials, objects with ``__call__``, and whatever decorators make of them.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from functools import lru_cache, partial, partialmethod
from types import MethodType
from typing import Any, cast

import msgspec

from rabbitevents.errors import ConfigurationError

EMPTY = inspect.Parameter.empty
"""Stands for an annotation that is not there."""

_CACHED = type(lru_cache(lambda: None))

_MADE_BY = "__partialmethod__" if sys.version_info >= (3, 13) else "_partialmethod"
"""Where a method that a `functools.partialmethod` has made knows it."""


class Shape(msgspec.Struct, frozen=True):
    """What a callable asks for, each parameter with its resolved annotation, and what it says that it returns."""

    parameters: tuple[tuple[inspect.Parameter, Any], ...]
    result: Any
    """Any where nothing is said, or where a wrapper repeats it of what it wraps, and may return something else."""


def shape(function: Callable[..., Any], where: str) -> Shape:
    """Look at a handler. Raises `ConfigurationError` for what cannot be one, or does not say what it wants."""
    _check(function, where)
    try:
        signature, is_seen_through = signature_of(function)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{where} does not say which parameters it has; write a function around it, with annotations"
        ) from error
    layers = tuple(_layers(_unwrapped(function)))
    hints = _hints(layers[-1] if is_seen_through else callee(function), where)
    brought = {name for layer in layers if isinstance(layer, (partial, partialmethod)) for name in layer.keywords}
    asked = [(p, hints.get(p.name, p.annotation)) for p in signature.parameters.values() if p.name not in brought]
    return Shape(tuple(asked), Any if any(map(_is_wrapper, layers)) else hints.get("return", Any))


def signature_of(function: Callable[..., Any]) -> tuple[inspect.Signature, bool]:
    """Return what a callable takes, and whether that was seen through a wrapper that hands on what it gets.

    A wrapper that takes something else than what it wraps brings the rest itself, and speaks for itself.
    Raises ValueError or TypeError for what does not say (some that are written in C).
    """
    plain = _unwrapped(function)
    shown = inspect.signature(plain)
    try:
        own = inspect.signature(plain, follow_wrapped=False)
    except ValueError:  # a cache: written in C, it hands on what it gets
        return shown, True
    return (shown, True) if _fits(own, shown) else (own, False)


def _check(function: Any, where: str) -> None:
    """Refuse what is called in another way than a function is."""
    if isinstance(function, type):
        raise ConfigurationError(f"{where} is a class; register one of its objects, or a method of such an object")
    if not callable(function):  # a class method or a property, registered inside of its class
        raise ConfigurationError(
            f"{where} is a {type(function).__name__}, which nobody can call; register a function or a bound method"
        )
    if isinstance(function, _CACHED) and is_async(cast("Any", function).__wrapped__):
        raise ConfigurationError(
            f"{where} is a coroutine function in a cache, which hands out one coroutine twice; leave the cache off"
        )


def _unwrapped(function: Any) -> Callable[..., Any]:
    """Return a partial without what `functools.update_wrapper` says of it: that hides the arguments it brings."""
    there: Any = function
    if isinstance(function, staticmethod):
        there = there.__func__
    elif isinstance(function, partial):
        there = partial(_unwrapped(there.func), *there.args, **there.keywords)
    return cast("Callable[..., Any]", there)


def _layers(function: Any) -> Iterator[Any]:
    """Yield a callable and what it calls in its turn, down to the function that has the annotations."""
    while True:
        yield function
        if isinstance(function, (MethodType, staticmethod)):
            function = cast("Any", function).__func__
        elif isinstance(function, (partial, partialmethod)):
            function = cast("Any", function).func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif isinstance(getattr(function, _MADE_BY, None), partialmethod):
            function = getattr(function, _MADE_BY)
        elif inspect.isroutine(function) or isinstance(function, type):
            return
        else:
            function = type(function).__call__


def _is_wrapper(layer: Any) -> bool:
    return hasattr(layer, "__wrapped__") and not isinstance(layer, staticmethod)


def _fits(own: inspect.Signature, shown: inspect.Signature) -> bool:
    """Say whether a wrapper takes what the function that it wraps asks for."""
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = shown.parameters.values()
    positional = [p.name for p in parameters if p.kind in by_place]
    named = {p.name: None for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    try:
        own.bind(*positional, **named)
    except TypeError:
        return False
    return True


def _hints(source: Any, where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(source)
    except (NameError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{where}: its annotations cannot be resolved ({error}); classes used there must be importable from the module's top level"
        ) from error


# --- what it is ------------------------------------------------------------------------------------------------------


def callee(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that is called first: that of a partial, the method of an object that can be called."""
    target: Any = function
    while isinstance(target, (partial, staticmethod)):
        target = cast("Any", target.func if isinstance(target, partial) else target.__func__)
    return target if inspect.isroutine(target) else getattr(target, "__call__", target)  # noqa: B004


def is_async(function: Callable[..., Any]) -> bool:
    """Say whether calling it makes a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(callee(function))


def is_async_generator(function: Callable[..., Any]) -> bool:
    """Say whether calling it makes an async generator."""
    return inspect.isasyncgenfunction(callee(function))
