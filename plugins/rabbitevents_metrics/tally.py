"""Counting: cheap where events pass, and handed to the meter once a second.

``Counter.add`` costs 8 us in the SDK, two thirds of what consuming an event costs in all; adding one to a number that
is handed over later, 0.1 us.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from opentelemetry.metrics import Counter

Attributes = Mapping[str, str | int | bool]

OTHER: Final = "_OTHER"
"""What stands for a name that nobody expected, as in the conventions' ``error.type``."""


class Count:
    """How often one thing happened since it was last handed over."""

    __slots__ = ("_attributes", "_counter", "number")

    def __init__(self, counter: Counter, attributes: Attributes) -> None:
        self._counter = counter
        self._attributes = attributes
        self.number: int = 0

    def hand_over(self) -> None:
        """Add what was counted to the meter's counter."""
        if self.number:
            number, self.number = self.number, 0
            self._counter.add(number, self._attributes)


class Tally:
    """All counts of one bus."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Counter, tuple[tuple[str, object], ...]], Count] = {}

    def of(self, counter: Counter, attributes: Attributes) -> Count:
        """Return the count of this counter with these attributes."""
        place = counter, tuple(attributes.items())
        found = self._counts.get(place)
        if found is None:
            found = self._counts[place] = Count(counter, attributes)
        return found

    def hand_over(self) -> None:
        """Hand over everything."""
        for count in self._counts.values():
            count.hand_over()


class Names:
    """A bounded set of names: those that are expected, the first few others, and `OTHER` for the rest.

    What comes over the wire must not make label sets without end.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def expect(self, *names: str) -> None:
        """Know these names from now on."""
        self._known.update(names)

    def known(self, name: str) -> str:
        """Return ``name`` if it is expected; nothing is learned."""
        return name if name in self._known else OTHER

    def learned(self, name: str) -> str:
        """Return ``name`` if it is known, or is one of the first."""
        if name not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(name)
        return name
