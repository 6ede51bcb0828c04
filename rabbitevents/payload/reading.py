"""What reads each shape from a document: msgspec where that can say the type, and what stands here where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Union, cast

import msgspec

from rabbitevents.events import Document
from rabbitevents.payload.choosing import form_of
from rabbitevents.payload.shapes import TAG, Array, Choice, Opaque, Record, Row, Shape, Table

Reader = Callable[[Any], Any]
"""Reads a value of a document into one type. Raises whatever it likes for a value that does not fit: converters,
validators and types of one's own are anybody's code."""


class MisfitError(ValueError):
    """A value that does not fit, with the place where it stands; ``reason`` is what was raised there."""

    def __init__(self, reason: Exception, place: str) -> None:
        super().__init__(place)
        self.reason = reason
        self.place = place


class SafeError(ValueError):
    """A reason that may be shown: it holds no value and no name of a document."""


def misfit(error: Exception, step: str) -> NoReturn:
    """Raise an error as that of a place, one ``step`` further out."""
    if isinstance(error, MisfitError):
        raise MisfitError(error.reason, step + error.place) from error.reason
    raise MisfitError(error, step) from error


class Readers:
    """Makes what reads each shape, once.

    cattrs's own hooks are not asked: they coerce (``"1"`` is an int to them).
    """

    def __init__(self) -> None:
        self._records: dict[int, Reader] = {}

    def reader(self, shape: Shape) -> Reader:
        """Return what reads ``shape``."""
        if shape.is_native():
            return partial(msgspec.convert, type=shape.kind, strict=True, str_keys=True)
        match shape:
            case Record():
                return self._records.get(id(shape)) or self._of_record(shape)
            case Choice():
                return self._of_choice(shape)
            case Table():
                return self._of_table(shape)
            case Row():
                return self._of_row(shape)
            case Array():
                return self._of_array(shape)
            case Opaque():
                return shape.read
            case _:
                return partial(msgspec.convert, type=shape.kind, strict=True, str_keys=True)

    def _of_record(self, shape: Record) -> Reader:
        """Read an object into a class through its init, each field by its own reader."""
        fields: list[tuple[str, str, bool, Reader]] = []
        cls: Callable[..., Any] = shape.cls

        def read(value: Any) -> Any:
            document = _object(value)
            given: dict[str, Any] = {}
            for name, argument, required, reads in fields:
                if name in document:
                    try:
                        given[argument] = reads(document[name])
                    except Exception as error:
                        misfit(error, f".{name}")
                elif required:
                    raise msgspec.ValidationError(f"Object missing required field `{name}`")
            return cls(**given)

        self._records[id(shape)] = read  # before its fields are looked at: a class may hold others of its own kind
        fields.extend((f.name, f.argument, f.required, self.reader(f.shape)) for f in shape.fields)
        return read

    def _of_choice(self, shape: Choice) -> Reader:
        """Read one of several classes by its tag, and what is no class by its form."""
        by_tag = {cls.__name__: self._of_tagged(member) for cls, member in shape.classes.items()}
        only = self.reader(*shape.classes.values()) if len(by_tag) == 1 else None
        by_form = {form: self._of_either(members) for form, members in shape.by_form.items()}
        wanted = " | ".join([*by_tag, *sorted(by_form)])

        def read(value: Any) -> Any:
            if by_tag and isinstance(value, dict):
                document = cast("Document", value)
                if only is not None:
                    return only(document)
                tag = document.get(TAG)
                reads = by_tag.get(tag) if isinstance(tag, str) else None
                if reads is None:
                    raise KeyError(TAG)
                return reads(document)
            reads = by_form.get(form_of(value))
            if reads is None:
                raise msgspec.ValidationError(f"Expected `{wanted}`, got `{type(value).__name__}`")
            return reads(value)

        return read

    def _of_tagged(self, shape: Shape) -> Reader:
        """Read a class; a model, which may forbid or keep what it does not know, without the tag."""
        reads = self.reader(shape)
        if not isinstance(shape, Opaque):
            return reads
        return lambda document: reads({name: value for name, value in document.items() if name != TAG})

    def _of_either(self, members: list[Shape]) -> Reader:
        """Read what has one form: one type, or an int and a float, which msgspec tells apart."""
        if len(members) == 1:
            return self.reader(members[0])
        kind: Any = Union[tuple(member.kind for member in members)]  # noqa: UP007 - a tuple of types
        return partial(msgspec.convert, type=kind, strict=True, str_keys=True)

    def _of_table(self, shape: Table) -> Reader:
        key: Any = shape.key.kind
        keys: Any = dict[key, None]
        reads = self.reader(shape.item)

        def read(value: Any) -> Any:
            document = _object(value)
            names = msgspec.convert(dict.fromkeys(document), keys, strict=True, str_keys=True)
            items: list[Any] = []
            try:
                items.extend(map(reads, document.values()))
            except Exception as error:
                misfit(error, "[...]")
            return dict(zip(names, items, strict=True))

        return read

    def _of_row(self, shape: Row) -> Reader:
        readers = [self.reader(item) for item in shape.items]
        least = len(readers) - shape.optional

        def read(value: Any) -> Any:
            found = _array(value)
            if not least <= len(found) <= len(readers):
                raise msgspec.ValidationError(f"Expected `array` of length {len(readers)}, got {len(found)}")
            items: list[Any] = []
            try:
                for reads, item in zip(readers, found, strict=False):
                    items.append(reads(item))
            except Exception as error:
                misfit(error, f"[{len(items)}]")
            return shape.make(items)

        return read

    def _of_array(self, shape: Array) -> Reader:
        reads, make = self.reader(shape.item), shape.make

        def read(value: Any) -> Any:
            found = _array(value)
            items: list[Any] = []  # as many as were read say where one stands that does not fit
            try:
                items.extend(map(reads, found))
            except Exception as error:
                misfit(error, f"[{len(items)}]")
            return make(items)

        return read


def _object(value: Any) -> Document:
    if not isinstance(value, dict):
        raise msgspec.ValidationError(f"Expected `object`, got `{_word(value)}`")
    return cast("Document", value)


def _array(value: list[Any]) -> list[Any]:
    if not isinstance(cast("object", value), list):
        raise msgspec.ValidationError(f"Expected `array`, got `{_word(value)}`")
    return value


_WORDS: dict[type, str] = {dict: "object", list: "array", type(None): "null"}


def _word(value: object) -> str:
    """Return what msgspec calls a value's type."""
    return _WORDS.get(type(value), type(value).__name__)
