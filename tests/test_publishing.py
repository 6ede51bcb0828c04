"""Publishing, where it has to wait: what one caller's short patience costs the others."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from rabbitevents import Bus, EncodeError, Limits, Message, NotSentError, Properties, Router
from rabbitevents.publishing import delay
from rabbitevents.testing import EmbeddedBroker
from tests.jobs import JobGiven
from tests.shop import nothing_left_running

LATER = timedelta(seconds=5)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delay, "_DECLARE_PAUSE", 0.01)


def router() -> Router:
    router = Router("work")

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None: ...

    return router


async def test_one_who_gives_up_on_a_waiting_queue_takes_it_from_nobody_who_waits_longer() -> None:
    server = EmbeddedBroker()
    async with Bus(server.client(), router()) as bus:
        server.go_down()
        hurried = asyncio.create_task(bus.publish(JobGiven(1), delay=LATER, timeout=0.05))
        patient = asyncio.create_task(bus.publish(JobGiven(2), delay=LATER, timeout=10))
        with pytest.raises(NotSentError, match="waiting queue could not be declared in time"):
            await hurried
        server.come_up()
        await patient

        assert server.queues["events.delay.5000"].ready == 1


async def test_a_waiting_queue_that_could_not_be_declared_once_is_declared_for_the_next_one() -> None:
    server = EmbeddedBroker()
    async with Bus(server.client(), router()) as bus:
        server.go_down()
        with pytest.raises(NotSentError):
            await bus.publish(JobGiven(1), delay=LATER, timeout=0.02)
        server.come_up()

        await bus.publish(JobGiven(2), delay=LATER)

        assert server.queues["events.delay.5000"].ready == 1


async def test_a_stop_ends_the_declaring_of_a_waiting_queue_and_who_waits_for_it() -> None:
    server, before = EmbeddedBroker(), asyncio.all_tasks()
    bus = Bus(server.client(), router(), grace=0.1)
    await bus.start()
    server.go_down()
    publish = asyncio.create_task(bus.publish(JobGiven(1), delay=LATER, timeout=60))
    await asyncio.sleep(0)

    await bus.stop()
    await asyncio.wait({publish}, timeout=1)

    assert isinstance(publish.exception(), NotSentError)
    await nothing_left_running(before)


async def test_while_the_broker_blocks_publishers_nothing_is_published_and_the_error_says_why() -> None:
    server = EmbeddedBroker()
    async with Bus(server.client(), router()) as bus:
        server.block("low on memory")
        with pytest.raises(NotSentError, match="the broker blocks publishers: low on memory"):
            await bus.publish(JobGiven(1), timeout=0.02)
        waiting = asyncio.create_task(bus.publish(JobGiven(2), timeout=10))
        server.unblock()

        await waiting


def test_a_message_whose_routing_key_amqp_cannot_carry_is_over_the_limits() -> None:
    def keyed(key: str) -> Message:
        return Message(exchange="", routing_key=key, body=b"{}", properties=Properties())

    Limits().check_message(keyed("k" * 255))
    for key in ("k" * 256, "\u00e9" * 128):
        with pytest.raises(EncodeError, match="routing key"):
            Limits().check_message(keyed(key))
