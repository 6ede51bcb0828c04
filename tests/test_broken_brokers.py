"""The conformance suite can fail: ten brokers, each broken in one way, are each caught by a test of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from rabbitevents.brokers import Deliver, Trusted
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.brokers.embedded.queues import MemoryQueue, Reader, Stored
from rabbitevents.message import Message
from rabbitevents.testing import bench
from rabbitevents.testing.conformance import BrokerConformance
from rabbitevents.topology import Arguments
from tests.test_conformance import EmbeddedBench

SUITE = BrokerConformance()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a broken broker never delivers is waited for only shortly."""

    async def eventually(condition: Callable[[], bool], what: str, seconds: float = 0) -> None:
        for _ in range(200):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(what)

    monkeypatch.setattr(bench, "eventually", eventually)


async def assert_caught(server: EmbeddedBroker, test: Callable[[EmbeddedBench], Awaitable[Any]]) -> None:
    """Run one test of the suite against ``server``; it must fail. Against a sound broker the same test passes."""
    await _run(EmbeddedBroker(), test)

    with pytest.raises(AssertionError):
        await _run(server, test)


async def _run(server: EmbeddedBroker, test: Callable[[EmbeddedBench], Awaitable[Any]]) -> None:
    embedded = EmbeddedBench(server)
    try:
        await test(embedded)
    finally:
        await embedded.stop()


class QueueBroken(EmbeddedBroker):
    """A broker with another kind of queue."""

    kind: type[MemoryQueue] = MemoryQueue

    def make_queue(self, name: str, arguments: Arguments) -> MemoryQueue:
        return self.kind(name, arguments, self.clock, self._dead_letter)


class ReaderBroken(EmbeddedBroker):
    """A broker with another kind of consumer."""

    kind: type[Reader] = Reader

    def make_reader(
        self, queue: MemoryQueue, generation: int, prefetch: int, deliver: Deliver, trusted: Trusted | None
    ) -> Reader:
        return self.kind(queue, generation, prefetch, deliver, trusted)


async def test_a_broker_that_confirms_early_is_caught() -> None:
    class ConfirmsEarly(EmbeddedBroker):
        def store(self, queue: MemoryQueue, message: Message) -> None:
            asyncio.get_running_loop().call_later(0.005, self._store_late, queue, message, len(self.clients))

        def _store_late(self, queue: MemoryQueue, message: Message, clients: int) -> None:
            if len(self.clients) == clients:  # what was on its way is gone when the connections change
                super().store(queue, message)

    await assert_caught(ConfirmsEarly(), SUITE.test_a_confirm_means_stored)


async def test_a_broker_that_drops_what_is_given_back_is_caught() -> None:
    class Drops(MemoryQueue):
        def give_back(self, stored: Stored) -> None:
            pass

    class DropsOnNack(QueueBroken):
        kind = Drops

    await assert_caught(DropsOnNack(), SUITE.test_what_was_given_back_comes_again)


async def test_a_broker_that_ignores_the_window_is_caught() -> None:
    class Unlimited(Reader):
        @property
        def has_room(self) -> bool:
            return not self.cancelled and not self.closed

    class IgnoresPrefetch(ReaderBroken):
        kind = Unlimited

    await assert_caught(IgnoresPrefetch(), SUITE.test_the_window_is_respected_and_moves_on)


async def test_a_broker_that_loses_what_a_closed_subscriber_had_is_caught() -> None:
    class Forgets(Reader):
        def close(self) -> None:
            self.unsettled.clear()
            super().close()

    class LosesOnClose(ReaderBroken):
        kind = Forgets

    await assert_caught(LosesOnClose(), SUITE.test_what_a_closed_subscriber_left_unsettled_comes_to_the_next)


async def test_a_broker_that_confirms_what_reached_no_queue_is_caught() -> None:
    class NeverReturns(EmbeddedBroker):
        def take(self, message: Message) -> bool:
            super().take(message)
            return True

    await assert_caught(NeverReturns(), SUITE.test_what_no_queue_is_bound_for_is_returned)


async def test_a_broker_that_does_not_mark_redeliveries_is_caught() -> None:
    class Uncounted(MemoryQueue):
        def give_back(self, stored: Stored) -> None:
            super().give_back(stored)
            stored.count = 0

    class MarksNothing(QueueBroken):
        kind = Uncounted

    await assert_caught(MarksNothing(), SUITE.test_a_redelivery_is_marked_and_counted)


async def test_a_broker_that_puts_returned_messages_last_is_caught() -> None:
    class Scrambles(MemoryQueue):
        def put(self, stored: Stored) -> None:
            super().put(stored)
            if self.ready > 2:
                first = self._take()
                first.place += 10**9
                self._insert(first)

    class OutOfOrder(QueueBroken):
        kind = Scrambles

    await assert_caught(OutOfOrder(), SUITE.test_one_worker_receives_in_order)


async def test_a_broker_that_serves_every_consumer_is_caught() -> None:
    class Duplicates(MemoryQueue):
        def put(self, stored: Stored) -> None:
            super().put(stored)
            super().put(msgspec.structs.replace(stored))

    class ServesTwice(QueueBroken):
        kind = Duplicates

    await assert_caught(ServesTwice(), SUITE.test_competing_consumers_share_and_none_is_served_twice)


async def test_a_broker_without_a_delivery_limit_is_caught() -> None:
    class Patient(MemoryQueue):
        def give_back(self, stored: Stored) -> None:
            self.arguments.pop("x-delivery-limit", None)
            super().give_back(stored)

    class NoLimit(QueueBroken):
        kind = Patient

    await assert_caught(NoLimit(), SUITE.test_what_came_back_too_often_is_dead_lettered)


async def test_a_broker_that_dead_letters_by_the_events_own_key_is_caught() -> None:
    class Keyless(MemoryQueue):
        def bury(self, stored: Stored, reason: str) -> None:
            self.arguments.pop("x-dead-letter-routing-key", None)
            stored.routing_key = "its own"
            super().bury(stored, reason)

    class IgnoresKey(QueueBroken):
        kind = Keyless

    await assert_caught(IgnoresKey(), SUITE.test_what_was_rejected_is_dead_lettered_by_key)
