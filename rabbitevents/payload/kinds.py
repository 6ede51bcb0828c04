"""What a type is, as far as its JSON goes: what msgspec says in full, classes of ours, unions, and what they are made of."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Final, Union, cast, get_args, get_origin

import attrs
import msgspec

TAG: Final = "_type"
"""The field that says which class of a union a document is, by the class's name."""


def may_hold_nan(cls: type) -> bool:
    """Say whether a float can be in there: msgspec writes one that is no number as null, without a word."""
    try:
        parts = parts_of(cls)
    except (TypeError, NameError, NotImplementedError):
        return True
    return any(isinstance(part, (msgspec.inspect.FloatType, msgspec.inspect.AnyType)) for part in parts)


def is_native(kind: Any) -> bool:
    """Say whether msgspec alone reads and writes ``kind`` as its author meant it."""
    try:
        parts = parts_of(kind)
    except (TypeError, NameError, NotImplementedError):
        return False
    return all(
        not isinstance(part, msgspec.inspect.CustomType)
        and not (isinstance(part, msgspec.inspect.DataclassType) and _needs_its_init(part.cls))
        for part in parts
    )


def parts_of(kind: Any) -> Iterator[msgspec.inspect.Type]:
    """Yield all that a type is made of. Raises TypeError, NameError or NotImplementedError for one msgspec cannot say."""
    return _parts(msgspec.inspect.type_info(kind), set())


def _parts(value: Any, seen: set[int]) -> Iterator[msgspec.inspect.Type]:
    """Walk through what msgspec knows of a type."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, tuple):
        for item in cast("collections.abc.Iterable[Any]", value):
            yield from _parts(item, seen)
    elif isinstance(value, (msgspec.inspect.Type, msgspec.inspect.Field)):
        if isinstance(value, msgspec.inspect.Type):
            yield value
        for name in value.__struct_fields__:
            part = getattr(value, name)
            if isinstance(part, (tuple, msgspec.inspect.Type, msgspec.inspect.Field)):
                yield from _parts(part, seen)


def _needs_its_init(cls: type) -> bool:
    """Say whether the class's own init does what msgspec, which sets the fields itself, would leave out.

    Private fields belong here too: msgspec reads them, and leaves them out when it writes.
    """
    if attrs.has(cls):
        own_init = hasattr(cls, "__attrs_init__")
        return own_init or any(
            f.converter is not None or not f.init or f.name.startswith("_") for f in attrs.fields(cls)
        )
    params: Any = getattr(cls, "__dataclass_params__", None)
    return not params.init or any(not f.init or f.name.startswith("_") for f in dataclasses.fields(cls))


def is_class(kind: Any) -> bool:
    """Say whether a type is an attrs class or a dataclass."""
    return isinstance(kind, type) and (attrs.has(kind) or dataclasses.is_dataclass(kind))


def is_union(kind: Any) -> bool:
    """Say whether a type is a union, however it is written."""
    return get_origin(kind) in (Union, types.UnionType)


def walked_members(kind: Any) -> list[Any]:
    """Return the members of a union that are no classes and that msgspec cannot say: a reader takes at most one."""
    return [part for part in get_args(kind) if not is_class(part) and not is_native(part)]
