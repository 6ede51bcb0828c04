"""The two paths between a class and its JSON: msgspec alone, and cattrs with a walk of our own.

msgspec reads and writes every class that it can say in full. Where it cannot (unions of event classes, attrs
converters, fields without an init argument), cattrs writes, and what stands here reads, part by part, handing each part
that msgspec can say back to it. Both are equally strict. A union of classes is tagged: ``{"_type": "Card", ...}``.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, Final, Generic, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs
import cattrs
import msgspec

from rabbitevents.errors import ConfigurationError
from rabbitevents.events import Document

P = TypeVar("P")

TAG: Final = "_type"
"""The field that says which class of a union a document is, by the class's name."""


class Path(Protocol[P]):
    """One way between a class and its bytes."""

    def encode(self, payload: P, /) -> bytes:
        """Return the payload as JSON."""
        ...

    def decode(self, body: bytes, /) -> P:
        """Read JSON into the class."""
        ...

    def document(self, payload: P, /) -> Any:
        """Return the payload as plain values."""
        ...

    def structure(self, document: Any, /) -> P:
        """Read a document, as `read_document` gives it, into the class."""
        ...


class Native(Generic[P]):
    """The path through msgspec alone."""

    def __init__(self, cls: type[P]) -> None:
        self.encode: Callable[[P], bytes] = msgspec.json.Encoder().encode
        self.decode: Callable[[bytes], P] = msgspec.json.Decoder(cls).decode
        self._cls = cls

    def document(self, payload: P) -> Any:
        """Return the payload as plain values."""
        return msgspec.to_builtins(payload)

    def structure(self, document: Any) -> P:
        """Read a document into the class."""
        return msgspec.convert(document, self._cls, strict=True, str_keys=True)


class Walked(Generic[P]):
    """The path where the class is walked, for what msgspec cannot say."""

    def __init__(self, cls: type[P]) -> None:
        self._read = _Readers().reader(cls)
        self._unstructure = _writing_converter().get_unstructure_hook(cls)
        self._encode = msgspec.json.Encoder().encode

    def document(self, payload: P) -> Any:
        """Return the payload as plain values."""
        return self._unstructure(payload)

    def encode(self, payload: P) -> bytes:
        """Return the payload as JSON."""
        return self._encode(self._unstructure(payload))

    def decode(self, body: bytes) -> P:
        """Read JSON into the class."""
        return self.structure(msgspec.json.decode(body))

    def structure(self, document: Any) -> P:
        """Read a document into the class."""
        return cast("P", self._read(document))


# --- which path ----------------------------------------------------------------------------------------------------


def path_for(cls: type[P]) -> Path[P]:
    """Return the way between a class and its bytes. Raises `ConfigurationError` for a field that has none."""
    if is_native(cls):
        return Native(cls)
    try:
        return Walked(cls)
    except (cattrs.StructureHandlerNotFoundError, TypeError, NameError, ValueError, NotImplementedError) as error:
        raise ConfigurationError(f"{cls.__name__} cannot be carried as JSON: {error}") from error


def may_hold_nan(cls: type) -> bool:
    """Say whether a float can be in there: msgspec writes one that is no number as null, without a word."""
    try:
        parts = _parts(msgspec.inspect.type_info(cls), set())
    except (TypeError, NameError, NotImplementedError):
        return True
    return any(isinstance(part, (msgspec.inspect.FloatType, msgspec.inspect.AnyType)) for part in parts)


def is_native(kind: Any) -> bool:
    """Say whether msgspec alone reads and writes ``kind`` as its author meant it."""
    try:
        info = msgspec.inspect.type_info(kind)
    except (TypeError, NameError, NotImplementedError):
        return False
    return all(
        not isinstance(part, msgspec.inspect.CustomType)
        and not (isinstance(part, msgspec.inspect.DataclassType) and _needs_its_init(part.cls))
        for part in _parts(info, set())
    )


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


# --- walking -------------------------------------------------------------------------------------------------------


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and (attrs.has(kind) or dataclasses.is_dataclass(kind))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


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


class _Readers:
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
        if _is_class(kind):
            return self._classes.get(kind) or self._of_class(kind)
        if _is_union(kind):
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
        classes = [part for part in get_args(kind) if _is_class(part)]
        others = tuple(part for part in get_args(kind) if not _is_class(part))
        by_tag = {cls.__name__: self.reader(cls) for cls in classes}
        _check_tags(classes)
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
        walked = [part for part in others if not is_native(part)]
        said = tuple(part for part in others if is_native(part))
        if not walked:
            return self.reader(Union[said]) if said else partial(_expect, kind=dict)  # noqa: UP007 - a tuple of types
        if len(walked) > 1 or said not in ((), (types.NoneType,)):
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


def _writing_converter() -> cattrs.Converter:
    converter = cattrs.Converter(unstruct_collection_overrides={collections.abc.Set: list})
    converter.register_unstructure_hook_factory(_is_union_of_classes, partial(_tagging_hook, converter))
    return converter


def _is_union_of_classes(kind: Any) -> bool:
    return _is_union(kind) and sum(map(_is_class, get_args(kind))) > 1


def _tagging_hook(converter: cattrs.Converter, kind: Any) -> Callable[[Any], Any]:
    classes = {cls for cls in get_args(kind) if _is_class(cls)}

    def write_union(value: Any) -> Any:
        document = converter.unstructure(value)
        if type(value) in classes:
            return {TAG: type(value).__name__, **document}
        if _is_class(type(value)):
            raise TypeError(f"{type(value).__name__} is no member of its union: nobody could read it")
        return document

    return write_union
