"""The paths between a class and its JSON: msgspec alone, a walk of our own, and pydantic for its models.

msgspec reads and writes every class that it can say in full. Where it cannot (unions of event classes, attrs
converters, renamed fields, types of one's own), what is made from the class's shape reads and writes, part by part,
leaving to msgspec each part that it can say. Both are equally strict. A union of classes is tagged:
``{"_type": "Card", ...}``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec

from rabbitevents.payload import models
from rabbitevents.payload.reading import Readers
from rabbitevents.payload.shapes import Shape
from rabbitevents.payload.writing import Writers

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

    def __init__(self, shape: Shape) -> None:
        self._read = Readers().reader(shape)
        self._write = Writers().writer(shape)
        self._encode = msgspec.json.Encoder().encode

    def document(self, payload: P) -> Any:
        """Return the payload as plain values."""
        return msgspec.to_builtins(self._write(payload))

    def encode(self, payload: P) -> bytes:
        """Return the payload as JSON."""
        return self._encode(self._write(payload))

    def decode(self, body: bytes) -> P:
        """Read JSON into the class."""
        return self.structure(msgspec.json.decode(body))

    def structure(self, document: Any) -> P:
        """Read a document into the class."""
        return cast("P", self._read(document))


# --- which path ----------------------------------------------------------------------------------------------------


def path_for(cls: type[P], shape: Shape) -> Path[P]:
    """Return the way between a class, as it was described, and its bytes."""
    if shape.is_native():
        return Native(cls)
    if models.is_model(cls):
        return cast("Path[P]", models.Model(cls))
    return Walked(shape)
