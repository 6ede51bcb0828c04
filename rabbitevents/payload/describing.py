"""The law of types: what is accepted can be read back as what was written; what may not be is refused, by its field.

`describe` goes through a class and all that it is made of, once, when the class is bound. Everything that JSON cannot
tell apart, that nobody could read, or whose reading would be something else than what was written, is refused here, with
the place and the way out. What depends on the value, and not on the class, is found when it is published (`alike`).
"""

from __future__ import annotations

import enum
import types
import typing
from collections import abc
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, cast, get_args, get_origin
from uuid import UUID

import msgspec

from rabbitevents.errors import ConfigurationError
from rabbitevents.payload import models, own
from rabbitevents.payload.choosing import choice_of, tag_problem
from rabbitevents.payload.hints import hints_of, is_foreign_alias, is_union, plainly
from rabbitevents.payload.records import Rename, is_record, record_of, wire_names
from rabbitevents.payload.shapes import (
    EVERY_FORM,
    Array,
    Choice,
    Field,
    Form,
    Opaque,
    Record,
    Row,
    Scalar,
    Shape,
    Table,
)

_SCALARS: Final[Mapping[Any, Form]] = {
    None: "null",
    types.NoneType: "null",
    bool: "truth",
    int: "number",
    float: "number",
    str: "text",
    bytes: "text",
    bytearray: "text",
    memoryview: "text",
    Decimal: "text",
    UUID: "text",
    datetime: "text",
    date: "text",
    time: "text",
    timedelta: "text",
}

_ARRAYS: Final[Mapping[Any, Callable[[list[Any]], Any]]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Collection: list,
    abc.Set: set,
    abc.MutableSet: set,
}
_TABLES: Final = (dict, abc.Mapping, abc.MutableMapping)

_KEYS: Final = frozenset({str, int, bytes, Decimal, UUID, datetime, date, time, timedelta})


def describe(cls: type) -> Shape:
    """Return what a payload class is made of. Raises `ConfigurationError`, which names the field and the way out."""
    describing = Describing(cls)
    try:
        shape = describing.of(cls, cls.__name__, None)
    except RecursionError:
        raise describing.refusal(cls.__name__, "its types nest without an end") from None
    for part in shape.everything():  # now that the fields of all classes are known
        if isinstance(part, Choice) and (problem := tag_problem(part)):
            raise describing.refusal(cls.__name__, problem)
    return shape


class Describing:
    """Goes through one payload class. Classes are described once, so that one may hold others of its own kind."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._records: dict[tuple[Any, Any], Record] = {}

    def refusal(self, place: str, why: str) -> ConfigurationError:
        """Return the error that the class cannot be carried, because of what is at ``place``."""
        where = "" if place == self._cls.__name__ else f"{place}: "
        return ConfigurationError(f"{self._cls.__name__} cannot be carried as JSON: {where}{why}")

    def of(self, annotated: Any, place: str, rename: Rename) -> Shape:
        """Return what ``annotated`` is; ``rename`` is how the fields of classes in it are named."""
        kind, notes = plainly(annotated)
        shape = self._of(kind, place, rename)
        if is_foreign_alias(annotated):
            shape.direct = False
        limits = [note for note in notes if isinstance(note, msgspec.Meta)]
        if limits:
            if not shape.is_native():
                raise self.refusal(place, "a msgspec.Meta here would check nothing: let a validator of the class do it")
            if not isinstance(shape, Record):  # which others may hold too
                shape.kind = typing.Annotated[kind, *limits]
        return shape

    def _of(self, kind: Any, place: str, rename: Rename) -> Shape:
        origin = get_origin(kind)
        mine = own.find(kind)
        if mine is not None:
            return Opaque(kind, EVERY_FORM, False, kind, mine.write, mine.read)
        if kind is Any:
            return Scalar(Any, EVERY_FORM, True)
        if _is_in(kind, _SCALARS):
            return Scalar(kind, frozenset((_SCALARS[kind],)), True)
        if isinstance(kind, enum.EnumMeta):
            return self._of_enum(kind, place)
        if origin is Literal:
            return self._of_literal(kind, place)
        if is_union(kind):
            return self._of_union(kind, place, rename)
        if (origin or kind) in (*_ARRAYS, tuple):
            return self._of_array(kind, place, rename)
        if (origin or kind) in _TABLES:
            return self._of_table(kind, place, rename)
        return self._of_class(kind, place, rename)

    def _of_enum(self, kind: enum.EnumMeta, place: str) -> Shape:
        values = [member.value for member in cast("Iterable[enum.Enum]", kind)]
        if values and all(type(value) is str for value in values):
            return Scalar(kind, frozenset(("text",)), True)
        if values and all(type(value) is int for value in values):
            return Scalar(kind, frozenset(("number",)), True)
        raise self.refusal(
            place, f"the values of {kind.__name__} are neither all text nor all whole numbers: say them so"
        )

    def _of_literal(self, kind: Any, place: str) -> Shape:
        kinds: set[Any] = set(map(type, get_args(kind)))
        if not kinds.issubset((types.NoneType, bool, int, str)):
            raise self.refusal(
                place, "a Literal may hold text, whole numbers, truths and None; say the enumeration's class itself"
            )
        return Scalar(kind, frozenset([_SCALARS[each] for each in kinds]), True)

    def _of_union(self, kind: Any, place: str, rename: Rename) -> Shape:
        members = [self.of(member, place, rename) for member in _members(kind)]
        anything = [member for member in members if member.kind is Any]
        if len(members) == 1 or (anything and all(member.kind in (Any, None, types.NoneType) for member in members)):
            return (anything or members)[0]
        problem, shape = choice_of(kind, members)
        if shape is None:
            raise self.refusal(place, problem)
        return shape

    def _of_array(self, kind: Any, place: str, rename: Rename) -> Shape:
        origin: Any = get_origin(kind) or kind
        items, form = get_args(kind), frozenset[Form](("array",))
        if origin is tuple and kind is not tuple and items[-1:] != (Ellipsis,):
            row = tuple(self.of(item, f"{place}[{number}]", rename) for number, item in enumerate(items))
            return Row(kind, form, True, tuple, row)
        item = self.of(items[0] if items else Any, f"{place}[]", rename)
        make: Callable[[list[Any]], Any] = _ARRAYS.get(origin, tuple)
        if make in (set, frozenset):
            self._check_hashable(item, place)
        return Array(kind, form, True, make, item)

    def _check_hashable(self, item: Shape, place: str) -> None:
        if isinstance(item, Table) or (isinstance(item, Array) and item.make in (list, set)):
            raise self.refusal(
                place, "a set cannot hold lists, sets or mappings: say a list, or frozensets and tuples in it"
            )
        if isinstance(item, Record) and getattr(item.cls, "__hash__", None) is None:
            raise self.refusal(
                place, f"a set cannot hold {item.cls.__name__}, which has no hash: make it frozen, or say a list"
            )

    def _of_table(self, kind: Any, place: str, rename: Rename) -> Shape:
        key, item = get_args(kind) or (Any, Any)
        keys = self.of(key, f"the keys of {place}", rename)
        if not self._may_be_key(keys):
            raise self.refusal(
                f"the keys of {place}",
                "a key must be text, a whole number, or what is written as text (UUID, date, an enumeration, a Literal)",
            )
        return Table(kind, frozenset(("object",)), True, keys, self.of(item, f"{place}[]", rename))

    def _may_be_key(self, key: Shape) -> bool:
        kind, _ = plainly(key.kind)
        return isinstance(key, Scalar) and (
            kind is Any
            or kind in _KEYS
            or isinstance(kind, enum.EnumMeta)
            or (get_origin(kind) is Literal and key.forms in (frozenset(("text",)), frozenset(("number",))))
        )

    def _of_class(self, kind: Any, place: str, rename: Rename) -> Shape:
        cls: Any = get_origin(kind) or kind
        if isinstance(kind, typing.TypeVar):
            raise self.refusal(
                place, f"nothing says what {kind} stands for: write the class with its types, as in Page[Item]"
            )
        if not isinstance(cls, type):
            raise self.refusal(place, f"{kind} is nothing that JSON can say")
        if models.is_model(cls):
            return models.shape_of(cls, lambda why: self.refusal(place, why))
        if is_record(cls):
            return self._of_record(kind, place, rename)
        if _is_named_tuple(cls):
            return self._of_named_tuple(kind, place, rename)
        if issubclass(cls, msgspec.Struct):
            return self._of_struct(kind, place)
        way_out = f"make it an attrs class or a dataclass, or say wire_type({cls.__name__}, write=..., read=...)"
        if cls is object:
            way_out = "say Any for whatever JSON says"
        elif cls.__module__ == "builtins":  # which wire_type() does not take
            way_out = "say it with what JSON has, or make it an attrs class or a dataclass"
        raise self.refusal(place, f"{cls.__name__} is nothing that JSON can say: {way_out}")

    def _hints(self, kind: Any, place: str) -> dict[str, Any]:
        try:
            return hints_of(kind)
        except (NameError, TypeError, AttributeError) as error:
            raise self.refusal(
                place,
                f"its annotations cannot be resolved ({error}): what they name must be importable from its module's top level",
            ) from error

    def _of_record(self, kind: Any, place: str, rename: Rename) -> Record:
        cls = get_origin(kind) or kind
        naming = wire_names(cls, rename)
        inner = naming if callable(naming) else None  # what holds for the classes in it too
        known = self._records.get((kind, inner))
        if known is not None:
            return known
        shape, slots, problem = record_of(kind, cls, naming)
        if problem:
            raise self.refusal(place, problem)
        self._records[kind, inner] = shape  # before its fields: one may be of its kind
        hints = self._hints(kind, place)
        fields: list[Field] = []
        for slot in slots:
            if slot.attribute not in hints:
                raise self.refusal(f"{place}.{slot.attribute}", "the field has no annotation that says its type")
            of = self.of(hints[slot.attribute], f"{place}.{slot.attribute}", inner)
            fields.append(Field(slot.name, slot.attribute, slot.argument, slot.required, of))
        shape.fields = tuple(fields)
        return shape

    def _of_named_tuple(self, kind: Any, place: str, rename: Rename) -> Shape:
        cls: Any = get_origin(kind) or kind
        hints = self._hints(kind, place)
        row = tuple(self.of(hints.get(name, Any), f"{place}.{name}", rename) for name in cls._fields)
        return Row(kind, frozenset(("array",)), True, cls._make, row, len(cls._field_defaults))

    def _of_struct(self, kind: Any, place: str) -> Shape:
        cls: Any = get_origin(kind) or kind
        known = self._records.get((kind, msgspec.Struct))
        if known is not None:
            return known
        forms: frozenset[Form] = frozenset(("array" if cls.__struct_config__.array_like else "object",))
        shape = self._records[kind, msgspec.Struct] = Record(kind, forms, True, None)
        hints = self._hints(kind, place)
        shape.fields = tuple(
            Field(name, name, name, False, self.of(hints[name], f"{place}.{name}", None))
            for name in cls.__struct_fields__
        )
        if not shape.is_native():
            raise self.refusal(
                place, f"{cls.__name__} is a msgspec.Struct, whose fields msgspec must know: make it an attrs class"
            )
        return shape


def _members(kind: Any) -> list[Any]:
    """Return a union's members, those of unions in it too, and all its literals as one."""
    found: list[Any] = []
    literals: list[Any] = []
    for member in get_args(kind):
        plain, notes = plainly(member)
        if is_union(plain):
            found += _members(plain)
        elif get_origin(plain) is Literal:
            literals += get_args(plain)
        else:
            found.append(member if any(isinstance(note, msgspec.Meta) for note in notes) else plain)
    if literals:
        found.append(Literal[tuple(literals)])
    return [member for place, member in enumerate(found) if member not in found[:place]]


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and "_make" in cls.__dict__


def _is_in(kind: Any, kinds: Mapping[Any, Any]) -> bool:
    return isinstance(kind, Hashable) and kind in kinds
