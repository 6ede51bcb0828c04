"""Whose turn it is: handlers that compute must not keep the event loop from everything else, nor from its heartbeats."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

SLICE: Final = 0.01
"""Seconds that a subscription's workers compute at a stretch; then the rest of the process has its turn."""


class Slices:
    """The time that one subscription's workers share, slice by slice. ``ends`` is when this one does (monotonic clock)."""

    def __init__(self) -> None:
        self.ends: float = 0.0
        self._is_over = False

    def renew(self) -> None:
        """Begin another slice: the event loop has just turned."""
        if not self._is_over:
            self.ends = monotonic() + SLICE

    async def next(self) -> None:
        """Let the event loop turn; the next slice begins as it comes back."""
        if not self._is_over:
            self._is_over = True
            asyncio.get_running_loop().call_soon(self._begin)
        await asyncio.sleep(0)

    def _begin(self) -> None:
        self._is_over = False
        self.ends = monotonic() + SLICE
