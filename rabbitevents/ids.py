"""Event ids: UUIDs of version 7, new ones and derived ones.

Source: RFC 9562, section 5.7 (48 bits of milliseconds since 1970, then 74 bits of anything).
"""

from __future__ import annotations

import os
import time
from hashlib import sha256
from uuid import UUID

_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62
_RAND_A = 0xFFF << 64
_RAND_B = (1 << 62) - 1


def _uuid7(milliseconds: int, rest: int) -> UUID:
    return UUID(int=(milliseconds & 0xFFFFFFFFFFFF) << 80 | _VERSION | rest & _RAND_A | _VARIANT | rest & _RAND_B)


def new_id() -> UUID:
    """Return a new id, of this moment."""
    return _uuid7(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big"))


def derived_id(cause: UUID, subscription: str, type: str, ordinal: int) -> UUID:
    """Return the id of the ``ordinal``-th event of ``type`` that ``subscription`` publishes while it handles ``cause``.

    The same arguments give the same id, with the time bits of the cause: a repeated attempt repeats its ids.
    """
    text = f"{cause.hex}\0{subscription}\0{type}\0{ordinal}"
    return _uuid7(cause.int >> 80, int.from_bytes(sha256(text.encode()).digest()[:10], "big"))
