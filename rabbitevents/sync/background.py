"""A bus in the background: on an event loop of its own, in a daemon thread, for callers in other threads.

Whatever happens to that thread, nobody waits for ever: each call has a deadline, and is told when the loop is gone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any, TypeVar

from rabbitevents.bus import Bus
from rabbitevents.errors import BrokerError, BrokerUnavailableError
from rabbitevents.loops import run_to_the_end
from rabbitevents.states import Health

log: logging.Logger = logging.getLogger("rabbitevents.sync")

T = TypeVar("T")

_DONE_OR_NOT = "done, or not; published again with the same id=, it is handled once where handlers are idempotent"

LOOK_TIMEOUT = 2.0
"""Seconds that the event loop has to say how the bus is."""


class Background:
    """One bus at work, from its start to its end. The methods are for other threads than its own."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.started: Future[None] = Future()
        self.over: bool = False
        """Whether it takes no more calls: it failed to start, was asked to end, or its loop is dying."""
        self._asked = False
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[Any] | None = None
        # A context of its own: the first caller's span or handling is no cause of what the connections do.
        self._thread = threading.Thread(target=Context().run, args=(self._run,), name="rabbitevents", daemon=True)
        self._failure: BaseException | None = None
        self._calls: set[Future[Any]] = set()
        self._tasks: dict[Future[Any], asyncio.Task[None]] = {}

    # --- in the callers' threads ---

    def begin(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def wait_started(self, deadline: float) -> None:
        """Wait until it runs, or ``deadline`` (monotonic clock). Raises what kept it from starting."""
        try:
            self.started.result(max(0.0, deadline - monotonic()))
        except TimeoutError:
            if self.started.done():
                return self.started.result()
            looked = "; ".join(check.detail for check in self.health().problems if check.detail)
            raise BrokerUnavailableError(f"no broker could be used in time, and nothing was sent: {looked}") from None

    def call(self, work: Callable[[], Awaitable[T]], deadline: float, *, margin: float = 0.0) -> T:
        """Have ``work`` done on the loop, in this thread's context, and return or raise what comes of it.

        Raises `BrokerError` when nothing came by ``deadline`` (monotonic clock) and ``margin`` seconds more, or when the
        loop ended meanwhile. The margin begins when this thread finds the deadline passed: where the whole process stood
        still until then, the loop can still say what came of it.
        """
        answer: Future[T] = Future()
        self._calls.add(answer)
        try:
            if self.over:
                raise BrokerError("this SyncBus was closed meanwhile; nothing was sent: start() opens it again")
            self._loop.call_soon_threadsafe(self._begin_call, work, answer)
            with suppress(TimeoutError):
                return answer.result(max(0.0, deadline - monotonic()))
            return answer.result(margin)
        except TimeoutError:
            if answer.done():
                return answer.result()
            raise BrokerError(f"the event loop of this SyncBus gave no answer in time: {_DONE_OR_NOT}") from None
        except RuntimeError as error:
            if self._loop.is_closed() and not answer.done():
                raise _gone() from error
            raise
        finally:
            self._calls.discard(answer)
            if not answer.done():
                self._soon(self._abandon, answer)

    def health(self) -> Health:
        """Say how the bus is. Raises `BrokerError` when the loop gives no word of it within `LOOK_TIMEOUT`."""

        async def look() -> Health:
            return self.bus.health()

        return self.call(look, monotonic() + LOOK_TIMEOUT)

    def ask_to_end(self) -> None:
        """Take no more calls, and stop once those under way have their answers. Only the first time counts."""
        if not self._asked:
            self._asked = self.over = True
            self._soon(self._leave)

    def wait_ended(self, timeout: float) -> None:
        """Wait ``timeout`` seconds at most until the thread has ended. Raises what a plugin raised at its end."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.error(
                "the thread of a SyncBus did not end within %g s (a plugin hangs?); it is left, and ends with the process",
                timeout,
            )
        elif self._failure is not None:
            raise self._failure

    def _soon(self, function: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: there is nothing left to do
            self._loop.call_soon_threadsafe(function, *args)

    # --- in the loop's thread ---

    async def _serve(self) -> None:
        if self._asked:  # before it began
            return
        self._main = asyncio.current_task()
        async with self.bus:
            self.started.set_result(None)
            await self._loop.create_future()  # until it is cancelled

    def _leave(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _begin_call(self, work: Callable[[], Awaitable[T]], answer: Future[T]) -> None:
        self._tasks[answer] = self._loop.create_task(self._work(work, answer))

    async def _work(self, work: Callable[[], Awaitable[T]], answer: Future[T]) -> None:
        try:
            answer.set_result(await work())
        except Exception as error:
            # The caller's thread is where it is raised.
            answer.set_exception(error)
        except (KeyboardInterrupt, SystemExit):
            self.over = True  # these end the loop, which must take nothing more from here on
            raise
        finally:
            self._tasks.pop(answer, None)
            if not answer.done():
                answer.set_exception(_gone())

    def _abandon(self, answer: Future[Any]) -> None:
        task = self._tasks.get(answer)
        if task is not None:
            task.cancel()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            run_to_the_end(self._serve(), lambda: self._loop)
        except asyncio.CancelledError:
            pass
        except BaseException as raised:
            # Nobody is above a thread: those who wait are told below.
            error = raised
        finally:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Let nobody wait for what will not come."""
        self.over = True
        if not self.started.done():
            self.started.set_exception(error or _closed_early())
        elif self._asked:
            self._failure = error
        else:
            log.error("the event loop of a SyncBus ended; the next publish begins another one", exc_info=error)
        for answer in list(self._calls):
            if not answer.done():
                answer.set_exception(_gone())


def _closed_early() -> BrokerUnavailableError:
    return BrokerUnavailableError("this SyncBus was closed before a broker was reached; nothing was sent")


def _gone() -> BrokerError:
    return BrokerError(
        f"it was cancelled, or the event loop of this SyncBus ended, before there was an answer: {_DONE_OR_NOT}"
    )
