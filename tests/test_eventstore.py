"""The event store: what happened is kept in order, under the version that its writer has seen, and goes out once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from attrs import evolve, frozen
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from rabbitevents import Bus, ConfigurationError, DecodeError, Event, Router, Writer, event, upcast
from rabbitevents.testing import running
from rabbitevents_eventstore import ANY, NEW, ConcurrencyError, EventStore, EventTables, Stored, StoreRestoredError
from rabbitevents_outbox import Inbox, Outbox
from tests.shop import OrderPlaced, eventually


@event("order.paid", entity="order", key="order_id")
@frozen
class OrderPaid:
    order_id: str
    amount: int


@event("order.noted")
@frozen
class OrderNoted:
    note: str


@frozen
class Order:
    """An order as its events make it."""

    placed: bool = False
    paid: int = 0

    def pay(self, amount: int) -> OrderPaid:
        if not self.placed:
            raise ValueError("no such order")
        return OrderPaid("42", amount)


def apply(order: Order, happened: Any) -> Order:
    match happened:
        case OrderPlaced():
            return evolve(order, placed=True)
        case OrderPaid(amount=amount):
            return evolve(order, paid=order.paid + amount)
        case _:
            return order


EVENTS = [OrderPlaced, OrderPaid, OrderNoted]


@pytest.fixture
async def store(engine: AsyncEngine) -> EventStore:
    return await store_on(engine)


async def store_on(engine: AsyncEngine, **told: Any) -> EventStore:
    made = EventStore(engine, events=EVENTS, **told)
    await made.tables.create(engine)
    return made


async def all_of(events: AsyncIterator[Stored[Any]]) -> list[Stored[Any]]:
    return [each async for each in events]


async def payloads(events: AsyncIterator[Stored[Any]]) -> list[Any]:
    return [each.payload async for each in events]


def enveloped(payload: Any) -> Event[Any]:
    """Return a payload in an envelope, as a writer has it who may have to append it twice."""
    return Writer().prepare(payload)[0]


async def versions(store: EventStore, entity_id: str = "42") -> list[int]:
    return [each.version async for each in store.load("order", entity_id)]


# --- appending -----------------------------------------------------------------------------------------------------


async def test_what_is_appended_is_loaded_as_it_was(store: EventStore) -> None:
    appended = await store.append("order", "42", [OrderPlaced("42"), OrderPaid("42", 7)], expected=NEW)

    loaded = await all_of(store.load("order", "42"))

    assert loaded == appended
    assert [each.payload for each in loaded] == [OrderPlaced("42"), OrderPaid("42", 7)]
    assert [(each.position, each.version) for each in loaded] == [(1, 1), (2, 2)]
    assert {(each.event.entity_type, each.event.entity_id) for each in loaded} == {("order", "42")}
    assert await payloads(store.load("order", "42", after=1)) == [OrderPaid("42", 7)]
    assert await payloads(store.load("order", "43")) == []


async def test_an_envelope_is_kept_whole(store: EventStore) -> None:
    told = enveloped(OrderNoted("x"))
    told = msgspec.structs.replace(told, metadata=msgspec.structs.replace(told.metadata, extra={"tenant": "acme"}))

    await store.append("order", "42", [told], expected=NEW)
    (loaded,) = await all_of(store.load("order", "42"))

    assert loaded.event == msgspec.structs.replace(told, entity_type="order", entity_id="42")


async def test_many_events_keep_their_order(store: EventStore) -> None:
    many = [OrderPaid("42", n) for n in range(2500)]

    appended = await store.append("order", "42", many, expected=NEW)

    assert [each.version for each in appended] == list(range(1, 2501))
    assert [each.position for each in appended] == sorted(each.position for each in appended)
    assert await payloads(store.load("order", "42")) == many
    assert await payloads(store.read()) == many


@pytest.mark.parametrize(
    ("expected", "said"), [(NEW, (0, 2)), (0, (0, 2)), (1, (1, 2)), (3, (3, 2))], ids=["new", "0", "stale", "ahead"]
)
async def test_another_version_is_refused_with_both(store: EventStore, expected: Any, said: tuple[int, int]) -> None:
    await store.append("order", "42", [OrderPlaced("42"), OrderPaid("42", 7)], expected=NEW)

    with pytest.raises(ConcurrencyError) as refused:
        await store.append("order", "42", [OrderPaid("42", 8)], expected=expected)

    assert (refused.value.expected, refused.value.actual) == said
    assert (refused.value.entity_type, refused.value.entity_id) == ("order", "42")
    assert await versions(store) == [1, 2]


async def test_any_version_is_appended_to(store: EventStore) -> None:
    await store.append("order", "42", [OrderPlaced("42")], expected=ANY)
    await store.append("order", "42", [OrderPaid("42", 7)], expected=ANY)

    assert await versions(store) == [1, 2]


async def test_of_fifty_appends_of_one_version_one_wins(store: EventStore) -> None:
    await store.append("order", "42", [OrderPlaced("42")], expected=NEW)

    outcomes = await asyncio.gather(
        *(store.append("order", "42", [OrderPaid("42", n), OrderPaid("42", n)], expected=1) for n in range(50)),
        return_exceptions=True,
    )

    won = [each for each in outcomes if isinstance(each, list)]
    lost = [each for each in outcomes if isinstance(each, ConcurrencyError)]
    assert (len(won), len(lost)) == (1, 49)
    assert {(each.expected, each.actual) for each in lost} == {(1, 3)}
    assert await versions(store) == [1, 2, 3]


async def test_appends_of_any_version_all_get_through(store: EventStore) -> None:
    await asyncio.gather(*(store.append("order", "42", [OrderPaid("42", n)], expected=ANY) for n in range(20)))

    assert await versions(store) == list(range(1, 21))


@pytest.mark.parametrize("expected", [1, ANY], ids=["exact", "any"])
async def test_the_same_events_again_are_a_success_and_change_nothing(store: EventStore, expected: Any) -> None:
    await store.append("order", "42", [OrderPlaced("42")], expected=NEW)
    events = [enveloped(OrderPaid("42", 7)), enveloped(OrderPaid("42", 8))]
    first = await store.append("order", "42", events, expected=expected)
    await store.append("order", "42", [OrderNoted("later")], expected=3)

    again = await store.append("order", "42", events, expected=expected)

    assert again == first
    assert await versions(store) == [1, 2, 3, 4]


async def test_an_id_that_is_another_events_is_refused(store: EventStore) -> None:
    used, fresh = enveloped(OrderNoted("a")), enveloped(OrderNoted("b"))
    await store.append("order", "42", [used], expected=NEW)

    with pytest.raises(ConfigurationError, match="is that of an event of order/42 already"):
        await store.append("order", "43", [used], expected=NEW)
    with pytest.raises(ConfigurationError, match="not together"):
        await store.append("order", "42", [fresh, used], expected=1)

    assert await versions(store) == [1]
    assert await versions(store, "43") == []


# --- in somebody's transaction -------------------------------------------------------------------------------------


async def test_an_append_is_part_of_the_transaction_it_is_given(store: EventStore) -> None:
    sessions = async_sessionmaker(store.engine)

    async with sessions() as session, session.begin():
        await store.append("order", "1", [OrderPlaced("1")], expected=NEW, session=session)
        assert await payloads(store.load("order", "1", session=session)) == [OrderPlaced("1")]
        await session.rollback()
    async with sessions.begin() as session:
        await store.append("order", "2", [OrderPlaced("2")], expected=NEW, session=session)
    async with store.engine.begin() as connection:
        await store.append("order", "3", [OrderPlaced("3")], expected=NEW, session=connection)

    assert await payloads(store.read()) == [OrderPlaced("2"), OrderPlaced("3")]


async def test_a_conflict_leaves_the_transaction_as_it_was(store: EventStore) -> None:
    await store.append("order", "42", [OrderPlaced("42")], expected=NEW)

    async with async_sessionmaker(store.engine).begin() as session:
        await store.append("order", "1", [OrderPlaced("1")], expected=NEW, session=session)
        with pytest.raises(ConcurrencyError):
            await store.append("order", "42", [OrderPaid("42", 1), OrderPaid("42", 2)], expected=NEW, session=session)
        await store.append("order", "2", [OrderPlaced("2")], expected=NEW, session=session)

    assert await payloads(store.read()) == [OrderPlaced("42"), OrderPlaced("1"), OrderPlaced("2")]


async def test_a_savepoint_that_is_rolled_back_takes_its_append_with_it(store: EventStore) -> None:
    async with async_sessionmaker(store.engine).begin() as session:
        await store.append("order", "1", [OrderPlaced("1")], expected=NEW, session=session)
        async with session.begin_nested() as savepoint:
            await store.append("order", "2", [OrderPlaced("2")], expected=NEW, session=session)
            await savepoint.rollback()
        await store.append("order", "3", [OrderPlaced("3")], expected=NEW, session=session)

    assert await payloads(store.read()) == [OrderPlaced("1"), OrderPlaced("3")]


async def test_a_session_without_a_transaction_is_refused(store: EventStore) -> None:
    async with AsyncSession(store.engine) as session:
        with pytest.raises(ConfigurationError, match="no transaction is under way"):
            await store.append("order", "1", [OrderPlaced("1")], expected=NEW, session=session)


async def test_a_session_of_another_database_is_refused(store: EventStore) -> None:
    other = create_async_engine("sqlite+aiosqlite://")

    async with other.begin() as connection:
        with pytest.raises(ConfigurationError, match="one transaction is in one database"):
            await store.append("order", "1", [OrderPlaced("1")], expected=NEW, session=connection)

    await other.dispose()


# --- to the bus ----------------------------------------------------------------------------------------------------


async def test_what_is_appended_is_published_with_the_same_id_and_only_if_it_commits(engine: AsyncEngine) -> None:
    got: list[Event[Any]] = []
    listener = Router("listener")

    @listener.on(OrderPlaced, OrderPaid)
    async def note(order: Event[OrderPlaced | OrderPaid]) -> None:
        got.append(order)

    outbox = Outbox(engine)
    store = await store_on(engine, outbox=outbox)
    async with running(Bus("memory://", listener, plugins=[store, outbox])):
        placed = enveloped(OrderPlaced("42"))
        await store.append("order", "42", [placed], expected=NEW)
        with pytest.raises(ConcurrencyError):
            await store.append("order", "42", [OrderPaid("42", 1)], expected=NEW)
        await store.append("order", "42", [placed], expected=NEW)  # once more, as after an unknown outcome
        (paid,) = await store.append("order", "42", [OrderPaid("42", 7)], expected=1)
        await eventually(lambda: len(got) >= 2, "two events")

    assert [(each.id, each.payload) for each in got] == [(placed.id, placed.payload), (paid.event.id, paid.payload)]
    assert got[1] == paid.event
    assert paid.event.metadata.source == "listener"


async def test_a_handler_asks_for_the_store_and_appends_in_its_inboxs_transaction(engine: AsyncEngine) -> None:
    shop = Router("shop")

    @shop.on(OrderPlaced)
    async def pay(order: OrderPlaced, store: EventStore, session: AsyncSession) -> None:
        await store.append("order", order.order_id, [OrderPaid(order.order_id, 7)], expected=NEW, session=session)

    outbox = Outbox(engine)
    store = await store_on(engine, outbox=outbox)
    bus = Bus("memory://", shop, plugins=[store, Inbox(async_sessionmaker(engine)), outbox])
    async with running(bus) as probe:
        cause = await probe.bus.publish(OrderPlaced("42"))
        await probe.settled()
        await probe.bus.publish(cause)
        await probe.settled()
        (stored,) = await all_of(store.load("order", "42"))
        assert probe.published(OrderPaid) == [OrderPaid("42", 7)]

    assert stored.event.metadata.causation_id == str(cause.id)


# --- reading -------------------------------------------------------------------------------------------------------


async def test_everything_is_read_in_one_order_from_any_place_and_by_type_and_entity(store: EventStore) -> None:
    await store.append("order", "1", [OrderPlaced("1"), OrderPaid("1", 7)], expected=NEW)
    await store.append("basket", "1", [OrderNoted("x")], expected=NEW)
    await store.append("order", "2", [OrderPlaced("2")], expected=NEW)

    everything = await payloads(store.read())

    assert everything == [OrderPlaced("1"), OrderPaid("1", 7), OrderNoted("x"), OrderPlaced("2")]
    assert await payloads(store.read(after=2)) == everything[2:]
    assert await payloads(store.read(types=[OrderPaid, OrderNoted])) == everything[1:3]
    assert await payloads(store.read(entity_type="basket")) == everything[2:3]
    assert await payloads(store.read(after=4)) == []


async def test_a_live_reader_gets_what_comes(store: EventStore) -> None:
    got: list[Any] = []

    async def follow() -> None:
        async for each in store.read(live=True):
            got.append(each.payload)  # noqa: PERF401 - each as it comes

    await store.append("order", "1", [OrderPlaced("1")], expected=NEW)
    following = asyncio.create_task(follow())
    await eventually(lambda: len(got) == 1, "the first event")
    await store.append("order", "2", [OrderPlaced("2")], expected=NEW)
    await eventually(lambda: len(got) == 2, "the second event")
    following.cancel()
    await asyncio.wait({following})  # its connection is given back, while the loop runs

    assert got == [OrderPlaced("1"), OrderPlaced("2")]


async def test_a_reader_that_is_further_than_the_store_stops_visibly(store: EventStore) -> None:
    await store.append("order", "1", [OrderPlaced("1")], expected=NEW)

    for live in (False, True):
        with pytest.raises(StoreRestoredError) as refused:
            await all_of(store.read(after=7, live=live))
        assert (refused.value.position, refused.value.last) == (7, 1)


# --- state ---------------------------------------------------------------------------------------------------------


async def test_state_is_rebuilt_from_what_happened(store: EventStore) -> None:
    await store.append("order", "42", [OrderPlaced("42"), OrderPaid("42", 7), OrderPaid("42", 8)], expected=NEW)

    assert await store.rebuild("order", "42", apply, Order()) == Order(placed=True, paid=15)
    assert await store.rebuild("order", "43", apply, Order()) == Order()


async def test_a_decision_is_made_on_the_state_and_appended(store: EventStore) -> None:
    await store.append("order", "42", [OrderPlaced("42")], expected=NEW)

    (decided,) = await store.decide("order", "42", lambda order: order.pay(7), apply=apply, initial=Order())
    nothing = await store.decide("order", "42", lambda _: None, apply=apply, initial=Order())

    assert (decided.version, decided.payload) == (2, OrderPaid("42", 7))
    assert nothing == []
    with pytest.raises(ValueError, match="no such order"):
        await store.decide("order", "43", lambda order: order.pay(7), apply=apply, initial=Order())


async def test_a_decision_is_made_anew_where_somebody_else_was_faster(store: EventStore) -> None:
    await store.append("order", "42", [OrderPlaced("42")], expected=NEW)

    async def pay() -> Sequence[Stored[Any]]:
        return await store.decide(
            "order", "42", lambda order: OrderPaid("42", order.paid + 1), apply=apply, initial=Order(), attempts=50
        )

    await asyncio.gather(*(pay() for _ in range(8)))

    assert await payloads(store.load("order", "42", after=1)) == [OrderPaid("42", 2**n) for n in range(8)]


async def test_a_decision_gives_up_where_others_are_always_faster(store: EventStore) -> None:
    calls: list[int] = []

    async def meddle() -> None:
        await store.append("order", "42", [OrderNoted("meanwhile")], expected=ANY)

    class Meddled(EventStore):
        async def append(self, *args: Any, **told: Any) -> list[Stored[Any]]:
            await meddle()
            calls.append(1)
            return await super().append(*args, **told)

    slow = Meddled(store.engine, events=EVENTS)
    with pytest.raises(ConcurrencyError):
        await slow.decide("order", "42", lambda _: OrderNoted("mine"), apply=apply, initial=Order())

    assert len(calls) == 3
    assert await payloads(store.load("order", "42")) == [OrderNoted("meanwhile")] * 3


async def test_a_decision_in_a_transaction_sees_what_that_has_written(store: EventStore) -> None:
    async with async_sessionmaker(store.engine).begin() as session:
        await store.append("order", "42", [OrderPlaced("42")], expected=NEW, session=session)
        await store.decide("order", "42", lambda order: order.pay(7), apply=apply, initial=Order(), session=session)

    assert await store.rebuild("order", "42", apply, Order()) == Order(placed=True, paid=7)


# --- versions of events --------------------------------------------------------------------------------------------


async def test_an_event_of_an_older_version_is_led_up(store: EventStore) -> None:
    @event("order.paid", version=2, entity="order", key="order_id")
    @frozen
    class Paid:
        order_id: str
        cents: int

    @upcast(Paid, from_version=1)
    def in_cents(document: dict[str, Any]) -> dict[str, Any]:
        document["cents"] = document.pop("amount") * 100
        return document

    await store.append("order", "42", [OrderPaid("42", 7)], expected=NEW)
    newer = EventStore(store.engine, events=[Paid])
    await newer.append("order", "42", [Paid("42", 800)], expected=1)

    loaded = await all_of(newer.load("order", "42"))

    assert [each.payload for each in loaded] == [Paid("42", 700), Paid("42", 800)]
    assert [each.event.version for each in loaded] == [1, 2]


async def test_an_event_that_was_renamed_is_read_by_its_other_name(store: EventStore) -> None:
    @event("order.settled", aliases=("order.paid",), entity="order", key="order_id")
    @frozen
    class OrderSettled:
        order_id: str
        amount: int

    await store.append("order", "42", [OrderPaid("42", 7)], expected=NEW)
    newer = EventStore(store.engine, events=[OrderSettled])

    assert await payloads(newer.load("order", "42")) == [OrderSettled("42", 7)]
    assert await payloads(newer.read(types=[OrderSettled])) == [OrderSettled("42", 7)]


# --- what cannot be ------------------------------------------------------------------------------------------------


async def test_a_payload_that_no_longer_decodes_is_named_and_not_shown(store: EventStore) -> None:
    (stored,) = await store.append("order", "42", [OrderPaid("42", 7)], expected=NEW)
    async with store.engine.begin() as connection:
        await connection.execute(update(store.tables.events).values(body=b'{"order_id": "secret"}'))

    for reading in (store.load("order", "42"), store.read()):
        with pytest.raises(DecodeError, match=f"event {stored.event.id} .order.paid, position 1. cannot be read") as no:
            await all_of(reading)
        assert "secret" not in str(no.value)


async def test_metadata_that_cannot_be_read_is_named(store: EventStore) -> None:
    await store.append("order", "42", [OrderPaid("42", 7)], expected=NEW)
    async with store.engine.begin() as connection:
        await connection.execute(update(store.tables.events).values(metadata=b"\xff"))

    with pytest.raises(DecodeError, match="its metadata cannot be read"):
        await all_of(store.load("order", "42"))


async def test_a_type_that_nobody_knows_stops_a_load_and_is_not_read_otherwise(store: EventStore) -> None:
    await store.append("order", "42", [OrderPlaced("42"), OrderPaid("42", 7)], expected=NEW)
    narrow = EventStore(store.engine, events=[OrderPlaced])

    with pytest.raises(DecodeError, match="of a type that the store does not know") as refused:
        await all_of(narrow.load("order", "42"))

    assert refused.value.type == "order.paid"
    assert await payloads(narrow.read()) == [OrderPlaced("42")]


HOSTILE = "'; DROP TABLE rabbitevents_events; --"


@pytest.mark.parametrize("id", [HOSTILE, '"', "%s", ":id", "$1", "\\", "a/b", "\u202e", "Ω" * 100])
async def test_an_entity_id_is_whatever_it_is(store: EventStore, id: str) -> None:
    await store.append(id, id, [OrderNoted("x")], expected=NEW)

    assert await payloads(store.load(id, id)) == [OrderNoted("x")]
    with pytest.raises(ConcurrencyError) as refused:
        await store.append(id, id, [OrderNoted("x")], expected=NEW)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"expected": -1}, "append: expected=-1: say a whole number, 0 to"),
        ({"expected": "1"}, "append: expected='1' is text"),
        ({"expected": None}, "append: expected=None"),
        ({"expected": True}, "append: expected=True"),
        ({"expected": 2**63}, "append: expected"),
        ({"events": [OrderPlaced("42")] * 10_001}, "10,000"),
        ({"entity_id": ""}, "entity_id is blank"),
        ({"entity_id": 42}, "entity_id=42: say a text"),
        ({"entity_id": "a\0b"}, "NUL"),
        ({"entity_id": "\ud800"}, "surrogate"),
        ({"entity_id": "x" * 256}, "entity_id is longer than 255 bytes"),
        ({"entity_type": " "}, "entity_type is blank"),
        ({"events": []}, "append: events"),
        ({"events": OrderPlaced("42")}, "append: events is an OrderPlaced"),
        ({"events": [OrderPlaced]}, "that is the class and no event"),
        ({"events": [{"order_id": "42"}]}, "is no event"),
        ({"events": [OrderPlaced("43")]}, "is about order/43, and was to be appended to order/42"),
        ({"session": "session"}, "append: session is text"),
    ],
    ids=str,
)
async def test_what_cannot_be_meant_is_refused(sqlite_engine: AsyncEngine, told: dict[str, Any], said: str) -> None:
    store = await store_on(sqlite_engine)
    meant: dict[str, Any] = {"entity_type": "order", "entity_id": "42", "events": [OrderPlaced("42")], "expected": NEW}
    meant.update(told)
    kind, id, events = (meant.pop(name) for name in ("entity_type", "entity_id", "events"))

    with pytest.raises(ConfigurationError) as refused:
        await store.append(kind, id, events, **meant)

    assert said in str(refused.value)
    assert await all_of(store.read()) == []


async def test_an_event_that_the_store_could_not_read_again_is_refused(sqlite_engine: AsyncEngine) -> None:
    store = EventStore(sqlite_engine, events=[OrderPlaced])

    with pytest.raises(ConfigurationError, match="OrderPaid is not among the store's events"):
        await store.append("order", "42", [OrderPaid("42", 7)], expected=NEW)
    with pytest.raises(ConfigurationError, match="OrderPaid is not among the store's events"):
        await all_of(store.read(types=[OrderPaid]))
    with pytest.raises(ConfigurationError, match="two of the events have the same id"):
        await store.append("order", "42", [enveloped(OrderPlaced("42"))] * 2, expected=NEW)
    with pytest.raises(ConfigurationError, match="read: after=-1"):
        await all_of(store.read(after=-1))


async def test_a_store_that_cannot_be_is_refused(sqlite_engine: AsyncEngine) -> None:
    @event("order.placed")
    @frozen
    class Placed:
        pass

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"engine": "sqlite://"}, "EventStore: engine is text"),
        ({"events": OrderPlaced}, "EventStore: events"),
        ({"events": [Order]}, "Order is no event"),
        ({"events": [OrderPlaced, Placed]}, "two classes for 'order.placed'"),
        ({"outbox": "outbox"}, "EventStore: outbox is text"),
        ({"tables": "events"}, "EventStore: tables is text"),
        ({"name": ""}, "EventStore: name is blank"),
    ]
    for told, said in wrong:
        whole: dict[str, Any] = {"engine": sqlite_engine, "events": EVENTS, **told}
        with pytest.raises(ConfigurationError) as refused:
            EventStore(**whole)
        assert said in str(refused.value)
    with pytest.raises(ConfigurationError, match="prefix is no plain name"):
        EventTables(prefix="x'; --")


# --- tables --------------------------------------------------------------------------------------------------------


async def test_the_tables_as_sql_are_those_that_are_needed(engine: AsyncEngine) -> None:
    tables = EventTables(prefix="other_", schema="past" if engine.dialect.name == "postgresql" else None)
    store = EventStore(engine, events=EVENTS, tables=tables)
    async with engine.begin() as connection:
        if tables.schema:
            await connection.execute(text("CREATE SCHEMA past"))
        for statement in tables.sql("postgresql" if tables.schema else "sqlite").split(";\n\n"):
            if statement.strip():
                await connection.exec_driver_sql(statement)
        await connection.run_sync(tables.check)

    await store.append("order", "42", [OrderPlaced("42")], expected=NEW)

    assert await payloads(store.read()) == [OrderPlaced("42")]


async def test_tables_that_are_missing_or_of_another_version_stop_the_start(engine: AsyncEngine) -> None:
    store = EventStore(engine, events=EVENTS)
    bus = Bus("memory://", Router("shop"), plugins=[store])

    with pytest.raises(ConfigurationError, match="cannot be read; EventTables"):
        async with running(bus):
            pass
    await store.tables.create(engine)
    async with engine.begin() as connection:
        await connection.execute(update(store.tables.version).values(version=99))
    with pytest.raises(ConfigurationError, match="says version 99"):
        async with running(bus):
            pass
