"""Retrying, on the embedded broker: how often, after what wait, in which place, and what is never tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import (
    stop_after_attempt,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_none,
)

from rabbitevents import (
    Bus,
    Consume,
    Delivery,
    Fact,
    Host,
    Message,
    Plugin,
    Router,
    Settlement,
    event,
    facts,
    forward,
)
from rabbitevents.testing import EmbeddedBroker, Probe, running
from rabbitevents_retry import Retry, RetryLater


@event("payment.due")
@frozen
class PaymentDue:
    number: int


@event("payment.made")
@frozen
class PaymentMade:
    number: int


Fails = Callable[[Delivery], Coroutine[Any, Any, None]]


class Grave(Plugin):
    """Stands for dead letters: takes what is given up on to ``<queue>.dead``, and notes why."""

    role: ClassVar[str] = "dead-letter"

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        self.host = host
        yield

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        try:
            return await proceed(delivery)
        except Exception as error:
            if any(check.name == "bus" for check in self.host.health().problems):
                raise  # nothing is dead because a process stops
            self.errors.append(error)
            return forward(Message.copy_of(delivery, queue=f"{delivery.queue}.dead"), error=error)


class Witness(Plugin):
    """Keeps the facts of retries."""

    def __init__(self) -> None:
        self.retries: list[facts.Retried] = []

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, facts.Retried):
            self.retries.append(fact)


class Service:
    """A service with one handler, ``till.pay``, and all that is to be known about it."""

    def __init__(self, retry: Retry, fails: Fails, **options: Any) -> None:
        self.attempts: list[int] = []
        """What the handler was called for, as ``delivery.attempt`` said."""
        self.made: list[float] = []
        """When it was called, on the broker's clock."""
        self.grave, self.witness = Grave(), Witness()
        self.router = Router("till")
        self.broker = EmbeddedBroker()
        self.bus = Bus("memory://", self.router, plugins=[self.grave, retry, self.witness])

        @self.router.on(PaymentDue, **options)
        async def pay(payment: PaymentDue, delivery: Delivery) -> None:
            self.attempts.append(delivery.attempt)
            self.made.append(self.broker.clock.time())
            await fails(delivery)

    def running(self) -> AbstractAsyncContextManager[Probe]:
        return running(self.bus, broker=self.broker)

    @property
    def dead(self) -> int:
        there = self.broker.queues.get("till.pay.dead")
        return there.ready if there is not None else 0


async def always(delivery: Delivery) -> None:
    raise ConnectionError("the bank is closed")


def until(attempt: int) -> Fails:
    """Fail until the handler is called for the ``attempt``-th time."""
    calls = [0]

    async def fails(delivery: Delivery) -> None:
        calls[0] += 1
        if calls[0] < attempt:
            raise ConnectionError

    return fails


def raising(error: BaseException | type[BaseException]) -> Fails:
    async def fails(delivery: Delivery) -> None:
        raise error

    return fails


async def through(service: Service, advance: timedelta = timedelta(days=1)) -> Probe:
    """Publish one event and let a day pass."""
    async with service.running() as probe:
        await probe.bus.publish(PaymentDue(1))
        await probe.settled()
        await probe.advance(advance)
    return probe


MIXED = wait_chain(wait_fixed(0.001), wait_fixed(0.001), wait_fixed(30), wait_fixed(0.001), wait_fixed(3600))


# --- how often --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait", [wait_none(), wait_fixed(0.001), wait_fixed(600), MIXED], ids=["none", "inline", "broker", "mixed"]
)
@pytest.mark.parametrize("attempts", [1, 3, 8])
async def test_a_handler_that_always_fails_is_called_exactly_as_often_as_the_policy_says(
    attempts: int, wait: Any
) -> None:
    service = Service(Retry(stop=stop_after_attempt(attempts), wait=wait), always)

    await through(service)

    assert service.attempts == list(range(1, attempts + 1))
    assert service.dead == 1
    assert [str(error) for error in service.grave.errors] == ["the bank is closed"]


async def test_a_handler_that_comes_right_is_not_called_again() -> None:
    service = Service(Retry(wait=MIXED), until(4))

    await through(service)

    assert service.attempts == [1, 2, 3, 4]
    assert service.dead == 0


async def test_what_a_handler_returns_after_a_retry_is_published_once() -> None:
    router, attempts, made = Router("till"), list[int](), list[int]()

    @router.on(PaymentDue)
    async def pay(payment: PaymentDue, delivery: Delivery) -> PaymentMade:
        attempts.append(delivery.attempt)
        if len(attempts) < 4:
            raise ConnectionError
        return PaymentMade(payment.number)

    @router.on(PaymentMade)
    async def book(payment: PaymentMade) -> None:
        made.append(payment.number)

    async with running(Bus("memory://", router, plugins=[Retry(wait=MIXED)])) as probe:
        await probe.bus.publish(PaymentDue(7))
        await probe.advance(timedelta(hours=2))

    assert attempts == [1, 2, 3, 4]
    assert made == [7]


@settings(max_examples=25, deadline=None)
@given(
    attempts=st.integers(1, 8),
    waits=st.lists(st.sampled_from([0.0, 0.0005, 0.9, 1.0, 7.0, 4000.0]), min_size=1, max_size=8),
    inline_below=st.sampled_from([0.0, 0.0006, 5.0]),
)
def test_attempts_are_exact_and_no_wait_is_cut_short_whatever_is_mixed(
    attempts: int, waits: list[float], inline_below: float
) -> None:
    short = [wait if wait >= inline_below or wait < 0.001 else 0.001 for wait in waits]

    async def run() -> None:
        wait = wait_chain(*map(wait_fixed, short))
        service = Service(Retry(stop=stop_after_attempt(attempts), wait=wait, inline_below=inline_below), always)

        await through(service)

        asked = [short[min(n, len(short)) - 1] for n in range(1, attempts)]
        waited = [b - a for a, b in zip(service.made, service.made[1:], strict=False)]
        assert service.attempts == list(range(1, attempts + 1))
        assert all(was >= should for was, should in zip(waited, asked, strict=True))
        assert service.dead == 1

    asyncio.run(run())


async def test_a_schedule_of_days_runs_in_a_moment() -> None:
    wait = wait_exponential(multiplier=3600, exp_base=3)
    service = Service(Retry(stop=stop_after_attempt(6), wait=wait), always)
    started = time.monotonic()

    await through(service, timedelta(days=8))

    waited = [round((b - a) / 3600, 1) for a, b in zip(service.made, service.made[1:], strict=False)]
    assert all(hours <= was <= hours * 1.1 for was, hours in zip(waited, [1, 3, 9, 27, 81], strict=True)), waited
    assert time.monotonic() - started < 5


# --- in which place ---------------------------------------------------------------------------------------------------


async def test_a_short_wait_is_in_the_process_and_a_long_one_at_the_broker() -> None:
    wait = wait_chain(wait_fixed(0.001), wait_fixed(0.05), wait_fixed(0.002))
    service = Service(Retry(stop=stop_after_attempt(4), wait=wait, inline_below=0.05), always)

    probe = await through(service)

    waiting = [message for message in probe.messages if message.exchange.startswith("delay.")]
    assert [retry.inline for retry in service.witness.retries] == [True, False, True]
    assert [message.headers["attempt"] for message in waiting] == [3]


async def test_what_waits_at_the_broker_holds_no_worker_and_no_place_in_the_window() -> None:
    handled = list[int]()

    async def first_fails(delivery: Delivery) -> None:
        handled.append(int(delivery.body.decode().removeprefix('{"number":').removesuffix("}")))
        if handled[-1] < 5 and delivery.attempt == 1:
            raise ConnectionError

    service = Service(Retry(wait=wait_fixed(60)), first_fails, concurrency=1, prefetch=1)
    async with service.running() as probe:
        await probe.bus.publish_many([PaymentDue(n) for n in range(10)])
        await probe.settled()

        assert handled == list(range(10))
        assert probe.waiting("till.pay") == 0

        await probe.advance(timedelta(seconds=70))
        assert sorted(handled[10:]) == [0, 1, 2, 3, 4]


async def test_a_retry_returns_only_to_the_queue_whose_handler_failed() -> None:
    router, calls = Router("till"), list[str]()

    @router.on(PaymentDue)
    async def pay(payment: PaymentDue, delivery: Delivery) -> None:
        calls.append(f"pay {delivery.attempt}")
        if delivery.attempt < 4:
            raise ConnectionError

    @router.on(PaymentDue)
    async def print_bill(payment: PaymentDue, delivery: Delivery) -> None:
        calls.append(f"print {delivery.attempt}")

    async with running(Bus("memory://", router, plugins=[Retry(wait=MIXED)])) as probe:
        await probe.bus.publish(PaymentDue(1))
        await probe.advance(timedelta(hours=2))

    assert sorted(calls) == ["pay 1", "pay 2", "pay 3", "pay 4", "print 1"]


async def test_a_handlers_own_retry_stands_in_for_the_buss() -> None:
    router, calls = Router("till"), list[str]()

    @router.on(PaymentDue)
    async def pay(payment: PaymentDue) -> None:
        calls.append("pay")
        raise ConnectionError

    @router.on(PaymentDue, plugins=[Retry(stop=stop_after_attempt(7), wait=wait_none())])
    async def print_bill(payment: PaymentDue) -> None:
        calls.append("print")
        raise ConnectionError

    bus = Bus("memory://", router, plugins=[Grave(), Retry(stop=stop_after_attempt(2), wait=wait_none())])
    async with running(bus) as probe:
        await probe.bus.publish(PaymentDue(1))
        await probe.settled()

    assert (calls.count("pay"), calls.count("print")) == (2, 7)


async def test_what_stays_in_the_process_for_half_the_consumer_timeout_goes_to_the_broker() -> None:
    async def later(delivery: Delivery) -> None:
        raise RetryLater(0.02)

    retry = Retry(stop=stop_after_attempt(8), wait=wait_fixed(3), inline_below=0.5)
    service = Service(retry, later)
    service.bus = service.bus.sibling("memory://", consumer_timeout=timedelta(seconds=0.1))

    await through(service)

    places = [fact.inline for fact in service.witness.retries]
    assert service.attempts == list(range(1, 9))
    assert places[0] is True
    assert False in places
