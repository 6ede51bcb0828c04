"""Whether what is read back is what was written, value by value, where a class's own ``==`` does not say so.

A list may stand for a tuple, and the other way round: JSON has one kind of array. Numbers, texts and times must be equal
(times as moments: in an hour that comes twice, Python takes no two zones for equal). Classes are compared by their
fields, of whatever ``==`` they have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeGuard

import attrs

from rabbitevents.payload import models, own

_MOST_UNORDERED: Final = 200
"""How many items of a set are compared each with each, where they have no ``==`` that a set could use."""


def difference(one: Any, other: Any) -> str | None:
    """Return the place, from ``$`` on, where ``other`` is not what ``one`` was; None where it is the same."""
    found = _difference(one, other)
    return None if found is None else f"${found}"


def _difference(one: Any, other: Any) -> str | None:
    names = _fields_of(one)
    if names is not None:
        if type(one) is not type(other):
            return ""
        return _first((f".{name}", _get(one, name), _get(other, name)) for name in names)
    if _is_mapping(one) and _is_mapping(other):
        return _of_mappings(one, other)
    if _is_array(one) and _is_array(other):
        if len(one) != len(other):
            return ""
        return _first((f"[{place}]", a, b) for place, (a, b) in enumerate(zip(one, other, strict=True)))
    if _is_set(one) and _is_set(other):
        return _of_sets(one, other)
    return None if _same(one, other) else ""


_MISSING: Final = object()


def _get(value: Any, name: str) -> Any:
    """Return a field, or what a pydantic model keeps of fields that it does not know (None where it has none)."""
    if name == "__pydantic_extra__":
        return getattr(value, name, None) or None
    return getattr(value, name, _MISSING)


def _first(parts: Any) -> str | None:
    for step, one, other in parts:
        found = _difference(one, other)
        if found is not None:
            return f"{step}{found}"
    return None


def _of_mappings(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> str | None:
    if one.keys() != other.keys():
        return ""
    return _first(("[...]", value, other[key]) for key, value in one.items())


def _of_sets(one: AbstractSet[Any], other: AbstractSet[Any]) -> str | None:
    if one == other:
        return None
    if len(one) != len(other) or len(one) > _MOST_UNORDERED:
        return ""
    left = list(other)
    for item in one:
        match = next((place for place, each in enumerate(left) if _difference(item, each) is None), None)
        if match is None:
            return ""
        del left[match]
    return None


def _is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_set(value: object) -> TypeGuard[AbstractSet[Any]]:
    return isinstance(value, AbstractSet)


def _is_array(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, datetime) and isinstance(other, datetime):
        if one.tzinfo is not None and other.tzinfo is not None:
            return one.astimezone(UTC) == other.astimezone(UTC)
        return one.tzinfo is other.tzinfo and one == other
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    if isinstance(one, (float, Decimal)) and one != one:  # no number
        return type(one) is type(other) and bool(other != other)
    if type(one) is not type(other) and own.find(type(other)) is not None:
        return False  # a subclass, of which its base's way to write it says nothing
    return bool(one == other)


def _fields_of(value: object) -> list[str] | None:
    """Return the names of a class's fields; None for what is no class of ours."""
    cls: Any = type(value)
    if attrs.has(cls):
        return [field.name for field in attrs.fields(cls)]
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    names = models.field_names(cls)
    if names is not None:
        return [*names, "__pydantic_extra__"]
    return list(cls.__struct_fields__) if hasattr(cls, "__struct_fields__") else None
