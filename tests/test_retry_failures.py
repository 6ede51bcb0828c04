"""What is a failure that is tried again, what is not, and a handler that knows better."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tenacity import (
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_fixed,
    wait_none,
)

from rabbitevents import (
    REJECT,
    Bus,
    Consume,
    Delivery,
    Limits,
    Message,
    Plugin,
    Router,
    Settlement,
    forward,
)
from rabbitevents.properties import Properties
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents.testing.bench import eventually
from rabbitevents_retry import Fatal, Retry, RetryLater
from tests.test_retry import MIXED, Grave, PaymentDue, PaymentMade, Service, always, raising, through, until

# --- handlers that know better ----------------------------------------------------------------------------------------


async def test_fatal_is_never_tried_again() -> None:
    async def fails(delivery: Delivery) -> None:
        try:
            raise KeyError("c-9")
        except KeyError as error:
            raise Fatal("there is no such customer") from error

    service = Service(Retry(), fails)

    await through(service)

    [error] = service.grave.errors
    assert service.attempts == [1]
    assert isinstance(error, Fatal)
    assert isinstance(error.__cause__, KeyError)


async def test_fatal_in_a_task_group_is_fatal() -> None:
    async def fails(delivery: Delivery) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(raising(Fatal("no such customer"))(delivery))

    service = Service(Retry(), fails)

    await through(service)

    assert service.attempts == [1]
    assert service.dead == 1


@pytest.mark.parametrize("after", [timedelta(minutes=7), 420, 420.0])
async def test_retry_later_says_when(after: Any) -> None:
    service = Service(Retry(stop=stop_after_attempt(3), wait=wait_fixed(1)), raising(RetryLater(after)))

    await through(service)

    waited = [b - a for a, b in zip(service.made, service.made[1:], strict=False)]
    assert service.attempts == [1, 2, 3]  # an attempt like another
    assert all(420 <= seconds <= 470 for seconds in waited)
    assert [type(error) for error in service.grave.errors] == [RetryLater]


async def test_retry_later_stands_in_for_retry_and_obeys_stop() -> None:
    retry = Retry(stop=stop_before_delay(60), wait=wait_fixed(1), retry=retry_if_exception_type(OSError))
    service = Service(retry, raising(RetryLater(25)))

    await through(service)

    assert service.attempts == [1, 2, 3]


async def test_the_longest_of_several_retry_laters_holds() -> None:
    async def fails(delivery: Delivery) -> None:
        raise ExceptionGroup("both", [RetryLater(5), ExceptionGroup("inner", [RetryLater(50)]), OSError()])

    service = Service(Retry(stop=stop_after_attempt(2)), fails)

    await through(service)

    assert [fact.after for fact in service.witness.retries] == [50]


def test_retry_later_takes_a_time_that_is_past_for_now_and_refuses_nan() -> None:
    assert RetryLater(-3).after == 0
    assert RetryLater(timedelta(seconds=-3)).after == 0
    assert str(RetryLater(3)) == "in 3 s"
    with pytest.raises(ValueError, match="nan"):
        RetryLater(float("nan"))


# --- what is a failure, and what is not -------------------------------------------------------------------------------


async def test_what_cannot_be_decoded_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(Retry(retry=retry_if_exception_type(Exception)), always)
    async with service.running() as probe:
        await probe.bus.send(
            Message(
                exchange="",
                routing_key="till.pay",
                body=b'{"number":"none"}',
                properties=Properties(type="payment.due", message_id="m-1", content_type="application/json"),
            )
        )
        await probe.settled()

    assert service.attempts == []
    assert service.witness.retries == []
    assert service.dead == 1


async def test_a_handler_that_returns_no_event_is_not_called_again() -> None:
    router, grave, calls = Router("till"), Grave(), list[int]()

    @router.on(PaymentDue)
    async def pay(payment: PaymentDue) -> Any:
        calls.append(1)
        return 42

    async with running(Bus("memory://", router, plugins=[grave, Retry(wait=wait_none())])) as probe:
        await probe.bus.publish(PaymentDue(1))
        await probe.settled()

    assert len(calls) == 1
    assert "returned a int" in str(grave.errors[0])


async def test_a_handler_past_its_timeout_is_tried_again() -> None:
    async def hangs(delivery: Delivery) -> None:
        await asyncio.sleep(30)

    service = Service(Retry(stop=stop_after_attempt(3), wait=wait_none()), hangs, timeout=0.01)

    await through(service)

    assert service.attempts == [1, 2, 3]
    assert [type(error) for error in service.grave.errors] == [TimeoutError]


async def test_of_a_handler_that_succeeded_only_the_publish_is_tried_again() -> None:
    router, calls, booked = Router("till"), list[int](), list[int]()

    @router.on(PaymentDue)
    async def pay(payment: PaymentDue, delivery: Delivery) -> PaymentMade:
        calls.append(delivery.attempt)
        return PaymentMade(payment.number)

    @router.on(PaymentMade)
    async def book(payment: PaymentMade) -> None:
        booked.append(payment.number)

    bus = Bus(
        "memory://",
        router,
        plugins=[Retry(stop=stop_after_attempt(1000), wait=wait_none(), inline_below=0.1)],
        unroutable="raise",
    )
    broker = EmbeddedBroker()
    async with running(bus, broker=broker) as probe:
        binding = next(b for b in broker.bindings if b.queue == "till.book" and b.exchange == "events")
        broker.bindings.remove(binding)
        await probe.bus.publish(PaymentDue(1))
        await eventually(lambda: sum(m.type == "payment.made" for m in probe.messages) > 1, "a second publish")
        broker.declare(binding, passive=False)
        await probe.settled()

    assert calls == [1]
    assert booked == [1]


async def test_a_cancelled_error_that_nobody_asked_for_is_a_failure_like_another() -> None:
    async def fails(delivery: Delivery) -> None:
        if delivery.attempt < 3:
            raise asyncio.CancelledError

    service = Service(Retry(wait=wait_none()), fails)

    await through(service)

    assert service.attempts == [1, 2, 3]


async def test_a_task_group_that_fails_in_a_handler_is_not_taken_for_a_stop() -> None:
    async def fails(delivery: Delivery) -> None:
        async with asyncio.TaskGroup() as tasks:  # before Python 3.13 this leaves task.cancelling() raised
            tasks.create_task(always(delivery))

    service = Service(Retry(stop=stop_after_attempt(4), wait=MIXED), fails, concurrency=1)

    await through(service)

    assert service.attempts == [1, 2, 3, 4]
    assert service.dead == 1


async def test_a_handler_that_cancels_itself_is_tried_again() -> None:
    async def fails(delivery: Delivery) -> None:
        if delivery.attempt < 3:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    service = Service(Retry(wait=wait_none()), fails)

    await through(service)

    assert service.attempts == [1, 2, 3]


async def test_while_the_bus_stops_a_short_wait_is_at_the_broker_too() -> None:
    begun, released = asyncio.Event(), asyncio.Event()

    async def fails(delivery: Delivery) -> None:
        begun.set()
        await released.wait()
        raise ConnectionError

    service = Service(Retry(wait=wait_fixed(0.9)), fails)
    async with service.running() as probe:
        await probe.bus.publish(PaymentDue(1))
        await begun.wait()
        stop = asyncio.create_task(probe.bus.stop())
        await eventually(lambda: probe.bus.stopping, "the stop to begin")
        released.set()
        await stop

    assert service.attempts == [1]
    assert [retry.inline for retry in service.witness.retries] == [False]
    assert service.broker.queues["delay.1000"].ready == 1


@pytest.mark.parametrize("where", ["in the handler", "in the wait", "in a handler that turns it into another"])
async def test_a_stop_is_no_failure(where: str) -> None:
    begun = asyncio.Event()

    async def hangs(delivery: Delivery) -> None:
        begun.set()
        if where == "in the wait":
            raise ConnectionError
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if where == "in the handler":
                raise
            raise ConnectionError from None

    service = Service(Retry(wait=wait_fixed(50), inline_below=60), hangs)
    service.bus = service.bus.sibling("memory://", grace=0.05)
    async with service.running() as probe:
        await probe.bus.publish(PaymentDue(1))
        await begun.wait()
        retries = len(service.witness.retries)

    assert service.attempts == [1]
    assert service.dead == 0
    assert service.broker.queues["till.pay"].ready == 1  # given back as it came
    assert len(service.witness.retries) == retries


async def test_a_settlement_from_further_in_goes_through_untouched() -> None:
    class Busy(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            if delivery.redelivered or "retry-since" in delivery.headers or delivery.headers.get("seen"):
                return await proceed(delivery)
            return forward(delivery.replace(attempt=1, after=timedelta(seconds=3)).replace(headers={"seen": True}))

    service = Service(Retry(wait=wait_none()), until(1))
    service.bus = service.bus.sibling("memory://", plugins=[*service.bus.plugins, Busy()])

    await through(service)

    assert service.attempts == [1]
    assert service.witness.retries == []


async def test_an_event_whose_body_was_too_large_to_keep_is_not_copied_to_wait() -> None:
    async def fails(delivery: Delivery) -> Settlement:
        raise ConnectionError("the store does not answer")  # before anybody looked at the body

    properties = Properties(type="payment.due", message_id="m-1")
    delivery = Delivery("till.pay", 1, 1, False, "", "", b"", properties, oversize=2_000_000)

    with pytest.raises(ConnectionError):
        await Retry(wait=wait_fixed(5)).consume(fails, delivery)


async def test_an_event_that_has_no_room_for_what_its_copy_carries_is_given_up() -> None:
    class Rejecting(Plugin):
        role = "dead-letter"

        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            try:
                return await proceed(delivery)
            except ConnectionError:
                return REJECT

    service = Service(Retry(), always)
    service.bus = service.bus.sibling(
        "memory://", plugins=[Rejecting(), Retry(wait=wait_fixed(5)), service.witness], limits=Limits(headers=500)
    )
    properties = Properties(
        type="payment.due", message_id="m-1", content_type="application/json", headers={"meta-text": "x" * 420}
    )
    async with service.running() as probe:
        await probe.bus.send(Message(exchange="", routing_key="till.pay", body=b'{"number":1}', properties=properties))
        await probe.settled()

    assert service.attempts == [1]
    assert service.witness.retries == []
    assert service.dead == 1
