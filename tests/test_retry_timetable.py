"""The timetable of a policy, and the policies that are refused."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest
import tenacity.asyncio.retry
from hypothesis import given
from hypothesis import strategies as st
from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    stop_never,
    wait_chain,
    wait_combine,
    wait_exception,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from rabbitevents import Bus, ConfigurationError, Event, Plugin, Router
from rabbitevents.publishing import delay as core
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents.topology import DELAY_DUE
from rabbitevents_retry import Retry, on, otherwise
from rabbitevents_retry.policy import LONGEST, Policy
from rabbitevents_retry.rules import RETRY, STOP, WAIT
from rabbitevents_retry.timetable import span, tier
from tests.test_retry import PaymentDue, Service, always, through


class Outside(Plugin):
    """Stands where dead letters stand."""

    role = "dead-letter"


async def pay(payment: PaymentDue) -> None: ...


def bus(retry: Retry, *, timeout: float | None = None, own: Retry | None = None, **settings: Any) -> Bus:
    router = Router("till")
    router.on(PaymentDue, timeout=timeout, plugins=[own] if own is not None else [])(pay)
    return Bus("memory://", router, plugins=[retry], **settings)


# --- the timetable ---------------------------------------------------------------------------------------------------


def test_the_default_timetable() -> None:
    assert (
        str(Retry().timetable())
        == """\
attempt  then waits                where
1        0.5 s to 0.75 s           in the process
2        4 s to 6 s                at the broker (delay.4000 to delay.6050)
3        32 s to 48 s              at the broker (delay.33621 to delay.49223)
4        4 min 16 s to 6 min 24 s  at the broker (delay.273650 to delay.400649)
5                                  given up after 5 min 12 s to 7 min 37 s"""
    )


def test_a_timetable_says_what_it_found_by_asking_and_what_only_a_failure_knows() -> None:
    def dice(state: RetryCallState) -> float:
        return random.choice([0.5, 2.0])

    asked = Retry(stop=stop_after_attempt(2), wait=dice).timetable()
    unknown = Retry(stop=stop_after_attempt(2), wait=wait_exception(lambda error: 1 / 0)).timetable()

    assert (
        str(asked)
        == """\
attempt  then waits      where
1        ~ 0.5 s to 2 s  in the process, or at the broker (up to delay.2000)
2                        given up after 0.5 s to 2 s
~ found by asking 100 times"""
    )
    assert (
        str(unknown)
        == """\
attempt  then waits  where
1        ?           as the failure says
2                    given up"""
    )


def test_a_timetable_that_time_ends_says_so() -> None:
    table = Retry(stop=stop_after_delay(100), wait=wait_fixed(30)).timetable()

    assert (table.attempts, table.timed) == (5, True)
    assert str(table).endswith("time ends it: the longer handlers take, the fewer attempts there are")


def test_a_timetable_without_end_shows_its_beginning() -> None:
    table = Retry(stop=stop_never, wait=wait_fixed(60)).timetable()

    assert (table.attempts, len(table.steps)) == (None, 100)
    assert str(table).endswith("and so on")


def test_one_attempt_needs_no_wait() -> None:
    assert str(Retry(stop=stop_after_attempt(1)).timetable()).splitlines()[1:] == ["1                    given up"]


async def test_the_timetable_is_what_happens() -> None:
    retry = Retry(stop=stop_after_attempt(6), wait=wait_exponential_jitter(multiplier=0.001, exp_base=30, jitter=0.001))
    service = Service(retry, always)

    await through(service, timedelta(days=5))

    table = retry.timetable()
    waited = [b - a for a, b in zip(service.made, service.made[1:], strict=False)]
    assert table.attempts == len(service.attempts) == 6
    assert [step.place == "process" for step in table.steps] == [fact.inline for fact in service.witness.retries]
    for step, fact, was in zip(table.steps, service.witness.retries, waited, strict=True):
        assert step.wait is not None
        assert step.wait.shortest <= fact.after <= step.wait.longest
        assert step.takes.shortest - 0.001 <= was <= step.takes.longest + 0.2


@given(st.floats(0, LONGEST.total_seconds()))
def test_the_waiting_queues_are_those_of_the_core(wait: float) -> None:
    after = timedelta(seconds=wait)

    assert LONGEST == core.LONGEST
    assert round(tier(wait) * 1000) == (core.tier(after) if after else 0)


WAITS = [
    wait_random(3, 9),
    wait_random_exponential(multiplier=2, max=100, min=1),
    wait_exponential_jitter(multiplier=2, max=50, jitter=3),
    wait_exponential_jitter(multiplier=2, max=50, jitter=3, min=7),
    wait_chain(wait_fixed(1), wait_random(3, 5)),
    wait_combine(wait_fixed(5), wait_random(0, 5), wait_exponential(max=60)),
    wait_incrementing(5, 20, 60),
]


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: type(wait).__name__)
@pytest.mark.parametrize("attempt", [1, 2, 7, 5000])
def test_a_span_holds_whatever_a_strategy_of_tenacitys_says_and_is_no_wider_than_it_must_be(
    wait: Any, attempt: int
) -> None:
    policy = Policy(stop_never, wait, retry_if_exception_type())
    state = policy.state(attempt, ValueError(), elapsed=0, idle=0, delivery=None)

    there = span(wait, state)
    said = [wait(state) for _ in range(2000)]

    assert there is not None
    assert not there.sampled
    assert there.shortest <= min(said)
    assert max(said) <= there.longest
    assert there.longest - there.shortest <= (max(said) - min(said)) * 1.2 + 3


# --- what is refused -------------------------------------------------------------------------------------------------


async def async_predicate(error: BaseException) -> bool:
    return True


class AsyncStop(stop_base):
    __call__: Any = async_predicate


async def async_wait(state: RetryCallState) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"stop": 3}, "Retry: stop is an int: it takes a strategy of tenacity's, such as stop=stop_after_attempt(5)"),
        ({"wait": timedelta(seconds=3)}, "such as wait=wait_fixed(5)"),
        ({"retry": None}, "such as retry=retry_if_exception_type(OSError)"),
        ({"stop": stop_after_attempt}, "Retry(stop=stop_after_attempt): it takes an instance and not the class"),
        ({"retry": ConnectionError}, "Retry(retry=ConnectionError): it takes an instance and not the class"),
        ({"wait": stop_after_attempt(3)}, "stop_after_attempt is a strategy for stop=, not for wait="),
        ({"retry": stop_any(stop_never)}, "stop_any is a strategy for stop=, not for retry="),
        ({"stop": AsyncStop()}, "Retry(stop=...): AsyncStop is async"),
        ({"wait": async_wait}, "is async: a strategy decides at once"),
        ({"stop": stop_any(stop_after_attempt(3), stop_any(AsyncStop()))}, "AsyncStop is async"),
        ({"retry": tenacity.asyncio.retry.retry_if_exception(async_predicate)}, "is async"),
        (
            {"retry": retry_if_exception_type() | tenacity.asyncio.retry.retry_if_exception(async_predicate)},
            "is async",
        ),
        ({"retry": retry_if_result(bool)}, "retry_if_result asks for a result, and there is none"),
        ({"retry": retry_if_exception_type() | retry_if_result(bool)}, "retry_if_result asks for a result"),
        ({"inline_below": -1}, "Retry: inline_below=-1: say seconds, 0 or more"),
        ({"inline_below": float("nan")}, "inline_below=nan: say seconds, 0 or more"),
    ],
)
def test_what_is_no_policy_is_refused_when_it_is_written(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Retry(**wrong)

    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "wait", [wait_fixed(timedelta(days=31)), wait_exponential(multiplier=60), wait_random_exponential(multiplier=90)]
)
async def test_waits_of_more_than_thirty_days_are_refused_at_start(wait: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"subscription 'till.pay': Retry would wait .* at most 30 days"):
        await bus(Retry(stop=stop_after_attempt(40), wait=wait)).start()


@pytest.mark.parametrize(
    ("retry", "settings", "words"),
    [
        (Retry(stop=stop_after_attempt(10_000), wait=wait_fixed(0.9)), {}, "attempts 1 to 2001, up to 30 min"),
        (
            Retry(stop=stop_after_attempt(3), wait=wait_fixed(900), inline_below=1000),
            {},
            "attempts 1 to 3, up to 30 min",
        ),
        (
            Retry(stop=stop_after_attempt(3), wait=wait_fixed(0.5)),
            {"timeout": 20.0, "consumer_timeout": timedelta(minutes=1)},
            "attempts 1 to 3, up to 1 min 1 s with its waits and the handler's timeout=, and the broker takes a delivery away "
            "after 1 min",
        ),
        (
            Retry(stop=stop_after_attempt(9), wait=wait_chain(wait_fixed(50), *[wait_fixed(0.9)] * 7)),
            {"consumer_timeout": timedelta(seconds=6)},
            "attempts 2 to 9",
        ),
        (Retry(stop=stop_never, wait=wait_none()), {}, "all attempts from 1 on, without end"),
        (
            Retry(stop=stop_never, wait=wait_chain(wait_fixed(9), wait_fixed(0.1))),
            {},
            "all attempts from 2 on, without end",
        ),
    ],
)
async def test_a_policy_that_the_consumer_timeout_would_cut_short_is_refused_at_start(
    retry: Retry, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await bus(retry, **settings).start()

    assert "subscription 'till.pay': with this policy an event stays in the process for" in str(refused.value)
    assert words in str(refused.value)
    assert "lower inline_below=" in str(refused.value)


@pytest.mark.parametrize(
    ("retry", "settings"),
    [
        (Retry(), {}),
        (Retry(), {"timeout": 600.0}),
        (Retry(stop=stop_never, wait=wait_fixed(1)), {}),
        (Retry(stop=stop_after_delay(60), wait=wait_none()), {}),
        (Retry(stop=stop_after_attempt(5000), wait=wait_none()), {}),
        (Retry(stop=stop_after_attempt(10_000), wait=wait_fixed(0.9), inline_below=0.9), {}),
        (
            Retry(stop=stop_after_attempt(9), wait=wait_chain(*[wait_fixed(0.9), wait_fixed(2)] * 4)),
            {"consumer_timeout": timedelta(seconds=2)},
        ),
        (Retry(stop=stop_after_attempt(2), wait=wait_fixed(timedelta(days=30))), {}),
    ],
)
async def test_a_policy_that_can_work_is_not_refused(retry: Retry, settings: dict[str, Any]) -> None:
    async with running(bus(retry, **settings)) as probe:
        assert probe.bus.health().ok


async def test_each_subscription_is_held_to_its_own_policy() -> None:
    endless = Retry(stop=stop_never, wait=wait_none())

    async with running(bus(endless, own=Retry())) as probe:  # the bus's stands nowhere
        assert probe.bus.health().ok
    with pytest.raises(ConfigurationError, match="without end"):
        async with running(bus(Retry(), own=endless)):
            pass


def test_retry_stands_inside_of_dead_letters() -> None:
    with pytest.raises(ConfigurationError, match=r"write plugins=\[Outside\(\), Retry\(\)\]"):
        Bus("memory://", plugins=[Retry(), Outside()])


def _of_the_failure(error: BaseException) -> float:
    assert isinstance(error, OSError)  # which it is not in a timetable
    return 60


def test_each_wait_at_the_broker_has_a_queue_that_is_known_beforehand() -> None:
    policy = Policy(STOP, WAIT, RETRY)
    error = OSError()

    known = waiting(Retry()).waits
    asked = [
        policy.wait(policy.state(attempt, error, elapsed=0, idle=0, delivery=None))
        for attempt in (1, 2, 3, 4)
        for _ in range(200)
    ]

    assert known[0] == 4000
    assert known[-1] == 400_649
    assert {core.tier(timedelta(seconds=wait)) for wait in asked if wait >= 1} <= set(known)


@pytest.mark.parametrize(
    ("retry", "known"),
    [
        (Retry(wait=wait_fixed(0.9)), ()),
        (Retry(wait=wait_fixed(0.9), inline_below=0), (1000,)),
        (Retry(wait=wait_random(0.1, 2)), (1000, 1500, 2000)),  # what is below a second waits in the process
        (Retry(on(OSError).retry(wait=wait_fixed(60)), otherwise.dead_letter()), (65_514,)),
        (Retry(otherwise.dead_letter()), ()),
        (Retry(wait=wait_exception(_of_the_failure)), ()),
    ],
)
def test_of_waits_in_the_process_and_of_those_that_only_a_failure_says_no_queue_is_known(
    retry: Retry, known: tuple[int, ...]
) -> None:
    assert waiting(retry).waits == known


def waiting(retry: Retry) -> Bus:
    """A bus with one handler, whose events are tried again so."""
    router = Router("shop")
    router.on("order.placed", name="record")(_nothing)
    return Bus("memory://", router, plugins=[retry])


async def _nothing(event: Event) -> None: ...


async def test_where_a_bus_only_looks_and_a_queue_to_wait_in_is_missing_it_does_not_start() -> None:
    broker, plugins = EmbeddedBroker(), [Retry(wait=wait_fixed(3))]
    router = Router("shop")
    router.on("order.placed", name="record")(_nothing)
    async with Bus(broker.client(), router, plugins=plugins):
        pass

    with pytest.raises(ConfigurationError, match=r"wait in do not exist: delay\.3000; this bus makes none"):
        async with Bus(broker.client(), router, plugins=plugins, declare="passive"):
            pass
    broker.declare_all(core.waiting_room("delay.3000", DELAY_DUE, 3000).items, passive=False)
    async with Bus(broker.client(), router, plugins=plugins, declare="passive") as bus:
        assert bus.health().ok


async def test_a_bus_that_neither_looks_nor_declares_is_asked_for_no_queue_to_wait_in() -> None:
    broker, plugins = EmbeddedBroker(), [Retry(wait=wait_fixed(3))]
    router = Router("shop")
    router.on("order.placed", name="record")(_nothing)
    async with Bus(broker.client(), router, plugins=plugins):
        pass

    async with Bus(broker.client(), router, plugins=plugins, declare="none") as bus:
        assert bus.health().ok


def test_a_timetable_needs_no_event_loop() -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert Retry().timetable().attempts == 5
