"""What a payload is made of, as its JSON goes: scalars, arrays, tables, records, and choices between them.

A class is described once, when it is bound (`describing`); what reads and writes it is made from the description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard

import attrs

Form = Literal["null", "truth", "number", "text", "array", "object"]
"""What a value is in a document, whatever it means."""

EVERY_FORM: frozenset[Form] = frozenset(("null", "truth", "number", "text", "array", "object"))


@attrs.define(eq=False)
class Shape:
    """A type, and what its JSON looks like. ``direct``: msgspec reads and writes it exactly, apart from its parts."""

    kind: Any
    forms: frozenset[Form]
    direct: bool

    def parts(self) -> Iterator[Shape]:
        """Yield what it is made of."""
        yield from ()

    def everything(self) -> Iterator[Shape]:
        """Yield it and all that it is made of, each once."""
        seen: set[int] = set()
        ahead: list[Shape] = [self]
        while ahead:
            shape = ahead.pop()
            if id(shape) not in seen:
                seen.add(id(shape))
                yield shape
                ahead.extend(shape.parts())

    def is_native(self) -> bool:
        """Say whether msgspec alone reads and writes it, and all that it is made of, as its author meant it."""
        return all(shape.direct for shape in self.everything())


@attrs.define(eq=False)
class Scalar(Shape):
    """A value without parts: a number, a text, a time, an enumeration's member, or anything at all (`Any`)."""


@attrs.define(eq=False)
class Array(Shape):
    """Items of one type."""

    make: Callable[[list[Any]], Any]
    item: Shape

    def parts(self) -> Iterator[Shape]:
        """Yield the item's shape."""
        yield self.item


@attrs.define(eq=False)
class Row(Shape):
    """Items of a type each, as many as there are types; the last ones may be ``optional``, so many of them."""

    make: Callable[[list[Any]], Any]
    items: tuple[Shape, ...]
    optional: int = 0

    def parts(self) -> Iterator[Shape]:
        """Yield the items' shapes."""
        yield from self.items


@attrs.define(eq=False)
class Table(Shape):
    """Items of one type by their keys."""

    key: Shape
    item: Shape

    def parts(self) -> Iterator[Shape]:
        """Yield the shapes of the keys and of the items."""
        yield self.key
        yield self.item


@attrs.define(eq=False)
class Field:
    """A field: its ``name`` in a document, the ``attribute`` that it is, and the ``argument`` of the init it becomes."""

    name: str
    attribute: str
    argument: str
    required: bool
    shape: Shape


@attrs.define(eq=False)
class Record(Shape):
    """An object that is a class, or a TypedDict: each of its fields has a name and a type."""

    cls: Any
    fields: tuple[Field, ...] = ()
    is_exact: bool = True
    """Whether the class's own ``==`` compares all of its fields."""

    def parts(self) -> Iterator[Shape]:
        """Yield the fields' shapes."""
        for field in self.fields:
            yield field.shape


@attrs.define(eq=False)
class Opaque(Shape):
    """What somebody else reads and writes: a type with a `wire_type`, or a pydantic model (``is_object``)."""

    cls: type
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]
    is_object: bool = False
    names: Sequence[str] = ()
    """The names of a model's fields in a document."""


@attrs.define(eq=False)
class Choice(Shape):
    """One of several types: the ``members`` that are no classes differ in form, the classes by a tag."""

    members: tuple[Shape, ...] = ()

    def parts(self) -> Iterator[Shape]:
        """Yield the members."""
        yield from self.members

    @property
    def classes(self) -> dict[type, Shape]:
        """The members that are objects of a class, by it."""
        return {shape.cls: shape for shape in self.members if is_class(shape)}

    @property
    def by_form(self) -> Mapping[Form, list[Shape]]:
        """The other members, by the forms that they have."""
        found: dict[Form, list[Shape]] = {}
        for shape in self.members:
            for form in () if is_class(shape) else sorted(shape.forms):  # a null is None's, whoever else may write one
                if form == "null" and len(shape.forms) > 1 and isinstance(shape, Opaque):
                    continue
                found.setdefault(form, []).append(shape)
        return found


def is_class(shape: Shape) -> TypeGuard[Record | Opaque]:
    """Say whether a shape is an object that a union can tag: a class or a model, no TypedDict."""
    return (isinstance(shape, Record) and isinstance(shape.cls, type) and not issubclass(shape.cls, dict)) or (
        isinstance(shape, Opaque) and shape.is_object
    )


TAG = "_type"
"""The field that says which class of a union a document is, by the class's name."""
