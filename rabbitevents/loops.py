"""An event loop of one's own, which does not wait for what will not end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

log: logging.Logger = logging.getLogger("rabbitevents.bus")

LAST_WAIT: Final = 1.0
"""Seconds that tasks have to end once they are cancelled."""


def run_to_the_end(
    main: Coroutine[Any, Any, None],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> None:
    """Run ``main`` on an event loop that ``loop_factory`` makes; what will not be cancelled after it is left behind.

    With ``asyncio.run``, a task that swallows its cancellation would keep the process from ending.
    """
    loop = loop_factory()
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main)
    finally:
        _leave(loop)


def _leave(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs on ``loop``, wait a moment for it, name what remains, and close the loop."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=LAST_WAIT))
    for task in tasks:
        if not task.done():
            log.error("%s will not end; leaving it", task.get_name())
    loop.run_until_complete(loop.shutdown_asyncgens())
    asyncio.set_event_loop(None)
    loop.close()
