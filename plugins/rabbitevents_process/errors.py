"""What can go wrong with a process, and what is reported of it."""

from __future__ import annotations

from rabbitevents import Fact, RabbitEventsError
from rabbitevents.failures import Fatal
from rabbitevents.texts import cut, printable


class NoSuchProcessError(RabbitEventsError):
    """An event came for a process that is not there, and does not start one: it may be early, and is tried again."""


class NoKeyError(NoSuchProcessError, Fatal):
    """An event does not say which process it is for: its key is empty, or can be none. That mends by no repetition."""


class AlreadyRunningError(RabbitEventsError, Fatal):
    """An event came that only starts a process, and that process runs already."""


class StateError(RabbitEventsError):
    """The state that is kept of a process cannot be read as what it is now."""


class LateForProcess(Fact, frozen=True):
    """An event came for a process that has ended, and was acknowledged without a step.

    ``subscription``, ``type`` and ``id`` are the event's; ``process`` and ``key`` say which process it is.
    """

    subscription: str
    type: str
    id: str
    process: str
    key: str


def named(process: str, key: str) -> str:
    """Name a process for errors, in one printable line."""
    return printable(cut(f"process {process} {key}", 120))
