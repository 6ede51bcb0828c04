"""An event with AMQP's expiration is not handled once its time is over, however often it waited, and is never lost."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from attrs import frozen
from tenacity import wait_fixed

from rabbitevents import Bus, Delivery, EncodeError, Fact, Message, Plugin, Properties, Router, event, facts
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from tests.shop import eventually

NOW = time.time()


@event("password.wanted", entity="user", key="user_id")
@frozen
class PasswordWanted:
    user_id: str


def message(*, expiration: str | None = "60000", after: timedelta | None = None, **properties: Any) -> Message:
    return Message(
        exchange="events",
        routing_key="password.wanted",
        body=b'{"user_id":"1"}',
        properties=Properties(
            content_type="application/json", type="password.wanted", expiration=expiration, **properties
        ),
        after=after,
    )


def texts(seen: list[tuple[int, str | None]], fail: int = 1) -> Router:
    """A service that sends one-time passwords, and fails a number of times."""
    router = Router("texts")

    @router.on(PasswordWanted)
    async def send(wanted: PasswordWanted, delivery: Delivery) -> None:
        seen.append((delivery.attempt, delivery.properties.expiration))
        if len(seen) <= fail:
            raise ConnectionError

    return router


def plugins(wait: float, **options: Any) -> list[Plugin]:
    return [DeadLetter(), Retry(wait=wait_fixed(wait), **options)]


async def dead(broker: EmbeddedBroker) -> int:
    async with Bus(broker.client(), name="looking") as looking:
        depth = await looking.depth("texts.send.dead")
    return depth.ready if depth is not None else 0


async def test_what_would_come_back_too_late_is_given_up_at_once_and_who_asked_is_told() -> None:
    seen, told, broker = list[tuple[int, str | None]](), list[str](), EmbeddedBroker()

    def exhausted(delivery: Delivery, error: BaseException) -> None:
        told.append(type(error).__name__)

    bus = Bus("memory://", texts(seen), plugins=plugins(3600, exhausted=exhausted))
    async with running(bus, broker=broker) as probe:
        await probe.bus.send(message())
        await probe.settled()
        letters = await dead(broker)
        await probe.advance(timedelta(hours=2))

    assert seen == [(1, "60000")]
    assert (letters, told) == (1, ["ConnectionError"])


async def test_what_comes_back_in_time_waits_all_of_its_wait_and_is_handled() -> None:
    seen = list[tuple[int, str | None]]()
    async with running(Bus("memory://", texts(seen), plugins=plugins(30))) as probe:
        await probe.bus.send(message())
        await probe.settled()
        await probe.advance(timedelta(seconds=29))
        before = len(seen)
        await probe.advance(timedelta(seconds=10))

    assert (before, [attempt for attempt, _ in seen]) == (1, [1, 2])


async def test_what_came_back_in_time_and_lay_too_long_is_a_dead_letter() -> None:
    seen, broker = list[tuple[int, str | None]](), EmbeddedBroker()
    async with running(Bus("memory://", texts(seen), plugins=plugins(1.2)), broker=broker) as probe:
        await probe.bus.send(message(expiration="2000"))
        await eventually(lambda: len(seen) == 1, "the first attempt")
        over = time.time() + 2.0
        await probe.bus.pause("texts.send")
        await eventually(lambda: time.time() > over, "the end of its time")
        await probe.bus.resume("texts.send")
        await probe.settled()
        letters = await dead(broker)

    assert [attempt for attempt, _ in seen] == [1]
    assert letters == 1


async def test_a_delayed_event_expires_after_its_delay_and_does_not_come_early() -> None:
    seen = list[tuple[int, str | None]]()
    async with running(Bus("memory://", texts(seen, fail=0), plugins=plugins(30))) as probe:
        await probe.bus.send(message(after=timedelta(hours=1)))
        await probe.advance(timedelta(minutes=30))
        before = len(seen)
        await probe.advance(timedelta(hours=1))

    assert (before, len(seen)) == (0, 1)


async def test_on_rabbitmq_a_retried_event_waits_its_time_and_none_is_lost(rabbit_url: str) -> None:
    seen, gone = list[tuple[int, str | None]](), list[str]()

    class Noting(Plugin):
        def observe(self, fact: Fact) -> None:
            if isinstance(fact, facts.Forwarded):
                gone.append(fact.to)

    async with Bus(rabbit_url, texts(seen, fail=2), plugins=[*plugins(1.2), Noting()]) as bus:
        await eventually(lambda: bus.health().ok, "the consumer")
        await bus.send(message(expiration="1300"))  # its wait is rounded up to 1.5 s, and that is too long
        await bus.send(message(expiration="60000"))
        await eventually(lambda: len(seen) == 3, "two first attempts, and one second")
        await eventually(lambda: "texts.send.dead" in gone, "a letter")
        async with bus.browse("texts.send.dead") as look, asyncio.timeout(15):
            letter = await anext(aiter(look))

    assert sorted(attempt for attempt, _ in seen) == [1, 1, 2]
    assert letter.properties.expiration is None
    assert "expires-at" not in letter.headers


def delivery(**properties: Any) -> Delivery:
    return Delivery("q", 1, 1, False, "events", "k", b"{}", Properties(message_id="1", **properties))


def left(copy: Message) -> int:
    assert copy.properties.expiration is not None
    return int(copy.properties.expiration)


@pytest.mark.parametrize("queue", ["q.dead", "elsewhere", ""])
def test_what_goes_elsewhere_does_not_expire(queue: str) -> None:
    known = delivery(expiration="60000", headers={"expires-at": int(NOW * 1000) + 60_000})

    copy = Message.copy_of(known, queue=queue)

    assert copy.properties.expiration is None
    assert "expires-at" not in copy.headers


def test_the_time_that_is_left_counts_from_when_it_was_published() -> None:
    copy = delivery(expiration="60000", timestamp=int(time.time()) - 40).replace(attempt=2)

    assert 18_000 <= left(copy) <= 21_000
    assert left(Message.copy_of(delivery(headers=copy.headers), queue="q")) <= left(copy)


def test_a_timestamp_that_is_still_to_come_counts_as_now() -> None:
    assert left(delivery(expiration="60000", timestamp=2**40).replace(attempt=2)) <= 60_000


def test_a_copy_that_cannot_wait_so_long_is_refused() -> None:
    known = delivery(expiration="1000")

    with pytest.raises(EncodeError, match=r"its expiration leaves it .* s, and it would have to wait 3600 s"):
        known.replace(attempt=2, after=timedelta(hours=1))


@pytest.mark.parametrize("said", [None, "soon", "-1", "", "9" * 40])
@pytest.mark.parametrize("header", [None, "soon", -1, True, 2**63 - 1, 1.5, b"1"])
def test_what_says_no_time_does_not_expire(said: str | None, header: Any) -> None:
    copy = delivery(expiration=said, headers={"expires-at": header}).replace(attempt=2, after=timedelta(days=1))

    assert copy.properties.expiration is None
