"""Event ids: UUIDs of version 7, new ones and derived ones.

Source: RFC 9562, section 5.7 (48 bits of milliseconds since 1970, then 74 bits of anything).
"""

from __future__ import annotations

import os
import time
from hashlib import blake2b
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec

_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62
_RAND_A = 0xFFF << 64
_RAND_B = (1 << 62) - 1


def _uuid7(milliseconds: int, rest: int) -> UUID:
    return UUID(int=(milliseconds & 0xFFFFFFFFFFFF) << 80 | _VERSION | rest & _RAND_A | _VARIANT | rest & _RAND_B)


_random: list[int] = []
"""Random numbers of 80 bits, made many at a time (a system call costs more than all the rest). Taking one is atomic."""

_POOL = 256
_NUMBER = 10
"""Bytes of one of them."""


def _number() -> int:
    try:
        return _random.pop()
    except IndexError:
        pool = os.urandom(_NUMBER * _POOL)
        _random.extend(int.from_bytes(pool[at : at + _NUMBER], "big") for at in range(_NUMBER, len(pool), _NUMBER))
        return int.from_bytes(pool[:_NUMBER], "big")


os.register_at_fork(after_in_child=_random.clear)  # a child must not give the ids that its parent gives


def new_id() -> UUID:
    """Return a new id, of this moment."""
    return _uuid7(time.time_ns() // 1_000_000, _number())


def derived_id(cause: UUID, subscription: str, said: bytes, number: int = 0) -> UUID:
    """Return the id of what ``subscription`` publishes that says ``said`` while it handles ``cause``.

    ``number`` tells apart those that say the same. The same arguments give the same id, with the time bits of the
    cause: a repeated attempt repeats its ids, whatever else it leaves out, adds or does in another order.
    """
    digest = blake2b(said, digest_size=_NUMBER, key=cause.bytes)
    digest.update(f"\0{subscription}\0{number}".encode())
    return _uuid7(cause.int >> 80, int.from_bytes(digest.digest(), "big"))


_NAMED = UUID("0d9e7a1c-58f6-5c0b-9f3e-2f6d4b7a1e35")
"""The namespace of ids that authors name."""


def named_id(source: str, type: str, name: str) -> UUID:
    """Return the id of the event of ``type`` that ``source`` calls ``name``: always the same one."""
    return uuid5(_NAMED, f"{source}\0{type}\0{name}")


_CANONICAL = 36
"""Signs of a UUID in its canonical form: 8-4-4-4-12 hexadecimal digits (RFC 9562, section 4)."""


def canonical(text: str) -> UUID | None:
    """Return the UUID that ``text`` is in its canonical form; None for any other text.

    Python reads much more than that as a UUID (braces, dashes anywhere, underscores), and so makes one of two ids.
    """
    if len(text) != _CANONICAL:
        return None
    try:
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError:
        return None


_NIL = "00000000-0000-0000-0000-000000000000"
_NO_IDS = frozenset({"", _NIL, _NIL.replace("-", ""), f"{{{_NIL}}}", f"urn:uuid:{_NIL}"})


def says_no_id(text: str | None) -> bool:
    """Say whether a sender gave no id: none, a blank one, or the nil UUID, which its library writes for none."""
    return text is None or text in _NO_IDS or text.isspace()


def as_uuid(text: str, source: str | None = None) -> UUID:
    """Return the UUID that a foreign id stands for, always the same one for the same id of the same source.

    One in a UUID's canonical form (RFC 9562, section 4: 8-4-4-4-12 hexadecimal digits, of either case) is that UUID.
    Everything else is text, unique only with its source (CloudEvents 1.0.2, 3.1.1), and gives a UUID made from both:
    whoever reads ``{...}``, ``urn:uuid:``, odd dashes or ``0x`` as UUIDs makes one event of two, and drops the second.
    """
    source = source or ""
    return canonical(text) or uuid5(_FOREIGN, f"{len(source)}:{source}{text}".encode("utf-8", "surrogatepass").hex())


_FOREIGN = uuid5(NAMESPACE_OID, "rabbitevents: source and id")
