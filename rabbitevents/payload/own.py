"""Types of one's own on the wire: how a class that JSON does not know is written and read.

What a mark says of a class is stored on the class; a type of somebody else's cannot be marked, and so stands in a table
here, once and for every bus: two ways to write one type would be two types to whoever reads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, cast

import attrs

from rabbitevents.errors import ConfigurationError

T = TypeVar("T")


@attrs.frozen
class OwnType(Generic[T]):
    """How a type is written as plain JSON values, and read from them."""

    write: Callable[[T], Any]
    read: Callable[[Any], T]


_KNOWN: dict[Any, OwnType[Any]] = {}


def wire_type(cls: type[T], /, *, write: Callable[[T], Any], read: Callable[[Any], T]) -> None:
    """Say how values of ``cls`` travel, wherever a field of an event has that type.

    ``write`` turns a value into what JSON knows (text, numbers, truths, None, lists, and dicts with text as keys);
    ``read`` turns that back into an equal value, and raises ValueError or TypeError for what is none (the event is then
    a `DecodeError`). Say it once, where the events are declared, before a bus starts::

        wire_type(Money, write=str, read=Money.parse)

    Subclasses need a word of their own. Raises `ConfigurationError` for a class that has another way already.
    """
    if not isinstance(cast("object", cls), type):
        raise ConfigurationError(f"wire_type({cls!r}): it takes the class itself")
    for name, function in (("write", write), ("read", read)):
        if not callable(function):
            raise ConfigurationError(f"wire_type({cls.__name__}, {name}=...): give a function")
    if cls.__module__ in ("builtins", "typing", "enum"):
        raise ConfigurationError(
            f"wire_type({cls.__name__}): what Python has built in travels in one way, or not at all; make a class of your own"
        )
    told = OwnType(write, read)
    if _KNOWN.setdefault(cls, told) != told:
        raise ConfigurationError(
            f"wire_type({cls.__name__}): it has a way of its own already, and there can be only one"
        )


def find(kind: Any) -> OwnType[Any] | None:
    """Return how a type of one's own travels; None for any other."""
    return _KNOWN.get(kind) if isinstance(kind, Hashable) else None
