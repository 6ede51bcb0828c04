"""A delivery in this process, from its arrival to its settlement: what is known of it, in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from contextvars import ContextVar
from enum import Enum

import msgspec

from rabbitevents.message import Delivery, Message, Settlement


class State(Enum):
    """Where a delivery stands in this process."""

    WAITING = "waiting"
    """for a worker"""
    RUNNING = "running"
    """in a worker's hands"""
    HELD = "held"
    """until it is tried again, or given back"""
    DUE = "due"
    """held before, and waiting for a worker again"""
    GIVEN_BACK = "given back"
    """while its handler would not end; whatever that says now comes too late"""


class Work(msgspec.Struct, eq=False):
    """One delivery, and how far it has come."""

    delivery: Delivery
    state: State = State.WAITING
    since: float = 0.0
    """When its handling began (monotonic clock)."""
    settlement: Settlement | None = None
    """What is to be done with it, where only that failed; None: it is handled."""
    unpublished: list[Message] | None = None
    """What its handler returned, where only publishing that failed; its handler is not called again."""
    held_since: float = 0.0
    """When it was held first (event loop's clock)."""
    tries: int = 0
    """How often it was held."""
    attempt: int = 0
    """The number of its latest attempt; 0 before the first one has failed."""
    unhandled: bool = False
    """Whether it is held because no handler is for it."""
    error: str = ""
    """Why it is held, or why what its handler returned is not published yet."""
    timer: asyncio.TimerHandle | None = None
    key: Hashable | None = None
    """Whose turn it waits for, or has, where its subscription keeps an order."""
    again: Delivery | None = None
    """What is handled next in its place: the copy of it that would have come back from a wait at the broker."""


WORK: ContextVar[Work | None] = ContextVar("rabbitevents_work", default=None)
"""The delivery that a worker has in its hands, for the innermost link of its chain."""


def undone() -> None:
    """Let a handler that has succeeded be called again, because what it did was rolled back.

    For a plugin that ends a transaction around the handler: what a handler returned is otherwise published again without
    calling it, where only the publishing failed.
    """
    if (work := WORK.get()) is not None:
        work.unpublished, work.error = None, ""
