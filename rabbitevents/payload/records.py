"""Classes with fields: attrs classes, dataclasses and TypedDicts, what their fields are called, and who makes them."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import attrs

from rabbitevents.events import event_type, is_event
from rabbitevents.payload.shapes import Record

Naming = Callable[[str], str]
Rename = Naming | Mapping[str, str] | None
"""How fields are named in a document: by a rule, which holds for the classes in them too, or by a table of their own."""


class Slot(NamedTuple):
    """A field before its type is known."""

    name: str
    attribute: str
    argument: str
    required: bool


def is_record(cls: Any) -> bool:
    """Say whether it is an attrs class, a dataclass or a TypedDict."""
    return attrs.has(cls) or dataclasses.is_dataclass(cls) or typing.is_typeddict(cls)


def record_of(kind: Any, cls: Any, naming: Rename) -> tuple[Record, list[Slot], str]:
    """Return a class as a record without fields, its fields, and what is wrong with it, if something is."""
    if typing.is_typeddict(cls):
        slots = _named([Slot(n, n, n, n in cls.__required_keys__) for n in cls.__annotations__], naming)
        return Record(kind, frozenset(("object",)), naming is None, cls), slots, _same_names(cls, slots)
    slots = _named(_of_attrs(cls) if attrs.has(cls) else _of_dataclass(cls), naming)
    direct = naming is None and (_is_direct_attrs(cls) if attrs.has(cls) else _is_direct_dataclass(cls))
    shape = Record(kind, frozenset(("object",)), direct, cls, is_exact=_is_exact(cls))
    return shape, slots, _undecorated(cls) or _unusable_init(cls, slots) or _same_names(cls, slots)


def _named(slots: list[Slot], naming: Rename) -> list[Slot]:
    if naming is None:
        return slots
    if callable(naming):
        return [slot._replace(name=naming(slot.attribute)) for slot in slots]
    return [slot._replace(name=naming.get(slot.attribute, slot.attribute)) for slot in slots]


def wire_names(cls: Any, rename: Rename) -> Rename:
    """Return how the fields of a class are named: as its own `@event` says, else by the rule of what holds it."""
    if is_event(cls):
        return rule_of(event_type(cls).rename) or (rename if callable(rename) else None)
    return rename if callable(rename) else None


def rule_of(rename: str | Mapping[str, str] | None) -> Rename:
    """Return what ``@event(rename=...)`` means."""
    return RULES[rename] if isinstance(rename, str) else rename


def _of_attrs(cls: type) -> list[Slot]:
    return [Slot(f.name, f.name, f.alias or f.name, f.default is attrs.NOTHING) for f in attrs.fields(cls) if f.init]


def _of_dataclass(cls: Any) -> list[Slot]:
    missing = dataclasses.MISSING
    return [
        Slot(f.name, f.name, f.name, f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
        if f.init
    ]


# --- who makes it ----------------------------------------------------------------------------------------------------


def _is_direct_attrs(cls: Any) -> bool:
    """Say whether msgspec, which sets the fields itself and writes all that it finds, does what the class would.

    It writes whatever stands in an instance's ``__dict__`` and slots, a cached property's value too, and no private field.
    """
    fields = attrs.fields(cls)
    bases: tuple[type, ...] = cls.__mro__
    slots = {name for base in bases for name in _slots_of(base)} - {"__weakref__"}
    return (
        _has_generated_init(cls)
        and all(f.converter is None and f.init and not f.name.startswith("_") for f in fields)
        and not any(getattr(f.default, "takes_self", False) for f in fields)
        and cls.__dictoffset__ == 0
        and slots == {f.name for f in fields}
    )


def _slots_of(cls: type) -> tuple[str, ...]:
    slots: str | tuple[str, ...] = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_direct_dataclass(cls: Any) -> bool:
    """Say the same of a dataclass, of which msgspec writes the fields alone."""
    return _has_generated_init(cls) and all(f.init and not f.name.startswith("_") for f in dataclasses.fields(cls))


def _has_generated_init(cls: Any) -> bool:
    return _is_generated(cls.__init__)


def _is_generated(method: Any) -> bool:
    """Say whether attrs or dataclasses wrote a method: the name of its file is none that a file can have."""
    return getattr(getattr(method, "__code__", None), "co_filename", "").startswith("<")


def _is_exact(cls: Any) -> bool:
    """Say whether ``==`` compares the class and all its fields."""
    own = cls.__dict__.get("__eq__")
    if own is None or not _is_generated(own):
        return False
    if attrs.has(cls):
        return all(f.eq and f.eq_key is None for f in attrs.fields(cls))
    return all(f.compare for f in dataclasses.fields(cls))


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _undecorated(cls: Any) -> str:
    """Say what is wrong with a subclass whose own fields its decorator never saw."""
    if "__attrs_attrs__" in vars(cls) or "__dataclass_fields__" in vars(cls):
        return ""
    decorator = "@attrs.frozen" if attrs.has(cls) else "@dataclass"
    return (
        f"{cls.__name__} has the fields of the class that it inherits from, and none of its own, "
        f"since it has no decorator of its own: put {decorator} above it"
    )


def _unusable_init(cls: Any, slots: list[Slot]) -> str:
    """Say what is wrong with an init that does not take the fields."""
    hints = getattr(cls, "__annotations__", {})
    if any(
        isinstance(hint, dataclasses.InitVar) or str(hint).startswith(("InitVar", "dataclasses.InitVar"))
        for hint in hints.values()
    ):
        return f"{cls.__name__} has an InitVar, which cannot be written again: make it a field"
    if _has_generated_init(cls):
        return ""
    try:
        inspect.signature(cls).bind(**dict.fromkeys(slot.argument for slot in slots))
    except (TypeError, ValueError) as error:
        return (
            f"{cls.__name__} has an __init__ of its own, which does not take its fields ({error}): "
            "let it take each of them by its name"
        )
    return ""


def _same_names(cls: Any, slots: list[Slot]) -> str:
    names = [slot.name for slot in slots]
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"two fields of {cls.__name__} are named {twice[0]!r} in the document: rename one" if twice else ""


# --- rules of naming -------------------------------------------------------------------------------------------------


def _camel(name: str) -> str:
    first, *others = _words(name)
    return first + "".join(map(str.capitalize, others))


def _pascal(name: str) -> str:
    first, *others = _words(name)
    return "".join(map(str.capitalize, (first, *others)))


def _kebab(name: str) -> str:
    return "-".join(_words(name))


def _words(name: str) -> list[str]:
    """Return a name's words; underscores at its beginning stay with the first."""
    bare = name.lstrip("_")
    first, *others = [word for word in bare.split("_") if word] or [""]
    return [name[: len(name) - len(bare)] + first, *others]


RULES: Mapping[str, Naming] = {"camel": _camel, "pascal": _pascal, "kebab": _kebab}
