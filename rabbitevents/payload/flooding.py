"""Keys that are chosen to collide: a set of them takes the square of their number, 6 to 24 s for 1 MiB.

Python hashes an integer, and so a UUID, a Decimal, or a tuple of them, by its remainder modulo 2**61 - 1. Text and bytes
are hashed with a secret, and cannot be chosen so. What is looked for is the choice itself, values of one remainder: in
what people send there are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias, cast

import msgspec

from rabbitevents.errors import DecodeError
from rabbitevents.events import Document
from rabbitevents.payload.kinds import parts_of

HARMLESS: Final = 8_192
"""Up to this size in bytes a body is not looked at: the 200 UUIDs that it could hold take 2 ms."""

_ALIKE: Final = 64
"""How many values of one hash there may be. (Of 64 bits there are 9 integers of one remainder.)"""

_SAFE_KEYS = (
    msgspec.inspect.StrType,
    msgspec.inspect.BytesType,
    msgspec.inspect.BoolType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.NoneType,
)


def can_be_flooded(cls: type) -> bool:
    """Say whether a class holds a set, or a mapping, of keys that can be chosen to collide."""
    try:
        parts = list(parts_of(cls))
    except (TypeError, NameError, NotImplementedError):
        return True
    return any(not isinstance(key, _SAFE_KEYS) for part in parts for key in _keys_of(part))


def _keys_of(part: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    if isinstance(part, (msgspec.inspect.SetType, msgspec.inspect.FrozenSetType)):
        yield part.item_type
    elif isinstance(part, msgspec.inspect.DictType):
        yield part.key_type
    elif isinstance(part, msgspec.inspect.CustomType):
        yield part


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
