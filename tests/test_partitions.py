"""Partitions: an entity's events are in one of several queues, and keep their order across processes; others go on beside them."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, ConfigurationError, Delivery, Router, TopologyError, UnroutableError
from rabbitevents.cli.process import story_of
from rabbitevents.operations.applying import add
from rabbitevents.operations.doctor import examine
from rabbitevents.operations.moving.acting import Done, migrate
from rabbitevents.operations.moving.beforehand import outlook
from rabbitevents.operations.plan import total
from rabbitevents.operations.planning import at_work, planned
from rabbitevents.operations.scene import version_of
from rabbitevents.operations.wiring import wiring
from rabbitevents.partitions import names, undivided
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter, DeadLetters
from rabbitevents_retry import Retry
from tests.bed.rabbitmq import RabbitNode
from tests.shop import eventually
from tests.test_cli import environment, started
from tests.test_ordered import Loose, Step, steps

QUEUES = names("shop.record", 4)


class Book:
    """What was handled: by which queue each entity came, and in which order."""

    def __init__(self) -> None:
        self.queues: defaultdict[str, set[str]] = defaultdict(set)
        self.numbers: defaultdict[str, list[int]] = defaultdict(list)
        self.fails: set[str] = set()

    def bus(self, url: str, partitions: int = 4, *plugins: Any, **settings: Any) -> Bus:
        """A service that notes what comes; one partition is a queue that nothing divides."""
        shop = Router("shop")

        how: dict[str, Any] = {"partitions": partitions} if partitions > 1 else {"single_active_consumer": True}

        @shop.on(Step, **how)
        async def record(step: Step, delivery: Delivery) -> None:
            if step.order_id in self.fails:
                raise ValueError("not now")
            self.queues[step.order_id].add(delivery.queue)
            self.numbers[step.order_id].append(step.number)

        return Bus(url, shop, plugins=plugins or [DeadLetter()], grace=1, **settings)

    @property
    def handled(self) -> int:
        return sum(map(len, self.numbers.values()))

    def is_in_order(self) -> bool:
        return all(list(dict.fromkeys(numbers)) == sorted(set(numbers)) for numbers in self.numbers.values())


@pytest.fixture(params=["memory", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("rabbit_url"))


# --- the order -------------------------------------------------------------------------------------------------------


async def test_each_entity_has_one_partition_all_partitions_have_some_and_the_order_holds(url: str) -> None:
    book = Book()
    async with book.bus(url) as bus:
        await bus.publish_many(steps(60, 10))
        await eventually(lambda: book.handled == 600, "all of them", 30)

    assert {len(queues) for queues in book.queues.values()} == {1}
    assert {queue for queues in book.queues.values() for queue in queues} == set(QUEUES)
    assert book.is_in_order()


@pytest.mark.parametrize("form", ["amqp", "cloudevents", "cloudevents-binary"])
async def test_in_whatever_form_events_are_written_their_entities_are_divided(url: str, form: Any) -> None:
    book = Book()
    async with book.bus(url, form=form) as bus:
        await bus.publish_many(steps(60, 2))
        await eventually(lambda: book.handled == 120, "all of them", 30)

    assert {len(queues) for queues in book.queues.values()} == {1}
    assert {queue for queues in book.queues.values() for queue in queues} == set(QUEUES)


async def test_a_retry_and_a_delay_end_in_the_partition_of_the_entity(url: str) -> None:
    book, failed = Book(), set[int]()
    shop = Router("shop")

    @shop.on(Step, partitions=4)
    async def record(step: Step, delivery: Delivery) -> None:
        if step.number % 2 and step.number not in failed:
            failed.add(step.number)
            raise TimeoutError
        book.queues[step.order_id].add(delivery.queue)
        book.numbers[step.order_id].append(step.number)

    retry = Retry(stop=stop_after_attempt(3), wait=wait_fixed(0.1), inline_below=0)
    async with Bus(url, shop, plugins=[DeadLetter(), retry], grace=1) as bus:
        await bus.publish_many([Step("o-1", number) for number in range(10)])
        await eventually(lambda: book.handled == 10, "all of them", 30)
        await bus.publish(Step("o-1", 10), delay=0.2)
        await eventually(lambda: book.handled == 11, "the delayed one", 30)

    assert book.numbers["o-1"] == list(range(11))
    assert len(book.queues["o-1"]) == 1
    assert failed


@pytest.mark.parametrize("how", ["restarted", "killed"])
@pytest.mark.sampled
async def test_over_a_restart_of_the_broker_each_entity_has_one_partition_and_since_khepri_the_same(
    own_node: Callable[..., Awaitable[RabbitNode]], how: str
) -> None:
    """RabbitMQ on Mnesia may bind in another order as it starts again (`docs/howto/order.md`)."""
    node, book = await own_node(), Book()
    async with book.bus(node.url, 12) as bus:
        await bus.publish_many(steps(200, 1))
        await eventually(lambda: book.handled == 200, "those of before", 30)
        await node.asettle()
    await (node.akill() if how == "killed" else node.astop())
    await node.astart()
    async with book.bus(node.url, 12) as bus:
        await bus.publish_many([Step(f"o-{entity}", 1) for entity in range(200)])
        await eventually(lambda: book.handled == 400, "those of after", 30)

    assert max(len(queues) for queues in book.queues.values()) <= (1 if version_of(node.version) >= (4, 2) else 2)
    assert {queue for queues in book.queues.values() for queue in queues} == set(names("shop.record", 12))
    assert book.is_in_order()


# --- what is given up on ---------------------------------------------------------------------------------------------


async def test_dead_letters_are_in_one_place_and_a_replay_ends_in_the_partition_of_the_entity(url: str) -> None:
    book = Book()
    book.fails.add("o-7")
    async with book.bus(url) as bus:
        await bus.publish_many([Step("o-7", number) for number in range(3)])
        letters = DeadLetters(bus, "shop.record")

        async def dead() -> bool:
            depth = await bus.depth("shop.record.dead")
            return depth is not None and depth.ready == 3

        await until(dead)
        found = await letters.find()
        book.fails.clear()
        result = await letters.replay()
        await eventually(lambda: book.handled == 3, "the replayed ones", 30)
        await bus.publish(Step("o-7", 3))
        await eventually(lambda: book.handled == 4, "the next one", 30)

    assert {letter.queue for letter in found} == {"shop.record"}
    assert result.done == 3
    assert len(book.queues["o-7"]) == 1


async def test_what_cannot_be_replayed_stays_where_there_is_neither_a_queue_nor_partitions(rabbit_url: str) -> None:
    book = Book()
    book.fails.add("o-1")
    async with book.bus(rabbit_url) as bus:
        await bus.publish(Step("o-1", 0))
        letters = DeadLetters(bus, "shop.record")

        async def dead() -> bool:
            return bool(await letters.find())

        await until(dead)
        (letter,) = await letters.find()
        with pytest.raises(UnroutableError, match=r"shop\.gone"):
            await letters.replay(to="shop.gone")
        still = await letters.find()

    assert [each.id for each in still] == [letter.id]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what has to be asked."""
    async with asyncio.timeout(30):
        holds = await condition()
        while not holds:
            await asyncio.sleep(0.05)
            holds = await condition()


# --- ids -------------------------------------------------------------------------------------------------------------


def test_ids_and_claims_of_all_partitions_are_of_the_one_handler() -> None:
    bus = Book().bus("memory://")

    assert [each.queue for each in bus.subscriptions] == list(QUEUES)
    assert {each.identity for each in bus.subscriptions} == {"shop.record"}
    assert {each.dead_queue for each in bus.subscriptions} == {"shop.record.dead"}


@pytest.mark.parametrize("total", [2, 8, 10, 11, 256])
def test_the_names_of_partitions_are_in_the_alphabets_order_and_say_whose_they_are(total: int) -> None:
    found = names("shop.record", total)

    assert list(found) == sorted(found)
    assert len(set(found)) == total
    assert {undivided(name) for name in found} == {"shop.record"}
    assert undivided("shop.record") == "shop.record"


def test_a_subscription_that_is_divided_is_explained_once() -> None:
    (said,) = wiring(Book().bus("memory://")).subscriptions

    assert (said.name, said.partitions, said.order) == ("shop.record", QUEUES, "entity")
    assert [(each.exchange, each.keys) for each in said.bound] == [
        ("events", ("ordered.step",)),
        ("events.due", ("ordered.step",)),
    ]


async def test_the_story_of_a_start_names_its_partitions_in_one_line() -> None:
    bus = Book().bus("memory://")
    async with bus:
        said = list(story_of(bus, in_short=False))

    assert said[1:] == ["queues shop.record.0-of-4 to shop.record.3-of-4 feed record (ordered.step)"]


async def test_all_partitions_are_paused_and_resumed_by_the_name_of_the_handler() -> None:
    book = Book()
    async with running(book.bus("memory://")) as probe:
        await probe.bus.pause("shop.record", reason="a look")
        await probe.bus.publish_many(steps(20, 1))
        waiting = sum(probe.waiting(name) for name in QUEUES)
        before = book.handled
        await probe.bus.resume("shop.record")
        await probe.settled()

    assert (waiting, before, book.handled) == (20, 0, 20)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"partitions": 1}, "partitions"),
        ({"partitions": 257}, "each is a queue of its own"),
        ({"partitions": "4"}, "partitions"),
        ({"partitions": 4, "ordered": str}, "ordered= is a function of the payload"),
        ({"partitions": 4, "exchange": "partner"}, "together with exchange="),
        ({"partitions": 4, "was": "shop.before"}, "together with was="),
    ],
    ids=["one", "too many", "a text", "a function", "another exchange", "renamed"],
)
def test_what_cannot_be_divided_is_said_at_once(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Router("shop").on(Step, **told)(print)


async def test_events_that_have_no_entity_cannot_be_divided() -> None:
    shop = Router("shop")

    @shop.on(Loose, partitions=4)
    async def record(loose: Loose) -> None: ...

    with pytest.raises(ConfigurationError, match="has none: say"):
        await Bus("memory://", shop).start()


def test_a_handler_that_is_called_as_a_partition_is_refused() -> None:
    shop = Router("shop")

    @shop.on(Step, name="record.0-of-4")
    async def record(step: Step) -> None: ...

    with pytest.raises(ConfigurationError, match="has a name as partitions have"):
        _ = Bus("memory://", shop).subscriptions


async def test_a_broker_without_the_plugin_is_told_of_and_keeps_the_connection(
    own_node: Callable[..., Awaitable[RabbitNode]],
) -> None:
    node = await own_node()
    await node.aeval('rabbit_registry:unregister(exchange, <<"x-consistent-hash">>)')
    shop, seen = Router("shop"), list[int]()

    @shop.on(Step, partitions=2)
    async def record(step: Step) -> None: ...

    @shop.on(Step)
    async def note(step: Step) -> None:
        seen.append(step.number)

    async with Bus(node.url, shop, grace=1) as bus:
        await bus.publish(Step("o-1", 1))
        await eventually(lambda: seen == [1], "the other handler goes on", 30)
        problems = {check.name: check.detail for check in bus.health().problems}

    assert set(problems) == {f"consumer {name}" for name in names("shop.record", 2)}
    assert all("rabbitmq-plugins enable rabbitmq_consistent_hash_exchange" in said for said in problems.values())


# --- another number of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (4, 6, "are of-4, and this bus wants them of-6"),
        (1, 4, "stands, which nothing divides, and this bus wants it of-4"),
        (4, 1, "is divided into partitions, or is being divided, and this bus wants it as one"),
    ],
)
async def test_code_with_another_number_makes_nothing_and_says_the_way_out(
    rabbit_url: str, old: int, new: int, said: str
) -> None:
    older, newer = Book(), Book()
    async with older.bus(rabbit_url, old) as bus, newer.bus(rabbit_url, new) as other:
        await other.publish_many(steps(20, 5))
        await eventually(lambda: older.handled == 100, "all of them", 30)
        problems = [check.detail for check in other.health().problems if check.name.startswith("consumer ")]
        made = [await bus.depth(name) for name in names("shop.record", new)]

    assert len(problems) == new
    assert all(said in each for each in problems)
    assert all("rabbitevents topology migrate MODULE:BUS shop.record" in each for each in problems)
    assert made == [None] * new
    assert newer.handled == 0


async def test_the_embedded_broker_refuses_another_number_too() -> None:
    broker = EmbeddedBroker()
    async with running(Book().bus("memory://"), broker=broker):
        with pytest.raises(TopologyError, match=r"shop\.record\.partitions"):
            await Book().bus("memory://", 6).sibling(broker.client()).start()


@pytest.fixture
async def place(managed_node: RabbitNode) -> AsyncGenerator[str]:
    url = managed_node.add_vhost()
    yield url
    managed_node.delete_vhost(url)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (4, 6, "it has 4 partitions, and is to have 6 partitions"),
        (1, 4, "it has one queue, and is to have 4 partitions"),
        (4, 1, "it has 4 partitions, and is to have one queue"),
    ],
)
async def test_the_plan_is_equal_where_they_stand_and_else_says_what_leads_over_and_adds_nothing(
    place: str, managed_node: RabbitNode, old: int, new: int, said: str
) -> None:
    book = Book()
    async with book.bus(place, old) as bus:
        same = await planned(book.bus(place, old), http=managed_node.http_url)
        other = await planned(book.bus(place, new), http=managed_node.http_url)
        async with at_work(book.bus(place, new), managed_node.http_url) as site:
            await add(site)
        found = (await examine(book.bus(place, new), http=managed_node.http_url)).found
        made = [await bus.depth(name) for name in names("shop.record", new)]

    assert same.equal, total(same)
    assert [(each.action, each.name, each.what) for each in other.changes] == [("migrate", "shop.record", said)]
    assert [(each.where, each.what) for each in found if each.check in ("D5", "D6")] == [("shop.record", said)]
    assert made == [None] * new


@pytest.mark.timeout(300)  # whose code had to wait looks again every 30 s
@pytest.mark.parametrize(("old", "new"), [(4, 6), (1, 4), (4, 1)])
@pytest.mark.sampled
async def test_killed_after_each_step_of_leading_over_nothing_is_lost_or_out_of_order(
    place: str, managed_node: RabbitNode, old: int, new: int
) -> None:
    """Each step is done by somebody else, while events are published; the older code empties its partitions.

    Where a queue is divided, a process of the older code starts and stops after each step.
    """
    older, newer, done, number = Book(), Book(), list[str](), 0
    async with older.bus(place, old) as bus, newer.bus(place, new) as other:
        while True:
            await bus.publish_many([Step(f"o-{entity}", number) for entity in range(40)])
            number += 1
            step = await one_step(newer.bus(place, new), managed_node.http_url)
            if old == 1:
                async with older.bus(place, old):
                    pass
            if step is None:
                break
            done.append(step)
        await bus.publish_many([Step(f"o-{entity}", number) for entity in range(40)])
        wanted = 40 * (number + 1)
        both = [older.numbers, newer.numbers]
        await eventually(
            lambda: len({(o, n) for book in both for o, ns in book.items() for n in ns}) == wanted, "all of them", 90
        )
        gone = [await other.depth(name) for name in names("shop.record", old)]
        plan = await planned(newer.bus(place, new), http=managed_node.http_url)

    assert older.handled
    assert newer.handled
    assert older.is_in_order()
    assert newer.is_in_order()
    assert all(max(older.numbers[o]) <= min(newer.numbers[o]) + 1 for o in older.numbers if newer.numbers[o])
    assert gone == [None] * old
    used = "the old queue is used as it stands" if old == 1 else "the old partitions are used as they stand"
    assert used in done[:2]
    last = "the one queue is consumed" if new == 1 else "the new partitions are consumed"
    # Where there was no guard, the new code may make it before the operator does.
    assert done[-1] in ((last, "the old queue is empty, and deleted") if old == 1 else (last,))
    assert plan.equal, total(plan)


async def one_step(bus: Bus, http: str) -> str | None:
    """Do one step of leading over, and be gone; None where there is nothing to do."""
    async with at_work(bus, http) as site:
        wanted = (await outlook(site, "shop.record")).wanted
        async for each in migrate(site, wanted, within=60, interval=0.6):
            if isinstance(each, Done):
                return each.step.what
    return None


async def test_the_command_asks_first_and_says_what_it_would_do(
    place: str, managed_node: RabbitNode, tmp_path: Path
) -> None:
    words = ("topology", "migrate", "tests.test_partitions:six", "shop.record", "--http", managed_node.http_url)
    async with Book().bus(place):
        told = environment(AMQP_URL=place)
        result = await asyncio.to_thread(started, *words, folder=tmp_path, env=told)

    assert "shop.record: has 4 partitions, and is to have 6 partitions" in result.stdout


def six() -> Bus:
    """The bus of the code that wants other partitions."""
    return Book().bus(os.environ["AMQP_URL"], 6)
