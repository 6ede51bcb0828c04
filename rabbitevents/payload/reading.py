"""What reads each type from a document: msgspec where that can say the type, and what stands here where it cannot."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

import attrs
import msgspec

from rabbitevents.events import Document
from rabbitevents.payload.kinds import TAG, is_class, is_native, is_union, walked_members

Reader = Callable[[Any], Any]
"""Reads a value of a document into one type. Raises one of `_REFUSED` for a value that does not fit."""

_ARRAYS: dict[Any, Callable[[Iterator[Any]], Any]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Set: set,
}
_OBJECTS = (dict, collections.abc.Mapping)


class Readers:
    """Makes what reads each type, once: msgspec where that can say the type, and what stands here where it cannot.

    cattrs's own hooks are not asked: they coerce (``"1"`` is an int to them).
    """

    def __init__(self) -> None:
        self._classes: dict[type, Reader] = {}

    def reader(self, kind: Any) -> Reader:
        """Return what reads ``kind``. Raises TypeError for a type that nothing here can read."""
        if is_native(kind):
            return partial(msgspec.convert, type=kind, strict=True, str_keys=True)
        origin = get_origin(kind)
        if origin is Annotated:
            return self.reader(get_args(kind)[0])
        if is_class(kind):
            return self._classes.get(kind) or self._of_class(kind)
        if is_union(kind):
            return self._of_union(kind)
        if origin in _OBJECTS:
            return self._of_object(*get_args(kind))
        if origin is tuple and get_args(kind)[-1] is not Ellipsis:
            return self._of_tuple(get_args(kind))
        if origin is tuple or origin in _ARRAYS:
            return self._of_array(get_args(kind)[0], _ARRAYS.get(origin, tuple))
        raise TypeError(f"{getattr(kind, '__name__', kind)} is nothing that JSON can say")

    def _of_class(self, cls: type) -> Reader:
        """Read an object into a class through its init, each field by its own reader."""
        fields: list[tuple[str, str, Reader]] = []

        def read(value: Any) -> Any:
            document = _expect(value, dict)
            return cls(**{argument: reads(document[name]) for name, argument, reads in fields if name in document})

        self._classes[cls] = read  # before its fields are looked at: a class may hold others of its own kind
        hints = get_type_hints(cls, include_extras=True)
        if any(isinstance(hint, dataclasses.InitVar) for hint in hints.values()):
            raise TypeError(f"{cls.__name__} has an InitVar, which cannot be written again")
        fields.extend((name, argument, self.reader(hints[name])) for name, argument in _init_arguments(cls))
        return read

    def _of_union(self, kind: Any) -> Reader:
        """Read one of several classes by its tag; what is no object must fit the union's other members."""
        classes = [part for part in get_args(kind) if is_class(part)]
        others = tuple(part for part in get_args(kind) if not is_class(part))
        by_tag = {cls.__name__: self.reader(cls) for cls in classes}
        _check_tags(classes)
        if classes and any(map(_is_object, others)):
            raise TypeError(f"nothing in a document tells the classes of {kind} from the mapping")
        only = by_tag[classes[0].__name__] if len(classes) == 1 else None
        rest = self._of_rest(others, kind)

        def read(value: Any) -> Any:
            if isinstance(value, dict) and by_tag:
                document = cast("Document", value)
                return only(document) if only is not None else by_tag[document[TAG]](document)
            return rest(value)

        return read

    def _of_rest(self, others: tuple[Any, ...], kind: Any) -> Reader:
        """Read what of a union is no class: None, what msgspec can say, or one thing more."""
        walked = walked_members(kind)
        said = tuple(part for part in others if is_native(part))
        if not walked and not said:
            return partial(_expect, kind=dict)
        together: Any = Union[said] if said else None  # noqa: UP007 - a tuple of types
        if not walked and is_native(together):
            return self.reader(together)
        if len(walked) != 1 or said not in ((), (types.NoneType,)):
            raise TypeError(f"nothing in a document tells the members of {kind} apart")
        reads = self.reader(walked[0])
        return lambda value: None if value is None and said else reads(value)

    def _of_object(self, key: Any, item: Any) -> Reader:
        keys: Any = dict[key, None]
        reads = self.reader(item)

        def read(value: Any) -> Any:
            document = _expect(value, dict)
            names = msgspec.convert(dict.fromkeys(document), keys, strict=True, str_keys=True)
            return dict(zip(names, map(reads, document.values()), strict=True))

        return read

    def _of_tuple(self, parts: tuple[Any, ...]) -> Reader:
        readers = [self.reader(part) for part in parts]
        return lambda value: tuple(read(item) for read, item in zip(readers, _expect(value, list), strict=True))

    def _of_array(self, part: Any, make: Callable[[Iterator[Any]], Any]) -> Reader:
        reads = self.reader(part)
        return lambda value: make(map(reads, _expect(value, list)))


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise msgspec.ValidationError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")
    return value


def _init_arguments(cls: type) -> list[tuple[str, str]]:
    """Return the name of each field and the init's argument for it."""
    if attrs.has(cls):
        return [(f.name, f.alias or f.name) for f in attrs.fields(cls) if f.init]
    return [(f.name, f.name) for f in dataclasses.fields(cls) if f.init]


def _check_tags(classes: list[type]) -> None:
    """Raise TypeError for classes of a union that their tags do not tell apart."""
    if len({cls.__name__ for cls in classes}) < len(classes):
        raise TypeError(f"two classes of one union have the same name: {', '.join(c.__qualname__ for c in classes)}")
    if len(classes) > 1 and any(name == TAG for cls in classes for name, _ in _init_arguments(cls)):
        raise TypeError(f"a class of a union has a field {TAG!r}, where its tag goes")


def _is_object(kind: Any) -> bool:
    """Say whether a type that is no class of ours may be an object in a document."""
    return get_origin(kind) in _OBJECTS or (
        is_native(kind)
        and isinstance(
            msgspec.inspect.type_info(kind),
            (
                msgspec.inspect.DictType,
                msgspec.inspect.TypedDictType,
                msgspec.inspect.StructType,
                msgspec.inspect.AnyType,
            ),
        )
    )
