"""A ledger that is kept badly on purpose, to show that the demonstration notices."""

from __future__ import annotations

from itertools import count
from typing import Final, Literal

from rabbitevents.demo.ledger import Record, Records

Sabotage = Literal["drop", "dup"]

VICTIM: Final = "inventory"
"""The service whose effects are sabotaged."""


class SabotagedLedger:
    """Leaves out every tenth effect of one service (drop), or writes it down twice (dup).

    The first one is among them, so that it shows with any number of orders.
    """

    def __init__(self, ledger: Records, sabotage: Sabotage) -> None:
        self._ledger = ledger
        self._times = 0 if sabotage == "drop" else 2
        self._number = count()

    def note(self, record: Record) -> None:
        """Note it as ever."""
        self._ledger.note(record)

    async def record(self, record: Record) -> None:
        """Record as often as the sabotage says."""
        tenth = record.service == VICTIM and next(self._number) % 10 == 0
        for _ in range(self._times if tenth else 1):
            await self._ledger.record(record)

    async def close(self) -> None:
        """Close it as ever."""
        await self._ledger.close()
