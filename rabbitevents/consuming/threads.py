"""Threads for handlers that are plain functions.

They are daemons: a function that hangs never holds up the end of the process, which an executor's threads would.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Work = Callable[[], None]


class Threads:
    """As many threads as a subscription has workers, made when first needed."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._work: SimpleQueue[Work | None] = SimpleQueue()

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call ``function`` in a thread, in a copy of the caller's context; the future is what comes of it.

        Whoever cancels the future does not stop the thread: `asyncio.shield` it to learn when it ends.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                result, error = context.run(function, *args, **kwargs), None
            except BaseException as raised:
                # Everything goes back to the loop, where the handling is settled; a thread has nobody to tell.
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:
                return  # the loop has ended while the function ran: nobody waits any more

        if self._idle == 0 and len(self._threads) < self._size:
            self._spawn()
        self._idle -= 1
        future.add_done_callback(self._freed)
        self._work.put(work)
        return future

    def _spawn(self) -> None:
        thread = threading.Thread(
            target=_serve, args=(self._work,), name=f"{self._name}-{len(self._threads)}", daemon=True
        )
        thread.start()
        self._threads.append(thread)
        self._idle += 1

    def _freed(self, _: asyncio.Future[Any]) -> None:
        self._idle += 1

    def close(self) -> None:
        """Let threads end as they become idle. Does not wait."""
        for _ in self._threads:
            self._work.put(None)


def _serve(work: SimpleQueue[Work | None]) -> None:
    while (item := work.get()) is not None:
        item()
        del item


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration | asyncio.CancelledError | KeyboardInterrupt | SystemExit):
        future.set_exception(RuntimeError(f"a handler in a thread raised {type(error).__name__}"))
    else:
        future.set_exception(error)
