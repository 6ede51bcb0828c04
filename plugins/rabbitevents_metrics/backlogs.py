"""What outboxes have to send, as their relays said a moment ago.

Of several processes one at a time relays, and only that one says so: what it said is forgotten when it says no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Final

from opentelemetry.metrics import Observation

from rabbitevents import facts

LASTING: Final = 15.0
"""Seconds for which a relay's word holds; it counts every five."""


class Backlogs:
    """The latest word of each outbox's relay here."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, facts.Backlog]] = {}

    def note(self, fact: facts.Backlog) -> None:
        """Note what an outbox has now."""
        self._said[fact.outbox] = monotonic(), fact

    def observe(self, what: str) -> Iterator[Observation]:
        """Yield how many are ``pending`` or ``dead``, or the ``lag``, of each outbox; in whatever thread."""
        for said_at, fact in tuple(self._said.values()):
            if monotonic() - said_at < LASTING:
                yield Observation(getattr(fact, what), {"rabbitevents.outbox": fact.outbox})
