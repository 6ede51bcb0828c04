"""What plugins do with deliveries and their copies: marks for those further in, and words that a copy carries on."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from rabbitevents import (
    Bus,
    ConfigurationError,
    Consume,
    DecodeError,
    Delivery,
    Host,
    Load,
    Message,
    Plugin,
    Router,
    Settlement,
    forward,
)
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.properties import Properties
from rabbitevents.testing import delivered, running
from tests.jobs import JobGiven
from tests.shop import eventually


class Again(Plugin):
    """Sends each delivery back to its queue once."""

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        await proceed(delivery)
        return forward(delivery.replace(attempt=2)) if delivery.attempt == 1 else await proceed(delivery)


class Saying(Plugin):
    """Lays a header over what goes on."""

    def __init__(self, word: str, own: list[str]) -> None:
        self.word = word
        self.own = own

    def forward(self, delivery: Delivery, message: Message) -> Message:
        self.own.append(f"{self.word} {delivery.attempt}->{message.headers.get('attempt')}")
        return message.replace(headers={"word": f"{message.headers.get('word', '')}{self.word}"})


async def test_what_goes_on_passes_the_forward_hooks_from_the_inside_out() -> None:
    router, words, own = Router("work"), list[object](), list[str]()

    @router.on(JobGiven)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        words.append(delivery.headers.get("word"))

    async with running(Bus("amqp://x", router, plugins=[Saying("outer", own), Again(), Saying("inner", own)])) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

    assert own == ["inner 1->2", "outer 1->2"]
    assert words == [None, "innerouter", "innerouter"]


async def test_a_forward_hook_of_a_handler_s_own_plugin_stands_in() -> None:
    router, own = Router("work"), list[str]()

    @router.on(JobGiven, plugins=[Saying("mine", own)])
    async def do(job: JobGiven) -> None: ...

    async with running(Bus("amqp://x", router, plugins=[Saying("bus", own), Again()])) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

    assert own == ["mine 1->2"]


def test_a_marked_delivery_is_the_same_one_under_another_number_and_token() -> None:
    first = delivered(b"{}", Properties(message_id="1", headers={"attempt": 3}))

    second = first.marked(attempt=4)
    third = second.marked(fence=17)

    assert [(d.attempt, d.fence) for d in (first, second, third)] == [(3, None), (4, None), (4, 17)]
    assert (third.body, third.properties, third.tag) == (first.body, first.properties, first.tag)
    assert third.replace(attempt=5).headers["attempt"] == 5


def test_a_delivery_that_cannot_be_read_can_be_marked() -> None:
    broken = Delivery("q", 1, 1, False, "", "q", b"", b"\xff\xff\xff")

    marked = broken.marked(attempt=2)

    with pytest.raises(DecodeError):
        _ = marked.properties


async def test_a_sibling_takes_over_what_it_is_not_told_otherwise() -> None:
    router = Router("work")
    handled: list[int] = []

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        handled.append(job.number)

    original = Bus("amqp://x", router, name="shop", exchange="sales", grace=7.0)
    sibling = original.sibling(EmbeddedBroker().client(), grace=3.0)
    async with sibling:
        await sibling.publish(JobGiven(1))
        await eventually(lambda: handled == [1], "the handling")

    assert (sibling.name, sibling.exchange, sibling.grace, original.grace) == ("shop", "sales", 3.0, 7.0)


async def test_a_sibling_without_handlers_on_the_same_broker_declares_and_consumes_nothing() -> None:
    server, router = EmbeddedBroker(), Router("work")

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None: ...

    async with Bus(server.client(), router).sibling(routers=(), plugins=(), declare="none") as tool:
        assert tool.subscriptions == ()
        assert await tool.depth("work.do") is None
    assert server.queues == {}


async def test_a_plugin_is_told_what_its_bus_can_take() -> None:
    told: list[object] = []

    class Asking(Plugin):
        def lifespan(self, host: Host) -> AbstractAsyncContextManager[None]:
            told.extend([host.consumer_timeout.total_seconds(), host.limits.body, host.load, host.health().ok])
            return super().lifespan(host)

    async with Bus("memory://", plugins=[Asking()]):
        pass

    assert told == [1800.0, 1_048_576, {}, False]


async def test_the_load_says_what_waits_runs_and_is_held() -> None:
    router, release = Router("work"), asyncio.Event()

    @router.on(JobGiven, concurrency=2, prefetch=10)
    async def do(job: JobGiven) -> None:
        await release.wait()

    async with running(Bus("amqp://x", router)) as probe:
        for number in range(5):
            await probe.bus.publish(JobGiven(number))
        await eventually(lambda: probe.bus.load["work.do"] == Load(queued=3, running=2, held=0), "two at work")
        release.set()
        await probe.settled()

        assert probe.bus.load == {"work.do": Load(0, 0, 0)}


def test_a_sibling_of_nonsense_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Bus("memory://").sibling(delivery_limit=0)
