"""The two paths between a class and its JSON: msgspec alone, and cattrs with a walk of our own.

msgspec reads and writes every class that it can say in full. Where it cannot (unions of event classes, attrs
converters, fields without an init argument), cattrs writes, and what stands here reads, part by part, handing each part
that msgspec can say back to it. Both are equally strict. A union of classes is tagged: ``{"_type": "Card", ...}``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

import cattrs
import msgspec

from rabbitevents.errors import ConfigurationError
from rabbitevents.payload.kinds import is_native
from rabbitevents.payload.reading import Readers
from rabbitevents.payload.writing import writing_converter

P = TypeVar("P")


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
        self._read = Readers().reader(cls)
        self._unstructure = writing_converter().get_unstructure_hook(cls)
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
