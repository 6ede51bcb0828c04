"""A policy: tenacity's three strategies, looked at once at the start and asked after each failure.

tenacity asks a strategy with a `RetryCallState`. Ours is made from what the delivery says, since the process that
made the first attempt may be gone: its attempt's number, the time since the first failure, what was waited so far.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any, Final, cast

from tenacity import (
    AsyncRetrying,
    Future,
    RetryCallState,
    TryAgain,
    retry_base,
    retry_if_not_result,
    retry_if_result,
)
from tenacity.retry import RetryBaseT
from tenacity.stop import StopBaseT, stop_base
from tenacity.wait import WaitBaseT, wait_base

from rabbitevents import ConfigurationError, Delivery
from rabbitevents.arguments import kind_of
from rabbitevents.failures import RetryLater, members

LONGEST: Final = timedelta(days=30)
"""The longest time that an event can wait at the broker."""

MOST: Final = 100_000
"""Where the number of an attempt stops counting. The header is anybody's to forge, and an exponential strategy raises
its base to it: 2 ** (10 ** 18) would never come to an end."""

_EXAMPLES = {"stop": "stop_after_attempt(5)", "wait": "wait_fixed(5)", "retry": "retry_if_exception_type(OSError)"}
_KINDS: dict[str, type] = {"stop": stop_base, "wait": wait_base, "retry": retry_base}
_PARTS = ("stops", "strategies", "wait_funcs", "retries")
"""Where tenacity's compositions keep what they are made of."""


class Policy:
    """Which failures are tried again, after what wait, and when that ends. Raises `ConfigurationError`."""

    def __init__(self, stop: StopBaseT, wait: WaitBaseT, retry: RetryBaseT) -> None:
        for name, strategy in (("stop", stop), ("wait", wait), ("retry", retry)):
            _check(name, strategy)
        self.stop: StopBaseT = stop
        self.wait: WaitBaseT = wait
        self.retry: RetryBaseT = retry
        self._retrying = AsyncRetrying(stop=stop, wait=wait, retry=retry, name="Retry")

    def pause(self, error: BaseException, state: RetryCallState) -> float | None:
        """Return how many seconds to wait before the next attempt; None: there is none.

        Asked in tenacity's order: whether, how long, and with that in ``upcoming_sleep``, whether still. Raises what
        a strategy raises.
        """
        later = [each.after for each in members(error) if isinstance(each, RetryLater)]
        if not later and not isinstance(error, TryAgain) and not self.retry(state):
            return None
        state.upcoming_sleep = bounded(max(later) if later else self.wait(state))
        return None if self.stop(state) else state.upcoming_sleep

    def state(
        self, attempt: int, error: BaseException, *, elapsed: float, idle: float, delivery: Delivery | None
    ) -> RetryCallState:
        """Return what the strategies are asked with: ``error`` failed attempt number ``attempt``.

        ``elapsed`` is the time since the first failure, ``idle`` how much of it was waited, in seconds. The delivery
        is the call's one argument (``state.args[0]``).
        """
        state = RetryCallState(self._retrying, None, (delivery,) if delivery is not None else (), {})
        state.attempt_number = attempt
        state.start_time, state.outcome_timestamp = 0.0, elapsed
        state.idle_for = idle
        state.outcome = Future.construct(attempt, error, has_exception=True)
        return state


def bounded(wait: float) -> float:
    """Return a wait that there is: from 0 to `LONGEST`, in seconds. Raises `ConfigurationError` for NaN."""
    seconds = float(wait)
    if math.isnan(seconds):
        raise ConfigurationError("Retry(wait=...) says nan; a wait is a number of seconds")
    return min(max(0.0, seconds), LONGEST.total_seconds())


def _check(name: str, strategy: Any) -> None:
    """Raise `ConfigurationError` for what cannot be ``Retry(<name>=...)``."""
    example = _EXAMPLES[name]
    if not callable(strategy):
        raise ConfigurationError(
            f"Retry: {name} is {kind_of(strategy)}: it takes a strategy of tenacity's, such as {name}={example}"
        )
    if isinstance(strategy, type):
        raise ConfigurationError(
            f"Retry({name}={strategy.__name__}): it takes an instance and not the class, such as {name}={example}"
        )
    for part in _parts(strategy):
        _check_part(name, part)


def _check_part(name: str, part: Any) -> None:
    what = f"Retry({name}=...): {type(part).__name__}"
    other = next((n for n, kind in _KINDS.items() if n != name and isinstance(part, kind)), None)
    if other is not None:
        raise ConfigurationError(f"{what} is a strategy for {other}=, not for {name}=, such as {_EXAMPLES[name]}")
    if _is_async(part):
        raise ConfigurationError(
            f"{what} is async: a strategy decides at once, from what failed; ask the network in the handler"
        )
    if isinstance(part, (retry_if_result, retry_if_not_result)):
        raise ConfigurationError(
            f"{what} asks for a result, and there is none: what a handler returns is published; raise instead, such as RetryLater"
        )


def _parts(strategy: Any) -> Iterable[Any]:
    """Yield a strategy, and everything that it is composed of."""
    yield strategy
    for where in _PARTS:
        found = getattr(strategy, where, ())
        for part in cast("tuple[Any, ...]", found) if isinstance(found, (tuple, list)) else ():
            yield from _parts(part)


def _is_async(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
