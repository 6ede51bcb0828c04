"""A service with few rights: the lines of the page are enough for each mode, and what is missing is said."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
from attrs import frozen
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, RefusedError, Router, TopologyError, event
from rabbitevents_deadletter import DeadLetter, DeadLetters
from rabbitevents_retry import Retry
from tests.bed.rabbitmq import RabbitNode
from tests.shop import Effects, OrderPlaced, eventually, recording

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "rights.md"
LINE = re.compile(r"^## (?P<title>.*?)$|^(?P<line>rabbitmqctl set_permissions .*)$", re.MULTILINE)
NUMBERS = itertools.count(1)

DECLARES = "A service that declares what it needs"
STANDS = "A service whose exchanges and queues an administrator declared"
LOOKS = "A service that only looks"
NEITHER = "A service that does not even look"
PUBLISHES = "A bus that only publishes"
DELAYS = "A bus that publishes with a delay"
LETTERS = "Working on dead letters"

Rights = tuple[str, str, str]


def rights_on_the_page() -> dict[str, Rights]:
    """The three patterns of each line, by the heading above it."""
    found: dict[str, Rights] = {}
    title = ""
    for match in LINE.finditer(PAGE.read_text()):
        if match["line"] is None:
            title = match["title"]
        else:
            *_, configure, write, read = shlex.split(match["line"])
            found[title] = configure, write, read
    return found


RIGHTS = rights_on_the_page()


class Place:
    """A virtual host with an administrator, where users can be made."""

    def __init__(self, node: RabbitNode, url: str) -> None:
        self.node = node
        self.url = url

    def user(self, rights: Rights) -> str:
        """Return the URL of a new user."""
        name = f"user-{next(NUMBERS)}"
        url = self.node.add_user(self.url, name, "s3cret-word")
        self.node.set_permissions(self.url, *rights, user=name)
        return url

    def grant(self, line: str, url: str) -> None:
        """Do what a line says."""
        command = re.search(r"rabbitmqctl (set_permissions -p .*?'[^']*' '[^']*' '[^']*')", line)
        assert command is not None, line
        *_, user, configure, write, read = shlex.split(command[1])
        assert f"//{user}:" in url
        self.node.set_permissions(self.url, configure, write, read, user=user)

    def things(self) -> set[str]:
        """The names of all exchanges and queues that somebody made."""
        vhost = self.url.rpartition("/")[2]
        named = self.node.eval(f"""
            [element(4, element(2, Thing)) || Thing <- rabbit_amqqueue:list(<<"{vhost}">>) ++ rabbit_exchange:list(<<"{vhost}">>)]""")
        return {name for name in re.findall(r'<<"([^"]*)">>', named) if not name.startswith("amq.")}


@pytest.fixture
def place(rabbit_node: RabbitNode, rabbit_url: str) -> Place:
    return Place(rabbit_node, rabbit_url)


@event("inventory.counted", version=1)
@frozen
class Counted:
    number: int


class Stock:
    """A service: it fails at the first attempt of each event, and always at negative numbers."""

    def __init__(self, url: str, declare: Literal["active", "passive", "none"] = "active", inline: float = 0) -> None:
        self.done: list[int] = []
        self.attempts: list[int] = []
        router = Router("inventory")

        @router.on(Counted)
        async def count(counted: Counted) -> None:
            self.attempts.append(counted.number)
            if counted.number < 0 or self.attempts.count(counted.number) == 1:
                raise ValueError("miscounted")
            self.done.append(counted.number)

        retry = Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.1), inline_below=inline)
        self.bus = Bus(url, router, declare=declare, plugins=[DeadLetter(), retry], grace=1, publish_timeout=5)

    async def works(self) -> None:
        """Publish, consume, try again later, and give up on one event."""
        async with self.bus as bus:
            assert not bus.health().problems
            await bus.publish(Counted(1))
            await bus.publish(Counted(-1))
            await eventually(lambda: self.done == [1], "the second attempt")
            await eventually(lambda: self.attempts.count(-1) == 2, "the last attempt")
            await until_dead(bus)
            assert not bus.health().problems


async def until_dead(bus: Bus) -> None:
    """Wait until one event has become a dead letter."""
    depth = None
    for _ in range(200):
        depth = await bus.depth("inventory.count.dead")
        if depth is not None and depth.ready:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"no dead letter: {depth}")


async def declared_by_an_administrator(place: Place) -> None:
    """Start the service once with a user that may declare, and have it try an event again."""
    await Stock(place.url).works()
    place.node.eval(f"""
        [begin {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{place.url.rpartition("/")[2]}">>, queue, <<"inventory.count.dead">>)),
               rabbit_amqqueue:purge(Q) end]""")


# --- the lines of the page -------------------------------------------------------------------------------------------


def test_the_page_has_a_line_for_each_mode() -> None:
    assert list(RIGHTS) == [DECLARES, STANDS, LOOKS, NEITHER, PUBLISHES, DELAYS, LETTERS]


async def test_a_service_works_with_the_rights_to_declare_its_own(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await Stock(place.user(RIGHTS[DECLARES])).works()

    assert "has no right" not in caplog.text
    assert "may not make" not in caplog.text


async def test_a_service_uses_what_an_administrator_declared(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    await declared_by_an_administrator(place)
    caplog.set_level(logging.INFO)

    await Stock(place.user(RIGHTS[STANDS])).works()

    said = [each.getMessage() for each in caplog.records if "no right to configure" in each.getMessage()]
    assert len([each for each in said if "'inventory.count'" in each]) == 1
    assert "may not make" not in caplog.text


async def test_a_service_that_only_looks_needs_no_right_to_declare(place: Place) -> None:
    await declared_by_an_administrator(place)

    await Stock(place.user(RIGHTS[LOOKS]), "passive").works()


async def test_a_service_that_does_not_even_look_works_on_what_stands(place: Place) -> None:
    await declared_by_an_administrator(place)

    await Stock(place.user(RIGHTS[NEITHER]), "none", inline=1).works()


async def test_a_bus_that_only_publishes_needs_one_right(place: Place) -> None:
    await declared_by_an_administrator(place)
    effects = Effects()

    async with (
        Bus(place.url, recording(effects), grace=1),
        Bus(place.user(RIGHTS[PUBLISHES]), name="web", grace=1) as web,
    ):
        await web.publish(OrderPlaced("o-1"))
        await effects.until(1)


async def test_a_bus_publishes_with_a_delay(place: Place) -> None:
    effects = Effects()

    async with Bus(place.url, recording(effects), grace=1), Bus(place.user(RIGHTS[DELAYS]), name="web", grace=1) as web:
        await web.publish(OrderPlaced("o-1"), delay=timedelta(seconds=0.2))
        await effects.until(1)


async def test_dead_letters_are_found_and_replayed(place: Place) -> None:
    await Stock(place.url).works()

    async with Bus(place.user(RIGHTS[LETTERS]), name="dlq", declare="none", grace=1) as bus:
        letters = DeadLetters(bus, "inventory.count")
        [letter] = await letters.find()
        await letters.replay()

    assert letter.message == "miscounted"
    assert (await place.node.aqueue_counts("inventory.count", place.url)).ready == 1


# --- one right less --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "name", "lacks"),
    [
        (0, r"inventory\.count", "configure on 'inventory.count'"),
        (0, r"events\.dead", "configure on 'events.dead'"),
        (0, "events", "configure on 'events'"),
        (1, r"events\.dead", "write on 'events.dead'"),
        (1, r"delay\.lost", "write on 'delay.lost'"),
        (1, r"inventory\.count", "write on 'inventory.count'"),
        (2, "events", "read on 'events'"),
        (2, r"delay\.due", "read on 'delay.due'"),
        (2, r"inventory\.count", "read on 'inventory.count'"),
    ],
)
async def test_with_a_right_less_nothing_is_made_and_the_right_is_named(
    place: Place, which: int, name: str, lacks: str
) -> None:
    configure, write, read = (
        f"(?!{name}$){pattern.removeprefix('^')}" if number == which else pattern
        for number, pattern in enumerate(RIGHTS[DECLARES])
    )
    url = place.user(("^" * (which == 0) + configure, "^" * (which == 1) + write, "^" * (which == 2) + read))

    with pytest.raises(TopologyError) as caught:
        await Stock(url).bus.start()

    assert f"lacks {lacks}." in str(caught.value)
    assert "s3cret-word" not in str(caught.value)
    assert place.things() == set()


async def test_a_publisher_s_missing_exchange_is_an_error_with_the_line_that_lets_it_be_made(place: Place) -> None:
    url = place.user(RIGHTS[PUBLISHES])

    with pytest.raises(TopologyError, match="lacks configure on 'events'") as caught:
        await Bus(url, name="web", grace=1).start()
    place.grant(str(caught.value), url)

    async with Bus(url, name="web", grace=1, unroutable="ignore") as web:
        await web.publish(OrderPlaced("o-1"))
    assert place.things() == {"events"}


async def test_a_waiting_queue_that_may_not_be_made_is_said_to_who_publishes(place: Place) -> None:
    await declared_by_an_administrator(place)
    before = place.things()

    async with Bus(place.user(RIGHTS[PUBLISHES]), name="web", grace=1) as web:
        with pytest.raises(RefusedError, match=r"lacks configure on .*'events\.delay\.1000'") as caught:
            await web.publish(OrderPlaced("o-1"), delay=timedelta(seconds=1))

    assert isinstance(caught.value.__cause__, TopologyError)
    assert "rabbitmqctl set_permissions" in str(caught.value)
    assert place.things() == before


async def test_the_line_in_the_error_is_enough(place: Place) -> None:
    url = place.user(("^$", "^$", "^$"))

    with pytest.raises(TopologyError) as caught:
        await Stock(url).bus.start()
    place.grant(str(caught.value), url)

    await Stock(url).works()


async def test_a_new_handler_s_queue_that_may_not_be_made_stops_only_that_handler(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await declared_by_an_administrator(place)
    before = place.things()
    stock = Stock(place.user((r"^inventory\.more\.dead$", ".*", ".*")))

    @stock.bus.routers[0].on(Counted)
    async def more(counted: Counted) -> None: ...

    async with stock.bus as bus:
        await bus.publish(Counted(1))
        await bus.publish(Counted(1))
        await eventually(lambda: bool(stock.done), "the handler that stands")
        problems = bus.health().problems

    assert [problem.name for problem in problems] == ["consumer inventory.more"]
    assert "lacks configure on 'inventory.more'" in problems[0].detail
    assert place.things() - before == set()
    assert [each.levelname for each in caplog.records if "lacks configure" in each.getMessage()] == ["ERROR"]


async def test_a_queue_that_may_not_be_read_is_said_once_and_consumed_when_it_may(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await declared_by_an_administrator(place)
    url = place.user(("^$", *RIGHTS[STANDS][1:2], r"^(events\.dead|inventory\.none)$"))
    stock = Stock(url, "passive")

    async with stock.bus as bus:
        [problem] = bus.health().problems
        user = url.partition("//")[2].partition(":")[0]
        place.node.set_permissions(place.url, "^$", ".*", ".*", user=user)
        await eventually(lambda: bus.health().ok, "the right", 20)

    assert "lacks read on 'inventory.count'" in problem.detail
    assert r"^inventory\.count$" in problem.detail
    said = [(each.levelname, each.getMessage()) for each in caplog.records if "inventory.count'" in each.getMessage()]
    assert len([text for _, text in said if "lacks read" in text]) == 1
    assert any("is back, after" in text for _, text in said)


async def test_bindings_that_may_not_be_made_are_named_and_said_to_be_unknown(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await declared_by_an_administrator(place)
    stock = Stock(place.user(("^$", RIGHTS[LOOKS][1], RIGHTS[LOOKS][2])))

    await stock.works()

    said, *others = [each.getMessage() for each in caplog.records if "may not make" in each.getMessage()]
    assert not any("inventory.count" in each for each in others)  # those are of a waiting queue, which came later
    assert "the binding of queue 'inventory.count' to 'inventory.counted' on exchange 'events'" in said
    assert "lacks write on 'delay.lost', 'inventory.count', 'inventory.count.dead'" in said
    assert "list_bindings" in said


# --- topics ----------------------------------------------------------------------------------------------------------


def set_topic(place: Place, url: str, write: str, read: str) -> None:
    user = url.partition("//")[2].partition(":")[0]
    words = ", ".join(f'<<"{word}">>' for word in (user, place.url.rpartition("/")[2], "events", write, read, "test"))
    place.node.eval(f"rabbit_auth_backend_internal:set_topic_permissions({words})")


async def test_a_topic_that_may_not_be_written_is_refused_alone(place: Place) -> None:
    effects = Effects()
    url = place.user((".*", ".*", ".*"))

    async with Bus(place.url, recording(effects), grace=1):
        set_topic(place, url, "^order", ".*")  # which is about an exchange that must be there
        async with Bus(url, name="web", grace=1, unroutable="ignore") as web:
            orders = [web.publish(OrderPlaced(f"o-{number}")) for number in range(50)]
            results = await asyncio.gather(*orders[:25], web.publish(Counted(1)), *orders[25:], return_exceptions=True)
            await effects.until(50)

    refused = [each for each in results if isinstance(each, BaseException)]
    assert [type(each) for each in refused] == [RefusedError]
    assert "access to topic 'inventory.counted' in exchange 'events'" in str(refused[0])


async def test_a_topic_that_may_not_be_bound_keeps_the_queue_from_being_made(place: Place) -> None:
    url = place.user(RIGHTS[DECLARES])
    async with Bus(place.url, Router("other"), grace=1):
        pass
    before = place.things()
    set_topic(place, url, ".*", "^order")

    async with Stock(url).bus as bus:
        [problem] = bus.health().problems

    assert "lacks read on topic 'inventory.counted' of exchange 'events'" in problem.detail
    assert "rabbitmqctl set_topic_permissions -p" in problem.detail
    assert place.things() == before
