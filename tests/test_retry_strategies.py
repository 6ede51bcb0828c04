"""tenacity's strategies, asked about deliveries: what they are told, and what is done with what they say."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from tenacity import (
    RetryCallState,
    TryAgain,
    retry_any,
    retry_if_exception_cause_type,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    stop_before_delay,
    wait_chain,
    wait_exception,
    wait_exponential_jitter,
    wait_fixed,
    wait_none,
    wait_random,
)

from rabbitevents import (
    Delivery,
)
from rabbitevents.publishing.delay import LONGEST
from rabbitevents_retry import Retry, RetryLater
from tests.test_retry import PaymentDue, Service, always, raising, through


def is_a_payment(state: RetryCallState) -> bool:
    delivery: Delivery = state.args[0]
    return delivery.type == "payment.due"


def never(state: RetryCallState) -> bool:
    return state.attempt_number > 5


def fifty_more(state: RetryCallState) -> float:
    return state.attempt_number * 50


def waited_a_minute(state: RetryCallState) -> bool:
    return state.idle_for >= 60


@pytest.mark.parametrize(
    ("retry", "error", "attempts"),
    [
        (retry_if_exception_type(ConnectionError), ConnectionError(), 3),
        (retry_if_exception_type(ConnectionError), ValueError(), 1),
        (retry_if_not_exception_type(ValueError), ValueError(), 1),
        (retry_if_exception_message("busy"), OSError("busy"), 3),
        (retry_if_exception_message(match="bus.*"), OSError("lost"), 1),
        (retry_if_exception_cause_type(OSError), "caused", 3),
        (retry_if_exception_type(OSError) | retry_if_exception_type(KeyError), KeyError(), 3),
        (retry_if_exception_type(OSError) & retry_if_exception_message("busy"), OSError("lost"), 1),
        (retry_any(retry_if_exception_type(OSError), never), ValueError(), 1),
        (is_a_payment, ValueError(), 3),
        (retry_if_exception_type(OSError), TryAgain(), 3),
    ],
)
async def test_retry_says_which_failures_are_tried_again(retry: Any, error: Any, attempts: int) -> None:
    async def fails(delivery: Delivery) -> None:
        if error == "caused":
            raise ValueError from OSError("the cause")
        raise error

    service = Service(Retry(stop=stop_after_attempt(3), wait=wait_none(), retry=retry), fails)

    await through(service)

    assert len(service.attempts) == attempts
    assert service.dead == 1


@pytest.mark.parametrize(
    ("wait", "low", "high"),
    [
        (wait_exponential_jitter(multiplier=10, jitter=5), [10, 20, 40], [15, 25, 45]),
        (wait_fixed(20) + wait_random(0, 10), [20, 20, 20], [30, 30, 30]),
        (wait_chain(wait_fixed(100), wait_fixed(7), wait_fixed(1)), [100, 7, 1], [100, 7, 1]),
        (wait_exception(lambda error: 300 if "closed" in str(error) else 0), [300] * 3, [300] * 3),
        (fifty_more, [50, 100, 150], [50, 100, 150]),
    ],
)
async def test_wait_says_how_long_and_is_never_cut_short(wait: Any, low: list[float], high: list[float]) -> None:
    service = Service(Retry(stop=stop_after_attempt(4), wait=wait), always)

    await through(service)

    asked = [fact.after for fact in service.witness.retries]
    waited = [b - a for a, b in zip(service.made, service.made[1:], strict=False)]
    assert all(a <= b <= c for a, b, c in zip(low, asked, high, strict=True)), asked
    assert all(was >= should for was, should in zip(waited, asked, strict=True)), (waited, asked)


@pytest.mark.parametrize(
    ("stop", "attempts"),
    [
        (stop_after_delay(100), 5),  # at 0, 30, 60, 90 and 120 s
        (stop_before_delay(100), 4),  # a fifth would be at 120 s
        (stop_any(stop_after_attempt(3), stop_after_delay(1000)), 3),
        (stop_after_attempt(3) & stop_after_delay(100), 5),
        (stop_after_attempt(9) | stop_after_delay(timedelta(minutes=2)), 5),
        (waited_a_minute, 3),
    ],
)
async def test_stop_says_when_to_give_up_and_time_counts_across_waits_at_the_broker(stop: Any, attempts: int) -> None:
    service = Service(Retry(stop=stop, wait=wait_fixed(30)), always)

    await through(service)

    assert len(service.attempts) == attempts
    assert service.dead == 1


async def test_a_time_limit_holds_in_the_process_too() -> None:
    service = Service(Retry(stop=stop_after_delay(0.05), wait=wait_fixed(0.01)), always)

    await through(service)

    assert 2 <= len(service.attempts) <= 7
    assert service.dead == 1


async def test_a_strategy_learns_what_tenacity_tells_it() -> None:
    seen = list[RetryCallState]()

    def stop(state: RetryCallState) -> bool:
        seen.append(state)
        return state.attempt_number >= 3

    service = Service(Retry(stop=stop, wait=wait_chain(wait_fixed(0.002), wait_fixed(40))), always)
    async with service.running() as probe:
        seen.clear()  # what was asked at start
        await probe.bus.publish(PaymentDue(1))
        await probe.advance(timedelta(minutes=2))

    assert [state.attempt_number for state in seen] == [1, 2, 3]
    assert [round(state.upcoming_sleep, 3) for state in seen] == [0.002, 40, 40]
    assert [round(state.idle_for, 3) for state in seen] == [0, 0.002, 40.002]
    assert [int(state.seconds_since_start or 0) for state in seen] == [0, 0, 40]
    assert {str(state.outcome.exception()) for state in seen if state.outcome} == {"the bank is closed"}
    assert {state.args[0].queue for state in seen} == {"till.pay"}
    assert seen[0].get_fn_name() == "Retry"


@pytest.mark.parametrize("place", ["stop", "wait", "retry"])
async def test_the_handlers_exception_is_not_lost_when_a_strategy_raises(place: str) -> None:
    def broken(state: RetryCallState) -> Any:
        return 1 / 0 if state.args else 0

    strategies: dict[str, Any] = {place: broken}
    service = Service(Retry(**strategies), always)

    await through(service)

    [error] = service.grave.errors
    assert isinstance(error, ZeroDivisionError)
    assert str(error.__context__) == "the bank is closed"
    assert service.attempts == [1]
    assert service.dead == 1


async def test_a_wait_that_is_no_number_says_so() -> None:
    service = Service(Retry(wait=lambda s: float("nan") if s.args else 1), always)

    await through(service)

    assert [str(error) for error in service.grave.errors] == ["Retry(wait=...) says nan; a wait is a number of seconds"]


@pytest.mark.parametrize("after", [10**9, float("inf"), timedelta(days=400)])
async def test_a_wait_beyond_the_longest_is_the_longest(after: Any) -> None:
    service = Service(Retry(stop=stop_after_attempt(2)), raising(RetryLater(after)))

    await through(service, timedelta(days=40))

    assert [fact.after for fact in service.witness.retries] == [LONGEST.total_seconds()]
    assert service.attempts == [1, 2]


async def test_a_negative_wait_is_none() -> None:
    service = Service(Retry(stop=stop_after_attempt(2), wait=lambda s: -5.0), always)

    await through(service)

    assert [fact.after for fact in service.witness.retries] == [0]


async def test_the_time_of_the_first_failure_travels_with_the_event() -> None:
    service = Service(Retry(stop=stop_after_attempt(4), wait=wait_chain(wait_fixed(0.01), wait_fixed(30))), always)
    before = time.time()

    probe = await through(service)

    copies = [message.headers for message in probe.messages if message.exchange.startswith("delay.")]
    since = copies[0]["retry-since"]
    assert isinstance(since, int)
    assert before - 0.001 <= since / 1000 <= time.time()
    assert [headers["retry-since"] for headers in copies] == [since, since]
    assert [headers["retry-waited"] for headers in copies] == [30_010, 60_010]
