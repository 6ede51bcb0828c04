"""One effect per event and handler, however often it is delivered: claims, leases and marks in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rabbitevents_idempotency.facts import Fenced, LeaseLost, StoreBack, StoreLost, Unclaimed
from rabbitevents_idempotency.memory import MemoryStore
from rabbitevents_idempotency.plugin import AbandonedError, IdConflictError, Idempotency
from rabbitevents_idempotency.store import (
    Acquired,
    Busy,
    Claim,
    Conflict,
    Done,
    KeyRefusedError,
    Store,
    StoreForbiddenError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from rabbitevents_idempotency.redis_store import RedisStore

__all__ = [
    "AbandonedError",
    "Acquired",
    "Busy",
    "Claim",
    "Conflict",
    "Done",
    "Fenced",
    "IdConflictError",
    "Idempotency",
    "KeyRefusedError",
    "LeaseLost",
    "MemoryStore",
    "RedisStore",
    "Store",
    "StoreBack",
    "StoreForbiddenError",
    "StoreLost",
    "StoreUnavailableError",
    "Unclaimed",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        """Import redis when `RedisStore` is first asked for, and not before."""
        if name == "RedisStore":
            from rabbitevents_idempotency.redis_store import RedisStore

            return RedisStore
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
