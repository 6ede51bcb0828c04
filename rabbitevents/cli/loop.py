"""The event loop that commands run on: uvloop's where it is installed, else asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop."""
    try:
        import uvloop
    except ImportError:  # not installed, or not made for this interpreter
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def loop_name() -> str:
    """Name the library that the event loop is from."""
    return loop_factory().__module__.partition(".")[0]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine and return its result. Ctrl-C cancels it, and then raises KeyboardInterrupt."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)
