"""What outboxes have to send, and how far projections are, as those who are at it said a moment ago.

Of several processes one at a time relays, or projects, and only that one says so: what it said is forgotten when it says no
more.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Final

from opentelemetry.metrics import Observation

from rabbitevents import Fact

LASTING: Final = 15.0
"""Seconds for which such a word holds; it is said every five."""


class Backlogs:
    """The latest word of each outbox and projection here."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], tuple[float, Fact]] = {}

    def note(self, kind: str, name: str, fact: Fact) -> None:
        """Note what one has now; its attributes are called as the gauges of its kind are."""
        self._said[kind, name] = monotonic(), fact

    def observe(self, gauge: str) -> Iterator[Observation]:
        """Yield a gauge, such as ``rabbitevents.outbox.pending``, of each of its kind; in whatever thread."""
        wanted, _, what = gauge.rpartition(".")
        for (kind, name), (said_at, fact) in tuple(self._said.items()):
            if kind == wanted and monotonic() - said_at < LASTING:
                yield Observation(float(getattr(fact, what)), {kind: name})
