"""A payload class and its bytes: one strictness, whichever path they take.

Strict types, nothing coerced, unknown fields ignored. msgspec reads and writes every class that it can say in full;
where it cannot (unions of event classes, attrs converters, fields without an init argument), cattrs walks the class
and hands each part that msgspec can say back to it. A union of classes is tagged: ``{"_type": "Card", ...}``.

Each class is bound once, at start; per message there is one call. (A JSON number for a Decimal keeps all its digits
on the first path, and those of a float, 17, on the second; we ourselves write a Decimal as text.)
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs
import cattrs
import msgspec

from rabbitevents.errors import ConfigurationError, DecodeError, EncodeError
from rabbitevents.events import Document, EventType, event_type

P = TypeVar("P")

TAG: Final = "_type"
"""The field that says which class of a union a document is, by the class's name."""

_REFUSED = (
    msgspec.MsgspecError,
    cattrs.BaseValidationError,
    cattrs.StructureHandlerNotFoundError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
)
"""What reading a document raises when it does not fit: msgspec's, cattrs's, and those of the class's own validators."""


_ENUM_VALUE = re.compile(r"^Invalid enum value .*?(?= - at |$)", re.DOTALL)


class Path(Protocol[P]):
    """One way between a class and its bytes."""

    def encode(self, payload: P) -> bytes:
        """Return the payload as JSON."""
        ...

    def decode(self, body: bytes) -> P:
        """Read JSON into the class."""
        ...

    def structure(self, document: Any) -> P:
        """Read a document, as `read_document` gives it, into the class."""
        ...


class Native(Generic[P]):
    """The path through msgspec alone."""

    def __init__(self, cls: type[P]) -> None:
        self.encode: Callable[[P], bytes] = msgspec.json.Encoder().encode
        self.decode: Callable[[bytes], P] = msgspec.json.Decoder(cls).decode
        self._cls = cls

    def structure(self, document: Any) -> P:
        """Read a document into the class."""
        return msgspec.convert(document, self._cls, strict=True, str_keys=True)


class Walked(Generic[P]):
    """The path where cattrs walks the class, for what msgspec cannot say."""

    def __init__(self, cls: type[P]) -> None:
        self._cls = cls
        self._converter = cattrs.Converter(detailed_validation=False)
        _add_hooks(self._converter)
        self._structure = self._converter.get_structure_hook(cls)
        self._unstructure = self._converter.get_unstructure_hook(cls)
        self._encode = msgspec.json.Encoder().encode

    def encode(self, payload: P) -> bytes:
        """Return the payload as JSON."""
        return self._encode(self._unstructure(payload))

    def decode(self, body: bytes) -> P:
        """Read JSON into the class."""
        return self.structure(msgspec.json.decode(body))

    def structure(self, document: Any) -> P:
        """Read a document into the class."""
        return cast("P", self._structure(document, self._cls))


class Codec(Generic[P]):
    """What reads and writes one event class, whatever version a document is of."""

    def __init__(self, cls: type[P]) -> None:
        self.spec: EventType = event_type(cls)
        self.spec.check_upcasters(cls)
        self._path: Path[P] = path_for(cls)

    def encode(self, payload: P) -> bytes:
        """Return the payload as JSON. Raises `EncodeError`, which says where, and not what, it holds."""
        try:
            return self._path.encode(payload)
        except (msgspec.MsgspecError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise EncodeError(f"{type(payload).__name__} cannot be written as JSON: {_reason(error)}") from error

    def decode(self, body: bytes, version: int) -> P:
        """Read JSON of ``version`` into the class; older documents are led up step by step. Raises `DecodeError`.

        A newer version than known is read too, its unknown fields ignored, if it still fits.
        """
        try:
            if version >= self.spec.version:
                return self._path.decode(body)
        except (*_REFUSED, RecursionError) as error:
            raise self._misfit(version, error) from error
        return self.structure(read_document(body), version)

    def structure(self, document: Any, version: int) -> P:
        """Read a document of ``version`` into the class. Raises `DecodeError`."""
        spec = self.spec
        if version < spec.oldest:
            raise DecodeError(
                f"{spec.name} came in version {version}, older than {spec.oldest}, the oldest understood here",
                type=spec.name,
            )
        try:
            return self._path.structure(spec.upcast(document, version))
        except (*_REFUSED, RecursionError) as error:
            raise self._misfit(version, error) from error

    def _misfit(self, version: int, error: BaseException) -> DecodeError:
        spec = self.spec
        if version > spec.version:
            text = f"{spec.name} came in version {version}, newer than {spec.version}, the newest known here, and does not fit"
        else:
            text = f"{spec.name} version {version} does not fit its class"
        return DecodeError(f"{text}: {_reason(error)}", type=spec.name)


def read_document(body: bytes) -> Any:
    """Read JSON as plain values. Raises `DecodeError`. Depth is capped by the parser at Python's recursion limit."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"the body is no JSON: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Say what was wrong and where, without any value that the document held."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, msgspec.MsgspecError) and error.__cause__ is None:
        return _ENUM_VALUE.sub("invalid enum value", str(error))
    if isinstance(error, KeyError):
        return "a field is missing, or a union's tag is unknown"
    return f"{type(error.__cause__ or error).__name__}"


# --- which path ----------------------------------------------------------------------------------------------------


def path_for(cls: type[P]) -> Path[P]:
    """Return the way between a class and its bytes. Raises `ConfigurationError` for a field that has none."""
    if is_native(cls):
        return Native(cls)
    try:
        return Walked(cls)
    except (cattrs.StructureHandlerNotFoundError, TypeError, NameError, ValueError) as error:
        raise ConfigurationError(f"{cls.__name__} cannot be carried as JSON: {error}") from error


def is_native(kind: Any) -> bool:
    """Say whether msgspec alone reads and writes ``kind`` as its author meant it."""
    try:
        info = msgspec.inspect.type_info(kind)
    except (TypeError, NameError):
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
        for item in cast("tuple[Any, ...]", value):
            yield from _parts(item, seen)
    elif isinstance(value, (msgspec.inspect.Type, msgspec.inspect.Field)):
        if isinstance(value, msgspec.inspect.Type):
            yield value
        for name in value.__struct_fields__:
            part = getattr(value, name)
            if isinstance(part, (tuple, msgspec.inspect.Type, msgspec.inspect.Field)):
                yield from _parts(part, seen)


def _needs_its_init(cls: type) -> bool:
    """Say whether the class's own init does what msgspec, which sets the fields itself, would leave out."""
    if attrs.has(cls):
        return any(field.converter is not None or not field.init for field in attrs.fields(cls))
    return any(not field.init for field in dataclasses.fields(cls))


# --- cattrs's hooks ------------------------------------------------------------------------------------------------


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and (attrs.has(kind) or dataclasses.is_dataclass(kind))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _add_hooks(converter: cattrs.Converter) -> None:
    """Make ``converter`` as strict as msgspec. The hook registered last is asked first."""
    converter.register_structure_hook_factory(_is_checked_container, lambda kind: _container_hook(converter, kind))
    converter.register_structure_hook_factory(_is_class, lambda kind: _class_hook(converter, kind))
    converter.register_structure_hook_factory(is_native, lambda kind: _native_hook)
    converter.register_structure_hook_factory(_is_union_of_classes, lambda kind: _union_hook(converter, kind))
    converter.register_unstructure_hook_factory(_is_union_of_classes, lambda kind: _tagging_hook(converter, kind))


def _native_hook(value: Any, kind: Any) -> Any:
    return msgspec.convert(value, kind, strict=True, str_keys=True)


def _is_checked_container(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple, set, frozenset, dict, Mapping)


def _container_hook(converter: cattrs.Converter, kind: Any) -> Callable[[Any, Any], Any]:
    """Read an array or an object of what cattrs must read, and nothing that merely can be iterated."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (dict, Mapping):
        item = converter.get_structure_hook(parts[1])

        def read_object(value: Any, _: Any) -> Any:
            keys = msgspec.convert(list(_expect(value, dict)), list[parts[0]], strict=True, str_keys=True)
            return dict(zip(keys, (item(v, parts[1]) for v in value.values()), strict=True))

        return read_object
    if origin is tuple and parts[-1] is not Ellipsis:
        hooks = [(converter.get_structure_hook(part), part) for part in parts]
        return lambda value, _: tuple(h(v, p) for v, (h, p) in zip(_expect(value, list), hooks, strict=True))
    each = converter.get_structure_hook(parts[0])
    return lambda value, _: origin(each(v, parts[0]) for v in _expect(value, list))


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _class_hook(converter: cattrs.Converter, cls: type) -> Callable[[Any, Any], Any]:
    """Read an object into a class through its init, each field by its own hook."""
    hints = get_type_hints(cls)
    names = [f.name for f in (attrs.fields(cls) if attrs.has(cls) else dataclasses.fields(cls)) if f.init]
    aliases = {f.name: f.alias for f in attrs.fields(cls)} if attrs.has(cls) else {}
    hooks = [
        (name, aliases.get(name) or name, converter.get_structure_hook(hints[name]), hints[name]) for name in names
    ]

    def read_class(value: Any, _: Any) -> Any:
        document = _expect(value, dict)
        return cls(**{argument: hook(document[name], hint) for name, argument, hook, hint in hooks if name in document})

    return read_class


def _is_union_of_classes(kind: Any) -> bool:
    return _is_union(kind) and sum(map(_is_class, get_args(kind))) > 1


def _union_hook(converter: cattrs.Converter, kind: Any) -> Callable[[Any, Any], Any]:
    """Read one of several classes by its tag; what is no object must fit the union's other members."""
    tagged = {cls.__name__: cls for cls in get_args(kind) if _is_class(cls)}
    hooks = {name: converter.get_structure_hook(cls) for name, cls in tagged.items()}
    others = tuple(part for part in get_args(kind) if not _is_class(part))

    def read_union(value: Any, _: Any) -> Any:
        if isinstance(value, dict):
            document = cast("Document", value)
            return hooks[document[TAG]](document, tagged[document[TAG]])
        if not others:
            raise TypeError(f"expected an object, got {type(value).__name__}")
        return msgspec.convert(value, Union[others], strict=True, str_keys=True)  # noqa: UP007 - a tuple of types

    return read_union


def _tagging_hook(converter: cattrs.Converter, kind: Any) -> Callable[[Any], Any]:
    classes = {cls for cls in get_args(kind) if _is_class(cls)}

    def write_union(value: Any) -> Any:
        document = converter.unstructure(value)
        return {TAG: type(value).__name__, **document} if type(value) in classes else document

    return write_union
