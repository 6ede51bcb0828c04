"""Publishing from threads: what `SyncBus` promises whatever threads, processes and brokers do."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from attrs import frozen

from rabbitevents import (
    BrokerError,
    BrokerUnavailableError,
    Bus,
    ConfigurationError,
    EncodeError,
    Event,
    Host,
    Message,
    Plugin,
    Publish,
    PublishError,
    Router,
    UnroutableError,
    event,
)
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.sync import SyncBus
from rabbitevents.sync import bus as sync
from rabbitevents.sync.background import Background
from tests.bed.fixtures import NodeFactory
from tests.bed.loopback import free_port
from tests.bed.proxy import Proxy
from tests.shop import Effects, OrderPlaced, eventually, recording

ROOT = Path(__file__).parent.parent

THE_CALLER: ContextVar[str] = ContextVar("the_caller", default="nobody")


@event("stock.counted")
@frozen
class StockCounted:
    shelf: Any


class Gate(Plugin):
    """Lets publishes pass once it is open."""

    def __init__(self) -> None:
        self.waiting = 0
        self.started = 0
        self.passed: list[str] = []
        self.callers: list[str] = []
        self._opened = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Let them pass, from another thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._opened.set)

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        self.started += 1
        self._loop = asyncio.get_running_loop()
        yield

    async def publish(self, proceed: Publish, message: Message) -> None:
        self.waiting += 1
        self.callers.append(THE_CALLER.get())
        await self._opened.wait()
        await proceed(message)
        self.passed.append(message.id)


class Deadly(Plugin):
    """Ends the event loop's thread at the order "death", and cancels the publish of the order "stray"."""

    async def publish(self, proceed: Publish, message: Message) -> None:
        if b"death" in message.body:
            raise SystemExit("the end of the loop")
        if b"stray" in message.body:
            raise asyncio.CancelledError
        if b"patience" in message.body:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(60)  # a defect: whoever waits must be told all the same
        await proceed(message)


class Stuck(Plugin):
    """Blocks the event loop until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    async def publish(self, proceed: Publish, message: Message) -> None:
        self.let_go.wait(30)  # a defect, such as somebody's plugin may have
        await proceed(message)


def soon(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Wait until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.002)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


# --- publishing ----------------------------------------------------------------------------------------------------


async def test_what_was_published_from_threads_reaches_the_handlers(rabbit_url: str) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)):
        with_threads = SyncBus(rabbit_url, name="till")
        published = await asyncio.gather(
            *(asyncio.to_thread(with_threads.publish, OrderPlaced(f"o-{i}")) for i in range(50))
        )
        await asyncio.to_thread(with_threads.close)
        await effects.until(50)

    assert {each.payload.order_id for each in published} == set(effects.done)
    assert {each.metadata.source for each in published} == {"till"}


def test_the_arguments_of_a_publish_mean_what_they_mean_for_a_bus() -> None:
    with SyncBus("memory://", unroutable="ignore") as bus:
        first = bus.publish(OrderPlaced("o"), metadata={"tenant": "t"}, correlation_id="c", timeout=5)
        again = bus.publish(first)
        later = bus.publish(OrderPlaced("later"), delay=timedelta(hours=1))
        several = bus.publish_many([OrderPlaced("a"), first])

    assert (first.metadata.extra, first.metadata.correlation_id) == ({"tenant": "t"}, "c")
    assert again == first
    assert later.payload == OrderPlaced("later")
    assert [each.payload for each in several] == [OrderPlaced("a"), OrderPlaced("o")]


def test_the_errors_are_those_of_a_bus() -> None:
    with SyncBus("memory://", unroutable="raise") as bus:
        with pytest.raises(UnroutableError) as unroutable:
            bus.publish(OrderPlaced("o"))
        with pytest.raises(EncodeError):
            bus.publish(StockCounted(object()))
        with pytest.raises(ConfigurationError, match="is no event"):
            bus.publish("text")
        with pytest.raises(ExceptionGroup) as both:
            bus.publish_many([OrderPlaced("a"), OrderPlaced("b")])

    assert unroutable.value.message.type == "order.placed"
    assert [type(error) for error in both.value.exceptions] == [UnroutableError, UnroutableError]


def test_what_makes_the_events_runs_in_the_thread_that_publishes_them() -> None:
    made_in: list[threading.Thread] = []

    def orders() -> Iterator[OrderPlaced]:
        for number in range(3):
            made_in.append(threading.current_thread())
            yield OrderPlaced(f"o-{number}")

    with SyncBus("memory://", unroutable="ignore") as bus:
        bus.publish_many(orders())

    assert made_in == [threading.current_thread()] * 3


def test_a_plugin_sees_the_context_of_the_thread_that_publishes() -> None:
    gate = Gate()

    with SyncBus("memory://", plugins=[gate], unroutable="ignore") as bus:
        gate.open()
        THE_CALLER.set("a view")
        bus.publish(OrderPlaced("o"))

    assert gate.callers == ["a view"]


async def test_what_a_handler_in_a_thread_publishes_is_caused_by_what_it_handles() -> None:
    published: list[Event[Any]] = []
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    through = SyncBus("memory://", unroutable="ignore")
    router = Router("shop")

    @router.on(OrderPlaced)
    def record(order: OrderPlaced) -> None:
        published.append(through.publish(StockCounted(1)))
        loop.call_soon_threadsafe(ended.set)

    async with Bus(EmbeddedBroker().client(), router) as bus:
        cause = await bus.publish(OrderPlaced("o"))
        await asyncio.wait_for(ended.wait(), 10)
    await asyncio.to_thread(through.close)

    assert published[0].metadata.causation_id == str(cause.id)
    assert published[0].metadata.correlation_id == str(cause.id)


# --- starting and closing ------------------------------------------------------------------------------------------


def test_it_connects_at_the_first_publish_once_for_all_threads(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    bus = SyncBus("memory://", plugins=[gate], unroutable="ignore")
    assert bus.health().ready

    publishes = [pool.submit(bus.publish, OrderPlaced(f"o-{i}")) for i in range(16)]
    soon(lambda: gate.waiting == 16, "all to wait at the gate")
    gate.open()
    published = [each.result(10) for each in publishes]

    assert gate.started == 1
    assert sorted(gate.passed) == sorted(str(each.id) for each in published)
    assert bus.health().ok
    bus.close()


def test_one_that_has_not_published_yet_is_ready_and_one_that_was_closed_is_not() -> None:
    bus = SyncBus(f"amqp://127.0.0.1:{free_port()}")
    new = bus.health()
    bus.close()

    assert new.ok
    assert new.ready
    assert not bus.health().ready


def test_one_whose_broker_was_away_is_ready_to_try_again_and_says_so() -> None:
    bus = SyncBus(f"amqp://127.0.0.1:{free_port()}", start_timeout=0.2)
    with pytest.raises(BrokerUnavailableError):
        bus.start()

    assert not bus.health().ok
    assert bus.health().ready
    assert "the next publish tries anew" in str(bus.health())
    bus.close()


def test_start_and_close_may_be_said_again_and_a_closed_one_opens_again() -> None:
    bus = SyncBus("memory://", unroutable="ignore")
    bus.start()
    bus.start()
    bus.publish(OrderPlaced("o"))
    bus.close()
    bus.close()
    with pytest.raises(ConfigurationError, match="closed"):
        bus.publish(OrderPlaced("o"))
    assert [check.detail for check in bus.health().problems] == ["closed; start() opens it again"]

    with bus:
        assert bus.publish(OrderPlaced("again")).payload == OrderPlaced("again")


async def test_closing_waits_for_the_confirms_of_what_was_sent(
    rabbit_url: str, proxy: Callable[[str], Awaitable[Proxy]], pool: ThreadPoolExecutor
) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)):
        through = await proxy(rabbit_url)
        bus = SyncBus(through.url_for(rabbit_url))
        await asyncio.to_thread(bus.start)
        through.delay(0.5, to_server=False)
        publishes = [pool.submit(bus.publish, OrderPlaced(f"o-{i}")) for i in range(5)]
        await effects.until(5)

        await asyncio.to_thread(bus.close)

        assert [await asyncio.wrap_future(each) for each in publishes]


def test_what_was_written_wrong_is_said_when_it_is_made() -> None:
    with pytest.raises(ConfigurationError, match="write amqp://"):
        SyncBus("http://127.0.0.1/")
    with pytest.raises(ConfigurationError, match="SyncBus takes URLs"):
        SyncBus(EmbeddedBroker().client())  # type: ignore[arg-type]


def test_a_broker_that_is_away_is_waited_for_and_then_named(pool: ThreadPoolExecutor) -> None:
    port = free_port()
    bus = SyncBus(f"amqp://guest:secret@127.0.0.1:{port}/", start_timeout=1)
    began = time.monotonic()

    starts = [pool.submit(bus.start) for _ in range(8)]
    errors = [start.exception(20) for start in starts]

    assert {type(error) for error in errors} == {BrokerUnavailableError}
    assert f"127.0.0.1:{port}" in str(errors[0])
    assert "secret" not in str(errors[0])
    assert time.monotonic() - began < 4  # together, not one after the other
    bus.close()


def test_a_publish_waits_for_the_first_connection_no_longer_than_its_own_timeout() -> None:
    port = free_port()
    bus = SyncBus(f"amqp://guest:secret@127.0.0.1:{port}/", start_timeout=30)
    began = time.monotonic()

    with pytest.raises(BrokerUnavailableError, match=f"nothing was sent.*127.0.0.1:{port}"):
        bus.publish(OrderPlaced("o"), timeout=0.5)
    bus.close()

    assert time.monotonic() - began < 5


@pytest.mark.parametrize("method", ["start", "publish", "publish_many", "health", "close"])
async def test_where_an_event_loop_runs_it_refuses_to_block_it(method: str) -> None:
    bus = SyncBus("memory://")
    arguments: dict[str, tuple[object, ...]] = {"publish": (OrderPlaced("o"),), "publish_many": ([OrderPlaced("o")],)}

    with pytest.raises(ConfigurationError, match=r"await bus\.publish") as refused:
        getattr(bus, method)(*arguments.get(method, ()))

    assert f"asyncio.to_thread(bus.{method}" in str(refused.value)
    assert "rabbitevents" not in {thread.name for thread in threading.enumerate()}


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_an_interrupted_publish_harms_no_other(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    with SyncBus("memory://", plugins=[gate], unroutable="ignore") as bus:
        other = pool.submit(bus.publish, OrderPlaced("other"))
        soon(lambda: gate.waiting == 1, "the other's publish")

        def interrupt() -> None:
            soon(lambda: gate.waiting == 2, "our publish")
            os.kill(os.getpid(), signal.SIGINT)

        interrupting = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            bus.publish(OrderPlaced("interrupted"))
        interrupting.result(10)
        gate.open()
        others = other.result(10)
        after = bus.publish(OrderPlaced("after"))

    assert gate.passed == [str(others.id), str(after.id)]


def test_when_the_loop_dies_those_who_wait_are_told_at_once_and_the_next_begins_another(
    pool: ThreadPoolExecutor,
) -> None:
    bus = SyncBus("memory://", plugins=[Deadly()], unroutable="ignore")
    bus.start()
    waiting = pool.submit(bus.publish, OrderPlaced("patience"))
    began = time.monotonic()

    with pytest.raises(BrokerError, match="done, or not"):
        bus.publish(OrderPlaced("death"))
    after = bus.publish(OrderPlaced("after"))
    with pytest.raises(BrokerError, match="done, or not"):
        waiting.result(10)

    assert after.payload == OrderPlaced("after")
    assert time.monotonic() - began < 5
    bus.close()


def test_a_publish_that_a_plugin_cancelled_is_told_to_its_caller_at_once() -> None:
    began = time.monotonic()

    with SyncBus("memory://", plugins=[Deadly()], unroutable="ignore") as bus:
        with pytest.raises(BrokerError, match="done, or not"):
            bus.publish(OrderPlaced("stray"))
        bus.publish(OrderPlaced("after"))

    assert time.monotonic() - began < 5


def test_what_was_asked_before_the_whole_process_stood_still_is_answered_afterwards() -> None:
    """After SIGCONT every deadline is over at once, and the thread that waits may run before the event loop does."""
    life = Background(Bus("memory://"))
    life.begin()
    life.wait_started(monotonic() + 10)

    async def work() -> str:
        await asyncio.sleep(0.2)
        return "confirmed"

    try:
        assert life.call(work, monotonic() - 40, margin=10) == "confirmed"
        with pytest.raises(BrokerError, match="no answer in time"):
            life.call(work, monotonic() - 40)
    finally:
        life.ask_to_end()
        life.wait_ended(10)


def test_a_loop_that_stands_still_keeps_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "MARGIN", 0.3)
    stuck = Stuck()
    bus = SyncBus("memory://", plugins=[stuck], unroutable="ignore")
    bus.start()
    began = time.monotonic()

    with pytest.raises(BrokerError, match="no answer in time"):
        bus.publish(OrderPlaced("o"), timeout=0.2)
    health = bus.health()

    assert time.monotonic() - began < 4
    assert [check.name for check in health.problems] == ["bus"]
    stuck.let_go.set()
    bus.close()


# --- processes -----------------------------------------------------------------------------------------------------


def prefork(mode: str, url: str) -> tuple[list[str], str]:
    """Run `tests.prefork`; return its lines and what it complained about."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.prefork", mode, url], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return sorted(ended.stdout.split()), ended.stderr


@pytest.mark.parametrize(
    ("mode", "children", "own"), [("busy", 5, ["parent-after", "parent-before"]), ("preload", 3, [])]
)
async def test_each_forked_process_has_a_connection_of_its_own(
    rabbit_url: str, mode: str, children: int, own: list[str]
) -> None:
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)):
        lines, complaints = await asyncio.to_thread(prefork, mode, rabbit_url)
        await effects.until(len(lines))

    assert lines == sorted([f"child-{n}-{i}" for n in range(children) for i in range(2)] + own)
    assert set(effects.done) - {"meanwhile"} == set(lines)
    assert complaints == ""


async def test_what_nobody_closed_is_closed_in_order_as_the_process_ends(rabbit_url: str) -> None:
    lines, complaints = await asyncio.to_thread(prefork, "only", rabbit_url)

    assert lines == ["left", "only"]
    assert complaints == ""


# --- the whole -----------------------------------------------------------------------------------------------------


def publish_all(bus: SyncBus, orders: list[str], confirmed: list[str], refused: list[str]) -> None:
    """Publish one after the other, and note what came of each."""
    for order in orders:
        try:
            bus.publish(OrderPlaced(order))
        except PublishError:
            refused.append(order)
        else:
            confirmed.append(order)


@pytest.mark.timeout(300)
async def test_of_10000_events_from_8_threads_over_a_restart_of_the_broker_none_is_lost(own_node: NodeFactory) -> None:
    node = await own_node()
    async with Bus(node.url, recording(Effects())):
        await node.asettle()  # the queue is there, and is on disk
    confirmed: list[str] = []
    refused: list[str] = []
    bus = SyncBus(node.url)
    with ThreadPoolExecutor(8) as threads:
        orders = [[f"o-{thread}-{i}" for i in range(1250)] for thread in range(8)]
        work: list[Future[None]] = [threads.submit(publish_all, bus, each, confirmed, refused) for each in orders]
        await eventually(lambda: len(confirmed) > 4000, "the middle", 120)
        await node.akill()
        before = len(confirmed)
        await node.astart()
        for each in work:
            await asyncio.wait_for(asyncio.wrap_future(each), 200)
    await asyncio.to_thread(bus.close)

    effects = Effects()
    async with Bus(node.url, recording(effects)):
        await eventually(lambda: set(confirmed) <= set(effects.done), "what was confirmed", 60)

    assert before < 10_000
    assert sorted(confirmed + refused) == sorted(chain.from_iterable(orders))
    assert len(confirmed) > before + 1000  # it went on
