"""Ledgers that do it wrong on purpose, so that it can be seen that the demonstration would notice."""

from __future__ import annotations

from itertools import count
from typing import Literal

from rabbitevents.demo.ledger import Effect, Ledger

Sabotage = Literal["drop", "dup"]


class SabotagedLedger(Ledger):
    """Writes down every tenth effect, beginning with the first, not at all (drop) or twice (dup)."""

    def __init__(self, ledger: Ledger, sabotage: Sabotage) -> None:
        super().__init__(ledger.path)
        self._ledger = ledger
        self._times = 0 if sabotage == "drop" else 2
        self._number = count()

    async def record(self, effect: Effect) -> None:
        """Have the real ledger record the effect, as often as this one thinks right."""
        for _ in range(1 if next(self._number) % 10 else self._times):
            await self._ledger.record(effect)
