"""Events of one entity are handled one by one and in order, whatever some of them fail of; strangers do not wait."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from datetime import timedelta
from typing import Any, get_args

import pytest
from attrs import define
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, ConfigurationError, Delivery, Event, Router, event
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents.wire import Form, entity_id_in
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from tests import in_order
from tests.shop import eventually


@event("ordered.step", entity="order", key="order_id")
@define
class Step:
    order_id: str
    number: int


@event("ordered.loose")
@define
class Loose:
    order_id: str
    number: int = 0


class Book:
    """What was handled, in its order."""

    def __init__(self) -> None:
        self.of: defaultdict[str, list[int]] = defaultdict(list)
        self.at_once = self.most = 0
        self.running: set[str] = set()
        self.overlaps = 0

    async def handle(self, step: Step, pause: float = 0.0) -> None:
        self.overlaps += step.order_id in self.running
        self.running.add(step.order_id)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(pause)
        self.at_once -= 1
        self.running.discard(step.order_id)
        self.of[step.order_id].append(step.number)


def bus_with(handler: Any, *plugins: Any, url: str = "memory://", **options: Any) -> Bus:
    shop = Router("shop")
    told: dict[str, Any] = {"ordered": True, **options}
    shop.on(Step, name="record", **told)(handler)
    return Bus(url, shop, plugins=plugins)


def steps(entities: int, each: int) -> list[Step]:
    return [Step(f"o-{entity}", number) for number in range(each) for entity in range(entities)]


async def test_of_one_entity_one_is_handled_at_a_time_and_in_order() -> None:
    book = Book()
    chance = random.Random(5)

    async def record(step: Step) -> None:
        await book.handle(step, chance.choice((0.0, 0.001, 0.003)))

    async with running(bus_with(record)) as probe:
        await probe.bus.publish_many(steps(20, 20))
        await probe.settled()

    assert all(numbers == list(range(20)) for numbers in book.of.values())
    assert (len(book.of), book.overlaps) == (20, 0)
    assert book.most > 1


async def test_without_ordered_they_overlap() -> None:
    book = Book()

    async def record(step: Step) -> None:
        await book.handle(step, 0.001)

    async with running(bus_with(record, ordered=False)) as probe:
        await probe.bus.publish_many(steps(1, 20))
        await probe.settled()

    assert book.overlaps


async def test_a_hot_entity_holds_up_nobody_else() -> None:
    gate, book = asyncio.Event(), Book()

    async def record(step: Step) -> None:
        if step.order_id == "hot":
            await gate.wait()
        await book.handle(step)

    async with running(bus_with(record, concurrency=2)) as probe:
        await probe.bus.publish_many([*(Step("hot", number) for number in range(30)), *steps(10, 3)])
        await eventually(lambda: sum(map(len, book.of.values())) == 30, "all strangers")
        assert probe.bus.load["shop.record"].held == 29
        gate.set()
        await probe.settled()

    assert book.of["hot"] == list(range(30))


async def test_what_waits_for_its_retry_holds_up_its_entity_alone_and_no_worker() -> None:
    book, failures = Book(), {("a", 1): 2}

    async def record(step: Step) -> None:
        if failures.get((step.order_id, step.number), 0):
            failures[step.order_id, step.number] -= 1
            raise TimeoutError
        await book.handle(step)

    retry = Retry(stop=stop_after_attempt(5), wait=wait_fixed(60))
    async with running(bus_with(record, retry, concurrency=1)) as probe:
        await probe.bus.publish_many([Step("a", 0), Step("a", 1), Step("a", 2), *(Step("b", n) for n in range(5))])
        await probe.settled()
        assert (book.of["a"], book.of["b"]) == ([0], [0, 1, 2, 3, 4])
        assert probe.bus.load["shop.record"].held == 2

        await probe.advance(timedelta(seconds=60))
        assert book.of["a"] == [0]

        await probe.advance(timedelta(seconds=60))

    assert book.of["a"] == [0, 1, 2]


async def test_what_fails_while_its_process_stops_is_handled_again_before_the_later_ones_of_its_entity() -> None:
    broker, book = EmbeddedBroker(), Book()
    begun, fails = asyncio.Event(), asyncio.Event()

    async def fail(step: Step) -> None:
        begun.set()
        await fails.wait()
        raise TimeoutError

    async def record(step: Step) -> None:
        await book.handle(step)

    retry = Retry(stop=stop_after_attempt(5), wait=wait_fixed(60))
    async with running(bus_with(fail, DeadLetter(), retry), broker=broker) as first:
        await first.bus.publish_many(Step("a", number) for number in range(5))
        await begun.wait()
        stopping = asyncio.create_task(first.bus.stop())
        await eventually(lambda: first.bus.stopping, "the stop", 5)
        fails.set()
        await stopping
    async with running(bus_with(record), broker=broker) as second:
        await second.settled()

    assert book.of["a"] == [0, 1, 2, 3, 4]


async def test_attempts_are_counted_across_the_waits_and_a_dead_letter_lets_the_next_go_on() -> None:
    book = Book()
    attempts: list[int] = []

    async def record(step: Step, delivery: Delivery) -> None:
        if step.number == 1:
            attempts.append(delivery.attempt)
            raise TimeoutError
        await book.handle(step)

    bus = bus_with(record, DeadLetter(), Retry(stop=stop_after_attempt(3), wait=wait_fixed(60)))
    async with running(bus) as probe:
        await probe.bus.publish_many([Step("a", number) for number in range(4)])
        await probe.advance(timedelta(minutes=3))

        assert (attempts, book.of["a"]) == ([1, 2, 3], [0, 2, 3])
        assert probe.waiting("shop.record.dead") == 1


async def test_a_wait_that_is_too_long_to_stay_is_spent_at_the_broker_and_loses_its_place() -> None:
    book, failed = Book(), False

    async def record(step: Step) -> None:
        nonlocal failed
        if step.number == 0 and not failed:
            failed = True
            raise TimeoutError
        await book.handle(step)

    async with running(bus_with(record, Retry(wait=wait_fixed(3600)))) as probe:
        await probe.bus.publish_many([Step("a", 0), Step("a", 1)])
        await probe.settled()
        assert book.of["a"] == [1]
        await probe.advance(timedelta(hours=2))

    assert book.of["a"] == [1, 0]


async def test_what_the_core_holds_holds_up_its_entity() -> None:
    book, broken = Book(), True

    async def record(step: Step) -> None:
        if step.order_id == "a" and broken:
            raise TimeoutError
        await book.handle(step)

    async with running(bus_with(record)) as probe:
        await probe.bus.publish_many([Step("a", 0), Step("a", 1), Step("b", 0)])
        await eventually(lambda: bool(book.of["b"]), "the stranger")
        assert not book.of["a"]
        broken = False
        await eventually(lambda: book.of["a"] == [0, 1], "both, one after the other")


async def test_a_function_says_what_to_go_by() -> None:
    book = Book()
    shop = Router("shop")

    @shop.on(Loose, ordered=lambda loose: loose.order_id)
    async def record(loose: Loose) -> None:
        await book.handle(Step(loose.order_id, loose.number), 0.001)

    async with running(Bus("memory://", shop)) as probe:
        await probe.bus.publish_many([Loose(f"o-{number % 5}", number) for number in range(50)])
        await probe.settled()

    assert book.overlaps == 0
    assert all(numbers == sorted(numbers) for numbers in book.of.values())


async def test_what_a_function_cannot_say_the_key_of_is_handled_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    book = Book()
    shop = Router("shop")

    def key(loose: Loose) -> Any:
        if loose.order_id == "raises":
            raise ZeroDivisionError
        return None if loose.order_id == "none" else list[str]()

    @shop.on(Loose, ordered=key)
    async def record(loose: Loose) -> None:
        await book.handle(Step(loose.order_id, loose.number))

    async with running(Bus("memory://", shop)) as probe:
        await probe.bus.publish_many([Loose("none"), Loose("unhashable"), Loose("raises")])
        await probe.settled()

    assert set(book.of) == {"none", "unhashable", "raises"}
    assert caplog.text.count("which is handled in no order") == 2


async def test_events_without_an_entity_wait_for_nobody() -> None:
    book = Book()
    shop = Router("shop")

    @shop.on("ordered.*", ordered=True)
    async def record(event: Event[Any]) -> None:
        await book.handle(Step("loose", 0), 0.001)

    async with running(Bus("memory://", shop)) as probe:
        await probe.bus.publish_many([Loose("o", number) for number in range(5)])
        await probe.settled()

    assert book.overlaps


@pytest.mark.parametrize(
    ("classes", "ordered", "said"),
    [
        (Loose, True, "keeps the order of each entity, and Loose has none: say @event"),
        (Step, "yes", "say True, or a function of the payload"),
        (Step, 1, "ordered=1: say True, or a function of the payload"),
    ],
)
async def test_what_cannot_be_an_order_is_said(classes: type, ordered: Any, said: str) -> None:
    shop = Router("shop")

    async def record(event: Event[Any]) -> None: ...

    async def start() -> None:
        shop.on(classes, ordered=ordered)(record)
        async with Bus("memory://", shop):
            pass

    with pytest.raises(ConfigurationError) as refused:
        await start()

    assert said in str(refused.value)


async def test_health_says_that_the_window_is_full_of_those_that_wait() -> None:
    async def record(step: Step) -> None:
        raise TimeoutError

    bus = bus_with(record, Retry(wait=wait_fixed(60)), prefetch=5, concurrency=2)
    async with running(bus) as probe:
        await probe.bus.publish_many([Step("a", number) for number in range(9)])
        await eventually(lambda: not probe.bus.health().ok, "health to say so")

        (check,) = [each for each in probe.bus.health().checks if each.name == "subscription shop.record"]

    assert check.detail == "its window is full: 4 events wait for others of their key that are tried again later"


async def test_a_pause_keeps_what_has_come_and_its_order() -> None:
    book = Book()

    async def record(step: Step) -> None:
        await book.handle(step, 0.001)

    async with running(bus_with(record, concurrency=2)) as probe:
        await probe.bus.publish_many(steps(3, 30))
        await probe.bus.pause("shop.record")
        assert sum(map(len, book.of.values())) < 90
        await probe.bus.resume("shop.record")
        await probe.settled()

    assert all(numbers == list(range(30)) for numbers in book.of.values())


async def test_after_a_lost_connection_first_effects_keep_their_order() -> None:
    book = Book()

    async def record(step: Step) -> None:
        await book.handle(step, 0.002)

    async with running(bus_with(record)) as probe:
        await probe.bus.publish_many(steps(5, 40))
        for _ in range(5):
            await asyncio.sleep(0.01)
            probe.broker.drop_connections()
        await probe.settled()

    assert all(list(dict.fromkeys(numbers)) == list(range(40)) for numbers in book.of.values())
    assert book.overlaps == 0


async def test_on_rabbitmq_order_holds_across_failures_and_stops(rabbit_url: str) -> None:
    book, chance = Book(), random.Random(3)
    failed: set[tuple[str, int]] = set()

    async def record(step: Step) -> None:
        if chance.random() < 0.1 and (step.order_id, step.number) not in failed:
            failed.add((step.order_id, step.number))
            raise TimeoutError
        await book.handle(step, chance.choice((0.0, 0.002)))

    def bus() -> Bus:
        retry = Retry(stop=stop_after_attempt(9), wait=wait_fixed(0.05), inline_below=0.01)
        return bus_with(record, DeadLetter(), retry, url=rabbit_url, concurrency=20)

    async with bus() as first:
        await first.publish_many(steps(20, 50))
        await eventually(lambda: sum(map(len, book.of.values())) > 200, "some", 30)
    async with bus():
        await eventually(lambda: sum(len(set(numbers)) for numbers in book.of.values()) == 1000, "all", 60)

    assert all(list(dict.fromkeys(numbers)) == list(range(50)) for numbers in book.of.values())
    assert failed
    assert book.overlaps == 0


@pytest.mark.parametrize("header", [b"\x09entity-id", b"\x09entity-idS\x00\x00\x00\x01z"])
async def test_the_key_of_an_event_is_its_entity_in_whatever_form_it_comes(header: bytes) -> None:
    keys: set[bytes | None] = set()
    shop = Router("shop")

    @shop.on(Step)
    async def record(delivery: Delivery) -> None:
        keys.add(entity_id_in(delivery))

    for form in get_args(Form):
        async with running(Bus("memory://", shop, form=form)) as probe:
            await probe.bus.publish(Step("o-1", 1), metadata={"forged": header.decode()})
            await probe.settled()

    assert keys == {b"o-1"}


async def test_of_two_buses_the_single_active_consumer_has_the_events_until_it_leaves() -> None:
    broker, books = EmbeddedBroker(), (Book(), Book())

    def one(book: Book) -> Bus:
        async def record(step: Step) -> None:
            await book.handle(step, 0.001)

        return bus_with(record, single_active_consumer=True)

    async with running(one(books[0]), broker=broker) as first, running(one(books[1]), broker=broker) as second:
        await first.bus.publish_many(steps(5, 10))
        await first.settled()
        assert not books[1].of
        await first.bus.stop()
        await second.bus.publish_many(steps(5, 10))
        await second.settled()

    assert all(numbers == list(range(10)) for book in books for numbers in book.of.values())


def test_single_active_consumer_is_an_argument_of_the_queue() -> None:
    async def record(step: Step) -> None: ...

    queue = bus_with(record, single_active_consumer=True).topology.queue("shop.record")

    assert queue is not None
    assert queue.arguments["x-single-active-consumer"] is True


@pytest.mark.timeout(240)
async def test_two_processes_keep_the_order_over_kills_stops_and_a_restart_of_the_broker() -> None:
    told = in_order.parser().parse_args(["--orders", "60", "--steps", "20", "--kills", "4", "--stops", "--restart"])

    counts = await in_order.run(told)

    assert (counts.lost, counts.inversions, counts.restarts) == (0, 0, 1)
    assert counts.kills
    assert counts.stops
    assert counts.processes > 2
