"""What a process does, step by step: pure, and so the same for a bus and for a test without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from rabbitevents import Event
from rabbitevents_process.documents import Documents
from rabbitevents_process.errors import NoKeyError
from rabbitevents_process.life import Life, Pending, TimedOut
from rabbitevents_process.reactions import Reaction
from rabbitevents_process.script import Script
from rabbitevents_process.step import DONE, Step

LONGEST: Final = 500
"""How many characters a key may have: it is part of an index."""


class Plot(msgspec.Struct, frozen=True):
    """A process, once everything has been registered."""

    name: str
    key: Callable[[Any], object]
    script: Script
    documents: Documents
    timed_out: type[TimedOut]

    def key_of(self, payload: Any) -> str:
        """Return the key of the process that an event is for. Raises `NoKeyError` for one that says none."""
        found = payload.key if isinstance(payload, TimedOut) else self.key(payload)
        key = str(found) if isinstance(found, (str, int, UUID)) else ""
        if not key or "\0" in key or len(key) > LONGEST or any("\ud800" <= sign <= "\udfff" for sign in key):
            raise NoKeyError(
                f"{type(payload).__name__} does not say which process {self.name} it is for: its key is to be a text, a number "
                f"or a UUID, not empty, of {LONGEST} characters at most, and such that a database can hold it"
            )
        return key

    def state(self, key: str, life: Life | None, reaction: Reaction) -> Any:
        """Return the state that a function is to be called with. Raises `StateError`."""
        return None if life is None or life.ended or not reaction.asks_for("state") else self.documents.read(key, life)

    def next(self, key: str, life: Life | None, event: Event[Any], step: Step, now: datetime) -> Life:
        """Return what is kept from now on.

        :param key: The process's key.
        :param life: What was kept; None where nothing was.
        :param event: What came.
        :param step: What was answered.
        :param now: This moment.

        Raises `EncodeError` for a state that cannot be kept.
        """
        if step.state is DONE:
            there = Life(b"", 0, {}) if life is None else life
            return msgspec.structs.replace(there, timeouts={}, ended=True)
        fired = event.payload.name if isinstance(event.payload, TimedOut) else None
        before: Mapping[str, Pending] = {} if life is None else life.timeouts
        left = {name: each for name, each in before.items() if name != fired and name not in step.cleared}
        waiting = left | {each.name: Pending(event.id, now + each.after) for each in step.timeouts}
        return Life(self.documents.write(key, step.state), self.documents.version, waiting)

    def timeouts(self, key: str, step: Step, cause: UUID) -> list[tuple[TimedOut, timedelta]]:
        """Return the events by which timeouts come back, each with how long it waits first."""
        return [self.timed_out(key, each.name, cause).waiting(each.after) for each in step.timeouts]
