"""Handlers that take several events at once: how they come together, and that each keeps a fate of its own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from attrs import define
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from tenacity import stop_after_attempt, wait_none

from rabbitevents import Batch, BatchError, Bus, ConfigurationError, Delivery, Event, Plugin, Router, event
from rabbitevents.consuming.current import CURRENT
from rabbitevents.testing import Probe, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, MemoryStore
from rabbitevents_outbox import Inbox, Outbox
from rabbitevents_retry import Retry
from tests.shop import eventually


@event("batches.line", entity="line", key="number")
@define
class Line:
    number: int


@event("batches.indexed")
@define
class Indexed:
    number: int


def bus_with(handler: Any, *plugins: Plugin, url: str = "memory://", size: int = 10, **options: Any) -> Bus:
    shop = Router("shop")
    batch = options.pop("batch", Batch(size=size, within=0.05))
    shop.on(Line, name="index", batch=batch, **options)(handler)
    return Bus(url, shop, plugins=plugins, unroutable="ignore")


def lines(number: int) -> list[Line]:
    return [Line(each) for each in range(number)]


async def test_a_full_batch_is_handled_at_once_and_the_rest_when_the_first_has_waited() -> None:
    got: list[list[int]] = []

    async def index(some: list[Line]) -> None:
        got.append([each.number for each in some])

    async with running(bus_with(index)) as probe:
        await probe.bus.publish_many(lines(25))
        await probe.settled()

    assert sorted(number for each in got for number in each) == list(range(25))
    assert max(map(len, got)) == 10
    assert len(got) <= 5


async def test_nothing_is_settled_before_its_batch_is_handled() -> None:
    gate = asyncio.Event()

    async def index(some: list[Line]) -> None:
        await gate.wait()

    async with running(bus_with(index)) as probe:
        await probe.bus.publish_many(lines(10))
        await eventually(lambda: probe.bus.load["shop.index"].running == 10, "the batch")
        assert probe.waiting("shop.index") == 10
        gate.set()
        await probe.settled()


async def test_a_handler_may_ask_for_envelopes_deliveries_and_what_is_provided() -> None:
    seen: list[tuple[Any, ...]] = []

    async def index(some: list[Event[Line]], came: list[Delivery], bus: Bus, *, plain: list[Line]) -> None:
        seen.extend(
            (event.id, delivery.id, event.payload, line, bus.name)
            for event, delivery, line in zip(some, came, plain, strict=True)
        )

    async with running(bus_with(index)) as probe:
        await probe.bus.publish_many(lines(3))
        await probe.settled()

    assert all(id == other and payload == line for id, other, payload, line, _ in seen)
    assert {line.number for _, _, _, line, _ in seen} == {0, 1, 2}


async def test_what_is_returned_for_each_event_is_caused_by_it_and_its_id_repeats() -> None:
    async def index(some: list[Event[Line]]) -> list[Any]:
        return [None if each.payload.number == 0 else [Indexed(each.payload.number)] for each in some]

    caused: dict[int, tuple[str, str | None]] = {}
    bus = bus_with(index)

    @bus.routers[0].on(Indexed)
    async def note(indexed: Event[Indexed]) -> None:
        caused[indexed.payload.number] = str(indexed.id), indexed.metadata.causation_id

    async with running(bus) as probe:
        sent = await probe.bus.publish_many(lines(3))
        await probe.settled()
        first = dict(caused)
        await probe.bus.publish_many(sent)
        await probe.settled()

    assert {number: cause for number, (_, cause) in caused.items()} == {1: str(sent[1].id), 2: str(sent[2].id)}
    assert caused == first


async def test_members_that_are_named_are_tried_again_and_the_others_are_done() -> None:
    handled: Counter[int] = Counter()
    done: Counter[int] = Counter()

    async def index(some: list[Line]) -> None:
        handled.update(each.number for each in some)
        bad = {place: ValueError() for place, each in enumerate(some) if each.number % 5 == 0}
        done.update(each.number for each in some if each.number % 5)
        if bad:
            raise BatchError(bad)

    bus = bus_with(index, DeadLetter(), Retry(stop=stop_after_attempt(3), wait=wait_none()))
    async with running(bus) as probe:
        await probe.bus.publish_many(lines(20))
        await probe.settled()

        assert probe.waiting("shop.index.dead") == 4
    assert {number: count for number, count in handled.items() if count > 1} == {0: 3, 5: 3, 10: 3, 15: 3}
    assert set(done.values()) == {1}


async def test_one_poison_takes_nobody_with_it_and_is_counted_as_one_attempt() -> None:
    attempts: Counter[int] = Counter()
    effects: Counter[int] = Counter()

    async def index(some: list[Line], came: list[Delivery]) -> None:
        if any(each.number == 7 for each in some):
            if len(some) == 1:
                attempts[came[0].attempt] += 1
            raise ValueError
        effects.update(each.number for each in some)

    bus = bus_with(index, DeadLetter(), Retry(stop=stop_after_attempt(3), wait=wait_none()))
    async with running(bus) as probe:
        await probe.bus.publish_many(lines(20))
        await probe.settled()

        assert probe.waiting("shop.index.dead") == 1
    assert effects == Counter(number for number in range(20) if number != 7)
    assert attempts == {1: 1, 2: 1, 3: 1}


async def test_what_cannot_be_decoded_is_no_matter_of_the_others() -> None:
    effects: Counter[int] = Counter()

    async def index(some: list[Line]) -> None:
        effects.update(each.number for each in some)

    async with running(bus_with(index, DeadLetter())) as probe:
        _, written = probe.bus.prepare(Line(1))
        broken = msgspec.structs.replace(written, body=b"{}")
        await asyncio.gather(probe.bus.publish_many(lines(5)), probe.bus.send(broken))
        await probe.settled()

        assert probe.waiting("shop.index.dead") == 1
    assert effects == Counter(range(5))


async def test_each_event_is_handled_once_with_idempotency() -> None:
    effects: Counter[int] = Counter()

    async def index(some: list[Line]) -> None:
        effects.update(each.number for each in some)

    async with running(bus_with(index, Idempotency(MemoryStore()))) as probe:
        sent = await probe.bus.publish_many(lines(30))
        await probe.bus.publish_many(sent)
        await probe.settled()

    assert effects == Counter(range(30))


async def test_plain_functions_take_batches_in_a_thread() -> None:
    effects: Counter[int] = Counter()

    def index(some: list[Line]) -> list[Indexed]:
        effects.update(each.number for each in some)
        return [Indexed(each.number) for each in some]

    async with running(bus_with(index)) as probe:
        await probe.bus.publish_many(lines(12))
        await probe.settled()

        assert {each.number for each in probe.published(Indexed)} == set(range(12))
    assert effects == Counter(range(12))


async def test_as_many_calls_at_a_time_as_are_said() -> None:
    running_now = most = 0

    async def index(some: list[Line]) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(0.01)
        running_now -= 1

    for concurrency in (1, 3):
        most = 0
        async with running(bus_with(index, concurrency=concurrency)) as probe:
            await probe.bus.publish_many(lines(100))
            await probe.settled()
        assert most == concurrency


async def test_a_stop_waits_for_no_more_events_and_handles_what_has_come() -> None:
    effects: Counter[int] = Counter()

    async def index(some: list[Line]) -> None:
        effects.update(each.number for each in some)

    bus = bus_with(index, batch=Batch(size=100, within=60))
    async with running(bus) as probe:
        await probe.bus.publish_many(lines(7))
        await eventually(lambda: probe.bus.load["shop.index"].running == 7, "all of them")
        started = time.monotonic()

    assert effects == Counter(range(7))
    assert time.monotonic() - started < 10


async def test_a_call_that_does_not_end_is_given_up_after_the_grace_period() -> None:
    cancelled = asyncio.Event()

    async def index(some: list[Line]) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    bus = bus_with(index).sibling(grace=0.1)
    async with running(bus) as probe:
        await probe.bus.publish_many(lines(10))
        await eventually(lambda: probe.bus.load["shop.index"].running == 10, "the batch")

    assert cancelled.is_set()
    assert probe.broker.queues["shop.index"].ready == 10


async def test_a_timeout_is_a_failure_of_the_call() -> None:
    calls: list[int] = []

    async def index(some: list[Line]) -> None:
        calls.append(len(some))
        if len(some) > 1:
            await asyncio.sleep(3600)

    async with running(bus_with(index, timeout=0.05)) as probe:
        await probe.bus.publish_many(lines(10))
        await probe.settled()

    assert sorted(calls) == [1] * 10 + [10]


async def test_a_handler_that_stops_the_bus_is_told_so() -> None:
    said: list[str] = []

    async def index(some: list[Line], bus: Bus) -> None:
        try:
            await bus.stop()
        except ConfigurationError as error:
            said.append(str(error))

    async with running(bus_with(index)) as probe:
        await probe.bus.publish_many(lines(1))
        await probe.settled()

    assert "stop() was called by what it has to wait for" in said[0]


async def test_what_is_published_in_between_belongs_to_no_event_of_the_batch() -> None:
    async def index(some: list[Line], bus: Bus) -> None:
        assert CURRENT.get() is None
        await bus.publish(Indexed(len(some)))

    async with running(bus_with(index)) as probe:
        await probe.bus.publish_many(lines(3))
        await probe.settled()

        assert sum(each.number for each in probe.published(Indexed)) == 3


async def test_ordered_batches_have_one_event_of_an_entity() -> None:
    got: list[list[int]] = []

    async def index(some: list[Line]) -> None:
        got.append([each.number for each in some])

    async with running(bus_with(index, ordered=True)) as probe:
        await probe.bus.publish_many([Line(number % 4) for number in range(12)])
        await probe.settled()

    assert all(len(set(each)) == len(each) for each in got)
    assert Counter(number for each in got for number in each) == {0: 3, 1: 3, 2: 3, 3: 3}


async def test_what_a_factory_has_open_ends_well_where_the_handler_names_who_failed() -> None:
    ends: list[str] = []
    open_now = [0]

    async def unit(delivery: Delivery) -> Any:
        open_now[0] += 1
        try:
            yield "unit"
            ends.append("committed")
        except BaseException:
            ends.append("rolled back")
            raise
        finally:
            open_now[0] -= 1

    async def index(some: list[Line], work: str) -> list[Any]:
        if len(some) == 4:
            raise BatchError({1: TimeoutError()})
        if len(some) == 3:
            raise TimeoutError
        return [(Indexed(each.number) for _ in range(open_now[0])) for each in some]

    bus = bus_with(index, Retry(stop=stop_after_attempt(3), wait=wait_none()))
    bus.provide(str, factory=unit)
    async with running(bus) as probe:
        await probe.bus.publish_many(lines(4))
        await probe.settled()
        assert ends == ["committed", "committed"]  # the four without the second, and that by itself
        assert [each.number for each in probe.published(Indexed)] == [1]  # made while its unit was open

        await probe.bus.publish_many(lines(3))
        await probe.settled()
        assert ends == ["committed", "committed", "rolled back", "committed", "committed", "committed"]


async def test_a_failure_after_the_connection_is_lost_is_nobodys_to_decide_about() -> None:
    calls: list[int] = []
    gate = asyncio.Event()
    told: list[BaseException] = []

    async def index(some: list[Line]) -> None:
        calls.append(len(some))
        if len(calls) == 1:
            await gate.wait()
            raise BatchError(dict.fromkeys(range(len(some)), TimeoutError()))

    retry = Retry(stop=stop_after_attempt(1), exhausted=lambda delivery, error: told.append(error))
    async with running(bus_with(index, DeadLetter(), retry)) as probe:
        await probe.bus.publish_many(lines(10))
        await eventually(lambda: calls == [10], "the first call")
        probe.broker.drop_connections()
        gate.set()
        await probe.settled()

        assert probe.waiting("shop.index.dead") == 0
    assert not told
    assert sum(calls) == 20


async def test_a_plugin_that_does_not_answer_for_all_of_them_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(Plugin):
        async def batch(self, proceed: Any, deliveries: Any) -> Any:
            return (await proceed(deliveries))[1:]

    async with running(bus_with(_good, Forgetful(), size=3)) as probe:
        await probe.bus.publish_many(lines(3))
        await eventually(lambda: probe.bus.load["shop.index"].held == 3, "all held")

    assert "batch() answered 0 of 1 deliveries" in caplog.text


# --- with an inbox ---------------------------------------------------------------------------------------------------


async def _tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (number INTEGER)"))


async def _effects(engine: AsyncEngine) -> Counter[int]:
    async with engine.connect() as connection:
        return Counter(await connection.scalars(text("SELECT number FROM effects")))


def _with_inbox(handler: Any, engine: AsyncEngine, *plugins: Plugin, **options: Any) -> Bus:
    return bus_with(handler, *plugins, Inbox(async_sessionmaker(engine), busy=0.1), Outbox(engine), **options)


async def _both_settled(probe: Probe) -> None:
    await probe.settled(20)


async def test_a_batch_is_one_transaction_with_its_marks_and_its_events(engine: AsyncEngine) -> None:
    await _tables(engine)
    sessions: list[int] = []

    async def index(some: list[Line], session: AsyncSession) -> list[Indexed]:
        sessions.append(len(some))
        await session.execute(text("INSERT INTO effects VALUES (:number)"), [{"number": each.number} for each in some])
        return [Indexed(each.number) for each in some]

    async with running(_with_inbox(index, engine)) as probe:
        sent = await probe.bus.publish_many(lines(30))
        await probe.bus.publish_many(sent[:15])
        await _both_settled(probe)

        assert sorted(each.number for each in probe.published(Indexed)) == list(range(30))
    assert await _effects(engine) == Counter(range(30))
    assert len(sessions) <= 8


async def test_what_fails_in_a_batch_leaves_no_mark_and_the_others_are_committed(engine: AsyncEngine) -> None:
    await _tables(engine)
    failures = Counter({3: 2, 4: 9})

    async def index(some: list[Line], session: AsyncSession) -> list[Indexed]:
        bad: dict[int, BaseException] = {}
        for place, each in enumerate(some):
            if failures[each.number] > 0:
                failures[each.number] -= 1
                bad[place] = TimeoutError()
            else:
                await session.execute(text("INSERT INTO effects VALUES (:number)"), {"number": each.number})
        if bad:
            raise BatchError(bad)
        return [Indexed(each.number) for each in some]

    bus = _with_inbox(index, engine, DeadLetter(), Retry(stop=stop_after_attempt(4), wait=wait_none()))
    async with running(bus) as probe:
        await probe.bus.publish_many(lines(10))
        await _both_settled(probe)

        assert probe.waiting("shop.index.dead") == 1
    assert await _effects(engine) == Counter(number for number in range(10) if number != 4)


async def test_a_statement_that_fails_takes_only_its_own_event(engine: AsyncEngine) -> None:
    await _tables(engine)

    async def index(some: list[Line], session: AsyncSession) -> None:
        for each in some:
            table = "missing" if each.number == 5 else "effects"
            await session.execute(text(f"INSERT INTO {table} VALUES (:number)"), {"number": each.number})

    async with running(_with_inbox(index, engine, DeadLetter())) as probe:
        await probe.bus.publish_many(lines(10))
        await _both_settled(probe)

        assert probe.waiting("shop.index.dead") == 1
    assert await _effects(engine) == Counter(number for number in range(10) if number != 5)


# --- what is wrong ---------------------------------------------------------------------------------------------------


async def _one(some: Line) -> None: ...


async def _good(some: list[Line]) -> None: ...


class Around(Plugin):
    async def consume(self, proceed: Any, delivery: Delivery) -> Any:
        return await proceed(delivery)


class Whole(Plugin):
    async def batch(self, proceed: Any, deliveries: Any) -> Any:
        return await proceed(deliveries)


@pytest.mark.parametrize(
    ("handler", "options", "plugins", "said"),
    [
        (_one, {}, (), "takes batches, and its parameter 'some: Line' takes one: ask for list[Line]"),
        (_good, {"batch": 100}, (), "on(...): batch=100: say Batch(size=100, within=0.2)"),
        (_good, {"prefetch": 5}, (), "prefetch=5 lets no batch of 10 come together"),
        (_good, {"concurrency": 300}, (), "concurrency=300 batches of 10 are more than 2000 events at a time"),
        (_good, {"batch": Batch(10, within=timedelta(hours=1))}, (), "wait for more than half of the consumer timeout"),
        (_good, {}, (Whole(), Around()), "Whole() goes around the whole of one: put it inside Around()"),
    ],
)
async def test_what_cannot_be_meant_is_said(handler: Any, options: Any, plugins: Any, said: str) -> None:
    async def start() -> None:
        async with bus_with(handler, *plugins, **options):
            pass

    with pytest.raises(ConfigurationError) as refused:
        await start()

    assert said in str(refused.value)


@pytest.mark.parametrize(("size", "within"), [(1, 0.2), (1001, 0.2), ("10", 0.2), (10, -1), (10, None)])
def test_what_is_no_batch_is_said(size: Any, within: Any) -> None:
    with pytest.raises(ConfigurationError, match="Batch: "):
        Batch(size, within)


@pytest.mark.parametrize("errors", [{}, [ValueError()], {"1": ValueError()}, {True: ValueError()}, {1: "no"}])
def test_what_names_no_members_is_said(errors: Any) -> None:
    with pytest.raises(ValueError, match="BatchError: "):
        BatchError(errors)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([None], "returned a list of 1 for a batch of 2"),
        (Indexed(1), "returned a Indexed for a batch of 2"),
        ([1, 2], "returned a int"),
    ],
)
async def test_what_a_batch_cannot_return_is_said(returned: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    async def index(some: list[Line]) -> Any:
        return returned if len(some) > 1 else "neither"

    async with running(bus_with(index, size=2)) as probe:
        await probe.bus.publish_many(lines(2))
        await eventually(lambda: probe.bus.load["shop.index"].held == 2, "both held")

    assert "ConfigurationError" in caplog.text


async def test_a_queue_that_is_shared_takes_no_batches() -> None:
    shop = Router("shop")
    shop.on(Line, name="one", queue="shared", batch=Batch(10))(_good)

    with pytest.raises(ConfigurationError, match="none of them can take batches"):
        shop.on(Indexed, name="two", queue="shared")(_good)


async def test_on_rabbitmq_members_fail_by_themselves_and_nothing_is_lost(rabbit_url: str) -> None:
    done: Counter[int] = Counter()
    failed: set[int] = set()

    async def index(some: list[Line]) -> None:
        bad: dict[int, BaseException] = {}
        for place, each in enumerate(some):
            if each.number % 50 == 0 and each.number not in failed:
                failed.add(each.number)
                bad[place] = TimeoutError()
            else:
                done[each.number] += 1
        if bad:
            raise BatchError(bad)

    retry = Retry(stop=stop_after_attempt(5), wait=wait_none())
    async with bus_with(index, DeadLetter(), retry, url=rabbit_url, size=100) as bus:
        await bus.publish_many(lines(1000))
        await eventually(lambda: len(done) == 1000, "all of them", 30)

    assert set(done.values()) == {1}
    assert len(failed) == 20
