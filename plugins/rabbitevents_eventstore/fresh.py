"""What this process has just appended: who follows the store here need not ask the database for it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

Row: TypeAlias = Mapping[str, Any]
"""What a row says, by its columns' names."""

MOST: Final = 500
"""How many rows are kept, at most about twice as many: those that are behind are read from the table."""


class Fresh:
    """The last rows of the table, as long as it is this process that writes them: one after the other, without a hole."""

    def __init__(self) -> None:
        self.is_wanted: bool = False
        """Whether somebody here follows the store."""
        self._rows: list[Row] = []
        self._after = 0
        """Behind which position the first row is; each has the next one."""

    def add(self, first: int, rows: Sequence[Row]) -> None:
        """Keep rows that are committed, the first of which has a position, and each other one the next."""
        if not self.is_wanted:
            return
        if self._after + len(self._rows) + 1 != first:
            self._rows, self._after = [], first - 1
        self._rows.extend(rows)
        if len(self._rows) > 2 * MOST:
            self._after += len(self._rows) - MOST
            del self._rows[:-MOST]

    def clear(self) -> None:
        """Forget all: what follows is read from the table."""
        self._rows, self._after = [], 0

    def between(self, position: int, upper: int) -> list[Row] | None:
        """Return all rows behind one position, up to another one; None where not all of them are here."""
        if not self._after <= position <= upper <= self._after + len(self._rows):
            return None
        return self._rows[position - self._after : upper - self._after]
