"""Retry as users write it: tenacity's strategies, functions that could be strategies, and what only has to type-check."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    wait_chain,
    wait_exponential_jitter,
    wait_fixed,
    wait_random,
)

from rabbitevents import Bus, Plugin, Router
from rabbitevents_retry import Fatal, Retry, RetryLater, Step, Timetable

router = Router("typing")


def by_type(state: RetryCallState) -> float:
    return 60.0 if state.args[0].type == "order.placed" else 5


def in_the_evening(state: RetryCallState) -> bool:
    return state.attempt_number > 3


Retry()
Retry(stop=stop_after_attempt(3) | stop_after_delay(timedelta(hours=1)), wait=wait_exponential_jitter(max=60))
Retry(wait=wait_fixed(5) + wait_random(0, 1), retry=retry_if_exception_type((OSError, TimeoutError)))
Retry(retry=retry_if_exception_type(OSError) | retry_if_not_exception_type(ValueError), inline_below=0)
Retry(stop=in_the_evening, wait=by_type, retry=in_the_evening, inline_below=timedelta(seconds=2))
Retry(stop=stop_any(stop_after_attempt(3)), wait=wait_chain(wait_fixed(1), wait_fixed(timedelta(minutes=1))))

Retry(stop=3)  # type: ignore[arg-type]
Retry(wait=5.0)  # type: ignore[arg-type]
Retry(stop_after_attempt(3))  # type: ignore[arg-type]

table = Retry().timetable()
assert_type(table, Timetable)
assert_type(table.attempts, "int | None")
for step in table.steps:
    assert_type(step, Step)
    if step.wait is not None:
        assert_type(step.wait.longest, float)

plugin: Plugin = Retry()
Bus("memory://", router, plugins=[plugin])


@router.on("order.placed", plugins=[Retry(stop=stop_after_attempt(2))])
async def handle() -> None:
    try:
        raise OSError
    except TimeoutError as error:
        raise RetryLater(timedelta(minutes=5)) from error
    except ConnectionError as error:
        raise RetryLater(30, "the bank is closed") from error
    except OSError as error:
        raise Fatal("no such order") from error
