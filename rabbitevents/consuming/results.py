"""What a handler may return: None, an event, or an iterable of events; its annotation is looked at when the bus starts."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Literal, cast, get_args, get_origin

from rabbitevents.consuming.annotations import alternatives, is_a, members, shown
from rabbitevents.consuming.callables import is_async, is_async_generator
from rabbitevents.errors import ConfigurationError
from rabbitevents.events import Event, is_event
from rabbitevents.failures import BatchError

_WANTED = "a handler returns None, an event, or an iterable of events"

_NO_ITERABLES = (str, bytes, bytearray, Mapping, Awaitable)
"""What can be iterated over (a future, too), and is no iterable of events."""


# --- what it says at start -------------------------------------------------------------------------------------------


def promises(hint: Any) -> bool:
    """Say whether an annotation is that of something to be awaited: a coroutine, a task, a future."""
    return is_a(hint, Awaitable) and not is_event(get_origin(hint) or hint)


def check_result(function: Callable[..., Any], hint: Any, where: str) -> None:
    """Look at what a handler says that it returns. Raises `ConfigurationError` for what could not be published."""
    if promises(hint) and not is_async(function):
        hint = (Any, *get_args(hint))[-1]  # what comes of it counts
    collected = is_a(hint, AsyncIterable) and (is_async_generator(function) or not is_async(function))
    for member in () if collected else members(hint):
        if is_event(get_origin(member) or member):
            continue
        if is_a(member, Iterable) and not is_a(member, _NO_ITERABLES):
            _check_items(member, where)
        elif not _may_be_event(member):
            raise ConfigurationError(f"{where} says that it returns {shown(member)}; {_WANTED}")
    if collected:
        _check_items(hint, where)


def _check_items(hint: Any, where: str) -> None:
    """Look at what an iterable holds, as far as its annotation says."""
    args = get_args(hint)
    if not is_a(hint, tuple):
        args = args[:1] if len(args) == 1 or is_a(hint, (Generator, AsyncGenerator)) else ()
    for item in (each for arg in args if arg is not ... for each in alternatives(arg)):
        if not _may_be_event(item):
            raise ConfigurationError(f"{where} says that it returns {shown(hint)}, with {shown(item)} in it; {_WANTED}")


def _may_be_event(hint: Any) -> bool:
    """Say whether what an annotation allows can be an event: it is one, a base of one, or says nothing definite."""
    base = get_origin(hint) or hint
    if base is Literal:
        return False
    if not isinstance(base, type) or base in (Any, object, Event) or getattr(base, "_is_protocol", False):
        return True
    return any(map(is_event, _family(base)))


def _family(cls: type) -> Iterator[type]:
    derived: list[type] = type.__subclasses__(cls)
    yield cls
    for each in derived:
        yield from _family(each)


# --- what came of it -------------------------------------------------------------------------------------------------


def events_of(result: object, where: str) -> list[Any]:
    """Return what a handler returned as a list of events. Raises `ConfigurationError` for anything else."""
    if _is_payload_or_event(result):
        return [result]
    found: list[object] = [result]
    if isinstance(result, Iterable) and not isinstance(result, _NO_ITERABLES):
        found = list(cast("Iterable[object]", result))
    for item in found:
        if not _is_payload_or_event(item):
            raise ConfigurationError(f"{where} returned a {type(item).__name__}{_forgotten(item)}; {_WANTED}")
    return found


def results_of(result: object, number: int, where: str) -> list[list[Any]]:
    """Return what a handler returned for each of ``number`` events. Raises `ConfigurationError` for anything else."""
    if result is None:
        return [[] for _ in range(number)]
    kind = type(result).__name__
    entries = cast("list[object]", result) if isinstance(result, (list, tuple)) else None
    if entries is None or len(entries) != number:
        what = kind if entries is None else f"{kind} of {len(entries)}"
        raise ConfigurationError(
            f"{where} returned a {what} for a batch of {number}; it returns None, or a list with one entry for each event: "
            "None, an event, or an iterable of events"
        )
    return [[] if each is None else events_of(each, where) for each in entries]


def failures_of(error: BatchError, number: int, where: str) -> list[list[Any] | BaseException]:
    """Return for each of ``number`` events why it failed; nothing for those that did not.

    Raises `ConfigurationError` for an index that there is not.
    """
    wrong = next((place for place in error.errors if not 0 <= place < number), None)
    if wrong is not None:
        raise ConfigurationError(f"{where} raised BatchError for index {wrong} of a batch of {number}") from error
    return [error.errors.get(place, []) for place in range(number)]


def _is_payload_or_event(value: object) -> bool:
    return is_event(type(value)) or isinstance(value, Event)


def _forgotten(item: object) -> str:
    """Say what is likely to be wrong. A coroutine is closed: that nobody awaits it is said here."""
    if not inspect.isawaitable(item):
        return ""
    if inspect.iscoroutine(item):
        item.close()
    return ", and nobody awaited it: `await` it in the handler"
