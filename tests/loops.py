"""The event loops that services run on: asyncio's own, and uvloop's where that is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rabbitevents.cli.loop import loop_factory, loop_name

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    loop_name(): loop_factory(),
}
INSTALLED = loop_name()
"""The one that commands run on here."""
