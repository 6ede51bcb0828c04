"""What becomes of a delivery, where two promises meet: a lost connection, a failing handler, a publish that fails."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import retry_if_exception_type, stop_after_attempt, wait_fixed, wait_none

from rabbitevents import (
    REJECT,
    Bus,
    Consume,
    Delivery,
    Limits,
    Message,
    Plugin,
    Properties,
    PublishError,
    Router,
    Settlement,
    facts,
    forward,
)
from rabbitevents import bus as bus_module
from rabbitevents.brokers.embedded.consumer import MemoryConsumer
from rabbitevents.consuming import dispatch, holding
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents.testing.bench import eventually
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, MemoryStore
from rabbitevents_retry import Retry
from tests.jobs import WORK, JobDone, JobGiven


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(holding, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(dispatch, "_PAUSES", (0.01,))


# --- stale deliveries ------------------------------------------------------------------------------------------------


class Forwards(Plugin):
    """Forwards what fails to another queue."""

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        try:
            return await proceed(delivery)
        except OSError as error:
            return forward(Message.copy_of(delivery, queue="work.do.dead"), error=error)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["", "before the end", "again and again"])), min_size=1, max_size=6
    )
)
def test_a_delivery_whose_channel_is_gone_is_never_forwarded(events: list[tuple[bool, str]]) -> None:
    """Each event fails or not, and its connection is lost while it is handled, or not."""

    async def main() -> None:
        router, server, runs = Router("work"), EmbeddedBroker(), Counter[int]()
        stale_at_end, forwarded = Counter[int](), list[UUID]()

        class Notes(Plugin):
            def observe(self, fact: Any) -> None:
                if isinstance(fact, facts.Forwarded):
                    forwarded.append(UUID(fact.id))

        @router.on(JobGiven, concurrency=1)
        async def do(job: JobGiven, delivery: Delivery) -> None:
            runs[job.number] += 1
            fails, lost = events[job.number]
            if lost and runs[job.number] <= (1 if lost == "before the end" else 3):
                server.drop_connections()
            await asyncio.sleep(0)
            stale_at_end[job.number] += delivery.stale
            if fails:
                raise OSError

        bus = Bus(server.client(), router, plugins=[Notes(), Forwards()], delivery_limit=1000)
        async with running(bus, broker=server) as probe:
            sent = await probe.bus.publish_many([JobGiven(number) for number in range(len(events))])
            await probe.settled()

            dead = probe.waiting("work.do.dead")
        failing = [each.id for each, (fails, _) in zip(sent, events, strict=True) if fails]
        assert sorted(forwarded) == sorted(failing)
        assert dead == len(failing)
        for number in range(len(events)):
            # One run for each delivery; every one but the last was cut off. (A loss while a neighbour is handled cuts
            # off nobody here: one worker, and what waits begins only once.)
            assert runs[number] == stale_at_end[number] + 1

    asyncio.run(main())


async def test_a_lost_connection_during_a_failing_handler_gives_one_dead_letter_and_one_run_more() -> None:
    router, server, runs = Router("work"), EmbeddedBroker(), list[tuple[int, bool]]()

    @router.on(JobGiven, concurrency=50)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        if len(runs) in (0, 2, 4, 6):
            server.drop_connections()
        await asyncio.sleep(0.001)
        runs.append((delivery.attempt, delivery.stale))
        raise OSError

    plugins = [DeadLetter(), Retry(stop=stop_after_attempt(5), wait=wait_fixed(0.5), inline_below=0)]
    async with running(Bus(server.client(), router, plugins=plugins), broker=server) as probe:
        await probe.bus.publish(JobGiven(1))
        for _ in range(20):
            await probe.advance(timedelta(seconds=1))

        assert probe.waiting("work.do.dead") == 1
    whole = [attempt for attempt, cut_off in runs if not cut_off]
    assert whole == [1, 2, 3, 4, 5]
    assert len(runs) == 5 + sum(cut_off for _, cut_off in runs)


async def test_a_stale_delivery_is_not_tried_again_in_the_process() -> None:
    router, server, runs = Router("work"), EmbeddedBroker(), list[tuple[int, int]]()

    @router.on(JobGiven, concurrency=2)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        runs.append((delivery.generation, delivery.attempt))
        if len(runs) == 1:
            server.drop_connections()
        raise OSError

    retry = Retry(stop=stop_after_attempt(3), wait=wait_none())
    async with running(Bus(server.client(), router, plugins=[DeadLetter(), retry]), broker=server) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

    assert runs == [(1, 1), (2, 1), (2, 2), (2, 3)]


async def test_a_stale_delivery_that_waits_for_its_next_attempt_is_not_handled_again() -> None:
    router, server, runs = Router("work"), EmbeddedBroker(), list[int]()

    @router.on(JobGiven, concurrency=2)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        runs.append(delivery.generation)
        if delivery.generation == 1:
            raise OSError

    retry = Retry(stop=stop_after_attempt(9), wait=wait_fixed(0.05))
    async with running(Bus(server.client(), router, plugins=[retry]), broker=server) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: runs == [1], "the first attempt")
        server.drop_connections()
        await probe.settled()

    assert runs == [1, 2]


async def test_what_succeeded_on_a_lost_connection_is_marked_and_not_handled_again() -> None:
    router, server, runs = Router("work"), EmbeddedBroker(), list[int]()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        runs.append(job.number)
        server.drop_connections()
        await asyncio.sleep(0)

    async with running(Bus(server.client(), router, plugins=[Idempotency(MemoryStore())]), broker=server) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

    assert runs == [1]


# --- what a handler returned -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True])
async def test_a_settlement_is_reported_as_stale_where_it_was_and_only_there(lost: bool) -> None:
    router, server, stale, runs = Router("work"), EmbeddedBroker(), list[facts.Fact](), list[int]()

    class Notes(Plugin):
        def observe(self, fact: facts.Fact) -> None:
            if isinstance(fact, facts.Stale):
                stale.append(fact)

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        runs.append(job.number)
        if lost and len(runs) == 1:
            server.drop_connections()

    async with running(Bus(server.client(), router, plugins=[Notes()]), broker=server) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

    assert runs == ([1, 1] if lost else [1])
    assert stale == ([facts.Stale(WORK, True)] if lost else [])


def charging(number_of_results: int = 1, note: str = "") -> tuple[Router, list[int]]:
    router, charged = Router("work"), list[int]()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> list[JobDone]:
        charged.append(job.number)
        return [JobDone(number, note) for number in range(number_of_results)]

    return router, charged


def is_result(message: Message) -> bool:
    return message.type == "job.done"


def generated(number: int) -> Iterator[JobDone]:
    yield JobDone(number)


def listed(number: int) -> list[JobDone]:
    return [JobDone(number)]


@pytest.mark.parametrize("returned", [JobDone, listed, generated])
async def test_what_a_plain_function_returns_is_published(returned: Callable[[int], object]) -> None:
    router = Router("work")

    @router.on(JobGiven)
    def do(job: JobGiven) -> object:
        return returned(job.number)

    async with running(Bus("memory://", router, unroutable="ignore")) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

        assert probe.published(JobDone) == [JobDone(1)]


@pytest.mark.parametrize("results", [1, 2, 5])
async def test_a_handler_that_succeeded_is_not_called_again_because_publishing_failed(results: int) -> None:
    router, charged = charging(results)
    server = EmbeddedBroker()
    bus = Bus(server.client(), router, plugins=[DeadLetter(), Retry(wait=wait_none())], unroutable="ignore")
    async with running(bus, broker=server) as probe:
        server.fail("refuse", when=is_result, times=3)
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: len(probe.published(JobDone)) >= results, "the results")
        await probe.settled()

        ids = [message.id for message in probe.messages if is_result(message)]
        assert len(set(ids)) == results
        assert probe.waiting("work.do.dead") == 0
    assert charged == [1]


async def test_it_is_said_and_seen_in_health_that_a_result_is_not_published(caplog: pytest.LogCaptureFixture) -> None:
    router, charged = charging()
    server = EmbeddedBroker()
    async with running(Bus(server.client(), router, unroutable="ignore"), broker=server) as probe:
        server.fail("refuse", when=is_result, times=10**6)
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: bool(probe.bus.health().problems), "the trouble")
        await eventually(lambda: "is published again in" in caplog.text, "a word of it")
        problems = probe.bus.health().problems
        ready = probe.bus.health().ready

    assert charged == [1]
    assert ["what it returned is not published: RefusedError" in each.detail for each in problems] == [True]
    assert ready


async def test_a_stop_gives_back_what_could_not_be_published() -> None:
    router, _ = charging()
    server = EmbeddedBroker()
    bus = Bus(server.client(), router, grace=5)
    async with running(bus, broker=server) as probe:
        server.fail("refuse", when=is_result, times=10**6)
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: bool(probe.bus.health().problems), "the trouble")

    assert server.queues[WORK].ready == 1


@pytest.mark.parametrize("results", [1, 2])
async def test_one_error_of_one_returned_event_and_of_two_has_one_shape(results: int) -> None:
    router, charged = charging(results)
    tries = list[Message]()
    retry = Retry(retry=retry_if_exception_type(PublishError), stop=stop_after_attempt(3), wait=wait_none())
    bus = Bus("memory://", router, plugins=[DeadLetter(), retry], unroutable="raise")
    async with running(bus) as probe:
        probe.broker.witnesses.append(lambda message: tries.append(message) if is_result(message) else None)
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

        assert probe.waiting("work.do.dead") == 1
    assert len(tries) == 3 * results
    assert charged == [1]


async def test_a_result_that_cannot_be_written_is_a_failure_once() -> None:
    router, charged = charging(note="x" * 2_000_000)
    bus = Bus("memory://", router, plugins=[DeadLetter()])
    async with running(bus) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

        assert probe.waiting("work.do.dead") == 1
    assert charged == [1]


# --- rejecting and copies --------------------------------------------------------------------------------------------


class Rejects(Plugin):
    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        return REJECT


async def test_where_this_bus_declared_the_queue_what_is_rejected_is_dead_lettered() -> None:
    router, _ = charging()
    async with running(Bus("memory://", router, plugins=[Rejects()])) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

        assert probe.waiting("work.do.dead") == 1


@pytest.mark.parametrize("declare", ["passive", "none"])
async def test_where_somebody_else_declared_the_queue_nothing_is_rejected_and_that_is_said(
    declare: Any, caplog: pytest.LogCaptureFixture
) -> None:
    router, _ = charging()
    server = EmbeddedBroker()
    async with running(Bus(server.client(), router), broker=server):
        pass
    server.delete_queue(WORK)
    server.queues[WORK] = server.make_queue(WORK, {"x-queue-type": "quorum"})  # no dead-letter exchange: a drop

    with caplog.at_level(logging.WARNING):
        async with running(Bus(server.client(), router, plugins=[Rejects()], declare=declare), broker=server) as probe:
            await probe.bus.send(Message(exchange="", routing_key=WORK, body=b"{}", properties=Properties()))
            await eventually(lambda: probe.bus.load[WORK].held == 1, "the held delivery")
            problems = [check.detail for check in probe.bus.health().problems]

    assert server.queues[WORK].ready == 1
    assert any("did not declare queue 'work.do'" in problem for problem in problems)
    assert f"declare={declare!r}: nothing is known of the dead-letter exchanges of work.do" in caplog.text


async def test_a_copy_over_the_limits_is_left_to_the_broker_s_own_dead_lettering() -> None:
    router, _ = charging()

    class Grows(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            return forward(Message.copy_of(delivery, queue="work.do.dead", headers={"big": "x" * 2_000}))

    async with running(Bus("memory://", router, plugins=[Grows()], limits=Limits(headers=1_000))) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

        dead = probe.broker.queues["work.do.dead"]
        assert dead.ready == 1
    assert probe.bus.load[WORK].held == 0


async def test_what_cannot_be_copied_is_given_back_as_it_is() -> None:
    router, server = Router("work"), EmbeddedBroker()
    counts = list[int]()

    @router.on(JobGiven)
    async def do(delivery: Delivery) -> None: ...

    class Notes(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            counts.append(delivery.delivery_count)
            raise OSError

    bus = Bus(
        server.client(), router, plugins=[Notes()], consumer_timeout=timedelta(seconds=0.1), limits=Limits(body=50)
    )
    async with running(bus, broker=server) as probe:
        server.queues[WORK].put(_stored(b"x" * 60))
        await eventually(lambda: max(counts, default=0) >= 2, "two returns")
        assert probe.bus.health().problems


async def test_what_cannot_be_copied_now_is_given_back_as_it_is() -> None:
    router, counts, server = Router("work"), list[int](), EmbeddedBroker()

    @router.on(JobGiven)
    async def do(job: JobGiven, delivery: Delivery) -> None:
        counts.append(delivery.delivery_count)
        raise OSError

    bus = Bus(server.client(), router, consumer_timeout=timedelta(seconds=0.1))
    async with running(bus, broker=server) as probe:
        await probe.bus.publish(JobGiven(1))
        server.fail("refuse", times=10**6)
        await eventually(lambda: max(counts, default=0) == 2, "two returns")

        assert probe.waiting(WORK) == 1
    assert counts == sorted(counts)


def _stored(body: bytes) -> Any:
    from rabbitevents.brokers.embedded.queues import Stored

    return Stored("", WORK, body, Properties(type="job.given", content_type="application/json"))


async def test_of_what_was_given_back_nothing_is_kept() -> None:
    router, counts, server = Router("work"), list[int](), EmbeddedBroker()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        counts.append(job.number)
        raise OSError

    async with running(Bus(server.client(), router, consumer_timeout=timedelta(seconds=0.1)), broker=server) as probe:
        await probe.bus.publish(JobGiven(1))
        await eventually(lambda: len(counts) > 5, "some returns")
        server.fail("refuse", times=10**6)
        await eventually(lambda: not _given_back(), "tasks that are over to be let go of")


def _given_back() -> list[Any]:
    """The tasks that gave something back, are over, and are still kept by somebody."""
    gc.collect()
    # By its type: isinstance() asks an object for its class, and Django's lazy settings fail where there are none.
    tasks: list[asyncio.Task[Any]] = [each for each in gc.get_objects() if issubclass(type(each), asyncio.Task)]
    return [each for each in tasks if each.done() and "_give_all_back" in repr(each)]


async def test_a_stop_that_is_cut_off_leaves_no_handler_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "HARD_STOP", 1.0)
    monkeypatch.setattr(MemoryConsumer, "cancel", _for_ever)
    router, began, ended = Router("work"), asyncio.Event(), asyncio.Event()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running(Bus("memory://", router, grace=0.1)) as probe:
        await probe.bus.publish(JobGiven(1))
        await began.wait()

    await asyncio.wait_for(ended.wait(), 1)


async def _for_ever(_: MemoryConsumer) -> None:
    await asyncio.Event().wait()
