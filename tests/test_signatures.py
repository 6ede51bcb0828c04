"""What a handler may ask for and return, and what is refused by name when the bus starts."""

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, Generic, Optional, TypeVar

import pytest
from attrs import frozen

from rabbitevents import (
    Bus,
    ConfigurationError,
    Delivery,
    Event,
    Fact,
    Host,
    Message,
    Plugin,
    Router,
    event,
    upcast,
)
from rabbitevents.consuming.threads import Threads
from rabbitevents.events import Document
from rabbitevents.facts import Held
from rabbitevents.properties import Properties

T = TypeVar("T")


@event("order.placed", entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str


@event("order.paid")
@frozen
class OrderPaid:
    order_id: str


@event("stock.reserved")
@frozen
class StockReserved:
    order_id: str
    number: int = 0


@frozen
class Unmarked:
    order_id: str


class Database:
    """Something that handlers ask for."""


class Session:
    """Something that is made for each delivery."""

    def __init__(self, order_id: str = "") -> None:
        self.order_id = order_id


class Seen(Generic[T]):
    """What handlers saw, in order; whoever waits for the next waits a bounded time."""

    def __init__(self) -> None:
        self._values: asyncio.Queue[T] = asyncio.Queue()

    def add(self, value: T) -> None:
        self._values.put_nowait(value)

    async def next(self) -> T:
        async with asyncio.timeout(5):
            return await self._values.get()

    async def take(self, number: int) -> list[T]:
        return [await self.next() for _ in range(number)]


class Watch(Plugin):
    """Notes every delivery that is held."""

    def __init__(self) -> None:
        self.held: Seen[Held] = Seen()

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, Held):
            self.held.add(fact)


# --- what a handler may ask for --------------------------------------------------------------------------------------


async def test_a_handler_may_ask_for_the_payload() -> None:
    router, seen = Router("shop"), Seen[OrderPlaced]()

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> None:
        seen.add(order)

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() == OrderPlaced("o-1")


async def test_a_handler_may_ask_for_one_of_several_payloads() -> None:
    router, seen = Router("shop"), Seen[object]()

    @router.on(OrderPlaced, OrderPaid)
    async def either(order: OrderPlaced | OrderPaid) -> None:
        seen.add(order)

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await bus.publish(OrderPaid("o-2"))

        assert await seen.take(2) == [OrderPlaced("o-1"), OrderPaid("o-2")]


async def test_a_handler_may_ask_for_the_envelope() -> None:
    router, seen = Router("shop"), Seen[Event[OrderPlaced]]()

    @router.on(OrderPlaced)
    async def handler(order: Event[OrderPlaced]) -> None:
        seen.add(order)

    async with Bus("memory://", router) as bus:
        published = await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() == published


async def test_an_envelope_may_hold_one_of_several_payloads() -> None:
    router, seen = Router("shop"), Seen[object]()

    @router.on("order.*")
    async def either(order: Event[OrderPlaced | OrderPaid]) -> None:
        seen.add(order.payload)

    async with Bus("memory://", router) as bus:
        await bus.publish_many([OrderPlaced("o-1"), OrderPaid("o-2")])

        assert await seen.take(2) == [OrderPlaced("o-1"), OrderPaid("o-2")]


async def test_a_bare_envelope_takes_any_type_and_carries_the_document() -> None:
    router, seen = Router("shop"), Seen[tuple[str, Any]]()

    @router.on("#")
    async def bare(anything: Event) -> None:
        seen.add((anything.type, anything.payload))

    @router.on("#", name="any")
    async def of_any(anything: Event[Any]) -> None:
        seen.add((anything.type, anything.payload))

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await bus.publish(StockReserved("o-2", 5))

        assert sorted(await seen.take(4), key=str) == [
            ("order.placed", {"order_id": "o-1"}),
            ("order.placed", {"order_id": "o-1"}),
            ("stock.reserved", {"order_id": "o-2", "number": 5}),
            ("stock.reserved", {"order_id": "o-2", "number": 5}),
        ]


async def test_a_handler_may_ask_for_everything_at_once_in_any_order() -> None:
    router, seen = Router("shop"), Seen[tuple[Any, ...]]()
    database = Database()

    @router.on(OrderPlaced)
    async def handler(
        bus: Bus,
        delivery: Delivery,
        order: OrderPlaced,
        /,
        envelope: Event[OrderPlaced],
        *,
        db: Database,
        again: OrderPlaced,
    ) -> None:
        seen.add((bus, delivery.id, order, envelope.id, db, again))

    bus = Bus("memory://", router)
    bus.provide(Database, database)
    async with bus:
        published = await bus.publish(OrderPlaced("o-1"))
        found = await seen.next()

    assert found == (bus, published.id, OrderPlaced("o-1"), published.id, database, OrderPlaced("o-1"))


async def test_what_nobody_serves_keeps_its_default() -> None:
    router, seen = Router("shop"), Seen[tuple[Any, ...]]()

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced, limit: int = 5, db: Database | None = None, *, flag: bool = True) -> None:
        seen.add((order.order_id, limit, db, flag))

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() == ("o-1", 5, None, True)


async def test_what_is_served_is_served_whatever_its_default() -> None:
    router, seen = Router("shop"), Seen[object]()

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced, db: Database = Database()) -> None:  # noqa: B008
        seen.add(db)

    bus, database = Bus("memory://", router), Database()
    bus.provide(Database, database)
    async with bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() is database


WITH_NONE: list[Any] = [
    OrderPlaced | None,
    Optional[OrderPlaced],  # noqa: UP045
    "OrderPlaced | None",
    Annotated[OrderPlaced | None, "the order"],
    "Annotated[OrderPlaced, 'the order'] | None",
    OrderPlaced | OrderPaid | None,
    Event[OrderPlaced] | None,
    Event[OrderPlaced | None],
    Event[OrderPlaced] | Event[OrderPaid] | None,
    Event | None,
    Event[Any] | None,
    Delivery | None,
    Bus | None,
    Database | None,
    Session | None,
    Database | Unmarked | None,
    Annotated[Database | None, "the database"],
]


@pytest.mark.parametrize("hint", WITH_NONE, ids=str)
@pytest.mark.parametrize("default", [inspect.Parameter.empty, None], ids=["without a default", "with a default"])
async def test_none_in_a_union_changes_nothing_about_what_is_asked_for(hint: Any, default: Any) -> None:
    router, seen = Router("shop"), Seen[tuple[object, object]]()

    async def handler(order: OrderPlaced, it: Any, /, *, named: Any) -> None:
        seen.add((it, named))

    handler.__annotations__ |= {"it": hint, "named": hint}
    if default is None:
        handler.__defaults__, handler.__kwdefaults__ = (None,), {"named": None}
    router.on(OrderPlaced)(handler)
    bus = Bus("memory://", router)
    bus.provide(Database, Database())
    bus.provide(Session, factory=lambda delivery: Session())
    async with bus:
        await bus.publish(OrderPlaced("o-1"))
        it, named = await seen.next()

    assert it is not None
    assert type(named) is type(it)


@pytest.mark.parametrize("hint", [Database | None, Unmarked | None, "Database | Unmarked | None"], ids=str)
async def test_none_in_a_union_serves_nothing_by_itself(hint: Any) -> None:
    router = Router("shop")

    async def handler(order: OrderPlaced, it: Any) -> None: ...

    handler.__annotations__["it"] = hint
    router.on(OrderPlaced)(handler)

    assert "nobody can serve its parameter 'it: " in await refused(router)


@pytest.mark.parametrize("hint", [OrderPlaced | int, Event[OrderPlaced] | OrderPlaced, OrderPlaced | Delivery], ids=str)
async def test_a_default_does_not_hide_an_event_that_cannot_be_served(hint: Any) -> None:
    router = Router("shop")

    async def handler(order: Any = None) -> None: ...

    handler.__annotations__["order"] = hint
    router.on(OrderPlaced)(handler)

    assert "nobody can serve its parameter 'order: " in await refused(router)


async def test_a_handler_may_ask_for_nothing_and_take_more_than_it_names() -> None:
    router, seen = Router("shop"), Seen[tuple[Any, ...]]()

    @router.on(OrderPlaced)
    async def nothing() -> None:
        seen.add(())

    @router.on(OrderPlaced)
    async def more(order: OrderPlaced, *args: int, **kwargs: int) -> None:
        seen.add((order.order_id, args, kwargs))

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert sorted(await seen.take(2)) == [(), ("o-1", (), {})]


async def test_handlers_that_share_a_queue_each_take_their_own_types() -> None:
    router, seen = Router("shop"), Seen[tuple[str, object]]()

    @router.on(OrderPlaced, queue="orders")
    async def placed(order: OrderPlaced) -> None:
        seen.add(("placed", order))

    @router.on(OrderPaid, queue="orders")
    async def paid(order: Event[OrderPaid]) -> None:
        seen.add(("paid", order.payload))

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await bus.publish(OrderPaid("o-2"))

        assert await seen.take(2) == [("placed", OrderPlaced("o-1")), ("paid", OrderPaid("o-2"))]


# --- kinds of functions ----------------------------------------------------------------------------------------------


class AsyncObject:
    def __init__(self, seen: Seen[Any]) -> None:
        self._seen = seen

    async def __call__(self, order: OrderPlaced) -> None:
        self._seen.add(order)

    async def method(self, order: OrderPlaced) -> None:
        self._seen.add(order)


async def with_more(seen: Seen[Any], order: OrderPlaced, *, extra: int) -> None:
    seen.add(order)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("kind", ["object", "method", "partial", "wrapped", "partial of an object"])
async def test_whatever_can_be_called_can_be_a_handler(kind: str) -> None:
    router, seen = Router("shop"), Seen[OrderPlaced]()

    async def plain(order: OrderPlaced) -> None:
        seen.add(order)

    functions: dict[str, Callable[..., Any]] = {
        "object": AsyncObject(seen),
        "method": AsyncObject(seen).method,
        "partial": functools.partial(with_more, seen, extra=1),
        "wrapped": logged(plain),
        "partial of an object": functools.partial(AsyncObject(seen)),
    }
    router.on(OrderPlaced, name="called")(functions[kind])

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() == OrderPlaced("o-1")


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Setting(Plugin):
    """Sets a context variable around every handler."""

    async def consume(self, proceed: Callable[[Delivery], Any], delivery: Delivery) -> Any:
        variable.set("set")
        return await proceed(delivery)


async def test_a_plain_function_runs_in_a_thread_and_in_its_delivery_s_context() -> None:
    router, seen = Router("shop"), Seen[tuple[Any, ...]]()
    loop = asyncio.get_running_loop()

    @router.on(OrderPlaced)
    def handler(order: OrderPlaced) -> None:
        found = (order.order_id, threading.current_thread() is threading.main_thread(), variable.get())
        loop.call_soon_threadsafe(seen.add, found)

    async with Bus("memory://", router, plugins=[Setting()]) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() == ("o-1", False, "set")


async def test_an_object_with_a_plain_call_runs_in_a_thread_too() -> None:
    router, seen = Router("shop"), Seen[bool]()
    loop = asyncio.get_running_loop()

    class PlainObject:
        def __call__(self, order: OrderPlaced) -> None:
            loop.call_soon_threadsafe(seen.add, threading.current_thread() is threading.main_thread())

    router.on(OrderPlaced, name="plain")(PlainObject())
    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() is False


async def test_as_many_threads_run_at_once_as_the_subscription_has_workers() -> None:
    router, seen = Router("shop"), Seen[int]()
    loop = asyncio.get_running_loop()
    all_there = threading.Barrier(4)

    @router.on(OrderPlaced, concurrency=4)
    def handler(order: OrderPlaced) -> None:
        loop.call_soon_threadsafe(seen.add, all_there.wait(timeout=5))

    async with Bus("memory://", router) as bus:
        await bus.publish_many([OrderPlaced(str(number)) for number in range(8)])

        assert sorted(await seen.take(8)) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_pool_makes_no_more_threads_than_it_has_room_for() -> None:
    threads, names, lock = Threads("pool", 3), set[str](), threading.Lock()

    def note() -> None:
        with lock:
            names.add(threading.current_thread().name)

    for _ in range(10):
        await asyncio.gather(*(threads.run(note) for _ in range(20)))
    threads.close()

    assert 1 <= len(names) <= 3


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_what_a_future_cannot_hold_comes_out_of_a_thread_as_a_runtime_error(error: type[BaseException]) -> None:
    threads = Threads("pool", 1)

    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError, match=error.__name__):
        await threads.run(fail)
    assert await threads.run(lambda: 5) == 5
    threads.close()


# --- what is provided ------------------------------------------------------------------------------------------------


async def test_a_factory_makes_a_value_for_each_delivery() -> None:
    router, seen = Router("shop"), Seen[Session]()

    @router.on(OrderPlaced)
    async def handler(session: Session, again: Session) -> None:
        assert session is again
        seen.add(session)

    def make(delivery: Delivery) -> Session:
        return Session(delivery.body.decode())

    bus = Bus("memory://", router)
    bus.provide(Session, factory=make)
    async with bus:
        await bus.publish(OrderPlaced("o-1"))
        await bus.publish(OrderPlaced("o-2"))
        one, two = await seen.take(2)

    assert (one.order_id, two.order_id) == ('{"order_id":"o-1"}', '{"order_id":"o-2"}')


class Scope:
    """Makes sessions, and notes when each is entered and left, and with what."""

    def __init__(self) -> None:
        self.noted: Seen[str] = Seen()

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        self.noted.add("entered")
        try:
            yield Session("from the scope")
        except BaseException as error:
            self.noted.add(f"left by {type(error).__name__}")
            raise
        else:
            self.noted.add("left")

    def __call__(self, delivery: Delivery) -> AbstractAsyncContextManager[Session]:
        return self.session()


async def test_a_context_manager_is_entered_around_the_handler() -> None:
    router, scope = Router("shop"), Scope()

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced, session: Session) -> None:
        scope.noted.add(f"handled {session.order_id}")

    bus = Bus("memory://", router)
    bus.provide(Session, factory=scope)
    async with bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await scope.noted.take(3) == ["entered", "handled from the scope", "left"]


async def test_a_context_manager_is_left_when_the_handler_fails() -> None:
    router, scope = Router("shop"), Scope()

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced, session: Session) -> None:
        raise ZeroDivisionError

    bus = Bus("memory://", router)
    bus.provide(Session, factory=scope)
    async with bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await scope.noted.take(2) == ["entered", "left by ZeroDivisionError"]


async def test_a_context_manager_is_left_when_the_handler_s_time_is_over() -> None:
    router, scope, watch = Router("shop"), Scope(), Watch()

    @router.on(OrderPlaced, timeout=0.01)
    async def handler(order: OrderPlaced, session: Session) -> None:
        await asyncio.get_running_loop().create_future()

    bus = Bus("memory://", router, plugins=[watch])
    bus.provide(Session, factory=scope)
    async with bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await scope.noted.take(2) == ["entered", "left by CancelledError"]
        assert (await watch.held.next()).error == "TimeoutError"


async def test_every_context_manager_is_left_when_another_one_cannot_be_entered() -> None:
    router, scope, watch = Router("shop"), Scope(), Watch()

    @router.on(OrderPlaced)
    async def handler(session: Session, db: Database) -> None: ...

    def refuse(_: Delivery) -> Database:
        raise ZeroDivisionError

    bus = Bus("memory://", router, plugins=[watch])
    bus.provide(Session, factory=scope)
    bus.provide(Database, factory=refuse)
    async with bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await scope.noted.take(2) == ["entered", "left by ZeroDivisionError"]
        assert (await watch.held.next()).error == "ZeroDivisionError"


async def test_a_payload_is_read_before_anything_is_made_for_it() -> None:
    router, scope, watch = Router("shop"), Scope(), Watch()

    @router.on("order.*")
    async def handler(order: OrderPlaced, session: Session) -> None: ...

    bus = Bus("memory://", router, plugins=[watch])
    bus.provide(Session, factory=scope)
    async with bus:
        await bus.publish(OrderPaid("not what it takes"))
        held = await watch.held.next()
        await bus.publish(OrderPlaced("o-1"))

        assert "DecodeError" in held.error
        assert await scope.noted.take(2) == ["entered", "left"]


async def test_a_plugin_provides_as_the_application_does() -> None:
    database = Database()

    class Storage(Plugin):
        @asynccontextmanager
        async def lifespan(self, host: Host) -> AsyncGenerator[None]:
            host.provide(Database, database)
            yield

    router, seen = Router("shop"), Seen[Database]()

    @router.on(OrderPlaced)
    async def handler(db: Database) -> None:
        seen.add(db)

    async with Bus("memory://", router, plugins=[Storage()]) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() is database


async def test_nothing_can_be_provided_once_handlers_are_bound() -> None:
    async with Bus("memory://") as bus:
        with pytest.raises(ConfigurationError, match=r"provide\(Database\): the bus has started"):
            bus.provide(Database, Database())


def test_neither_a_value_nor_a_factory_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"provide\(Database\)"):
        Bus("memory://").provide(Database)
    with pytest.raises(ConfigurationError, match=r"provide\(Database\)"):
        Bus("memory://").provide(Database, Database(), factory=lambda _: Database())


# --- what a handler may return ---------------------------------------------------------------------------------------


def reserving(result: Callable[[OrderPlaced], Any]) -> tuple[Router, Seen[StockReserved]]:
    """A router whose first handler returns what ``result`` says; the second one sees what was published."""
    router, seen = Router("shop"), Seen[StockReserved]()

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> Any:
        return result(order)

    @router.on(StockReserved, concurrency=1)
    async def note(reserved: StockReserved) -> None:
        seen.add(reserved)

    return router, seen


def generated(order: OrderPlaced) -> Iterator[StockReserved]:
    for number in range(2):
        yield StockReserved(order.order_id, number)


ONE, TWO = StockReserved("o-1"), [StockReserved("o-1", 0), StockReserved("o-1", 1)]


@pytest.mark.parametrize(
    ("result", "published"),
    [
        (ONE, [ONE]),
        ([ONE], [ONE]),
        (tuple(TWO), TWO),
        ({ONE}, [ONE]),
        (dict.fromkeys(TWO).keys(), TWO),
        (generated(OrderPlaced("o-1")), TWO),
    ],
    ids=["an event", "a list", "a tuple", "a set", "keys", "a generator"],
)
async def test_what_a_handler_returns_is_published(result: Any, published: list[StockReserved]) -> None:
    router, seen = reserving(lambda _: result)

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.take(len(published)) == published


@pytest.mark.parametrize("nothing", [None, [], (), set[Any]()], ids=str)
async def test_nothing_is_published_for_nothing(nothing: Any) -> None:
    router, seen = reserving(lambda order: nothing if order.order_id == "o-1" else StockReserved("o-2"))

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await bus.publish(OrderPlaced("o-2"))

        assert await seen.next() == StockReserved("o-2")
        assert {name: load.held for name, load in bus.load.items()} == {"shop.reserve": 0, "shop.note": 0}


async def test_an_envelope_that_a_handler_returns_is_published_as_it_is() -> None:
    router, seen = Router("shop"), Seen[Event[StockReserved]]()
    async with Bus("memory://", unroutable="ignore") as elsewhere:
        kept = await elsewhere.publish(StockReserved("kept"))

    @router.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> Event[StockReserved]:
        return kept

    @router.on(StockReserved)
    async def note(reserved: Event[StockReserved]) -> None:
        seen.add(reserved)

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() == kept


async def test_what_a_plain_function_yields_is_published() -> None:
    router, seen = Router("shop"), Seen[StockReserved]()
    threads = set[bool]()

    @router.on(OrderPlaced)
    def reserve(order: OrderPlaced) -> Iterator[StockReserved]:
        for number in range(2):
            threads.add(threading.current_thread() is threading.main_thread())
            yield StockReserved(order.order_id, number)

    @router.on(StockReserved, concurrency=1)
    async def note(reserved: StockReserved) -> None:
        seen.add(reserved)

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.take(2) == TWO
    assert threads == {False}


@pytest.mark.parametrize(
    ("result", "named"),
    [
        (5, "int"),
        ("order.placed", "str"),
        (b"bytes", "bytes"),
        ({"order_id": "o-1"}, "dict"),
        (Unmarked("o-1"), "Unmarked"),
        ([ONE, 5], "int"),
        ([None], "NoneType"),
        ([[ONE]], "list"),
        (StockReserved, "type"),
        (False, "bool"),
    ],
    ids=str,
)
async def test_anything_else_that_a_handler_returns_is_its_failure_and_named(result: Any, named: str) -> None:
    router, _ = reserving(lambda _: result)
    watch = Watch()

    async with Bus("memory://", router, plugins=[watch]) as bus:
        await bus.publish(OrderPlaced("o-1"))
        held = await watch.held.next()

    assert f"handler 'shop.reserve' returned a {named}; a handler returns None, an event" in held.error
    assert held.subscription == "shop.reserve"


# --- what is refused when the bus starts -----------------------------------------------------------------------------


async def refused(router: Router) -> str:
    with pytest.raises(ConfigurationError) as error:
        async with Bus("memory://", router):
            pass
    return str(error.value)


async def test_a_parameter_that_nobody_can_serve_is_refused_by_name() -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced, db: Database) -> None: ...

    said = await refused(router)

    assert "handler 'shop.handler': nobody can serve its parameter 'db: Database'" in said
    assert "bus.provide()" in said


async def test_a_parameter_without_an_annotation_is_refused_by_name() -> None:
    router = Router("shop")
    router.on(OrderPlaced, name="bare")(eval("lambda order: None"))

    assert "handler 'shop.bare': nobody can serve its parameter 'order', which has no annotation" in await refused(
        router
    )


@pytest.mark.parametrize(
    "hint",
    [int, Unmarked, None, OrderPlaced | int, list[OrderPlaced], OrderPlaced | Event[OrderPlaced], Unmarked | None],
)
async def test_an_annotation_that_is_no_event_is_refused_by_name(hint: Any) -> None:
    router = Router("shop")

    async def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = hint
    router.on(OrderPlaced)(handler)

    assert "nobody can serve its parameter 'order: " in await refused(router)


async def test_an_annotation_that_cannot_be_resolved_is_refused_with_the_reason() -> None:
    router = Router("shop")

    async def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = "NobodyKnowsThis"
    router.on(OrderPlaced)(handler)
    said = await refused(router)

    assert "handler 'shop.handler': its annotations cannot be resolved" in said
    assert "NobodyKnowsThis" in said


async def test_an_envelope_of_a_class_without_a_mark_is_refused_by_name() -> None:
    router = Router("shop")

    @router.on("order.*")
    async def handler(order: Event[Unmarked]) -> None: ...

    assert "'order: Unmarked' is no event class; put @event(...) above it" in await refused(router)


@pytest.mark.parametrize("hint", [OrderPaid, Event[OrderPaid], OrderPaid | StockReserved])
async def test_a_handler_registered_for_what_it_does_not_take_is_refused_by_name(hint: Any) -> None:
    router = Router("shop")

    async def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = hint
    router.on(OrderPlaced, OrderPaid)(handler)

    assert "handler 'shop.handler' is registered for OrderPlaced, which its parameter 'order' does not take" in (
        await refused(router)
    )


@event("order.placed")
@frozen
class AnotherOrderPlaced:
    order_id: str


@pytest.mark.parametrize(
    ("events", "hint"),
    [
        (["order.*"], OrderPlaced | AnotherOrderPlaced),
        (["order.*"], Event[OrderPlaced | AnotherOrderPlaced]),
        ([OrderPlaced], OrderPlaced | AnotherOrderPlaced),
        ([OrderPlaced, AnotherOrderPlaced], OrderPlaced | AnotherOrderPlaced),
        ([OrderPlaced, AnotherOrderPlaced], Event),
        ([OrderPlaced, AnotherOrderPlaced], Delivery),
    ],
    ids=str,
)
async def test_two_classes_of_one_event_type_are_refused_by_name(events: list[Any], hint: Any) -> None:
    router = Router("shop")

    async def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = hint
    router.on(*events)(handler)
    said = await refused(router)

    assert (
        "handler 'shop.handler' is for both OrderPlaced and AnotherOrderPlaced, which are the same event type 'order.placed'"
    ) in said
    assert "@upcast" in said


async def test_one_class_named_twice_is_one() -> None:
    router, seen = Router("shop"), Seen[OrderPlaced]()

    @router.on(OrderPlaced, OrderPlaced)
    async def handler(order: OrderPlaced) -> None:
        seen.add(order)

    async with Bus("memory://", router) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert await seen.next() == OrderPlaced("o-1")


async def test_parameters_for_different_events_are_refused_since_one_comes() -> None:
    router = Router("shop")

    @router.on("order.*")
    async def handler(placed: OrderPlaced, paid: Event[OrderPaid]) -> None: ...

    assert "has parameters for different events, and is called with one; ask for all of them in one, as A | B" in (
        await refused(router)
    )


async def test_an_event_that_one_of_two_parameters_does_not_take_is_a_decode_error() -> None:
    router, watch, seen = Router("shop"), Watch(), Seen[OrderPlaced]()

    @router.on("order.*")
    async def handler(order: OrderPlaced, any_of_them: Event, either: OrderPlaced | OrderPaid) -> None:
        seen.add(order)

    async with Bus("memory://", router, plugins=[watch]) as bus:
        await bus.publish(OrderPaid("o-1"))
        await bus.publish(OrderPlaced("o-2"))

        assert (await watch.held.next()).error == "DecodeError: handler 'shop.handler' knows no event type 'order.paid'"
        assert await seen.next() == OrderPlaced("o-2")


async def test_a_handler_of_a_shared_queue_is_refused_by_its_own_name() -> None:
    router = Router("shop")

    @router.on(OrderPlaced, queue="orders")
    async def placed(order: OrderPlaced) -> None: ...

    @router.on(OrderPaid, queue="orders")
    async def paid(order: OrderPaid, db: Database) -> None: ...

    assert "handler 'paid' of queue 'shop.orders': nobody can serve" in await refused(router)


async def test_a_missing_step_between_versions_is_refused_at_start() -> None:
    @event("order.moved", version=3)
    @frozen
    class OrderMoved:
        to: str

    @upcast(OrderMoved, from_version=2)
    def _(document: Document) -> Document:
        return document

    router = Router("shop")

    async def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = OrderMoved
    router.on(OrderMoved)(handler)

    assert "@upcast(OrderMoved, from_version=1)" in await refused(router)


async def test_a_payload_class_that_json_cannot_say_is_refused_at_start() -> None:
    @event("order.moved")
    @frozen
    class OrderMoved:
        to: Database

    router = Router("shop")

    async def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = OrderMoved
    router.on(OrderMoved)(handler)

    assert "OrderMoved cannot be carried as JSON" in await refused(router)


async def test_a_handler_that_is_refused_leaves_nothing_running() -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced, db: Database) -> None: ...

    before = asyncio.all_tasks()

    await refused(router)

    assert asyncio.all_tasks() == before


# --- what does not fit while it runs ---------------------------------------------------------------------------------


async def test_an_event_of_a_type_that_the_handler_does_not_take_is_a_decode_error_that_names_it() -> None:
    router, watch = Router("shop"), Watch()

    @router.on("order.*")
    async def handler(order: OrderPlaced) -> None: ...

    async with Bus("memory://", router, plugins=[watch]) as bus:
        await bus.publish(OrderPaid("o-1"))
        held = await watch.held.next()

    assert held.error == "DecodeError: handler 'shop.handler' knows no event type 'order.paid'"
    assert held.pause is None


async def test_a_foreign_type_never_takes_the_way_of_another_routing_key() -> None:
    router, seen = Router("shop"), Seen[str]()

    @router.on("a.*", queue="both")
    async def of_a(anything: Event) -> None:
        seen.add(f"a: {anything.type}")

    @router.on("b.*", queue="both")
    async def of_b(anything: Event) -> None:
        seen.add(f"b: {anything.type}")

    async with Bus("memory://", router) as bus:
        for key in ("a.1", "b.1", "a.2"):
            await bus.send(foreign(bus, key))

        assert await seen.take(3) == ["a: com.example.Thing", "b: com.example.Thing", "a: com.example.Thing"]


def foreign(bus: Bus, routing_key: str) -> Message:
    properties = Properties(content_type="application/json", type="com.example.Thing")
    return Message(exchange=bus.exchange, routing_key=routing_key, body=b"{}", properties=properties)


async def test_a_handling_has_as_long_as_its_timeout_says() -> None:
    router, watch = Router("shop"), Watch()

    @router.on(OrderPlaced, timeout=timedelta(milliseconds=10))
    async def handler(order: OrderPlaced) -> None:
        await asyncio.get_running_loop().create_future()

    async with Bus("memory://", router, plugins=[watch]) as bus:
        await bus.publish(OrderPlaced("o-1"))

        assert (await watch.held.next()).error == "TimeoutError"
