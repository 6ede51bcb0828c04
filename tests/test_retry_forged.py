"""Headers that anybody can forge: an event that brings them harms nobody but itself."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from tenacity import (
    stop_after_attempt,
    stop_after_delay,
    stop_never,
    wait_exponential_jitter,
    wait_fixed,
)

from rabbitevents import Delivery, Message, Settlement
from rabbitevents.properties import HeaderValue, Properties
from rabbitevents.testing import Probe
from rabbitevents_retry import Retry
from tests.test_retry import Service, always


async def forged(service: Service, headers: dict[str, HeaderValue], advance: timedelta = timedelta(days=1)) -> Probe:
    properties = Properties(type="payment.due", message_id="m-1", content_type="application/json", headers=headers)
    async with service.running() as probe:
        await probe.bus.send(Message(exchange="", routing_key="till.pay", body=b'{"number":1}', properties=properties))
        await probe.settled()
        await probe.advance(advance)
    return probe


@pytest.mark.parametrize("attempt", [0, -5, -(2**63), "8", "", None, 1.5, b"x", [1], {"a": 1}])
async def test_a_forged_attempt_that_is_none_counts_as_the_first(attempt: HeaderValue) -> None:
    service = Service(Retry(stop=stop_after_attempt(3), wait=wait_fixed(30)), always)

    await forged(service, {"attempt": attempt, "x-death": [{"count": 999, "reason": "expired"}]})

    assert service.attempts[1:] == [2, 3]
    assert service.dead == 1


@pytest.mark.parametrize("attempt", [2**63 - 1, 10**9])
@pytest.mark.parametrize("stop", [stop_after_attempt(3), stop_after_delay(100)], ids=["attempts", "time"])
async def test_a_forged_attempt_of_any_size_ends_the_event_alone_and_at_once(attempt: int, stop: Any) -> None:
    wait = wait_exponential_jitter(max=3600)
    service = Service(Retry(stop=stop, wait=wait), always)
    started = time.monotonic()

    await forged(service, {"attempt": attempt})

    assert len(service.attempts) <= 2
    assert service.dead == 1
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("since", [0, -1, 2**62, "yesterday", 4_102_444_800_000, None, True])
async def test_a_forged_time_of_the_first_failure_does_no_harm(since: HeaderValue) -> None:
    service = Service(Retry(stop=stop_after_delay(100), wait=wait_fixed(30)), always)

    await forged(service, {"attempt": 2, "retry-since": since, "retry-waited": since})

    assert 1 <= len(service.attempts) <= 5
    assert service.dead == 1


@pytest.mark.parametrize("header", ["retry-since", "retry-waited"])
@pytest.mark.parametrize("garbage", [0, -1, 2**53, 2**62, -(2**63), "yesterday", "", b"x", None, 1.5, [1], {"a": 1}])
async def test_a_time_that_cannot_be_is_as_good_as_none(header: str, garbage: HeaderValue) -> None:
    policy = Retry(stop=stop_after_delay(100), wait=wait_fixed(30))
    told, untold = Service(policy, always), Service(policy, always)

    await forged(told, {"attempt": 2, header: garbage})
    await forged(untold, {"attempt": 2})

    assert told.attempts == untold.attempts == [2, 3, 4, 5, 6]


async def test_a_first_attempt_has_no_past() -> None:
    service = Service(Retry(stop=stop_after_delay(100), wait=wait_fixed(30)), always)

    await forged(service, {"attempt": 1, "retry-since": 1, "retry-waited": 10**12})  # as a replay leaves them

    assert service.attempts == [1, 2, 3, 4, 5]


async def test_a_limit_of_time_reaches_back_to_the_first_failure() -> None:
    since = round((time.time() - 90) * 1000)
    service = Service(Retry(stop=stop_after_delay(80), wait=wait_fixed(30)), always)

    await forged(service, {"attempt": 2, "retry-since": since})

    assert service.attempts == [2]


async def test_a_policy_without_end_counts_no_further_than_it_can() -> None:
    service = Service(Retry(stop=stop_never, wait=wait_fixed(3600)), always)

    await forged(service, {"attempt": 2**63 - 1}, timedelta(hours=5))

    assert service.dead == 0
    assert service.attempts[1:] == [100_000] * 4


async def test_an_attempt_that_no_frame_can_carry_does_no_harm_either() -> None:
    async def fails(delivery: Delivery) -> Settlement:
        raise ConnectionError

    properties = Properties(type="payment.due", message_id="m-1", headers={"attempt": 10**30})
    delivery = Delivery("till.pay", 1, 1, False, "", "", b"", properties)

    with pytest.raises(ConnectionError):
        await Retry().consume(fails, delivery)
    settlement = await Retry(stop=stop_never, wait=wait_exponential_jitter(max=60)).consume(fails, delivery)

    assert settlement.message is not None
    assert settlement.message.headers["attempt"] == 100_000


async def test_forged_times_that_no_sum_can_carry_on_do_not_get_an_event_stuck() -> None:
    service = Service(Retry(stop=stop_after_attempt(4), wait=wait_fixed(30)), always)

    await forged(service, {"attempt": 2, "retry-since": 2**63 - 1, "retry-waited": 2**63 - 1})

    assert service.attempts == [2, 3, 4]
    assert service.dead == 1


async def test_a_first_failure_in_the_future_was_just_now() -> None:
    service = Service(Retry(stop=stop_after_attempt(3), wait=wait_fixed(30)), always)

    probe = await forged(service, {"attempt": 2, "retry-since": 4_102_444_800_000})

    [copy] = [message for message in probe.messages if message.exchange.startswith("delay.")]
    since = copy.headers["retry-since"]
    assert isinstance(since, int)
    assert since <= time.time() * 1000
