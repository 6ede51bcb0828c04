"""A coroutine in a context of its own, without a task of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from types import coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")


@coroutine
def isolated(work: Coroutine[Any, Any, T], waits: Callable[[], None]) -> Generator[Any, Any, T]:
    """Await ``work`` in a copy of the context: what it sets there is gone when it ends. 0.5 us, where a task costs 10.

    The task stays the caller's, so timeouts and task groups inside work as they do anywhere. ``waits`` is called when
    ``work`` waits for the first time, and not at all if it never does.
    """
    run = copy_context().run
    try:
        awaited = run(work.send, None)
    except StopIteration as ended:
        return cast("T", ended.value)
    waits()
    while True:
        try:
            sent = yield awaited
        except GeneratorExit:
            run(work.close)
            raise
        except BaseException as error:
            # Whatever is thrown into the task (its cancellation) is the coroutine's own business.
            step = partial(work.throw, error)
        else:
            step = partial(work.send, sent)
        try:
            awaited = run(step)
        except StopIteration as ended:
            return cast("T", ended.value)
