"""How an annotation is read: the members of a union, with None left out, and how it is shown."""

from __future__ import annotations

import inspect
import types
from typing import Any, Union, get_args, get_origin


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, and of an alias or a union within it; of anything else, itself."""
    for name in ("__value__", "__supertype__"):  # `type Order = ...`, and NewType
        while hasattr(hint, name):
            hint = getattr(hint, name)
    if get_origin(hint) not in (Union, types.UnionType):
        return (hint,)
    return tuple(each for member in get_args(hint) for each in alternatives(member))


def members(hint: Any) -> tuple[Any, ...]:
    """Return what is asked for in a union: None changes nothing about that."""
    return tuple(each for each in alternatives(hint) if each not in (None, types.NoneType))


def is_a(hint: Any, kinds: type | tuple[type, ...]) -> bool:
    """Say whether an annotation is that of a class that is one of ``kinds``, with parameters or without."""
    base = get_origin(hint) or hint
    return isinstance(base, type) and issubclass(base, kinds)


def shown(hint: Any) -> str:
    """Return an annotation as one reads it."""
    plain = isinstance(hint, type) and not get_args(hint)
    return hint.__name__ if plain else inspect.formatannotation(hint)
