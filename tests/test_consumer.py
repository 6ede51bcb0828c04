"""A subscription at work: settled once, held and tried again, paused and drained."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabbitevents import (
    ACK,
    REJECT,
    REQUEUE,
    BrokerUnavailableError,
    Bus,
    ConfigurationError,
    Delivery,
    Exchange,
    Host,
    Message,
    NotSentError,
    Plugin,
    Router,
    Settlement,
    TopologyError,
    facts,
    forward,
)
from rabbitevents.brokers import Deliver, Trusted, Verdict
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.brokers.embedded.client import MemoryClient
from rabbitevents.brokers.embedded.consumer import MemoryConsumer
from rabbitevents.consuming import holding
from rabbitevents.consuming.workers import SUSPECT_COUNT
from rabbitevents.plugin import Consume
from rabbitevents.testing import running
from rabbitevents.testing.bench import eventually
from tests.jobs import JobGiven


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is tried again soon."""
    monkeypatch.setattr(holding, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(holding, "LONGEST_PAUSE", 0.05)


class CountingConsumer(MemoryConsumer):
    """Counts what is settled, by channel and tag."""

    settled: Counter[tuple[int, int, Verdict]]

    def settle(self, delivery: Delivery, verdict: Verdict) -> bool:
        done = super().settle(delivery, verdict)
        self.settled[delivery.generation, delivery.tag, verdict] += 1
        return done


class CountingClient(MemoryClient):
    """A client whose consumers count."""

    def __init__(self, server: EmbeddedBroker) -> None:
        super().__init__(server)
        self.settled: Counter[tuple[int, int, Verdict]] = Counter()

    async def consume(self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None) -> MemoryConsumer:
        consumer = CountingConsumer(self.server, queue, prefetch, deliver, trusted, left=self._consumers.remove)
        consumer.settled = self.settled
        self._consumers.append(consumer)
        consumer.register()
        return consumer


async def returns_nothing() -> None:
    return None


async def raises() -> None:
    raise ValueError("as a handler does")


async def is_cancelled() -> None:
    raise asyncio.CancelledError


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def waits() -> None:
    await asyncio.sleep(0.001)


async def times_out() -> None:
    async with asyncio.timeout(0.001):
        await asyncio.sleep(1)


HANDLINGS: list[Callable[[], Any]] = [
    returns_nothing,
    raises,
    is_cancelled,
    cancels_itself,
    waits,
    times_out,
]
"""Failures that pass: what no waiting can change is not tried again, and its queue never empty."""
PLUGINS = ["proceeds", "acks", "rejects", "requeues", "forwards", "raises before", "raises after", "proceeds twice"]


class Whatever(Plugin):
    """Does with each first delivery what it is told."""

    def __init__(self, deeds: dict[int, str]) -> None:
        self.deeds = deeds
        self.seen: set[str] = set()

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        if str(delivery.id) in self.seen:
            return await proceed(delivery)
        self.seen.add(str(delivery.id))
        deed = self.deeds[int(str(delivery.headers["meta-number"]))]
        return await self._do(deed, proceed, delivery)

    async def _do(self, deed: str, proceed: Consume, delivery: Delivery) -> Settlement:
        match deed:
            case "acks":
                return ACK
            case "rejects":
                return REJECT
            case "requeues":
                return REQUEUE
            case "forwards":
                return forward(Message.copy_of(delivery, queue=delivery.queue))
            case "raises before":
                raise RuntimeError("as a plugin does")
            case "raises after":
                await proceed(delivery)
                raise RuntimeError("as a plugin does")
            case "proceeds twice":
                await proceed(delivery)
            case _:
                pass
        return await proceed(delivery)


@given(
    st.lists(st.tuples(st.sampled_from(HANDLINGS), st.sampled_from(PLUGINS)), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 8),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_every_delivery_is_settled_exactly_once_whatever_handlers_and_plugins_do(
    plan: list[tuple[Callable[[], Any], str]], concurrency: int, prefetch: int, drop: bool
) -> None:
    server = EmbeddedBroker()
    client = CountingClient(server)
    router, tries = Router("work"), Counter[int]()

    @router.on(JobGiven, concurrency=concurrency, prefetch=prefetch)
    async def do(job: JobGiven) -> Any:
        tries[job.number] += 1
        if tries[job.number] == 1:
            return await plan[job.number][0]()
        return None

    deeds = {number: deed for number, (_, deed) in enumerate(plan)}
    bus = Bus(client, router, plugins=[Whatever(deeds)])
    async with bus:
        for number in range(len(plan)):
            await bus.publish(JobGiven(number), metadata={"number": str(number)})
        if drop:
            server.drop_connections()
        queue = server.queues["work.do"]
        await eventually(lambda: queue.ready + queue.unsettled == 0, "an empty queue")

    twice = {key: count for key, count in Counter((g, t) for g, t, _ in client.settled).items() if count > 1}
    assert not twice, "settled in two ways"
    assert set(client.settled.values()) == {1}
    rejected = sum(deed == "rejects" for deed in deeds.values())
    assert server.queues["work.do.dead"].ready in ({rejected} if not drop else range(rejected + 1))


async def test_what_nobody_took_care_of_is_held_said_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    router, tries = Router("work"), list[int]()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        tries.append(job.number)
        if tries.count(job.number) < 4:
            raise ValueError("secret payload value")

    async with running(Bus("amqp://x", router)) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: len(tries) == 2, "a second try")
        problems = [check.detail for check in probe.bus.health().problems]
        await eventually(lambda: not probe.waiting("work.do"), "success")

        assert any("1 held" in problem for problem in problems)
        assert probe.bus.health().ok
        assert len(tries) == 4
        assert probe.waiting("work.do.dead") == 0
    assert "held" in caplog.text


async def test_a_failing_event_holds_nobody_up() -> None:
    router, done = Router("work"), list[int]()

    @router.on(JobGiven, concurrency=1, prefetch=10)
    async def do(job: JobGiven) -> None:
        if job.number == 0:
            raise ValueError
        done.append(job.number)

    async with running(Bus("amqp://x", router)) as probe:
        for number in range(20):
            await probe.bus.publish(JobGiven(number))
        await eventually(lambda: len(done) == 19, "the others")

        assert done == list(range(1, 20))
        assert probe.waiting("work.do") == 1


async def test_when_half_the_window_is_held_the_subscription_takes_nothing_new_and_says_so() -> None:
    router, tries, broken = Router("work"), Counter[int](), [True]

    @router.on(JobGiven, concurrency=2, prefetch=10)
    async def do(job: JobGiven) -> None:
        tries[job.number] += 1
        if broken[0]:
            raise ValueError

    async with running(Bus("amqp://x", router)) as probe:
        for number in range(50):
            await probe.bus.publish(JobGiven(number))
        await eventually(lambda: min(tries.values(), default=0) > 3, "several tries")
        started = len(tries)
        problems = [check.detail for check in probe.bus.health().problems]
        broken[0] = False
        await eventually(lambda: not probe.waiting("work.do"), "all of them")

        assert started <= 6
        assert any("takes nothing new" in problem for problem in problems)
        assert probe.bus.health().ok
        assert len(tries) == 50


async def test_a_held_suspect_stalls_nobody_behind_it() -> None:
    router, done = Router("work"), list[int]()

    @router.on(JobGiven, prefetch=10)
    async def do(job: JobGiven) -> None:
        if job.number == 0:
            raise ValueError
        done.append(job.number)

    bus = Bus("amqp://x", router, consumer_timeout=timedelta(hours=1))
    async with running(bus) as probe:
        await probe.bus.pause("work.do")
        for number in range(3):
            await probe.bus.publish(JobGiven(number))
        for _, stored in probe.broker.queues["work.do"]._ready:  # pyright: ignore[reportPrivateUsage]
            stored.count = SUSPECT_COUNT
        await probe.bus.resume("work.do")

        await eventually(lambda: done == [1, 2], "those behind it", 3)


async def test_observers_learn_when_a_subscription_takes_nothing_new_and_when_it_does_again() -> None:
    router, broken, seen = Router("work"), [True], list[facts.Fact]()

    class Notes(Plugin):
        def observe(self, fact: facts.Fact) -> None:
            seen.append(fact)

    @router.on(JobGiven, prefetch=4)
    async def do(job: JobGiven) -> None:
        if broken[0]:
            raise ValueError

    async with running(Bus("amqp://x", router, plugins=[Notes()])) as probe:
        for number in range(2):
            await probe.bus.publish(JobGiven(number))
        await eventually(lambda: probe.bus.load["work.do"].held == 2, "two that are held")
        broken[0] = False
        await eventually(lambda: not probe.waiting("work.do"), "both of them")

    changes = [fact for fact in seen if isinstance(fact, facts.Paused | facts.Resumed)]
    assert changes == [facts.Paused("work.do", "2 deliveries are held"), facts.Resumed("work.do")]


async def test_what_is_held_is_given_back_before_the_consumer_timeout_and_spends_no_delivery() -> None:
    router, tags, counts = Router("work"), set[int](), set[int]()

    @router.on(JobGiven)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        tags.add(delivery.tag)
        counts.add(delivery.delivery_count)
        raise ValueError

    bus = Bus("amqp://x", router, consumer_timeout=timedelta(seconds=0.2), delivery_limit=2)
    async with running(bus) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: len(tags) == 5, "four returns")

        assert probe.waiting("work.do.dead") == 0

    assert counts == {0}


async def test_what_is_held_leaves_half_of_the_consumer_timeout_to_whatever_takes_time() -> None:
    router, came = Router("work"), list[float]()
    now = asyncio.get_running_loop().time

    @router.on(JobGiven)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        if not came or delivery.tag > 1:
            came.append(now())
        raise ValueError

    async with running(Bus("amqp://x", router, consumer_timeout=timedelta(seconds=1))) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: len(came) > 1, "the return")

    assert 0.4 < came[1] - came[0] < 0.9


async def test_a_forward_that_cannot_be_published_is_tried_again_and_the_handler_is_not() -> None:
    router, handled = Router("work"), list[int]()

    class Forwards(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            await proceed(delivery)
            return forward(Message.copy_of(delivery, queue="later.made"))

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        handled.append(job.number)

    async with running(Bus("amqp://x", router, plugins=[Forwards()])) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: probe.bus.load["work.do"].held == 1, "the held forward")
        probe.broker.queues["later.made"] = probe.broker.make_queue("later.made", {})
        await eventually(lambda: probe.waiting("later.made") == 1, "the copy")
        await probe.settled()

        assert handled == [1]
        assert probe.waiting("work.do") == 0


async def test_a_handler_past_its_timeout_is_cancelled_and_tried_again() -> None:
    router, starts, ends = Router("work"), list[int](), list[str]()

    @router.on(JobGiven, timeout=0.05)
    async def do(job: JobGiven) -> None:
        starts.append(job.number)
        try:
            await asyncio.sleep(0 if len(starts) > 1 else 10)
            ends.append("done")
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async with running(Bus("amqp://x", router)) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: len(ends) == 2, "both ends")

        assert ends == ["cancelled", "done"]


async def test_a_timed_out_thread_keeps_its_delivery_until_it_ends_and_does_not_hold_up_the_exit() -> None:
    router, starts, release = Router("work"), list[int](), threading.Event()

    @router.on(JobGiven, timeout=0.02, concurrency=2)
    def do(job: JobGiven) -> None:
        starts.append(job.number)
        release.wait(30)

    async with running(Bus("amqp://x", router, grace=0.2)) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: len(starts) == 1, "the thread")
        await asyncio.sleep(0.1)  # five timeouts long
        unsettled = probe.waiting("work.do")
        held = probe.bus.load["work.do"].held
        stopping = asyncio.get_running_loop().time()
        await probe.bus.stop()
        took = asyncio.get_running_loop().time() - stopping
        left = probe.waiting("work.do")
    release.set()

    assert (starts, unsettled, held, left) == ([1], 1, 0, 1)
    assert took < 0.2 + 5


async def test_stale_deliveries_are_not_started_and_running_handlers_go_on() -> None:
    router, starts, ends, gate = Router("work"), list[int](), list[int](), asyncio.Event()

    @router.on(JobGiven, concurrency=2, prefetch=10)
    async def do(job: JobGiven) -> None:
        starts.append(job.number)
        await gate.wait()
        ends.append(job.number)

    async with running(Bus("amqp://x", router)) as probe:
        for number in range(10):
            await probe.bus.publish(JobGiven(number))
        await eventually(lambda: len(starts) == 2, "two handlers")
        probe.broker.drop_connections()
        gate.set()
        await probe.settled()

        assert Counter(starts) == {0: 2, 1: 2, **dict.fromkeys(range(2, 10), 1)}
        assert len(ends) == 12


async def test_a_paused_subscription_gives_back_what_has_not_begun_and_resumes() -> None:
    router, done, gate = Router("work"), list[int](), asyncio.Event()

    @router.on(JobGiven, concurrency=1, prefetch=10)
    async def do(job: JobGiven) -> None:
        await gate.wait()
        done.append(job.number)

    async with running(Bus("amqp://x", router)) as probe:
        for number in range(5):
            await probe.bus.publish(JobGiven(number))
        await eventually(lambda: any(load.running for load in probe.bus.load.values()), "the first handler")
        await probe.bus.pause("work.do")
        queue = probe.broker.queues["work.do"]
        while_paused = (queue.ready, queue.unsettled, probe.bus.health().ok)
        gate.set()
        await eventually(lambda: done == [0], "the one that ran")
        await probe.bus.resume("work.do")
        await eventually(lambda: len(done) == 5, "the others")

        assert while_paused == (4, 1, False)
        assert done == [0, 1, 2, 3, 4]
        assert probe.bus.health().ok


async def test_what_a_plugins_pause_gives_back_has_spent_none_of_its_deliveries() -> None:
    router, gate, counts = Router("work"), asyncio.Event(), list[int]()

    @router.on(JobGiven, concurrency=1, prefetch=10)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        await gate.wait()
        counts.append(delivery.delivery_count)

    async with running(Bus("amqp://x", router)) as probe:
        for number in range(5):
            await probe.bus.publish(JobGiven(number))
        await eventually(lambda: any(load.running for load in probe.bus.load.values()), "the first handler")
        await probe.bus.pause("work.do", by="a plugin", reason="it said so")
        queue = probe.broker.queues["work.do"]
        await eventually(lambda: queue.ready == 4, "what had not begun")
        health = probe.bus.health()
        gate.set()
        await probe.bus.resume("work.do", by="a plugin")
        await eventually(lambda: len(counts) == 5, "all of them")

    assert counts == [0] * 5
    assert health.ready
    assert [check.detail for check in health.problems] == ["paused by a plugin: it said so"]


async def test_a_subscription_goes_on_when_all_who_paused_it_have_resumed_it() -> None:
    router, done, seen = Router("work"), list[int](), list[facts.Fact]()

    class Observer(Plugin):
        def observe(self, fact: facts.Fact) -> None:
            seen.append(fact)

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        done.append(job.number)

    async with running(Bus("amqp://x", router, plugins=[Observer()])) as probe:
        await probe.bus.pause("work.do")
        await probe.bus.pause("work.do", by="a plugin", reason="it said so")
        await probe.bus.publish(JobGiven(1))
        await probe.bus.resume("work.do", by="a plugin")
        await probe.bus.resume("work.do", by="nobody who paused it")
        in_between = (probe.broker.queues["work.do"].ready, probe.bus.health().ready)
        await probe.bus.resume("work.do")
        await eventually(lambda: done == [1], "the event")

    assert in_between == (1, False)
    assert [fact for fact in seen if isinstance(fact, facts.Paused | facts.Resumed)] == [
        facts.Paused("work.do", "paused by the application"),
        facts.Paused("work.do", "paused by a plugin: it said so"),
        facts.Resumed("work.do"),
    ]


async def test_resumed_with_care_a_subscription_handles_one_at_a_time_until_it_is_resumed_in_full() -> None:
    router, now, most, done = Router("work"), [0], [0], list[int]()

    @router.on(JobGiven, concurrency=5)
    async def do(job: JobGiven) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0.01)
        now[0] -= 1
        done.append(job.number)

    async with running(Bus("amqp://x", router)) as probe:
        await probe.bus.pause("work.do", by="a plugin", reason="")
        for number in range(20):
            await probe.bus.publish(JobGiven(number))
        await probe.bus.resume("work.do", by="a plugin", one_at_a_time=True)
        await eventually(lambda: len(done) >= 5, "the first ones")
        most_at_a_time = most[0]
        await probe.bus.resume("work.do", by="a plugin")
        await eventually(lambda: len(done) == 20, "all of them")

    assert most_at_a_time == 1
    assert most[0] == 5
    assert done[:5] == list(range(5))


async def test_a_wait_ends_as_soon_as_the_bus_is_told_to_stop() -> None:
    router, passed = Router("work"), list[bool]()

    class Patient(Plugin):
        @asynccontextmanager
        async def lifespan(self, host: Host) -> AsyncGenerator[None]:
            self.host = host
            yield

        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            passed.append(await self.host.wait(0.01))
            passed.append(await self.host.wait(60))
            return REQUEUE

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None: ...

    broker = EmbeddedBroker()
    bus = Bus(broker.client(), router, plugins=[Patient()])
    async with asyncio.timeout(10), bus:
        await bus.publish(JobGiven(1))
        await eventually(lambda: passed == [True], "the short wait")

    assert passed == [True, False]
    assert broker.queues["work.do"].ready == 1


async def test_stopping_waits_for_running_handlers_and_gives_back_the_rest() -> None:
    router, done = Router("work"), list[int]()
    broker = EmbeddedBroker()

    @router.on(JobGiven, concurrency=2, prefetch=10)
    async def do(job: JobGiven) -> None:
        await asyncio.sleep(0.05 if job.number == 0 else 60)
        done.append(job.number)

    bus = Bus(broker.client(), router, grace=0.3)
    async with bus:
        for number in range(6):
            await bus.publish(JobGiven(number))
        await eventually(lambda: any(load.running for load in bus.load.values()), "handlers")

    queue = broker.queues["work.do"]
    assert done == [0]
    assert (queue.ready, queue.unsettled) == (5, 0)
    assert broker.queues["work.do.dead"].ready == 0


@pytest.mark.parametrize("ends", [True, False])
async def test_a_stop_says_of_the_handlers_that_they_did_not_end_and_only_then(
    ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    router, begun = Router("work"), asyncio.Event()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        begun.set()
        await asyncio.sleep(0.02 if ends else 60)

    async with Bus("memory://", router, grace=5 if ends else 0.1) as bus:
        await bus.publish(JobGiven(1))
        await begun.wait()

    assert ("handlers did not end in time, and their events are given back: 1 of" in caplog.text) is not ends
    assert ("did not end in time" in caplog.text) is not ends


async def test_one_worker_handles_in_order_though_handlers_wait() -> None:
    router, done = Router("work"), list[int]()

    @router.on(JobGiven, concurrency=1)
    async def do(job: JobGiven) -> None:
        await asyncio.sleep(0.0001 * (job.number % 3))
        done.append(job.number)

    async with running(Bus("amqp://x", router)) as probe:
        for number in range(100):
            await probe.bus.publish(JobGiven(number))
        await probe.settled()

    assert done == list(range(100))


async def test_no_more_handlers_run_at_once_than_there_are_workers() -> None:
    router, running_now, most = Router("work"), [0], [0]

    @router.on(JobGiven, concurrency=7)
    async def do(job: JobGiven) -> None:
        running_now[0] += 1
        most[0] = max(most[0], running_now[0])
        await asyncio.sleep(0.001)
        running_now[0] -= 1

    async with running(Bus("amqp://x", router)) as probe:
        await probe.bus.publish_many([JobGiven(number) for number in range(100)])
        await probe.settled()

    assert most[0] == 7


class Final(BaseException):
    """What test libraries raise."""


@pytest.mark.parametrize("raised", [Final("x"), BaseExceptionGroup("x", [asyncio.CancelledError()]), GeneratorExit()])
async def test_whatever_a_handler_raises_is_held_and_shown(
    raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    router, tries = Router("work"), list[int]()

    @router.on(JobGiven, prefetch=2, concurrency=1)
    async def do(job: JobGiven) -> None:
        tries.append(job.number)
        if len(tries) == 1:
            raise raised

    async with running(Bus("amqp://x", router)) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: len(tries) == 2, "a second try")
        await probe.settled()

        assert probe.waiting("work.do") == 0
    assert "a worker ended" not in caplog.text


async def test_resuming_during_a_stop_spends_nobodys_delivery_limit() -> None:
    router, broker, release = Router("work"), EmbeddedBroker(), asyncio.Event()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None: ...

    @router.on(JobGiven)
    async def slow(job: JobGiven) -> None:
        await release.wait()

    bus = Bus(broker.client(), router, grace=1)
    async with bus:
        await bus.pause("work.do")
        for number in range(5):
            await bus.publish(JobGiven(number))
        await eventually(lambda: any(load.running for load in bus.load.values()), "the slow handler")
        stopping = asyncio.create_task(bus.stop())
        await asyncio.sleep(0.01)
        await bus.resume("work.do")
        release.set()
        await stopping

    assert broker.queues["work.do"].ready == 5
    assert broker.queues["work.do.dead"].ready == 0


class SlowToCancel(MemoryConsumer):
    """A broker that goes on delivering for a while after it was asked to stop."""

    async def cancel(self) -> None:
        await asyncio.sleep(0.05)
        await super().cancel()


async def test_while_the_broker_takes_the_consumer_away_nothing_is_given_back_and_nothing_begun() -> None:
    router, broker, begun = Router("work"), EmbeddedBroker(), list[int]()

    @router.on(JobGiven, concurrency=1, prefetch=5)
    async def do(job: JobGiven) -> None:
        begun.append(job.number)
        await asyncio.sleep(0.02)

    class Client(MemoryClient):
        async def consume(
            self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None
        ) -> MemoryConsumer:
            consumer = SlowToCancel(self.server, queue, prefetch, deliver, trusted, left=self._consumers.remove)
            self._consumers.append(consumer)
            consumer.register()
            return consumer

    bus = Bus(Client(broker), router, delivery_limit=1, grace=1)
    async with bus:
        for number in range(20):
            await bus.publish(JobGiven(number))
        await eventually(lambda: bool(begun), "the first handler")
        before = len(begun)

    assert len(begun) == before
    assert broker.queues["work.do.dead"].ready == 0
    assert broker.queues["work.do"].ready == 20 - before


async def test_a_start_that_fails_leaves_nothing_running() -> None:
    router, before = Router("work"), asyncio.all_tasks()

    @router.on(JobGiven)
    async def good(job: JobGiven) -> None: ...

    @router.on(JobGiven)
    async def bad(job: JobGiven) -> None: ...

    class Client(MemoryClient):
        async def consume(
            self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None
        ) -> MemoryConsumer:
            if queue == "work.bad":
                raise BrokerUnavailableError("no more channels")
            await asyncio.sleep(0.01)
            return await super().consume(queue, prefetch=prefetch, deliver=deliver, trusted=trusted)

    bus = Bus(Client(EmbeddedBroker()), router)
    with pytest.raises(BrokerUnavailableError):
        await bus.start()
    await asyncio.sleep(0.05)

    assert asyncio.all_tasks() == before
    assert not bus.health().ok


class HalfAway(MemoryClient):
    """A client at which one queue cannot be consumed, and the others are still being asked for."""

    async def consume(self, queue: str, *, prefetch: int, deliver: Deliver, trusted: Trusted | None) -> MemoryConsumer:
        if queue != "work.gone":
            await asyncio.Event().wait()
        raise BrokerUnavailableError("away")


async def test_where_one_subscription_cannot_begin_the_others_are_not_left_beginning() -> None:
    router, before = Router("work"), asyncio.all_tasks()
    for name in ("one", "gone", "other"):

        @router.on(JobGiven, name=name)
        async def do(job: JobGiven) -> None: ...

    with pytest.raises(BrokerUnavailableError, match="away"):
        await Bus(HalfAway(EmbeddedBroker()), router, grace=0.1).start()
    await asyncio.sleep(0)

    assert asyncio.all_tasks() == before


async def test_a_service_that_is_asked_to_stop_has_stopped_when_it_ends() -> None:
    broker, started = EmbeddedBroker(), asyncio.Event()
    bus = Bus(broker.client(), Router("work"))
    serving = asyncio.create_task(bus.serve(started=started.set))
    await started.wait()

    bus.ask_to_stop()
    async with asyncio.timeout(5):
        await serving

    assert bus.health().checks[0].detail == "stopped"
    assert not broker.clients


async def test_a_service_that_is_asked_to_stop_while_its_broker_is_away_ends() -> None:
    broker = EmbeddedBroker()
    broker.go_down()
    bus = Bus(broker.client(), Router("work"), start_timeout=60)
    serving = asyncio.create_task(bus.serve())
    await eventually(lambda: bool(broker.clients), "the attempt")

    bus.ask_to_stop()
    async with asyncio.timeout(5):
        await serving

    assert bus.stopping
    assert not broker.clients


async def test_two_routers_of_one_name_cannot_share_a_queue_unawares() -> None:
    one, other = Router("work"), Router("work")
    for router in (one, other):

        @router.on(JobGiven)
        async def do(job: JobGiven) -> None: ...

    with pytest.raises(ConfigurationError, match=r"two routers have the queue 'work\.do'"):
        await Bus("memory://", one, other).start()


async def test_a_bus_whose_start_failed_has_stopped() -> None:
    broker = EmbeddedBroker()
    bus = Bus(broker.client(), Router("work"), start_timeout=0.01)
    broker.go_down()
    with pytest.raises(BrokerUnavailableError):
        await bus.start()
    broker.come_up()

    assert bus.stopping
    assert bus.health().checks[0].detail == "stopped"
    with pytest.raises(ConfigurationError, match="this bus is stopped"):
        await bus.start()


async def test_an_exchange_that_stands_otherwise_keeps_the_bus_from_starting() -> None:
    broker, router = EmbeddedBroker(), Router("work")

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None: ...

    broker.declare_all([Exchange("events", "fanout")], passive=False)

    with pytest.raises(TopologyError, match="'events'"):
        await Bus(broker.client(), router).start()


async def test_publishing_after_the_stop_is_refused_at_once() -> None:
    bus = Bus(EmbeddedBroker().client())
    async with bus:
        await bus.stop()
        await bus.stop()

    with pytest.raises(NotSentError):
        await bus.publish(JobGiven(1), timeout=0.1)


async def test_a_task_group_that_fails_in_a_handler_leaves_no_cancellation_behind() -> None:
    router, seen = Router("work"), list[tuple[int, int]]()

    async def fail() -> None:
        raise ValueError

    @router.on(JobGiven, concurrency=1)
    async def do(job: JobGiven) -> None:
        task = asyncio.current_task()
        assert task is not None
        seen.append((job.number, task.cancelling()))
        if job.number == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())

    async with running(Bus("amqp://x", router)) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.bus.publish(JobGiven(2))
        await probe.settled()

        assert not probe.bus.stopping
    assert {number for number, _ in seen} == {1, 2}
    assert {cancelling for _, cancelling in seen} == {0}
    assert probe.bus.stopping


def test_a_bus_that_is_stopped_says_so_on_another_event_loop() -> None:
    bus = Bus("memory://")

    async def once() -> None:
        async with bus:
            pass

    asyncio.run(once())

    with pytest.raises(ConfigurationError, match="this bus is stopped; a bus starts once"):
        bus.run()


async def test_what_is_held_is_tried_again_though_its_subscription_is_paused() -> None:
    router, broken, done = Router("work"), [True], list[int]()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        if broken[0]:
            raise OSError
        done.append(job.number)

    async with running(Bus("amqp://x", router)) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: probe.bus.load["work.do"].held == 1, "the held one")
        await probe.bus.pause("work.do")
        broken[0] = False
        await eventually(lambda: done == [1], "its next try")

        assert probe.bus.load["work.do"].held == 0
