"""What annotations come to: names resolved, type variables bound, aliases followed."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    NewType,
    NotRequired,
    Protocol,
    Required,
    get_args,
    get_origin,
)

Bound = Mapping[Any, Any]
"""What the type variables of a class stand for."""

_WRAPPERS = (Required, NotRequired, Final, getattr(typing, "ReadOnly", Final))
"""What says something of a field, and nothing of its values."""


def hints_of(kind: Any) -> dict[str, Any]:
    """Return the annotations of a class, or of a generic one with its arguments (``Page[Item]``), by attribute.

    Each type variable stands for what the class, or the base that has it, is given. Class variables are left out.
    Raises NameError, TypeError or AttributeError for what cannot be resolved.
    """
    cls = get_origin(kind) or kind
    bases = list(_with_bases(kind))
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        name: substituted(hint, _of_owner(bases, name))
        for name, hint in hints.items()
        if get_origin(hint) is not ClassVar and hint is not ClassVar
    }


def _with_bases(kind: Any, outer: Bound | None = None) -> Iterator[tuple[type, Bound]]:
    """Yield a class and the bases that it was declared with, each with what its type variables stand for."""
    cls: Any = get_origin(kind) or kind
    bound: Bound = {} if outer is None else outer
    arguments = [substituted(argument, bound) for argument in get_args(kind)]
    own = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    yield cls, own
    bases: tuple[Any, ...] = cls.__dict__.get("__orig_bases__", cls.__bases__)
    for base in bases:
        of: Any = get_origin(base) or base
        if isinstance(of, type) and of not in (Generic, Protocol, object):  # NamedTuple and TypedDict are functions
            yield from _with_bases(base, own)


def _of_owner(bases: list[tuple[type, Bound]], name: str) -> Bound:
    """Return what the type variables stand for in the class that annotates ``name``."""
    owners = [bound for cls, bound in bases if name in inspect.get_annotations(cls)]
    if not owners:
        return {}
    inherits_nothing = typing.is_typeddict(bases[0][0])  # its annotations are those of its bases too
    return owners[-1 if inherits_nothing else 0]


def substituted(hint: Any, bound: Bound) -> Any:
    """Return an annotation with type variables replaced, those that stand for something."""
    if isinstance(hint, typing.TypeVar):
        return bound.get(hint, hint)
    is_bare = isinstance(hint, type) and get_origin(hint) is None  # a class has its variables, and no use of them
    variables: tuple[Any, ...] = () if is_bare else getattr(hint, "__parameters__", ())
    if not variables or not any(variable in bound for variable in variables):
        return hint
    generic: Any = hint
    return generic[tuple(bound.get(variable, variable) for variable in variables)]


def is_foreign_alias(kind: Any) -> bool:
    """Say whether a type is named by typing_extensions' ``TypeAliasType``, which msgspec does not know before 3.12."""
    alias = get_origin(kind) or kind
    return _is_alias(alias) and type(alias).__module__ != "typing"


def _is_alias(kind: object) -> bool:
    """Say whether it was made by ``type X = ...``: Python's own from 3.12 on, or that of typing_extensions."""
    return type(kind).__name__ == "TypeAliasType"


def plainly(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what a type is behind its aliases and wrappers, and what it was annotated with."""
    notes: list[Any] = []
    while True:
        origin = get_origin(kind)
        if origin is Annotated:
            notes += kind.__metadata__
            kind = kind.__origin__
        elif origin in _WRAPPERS:
            (kind,) = get_args(kind)
        elif isinstance(kind, NewType):
            kind = kind.__supertype__
        elif _is_alias(origin or kind):
            alias: Any = origin or kind
            kind = substituted(alias.__value__, dict(zip(alias.__type_params__, get_args(kind), strict=False)))
        else:
            return kind, tuple(notes)


def is_union(kind: Any) -> bool:
    """Say whether a type is a union, however it is written."""
    return get_origin(kind) in (typing.Union, types.UnionType)
