"""What writes a shape that msgspec cannot, or not exactly: cattrs for classes, and what stands here for the rest.

What msgspec writes as it is meant goes through untouched, to the encoder at the end. Times do not: an offset from UTC
with seconds in it (those before standard time) is rounded there to minutes, and the moment would be another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime
from enum import Enum
from typing import Any, cast

import cattrs
import msgspec
from cattrs.gen import make_dict_unstructure_fn, override

from rabbitevents.payload.hints import plainly
from rabbitevents.payload.shapes import TAG, Array, Choice, Field, Form, Opaque, Record, Row, Scalar, Shape, Table

Writer = Callable[[Any], Any]
"""Turns a value into what msgspec's encoder writes as it is meant. Raises whatever it likes for what is no such value."""


class Writers:
    """Makes what writes each shape, once."""

    def __init__(self) -> None:
        self._converter = cattrs.Converter()
        self._records: dict[int, Writer] = {}

    def writer(self, shape: Shape) -> Writer:
        """Return what writes ``shape``."""
        if shape.is_native() and not holds_times(shape):
            return _unchanged
        match shape:
            case Record():
                return self._of_record(shape)
            case Choice():
                return self._of_choice(shape)
            case Table():
                return self._of_table(shape)
            case Row():
                return self._of_row(shape)
            case Array():
                return self._of_array(shape)
            case Opaque():
                return shape.write
            case _:
                return _exactly if plainly(shape.kind)[0] is datetime else _unchanged

    def _of_record(self, shape: Record) -> Writer:
        if shape.cls is None:  # a Struct, which msgspec alone can write
            return _unchanged
        if id(shape) in self._records:
            return lambda value: self._records[id(shape)](value)
        self._records[id(shape)] = _unchanged  # its fields may be of its own kind
        write = self._of_fields(shape.fields) if issubclass(shape.cls, dict) else self._of_class(shape)
        self._records[id(shape)] = write
        return write

    def _of_class(self, shape: Record) -> Writer:
        """Have cattrs make what writes a class: the fields of the init, each by its own writer."""
        fields = shape.fields
        overrides: Any = {f.attribute: override(rename=f.name, unstruct_hook=self.writer(f.shape)) for f in fields}
        write: Writer = make_dict_unstructure_fn(shape.kind, self._converter, **overrides)
        cls = shape.cls

        def write_own(value: Any) -> Any:
            if type(value) is not cls:
                raise msgspec.ValidationError(f"Expected `{cls.__name__}`, got `{type(value).__name__}`")
            return write(value)

        return write_own

    def _of_fields(self, fields: tuple[Field, ...]) -> Writer:
        """Write a TypedDict."""
        known = [(f.attribute, f.name, self.writer(f.shape)) for f in fields]
        names = {f.attribute for f in fields}

        def write(value: Any) -> Any:
            if not names.issuperset(value):
                raise msgspec.ValidationError("Expected the keys of its TypedDict, got others")
            return {name: writes(value[attribute]) for attribute, name, writes in known if attribute in value}

        return write

    def _of_choice(self, shape: Choice) -> Writer:
        tagged = len(shape.classes) > 1
        make = self._as_document if tagged else self.writer
        classes = {cls: make(member) for cls, member in shape.classes.items()}
        by_form = {form: self._of_either(members) for form, members in shape.by_form.items()}

        def write(value: object) -> Any:
            cls = type(value)
            writes = classes.get(cls)
            if writes is not None:
                document = writes(value)
                return {TAG: cls.__name__, **document} if tagged else document
            writes = by_form.get(_form_written(value))
            if writes is None:
                raise msgspec.ValidationError(f"Expected a member of its union, got `{type(value).__name__}`")
            return writes(value)

        return write

    def _as_document(self, shape: Shape) -> Writer:
        """Write a class as a dict, which a tag can be added to, also one that msgspec could write."""
        return self._of_record(shape) if isinstance(shape, Record) else self.writer(shape)

    def _of_either(self, members: list[Shape]) -> Writer:
        return self.writer(members[0]) if len(members) == 1 else _unchanged

    def _of_table(self, shape: Table) -> Writer:
        writes = self.writer(shape.item)
        return lambda value: {key: writes(item) for key, item in cast("Mapping[Any, Any]", value).items()}

    def _of_row(self, shape: Row) -> Writer:
        writers = [self.writer(item) for item in shape.items]
        return lambda value: [write(item) for write, item in zip(writers, value, strict=True)]

    def _of_array(self, shape: Array) -> Writer:
        writes = self.writer(shape.item)

        def write(value: object) -> Any:
            if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, Set)):
                raise msgspec.ValidationError(f"Expected `array`, got `{type(value).__name__}`")
            return [writes(item) for item in cast("Iterable[Any]", value)]

        return write


def _unchanged(value: Any) -> Any:
    return value


def _exactly(value: Any) -> Any:
    """Return a time that keeps its moment: in UTC where its offset is no whole number of minutes."""
    offset = value.utcoffset() if isinstance(value, datetime) else None
    return value.astimezone(UTC) if offset is not None and offset.total_seconds() % 60 else value


def holds_times(shape: Shape) -> bool:
    """Say whether there may be a time in it, which msgspec does not always write exactly."""
    return any(isinstance(part, Scalar) and plainly(part.kind)[0] is datetime for part in shape.everything())


def _form_written(value: Any) -> Form:
    """Return the form that a value is written in."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "array"
    if isinstance(value, msgspec.Struct):
        return "array" if value.__struct_config__.array_like else "object"
    return "object" if isinstance(value, Mapping) else "text"
