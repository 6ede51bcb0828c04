"""Keys that are chosen to collide: a set of them takes the square of their number, 6 to 24 s for 1 MiB.

Python hashes an integer, and so a UUID, a Decimal, or a tuple of them, by its remainder modulo 2**61 - 1. Text and bytes
are hashed with a secret, and cannot be chosen so. What is looked for is the choice itself, values of one remainder: in
what people send there are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from enum import EnumMeta
from typing import Any, Final, Literal, TypeAlias, cast, get_origin

from rabbitevents.errors import DecodeError
from rabbitevents.events import Document
from rabbitevents.payload.hints import plainly
from rabbitevents.payload.shapes import Array, Opaque, Scalar, Shape, Table

HARMLESS: Final = 8_192
"""Up to this size in bytes a body is not looked at: the 200 UUIDs that it could hold take 2 ms."""

_ALIKE: Final = 64
"""How many values of one hash there may be. (Of 64 bits there are 9 integers of one remainder.)"""

_SAFE_KEYS = (str, bytes, bool, None, type(None))


def can_be_flooded(shape: Shape) -> bool:
    """Say whether a class holds a set, or a mapping, of keys that can be chosen to collide."""
    return any(not _is_safe(key) for part in shape.everything() for key in _keys_of(part))


def _keys_of(part: Shape) -> Iterator[Shape]:
    if isinstance(part, Array) and part.make in (set, frozenset):
        yield part.item
    elif isinstance(part, Table):
        yield part.key
    elif isinstance(part, Opaque):
        yield part


def _is_safe(key: Shape) -> bool:
    kind, _ = plainly(key.kind)
    return isinstance(key, Scalar) and (kind in _SAFE_KEYS or isinstance(kind, EnumMeta) or get_origin(kind) is Literal)


def check(document: Any, type: str) -> None:
    """Raise `DecodeError` for a document of ``type`` with values that only somebody who chose them has."""
    try:
        for read in (_as_number, _as_uuid):
            _examined(document, read)
    except _FloodedError as error:
        raise DecodeError(
            f"{type}: {error} of its values have one hash, which only happens by intent", type=type
        ) from None


class _FloodedError(Exception):
    """Says how many values have the same hash."""


Examined: TypeAlias = tuple[int, int]
"""What a value is hashed to when it is a key, and a hash that nobody can choose: to tell different ones apart."""


def _examined(value: Any, read: Callable[[str], int]) -> Examined:
    """Look at a value, what is in it first; ``read`` says what a text is hashed to."""
    if isinstance(value, str):
        return read(value), hash(value)
    if isinstance(value, list):
        return _together([_examined(item, read) for item in cast("Iterable[Any]", value)])
    if isinstance(value, dict):
        document = cast("Document", value)
        _together([(read(name), hash(name)) for name in document])
        return _together([_examined(item, read) for item in document.values()])
    return hash(value), hash(repr(value))


def _together(items: list[Examined]) -> Examined:
    """Check values that may be the keys of one set; return what a tuple of them is hashed to."""
    if len(items) > _ALIKE:
        count = _most_alike(items)
        if count > _ALIKE and (count := _most_alike(set(items))) > _ALIKE:
            raise _FloodedError(f"{count:,}")
    return hash(tuple(chosen for chosen, _ in items)), hash(repr([secret for _, secret in items]))


def _most_alike(items: Iterable[Examined]) -> int:
    return max(Counter(chosen for chosen, _ in items).values())


def _as_number(text: str) -> int:
    if len(text) > _LONGEST or text[:1].isalpha():
        return hash(text)
    try:
        return hash(Decimal(text))
    except (InvalidOperation, TypeError, ValueError):
        return hash(text)


_LONGEST = 400
"""What is longer is no number here: so few of them have room in 1 MiB that they do no harm."""


def _as_uuid(text: str) -> int:
    digits = text.replace("-", "") if len(text) == 36 else text
    if len(digits) != 32:
        return hash(text)
    try:
        return hash(int(digits, 16))
    except ValueError:
        return hash(text)
