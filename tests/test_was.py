"""A handler that says what its queue was called before: which queue it has, whose its ids and claims are, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from rabbitevents import Bus, ConfigurationError, Delivery, Event, Message, Plugin, Publish, Router, Settlement
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.brokers.rabbitmq.tags import mark
from rabbitevents.operations.moving.course import Act, Empty
from rabbitevents.operations.moving.renaming import Renaming, next_renaming_step
from rabbitevents.operations.standing import Standing, StandingBinding, StandingExchange, StandingQueue
from rabbitevents.operations.wiring import wiring
from rabbitevents.properties import Properties
from rabbitevents.routing import Subscription
from rabbitevents.testing import running
from rabbitevents.topology import DELAY_DUE, Binding, Exchange, Queue, Topology
from rabbitevents_deadletter import DeadLetter
from rabbitevents_deadletter.announcement import PROCESSING_FAILED
from rabbitevents_idempotency import Idempotency, MemoryStore
from rabbitevents_outbox import Inbox, Outbox, Tables
from tests.operating import OrderPlaced, StockReserved
from tests.test_topology_course import after, reached

OLD, NEW = "shop.write_down", "shop.record"
ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


class Seen:
    """What handlers did: how often one was called, and the ids of what it published."""

    def __init__(self, *, fails: bool = False) -> None:
        self.calls = 0
        self.ids: list[UUID] = []
        self._fails = fails

    def bus(self, *plugins: Plugin, name: str, was: str | Sequence[str] | None = None) -> Bus:
        """The shop, whose first handler has these names."""
        router = Router("shop")

        @router.on(OrderPlaced, name=name, was=was)
        async def handle(order: OrderPlaced) -> StockReserved:
            self.calls += 1
            if self._fails:
                raise LookupError("never")
            return StockReserved(order.order_id)

        @router.on(StockReserved)
        async def note(reserved: Event[StockReserved]) -> None:
            self.ids.append(reserved.id)

        return Bus("memory://", router, plugins=plugins)


async def through_a_rename(seen: Seen, plugins: Callable[[], list[Plugin]]) -> list[tuple[str, ...]]:
    """Publish one event, under one id, to code of before, of after with the old queue, and of after with the new one."""
    first, fresh = EmbeddedBroker(), EmbeddedBroker()
    queues: list[tuple[str, ...]] = []
    for broker, name, was in ((first, "write_down", None), (first, "record", OLD), (fresh, "record", OLD)):
        async with running(seen.bus(*plugins(), name=name, was=was), broker=broker) as probe:
            await probe.bus.publish(OrderPlaced("o-1"), id=ID)
            await probe.settled()
            queues.append(tuple(sorted(broker.queues)))
    return queues


# --- which queue, and whose ids and claims ---------------------------------------------------------------------------


async def test_the_queue_of_the_old_name_is_used_as_long_as_it_stands_and_none_of_the_new_one_is_made() -> None:
    seen = Seen()

    queues = await through_a_rename(seen, lambda: [DeadLetter()])

    assert queues[0] == queues[1]
    assert {OLD, f"{OLD}.dead"} <= {*queues[1]}
    assert {NEW, f"{NEW}.dead"} <= {*queues[2]}
    assert not any(name.startswith(NEW) for name in queues[1])
    assert not any(name.startswith(OLD) for name in queues[2])
    assert seen.calls == 3


async def test_ids_that_derive_from_an_event_are_the_same_before_and_after() -> None:
    seen = Seen()

    await through_a_rename(seen, list)

    assert len(seen.ids) == 3
    assert len(set(seen.ids)) == 1


async def test_claims_of_idempotency_are_the_same_before_and_after() -> None:
    seen, store = Seen(), MemoryStore()

    await through_a_rename(seen, lambda: [Idempotency(store)])

    assert seen.calls == 1


async def test_marks_of_the_inbox_are_the_same_before_and_after(tmp_path: Path) -> None:
    seen, engine = Seen(), create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'inbox'}")

    await Tables().create(engine)

    await through_a_rename(seen, lambda: [Inbox(async_sessionmaker(engine)), Outbox(engine)])
    await engine.dispose()

    assert seen.calls == 1


class Announced(Plugin):
    """Keeps what goes out of announcements that an event was given up on: its id, and the handler that it names."""

    def __init__(self) -> None:
        self.ids: list[str | None] = []
        self.handlers: list[str] = []

    async def publish(self, proceed: Publish, message: Message) -> None:
        if message.type == PROCESSING_FAILED:
            self.ids.append(message.properties.message_id)
            self.handlers.append(json.loads(message.body)["handler"])
        await proceed(message)


async def test_the_same_failure_announced_before_and_after_is_the_same_event() -> None:
    seen, announced = Seen(fails=True), Announced()

    await through_a_rename(seen, lambda: [DeadLetter(announce=True), announced])

    assert len(announced.ids) == 3
    assert len(set(announced.ids)) == 1


async def test_what_comes_from_a_queue_of_before_is_announced_with_the_handler_and_the_id_of_after() -> None:
    seen, announced, plugin = Seen(fails=True), Announced(), DeadLetter(announce=True)
    properties = Properties(type="order.placed", message_id=str(ID))

    async def proceed(delivery: Delivery) -> Settlement:
        raise LookupError("never")

    async with running(seen.bus(plugin, announced, name="record", was=OLD)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"), id=ID)
        await probe.settled()
        await plugin.consume(proceed, Delivery(OLD, 1, 1, False, "events", "order.placed", b"{}", properties))

    assert len(announced.ids) == 2
    assert len(set(announced.ids)) == len(set(announced.handlers)) == 1


async def test_a_handler_is_paused_by_the_name_that_it_has_in_the_code() -> None:
    seen, broker = Seen(), EmbeddedBroker()
    async with running(seen.bus(name="write_down"), broker=broker):
        pass

    async with running(seen.bus(name="record", was=OLD), broker=broker) as probe:
        await probe.bus.pause(NEW)
        await probe.bus.publish(OrderPlaced("o-1"))
        waited = probe.waiting(OLD)
        await probe.bus.resume(NEW)
        await probe.settled()

    assert (waited, seen.calls) == (1, 1)


def test_what_has_waited_under_the_old_name_comes_to_the_queue_of_the_new_one() -> None:
    bus = Seen().bus(name="record", was=OLD)

    assert Binding(DELAY_DUE, NEW, OLD) in bus.topology.items


def test_code_that_knows_the_new_name_is_told_from_code_that_does_not_by_its_mark() -> None:
    before = Seen().bus(name="write_down").topology

    assert mark(before, OLD) != mark(before, OLD, NEW)


def test_explain_says_the_old_name_and_that_ids_are_of_that() -> None:
    found = wiring(Seen().bus(name="record", was=OLD)).subscriptions[0]

    assert (found.name, found.queue, found.was, found.identity) == (NEW, NEW, OLD, OLD)


@pytest.mark.parametrize(
    ("name", "was"), [("record", OLD), ("put", (OLD, NEW)), ("write_down", (OLD, NEW)), ("write_down", None)]
)
async def test_renamed_once_more_or_back_the_ids_are_those_of_the_first_name(
    name: str, was: str | Sequence[str] | None
) -> None:
    first, seen = Seen(), Seen()
    for each, bus in ((first, first.bus(name="write_down")), (seen, seen.bus(name=name, was=was))):
        async with running(bus) as probe:
            await probe.bus.publish(OrderPlaced("o-1"), id=ID)
            await probe.settled()
            assert len(each.ids) == 1

    assert seen.ids == first.ids


async def test_a_claim_of_the_first_name_is_known_after_a_second_rename() -> None:
    store, first, seen = MemoryStore(), Seen(), Seen()
    for bus in (
        first.bus(Idempotency(store), name="record", was=OLD),
        seen.bus(Idempotency(store), name="put", was=(OLD, NEW)),
    ):
        async with running(bus) as probe:
            await probe.bus.publish(OrderPlaced("o-1"), id=ID)
            await probe.settled()

    assert (first.calls, seen.calls) == (1, 0)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "said"),
    [
        ("write_down", "was='write_down' is no queue's whole name, as `rabbitevents topology plan`"),
        ("", "was='' is no queue's whole name"),
        ("shop.*", "was='shop.*' is no queue's whole name"),
        (f"shop.{'x' * 240}", "is no queue's whole name"),
        (NEW, "was='shop.record' is the queue's name still: say the one that it had before"),
        (7, 'on(...): was=7: say the queue\'s whole name: was="shop.charge"'),
        ([], 'on(...): was is a list: say the queue\'s whole name: was="shop.charge"'),
        ((OLD, 7), 'on(...): was is a tuple: say the queue\'s whole name: was="shop.charge"'),
        (("take", OLD), "was='take' is no queue's whole name"),
        ((OLD, NEW), "was='shop.record' is the queue's name still: say the one that it had before"),
    ],
)
def test_what_was_no_queues_name_is_refused(was: str | Sequence[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Seen().bus(name="record", was=was)


@pytest.mark.parametrize("was", ["shop.note", "shop.note.dead"])
def test_the_name_of_another_handlers_queue_is_refused(was: str) -> None:
    bus = Seen().bus(name="record", was=was)

    with pytest.raises(ConfigurationError, match=f"'shop.record': was='{was}' is another handler's queue"):
        _ = bus.subscriptions


def test_two_handlers_that_had_one_queue_are_refused() -> None:
    router = Router("shop")
    for name in ("one", "two"):
        router.on(OrderPlaced, name=name, was=OLD)(_nothing)

    with pytest.raises(ConfigurationError, match=f"'shop.two': was='{OLD}' is another handler's queue"):
        _ = Bus("memory://", router).subscriptions


def test_a_shared_queue_says_its_old_name_at_its_first_handler() -> None:
    router = Router("shop")
    router.on("order.placed", name="one", queue="both", was=OLD)(_nothing)
    router.on("order.paid", name="two", queue="both", was=OLD)(_nothing)

    with pytest.raises(ConfigurationError, match=r"is shared: say its former name \(was\) at its first handler"):
        router.on("order.sent", name="three", queue="both", was="shop.other")(_nothing)

    assert [each.was for each in router.subscriptions()] == [OLD]


async def _nothing(event: Event) -> None: ...


# --- the course ------------------------------------------------------------------------------------------------------


def renaming() -> Renaming:
    bus = Seen().bus(DeadLetter(), name="record", was=OLD)
    return Renaming(OLD, NEW, bus.topology.part(NEW))


def before() -> Standing:
    """What stands when older code has run."""
    return standing_of(Seen().bus(DeadLetter(), name="write_down").topology)


def standing_of(topology: Topology) -> Standing:

    return Standing(
        queues={
            q.name: StandingQueue(name=q.name, arguments=q.arguments) for q in topology.items if isinstance(q, Queue)
        },
        exchanges={
            x.name: StandingExchange(name=x.name, kind=str(x.kind), arguments=x.arguments)
            for x in topology.items
            if isinstance(x, Exchange)
        },
        bindings=frozenset(
            StandingBinding(b.exchange, b.queue, b.routing_key) for b in topology.items if isinstance(b, Binding)
        ),
    )


SOURCES = (("events", "order.placed"), ("events.due", "order.placed"), (DELAY_DUE, OLD))


def course(standing: Standing) -> list[tuple[Act, Standing]]:
    """All acts, and what stands after each."""
    found: list[tuple[Act, Standing]] = []
    while (step := next_renaming_step(renaming(), standing)) is not None:
        standing = after(standing, step.act)
        found.append((step.act, standing))
        assert len(found) < 100
    return found


def test_at_each_moment_every_event_reaches_one_of_the_two_queues_and_only_an_old_one_that_nothing_reaches_is_emptied() -> (
    None
):
    moments = [before(), *(standing for _, standing in course(before()))]

    ways = {frozenset(reached(each, source, key)) for each in moments for source, key in SOURCES}

    assert ways == {frozenset({OLD}), frozenset({NEW})}
    for standing, (act, _) in zip(moments, course(before()), strict=False):
        if isinstance(act, Empty):
            assert all(act.name not in reached(standing, source, key) for source, key in SOURCES)


def test_in_the_end_the_new_queue_stands_as_the_code_wants_it_and_of_the_old_one_only_its_dead_letters() -> None:
    wanted = standing_of(Seen().bus(DeadLetter(), name="record", was=OLD).topology)

    end = course(before())[-1][1]

    letters = StandingBinding("events.dead", f"{OLD}.dead", OLD)
    assert end.bindings == wanted.bindings | {letters}
    assert end.queues == {**wanted.queues, f"{OLD}.dead": before().queues[f"{OLD}.dead"]}
    assert end.exchanges == wanted.exchanges


@given(st.data())
def test_a_binding_that_older_code_makes_meanwhile_is_taken_away_before_the_old_queue_is_emptied(
    data: st.DataObject,
) -> None:
    moments = [standing for _, standing in course(before())]
    standing = data.draw(st.sampled_from([each for each in moments if OLD in each.queues]))
    source, key = data.draw(st.sampled_from(SOURCES))
    bound = {*standing.bindings, StandingBinding(source, OLD, key)}

    end = course(msgspec.structs.replace(standing, bindings=frozenset(bound)))[-1][1]

    assert end == course(before())[-1][1]


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        (Standing(), f"there is no queue '{NEW}', and none '{OLD}': rabbitevents topology apply declares it"),
        (
            Standing(queues={NEW: StandingQueue(name=NEW, arguments={"x-queue-type": "quorum"})}),
            f"queue '{NEW}' stands, and is not as the bus wants it: x-dead-letter-exchange is not set",
        ),
    ],
)
def test_where_there_is_no_way_on_it_says_so(standing: Standing, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        next_renaming_step(renaming(), standing)


def test_the_identity_is_the_old_name() -> None:
    found: Subscription = Seen().bus(name="record", was=OLD).subscriptions[0]

    assert (found.name, found.queue, found.identity, found.former) == (NEW, NEW, OLD, OLD)
