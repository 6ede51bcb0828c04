"""Whatever Python can call is a handler, and is called the way it wants to be called, or is refused by name."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
from attrs import frozen

from rabbitevents import Bus, ConfigurationError, Delivery, Event, Router, event
from rabbitevents.consuming.calls import awaitable
from rabbitevents.consuming.threads import Threads
from rabbitevents.testing import Probe, running
from tests.shop import eventually


@event("order.placed")
@frozen
class OrderPlaced:
    order_id: str


@event("stock.reserved")
@frozen
class StockReserved:
    order_id: str


class Database:
    """Something that handlers ask for."""


PLACED, RESERVED = OrderPlaced("o-1"), StockReserved("o-1")
got: list[object] = []
tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


@pytest.fixture(autouse=True)
def _nothing_got() -> None:
    got.clear()


async def take(order: OrderPlaced) -> StockReserved:
    await asyncio.sleep(0)
    got.append(order)
    return StockReserved(order.order_id)


def take_plainly(order: OrderPlaced) -> StockReserved:
    got.append(order)
    return StockReserved(order.order_id)


async def take_with(db: object, order: OrderPlaced, *, extra: int) -> StockReserved:
    got.append(order)
    return StockReserved(order.order_id)


async def called(function: Callable[..., Any], *, db: Database | None = None) -> Probe:
    """Have ``function`` called for one event; return what was seen of it."""
    router = Router("shop")
    router.on(OrderPlaced, name="handler")(function)
    bus = Bus("memory://", router, unroutable="ignore")
    if db is not None:
        bus.provide(Database, db)
    async with running(bus) as probe:
        await probe.bus.publish(PLACED)
        await probe.settled()
        assert [check.detail for check in probe.bus.health().problems] == []
    return probe


# --- wrappers --------------------------------------------------------------------------------------------------------


def wrapped_plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def wrapped_by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(it: Any) -> Any:
        return await function(it)

    return wrapper


def unannounced(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(order: OrderPlaced) -> Any:
        return function(order)

    return wrapper


def bringing_a_database(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(order: OrderPlaced) -> Any:
        return await function(order, Database())

    return wrapper


async def with_database(order: OrderPlaced, db: Database) -> StockReserved:
    assert isinstance(db, Database)
    return await take(order)


class Decorated:
    """A class as a decorator."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.f = function
        functools.update_wrapper(self, function)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self.f(*args, **kwargs)


class PlainlyDecorated(Decorated):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # type of the base's is a coroutine's
        return self.f(*args, **kwargs)


class Service:
    """All the places where a method can be."""

    async def method(self, order: OrderPlaced) -> StockReserved:
        return await take(order)

    @wrapped_plainly
    async def wrapped(self, order: OrderPlaced) -> StockReserved:
        return await take(order)

    @staticmethod
    async def static(order: OrderPlaced) -> StockReserved:
        return await take(order)

    @classmethod
    async def of_class(cls, order: OrderPlaced) -> StockReserved:
        return await take(order)

    async def _with_extra(self, order: OrderPlaced, extra: int) -> StockReserved:
        assert extra == 1
        return await take(order)

    partial = functools.partialmethod(_with_extra, extra=1)


class AsyncObject:
    async def __call__(self, order: OrderPlaced) -> StockReserved:
        return await take(order)


class PlainObject:
    def __call__(self, order: OrderPlaced) -> StockReserved:
        return take_plainly(order)


@functools.singledispatch
async def dispatched(order: OrderPlaced) -> StockReserved:
    raise NotImplementedError


@dispatched.register
async def _(order: OrderPlaced) -> StockReserved:
    return await take(order)


def coroutine_of(order: OrderPlaced) -> Coroutine[Any, Any, StockReserved]:
    return take(order)


def task_of(order: OrderPlaced) -> asyncio.Task[StockReserved]:
    return asyncio.get_running_loop().create_task(take(order))


def future_of(order: OrderPlaced) -> asyncio.Future[StockReserved]:
    return asyncio.ensure_future(take(order))


def awaitable_of(order: OrderPlaced) -> Awaitable[StockReserved]:
    return asyncio.ensure_future(take(order))


def in_a_loop_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return wrapper


async def generate(order: OrderPlaced) -> AsyncIterator[StockReserved]:
    yield await take(order)


def generate_plainly(order: OrderPlaced) -> Iterator[StockReserved]:
    yield take_plainly(order)


async def by_place_alone(order: OrderPlaced, /) -> StockReserved:
    return await take(order)


async def by_name_alone(*, order: OrderPlaced) -> StockReserved:
    return await take(order)


async def with_more(order: OrderPlaced, *args: Any, **kwargs: Any) -> StockReserved:
    assert not args
    assert not kwargs
    return await take(order)


def labelled(made: functools.partial[Any]) -> Callable[..., Any]:
    functools.update_wrapper(made, made.func)
    return made


async def take_after(db: object, order: OrderPlaced, *more: object) -> StockReserved:
    assert not more
    return await take(order)


CALLABLES: dict[str, Callable[..., Any]] = {
    "a coroutine function": take,
    "a plain function": take_plainly,
    "an async wrapper": wrapped(take),
    "an async wrapper with a parameter of another name": wrapped_by_name(take),
    "a plain wrapper around a coroutine function": wrapped_plainly(take),
    "a plain wrapper that does not say so": unannounced(take),
    "a plain wrapper around a plain one": wrapped_plainly(take_plainly),
    "wrappers in wrappers": wrapped_plainly(wrapped(wrapped_plainly(take))),
    "a wrapper that brings an argument": bringing_a_database(with_database),
    "a wrapper with an event loop of its own": in_a_loop_of_its_own(take),
    "a class as a decorator": Decorated(take),
    "a plain class as a decorator": PlainlyDecorated(take),
    "a bound method": Service().method,
    "a wrapped method": Service().wrapped,
    "a static method": Service.static,
    "a static method as it is in its class": vars(Service)["static"],
    "a class method": Service.of_class,
    "a partial method": Service().partial,
    "an object": AsyncObject(),
    "a plain object": PlainObject(),
    "a partial": functools.partial(take_with, Database(), extra=1),
    "a partial of a partial": functools.partial(functools.partial(take_with, Database()), extra=1),
    "a partial with the function's name": labelled(functools.partial(take_with, Database(), extra=1)),
    "one of a function that takes more than it names": labelled(functools.partial(take_after, Database())),
    "a partial of a partial with the function's name": functools.partial(
        labelled(functools.partial(take_with, Database(), extra=1)), extra=2
    ),
    "a partial of an object": functools.partial(AsyncObject()),
    "a partial of a wrapper": functools.partial(wrapped_plainly(take)),
    "a wrapped partial": wrapped(functools.partial(take_with, Database(), extra=1)),
    "a single dispatch": dispatched,
    "a cached function": functools.lru_cache(take_plainly),
    "a plain function that returns a coroutine": coroutine_of,
    "a plain function that returns a task": task_of,
    "a plain function that returns a future": future_of,
    "a plain function that returns an awaitable": awaitable_of,
    "an async generator": generate,
    "a partial of an async generator": functools.partial(generate),
    "a plain wrapper around an async generator": wrapped_plainly(generate),
    "a generator": generate_plainly,
    "a plain wrapper around a generator": wrapped_plainly(generate_plainly),
    "positional only": by_place_alone,
    "keyword only": by_name_alone,
    "more than it names": with_more,
}


@pytest.mark.parametrize("function", CALLABLES.values(), ids=CALLABLES)
async def test_whatever_can_be_called_is_called_and_what_it_returns_is_published(function: Callable[..., Any]) -> None:
    probe = await called(function)

    assert got == [PLACED]
    assert probe.published(StockReserved) == [RESERVED]


@pytest.mark.parametrize("function", [wrapped_plainly(take), unannounced(take)], ids=["wrapped", "unannounced"])
async def test_the_coroutine_of_a_plain_wrapper_runs_on_the_event_loop(function: Callable[..., Any]) -> None:
    threads: list[threading.Thread] = []

    async def handler(order: OrderPlaced) -> None:
        threads.append(threading.current_thread())

    @functools.wraps(handler)
    def wrapper(order: OrderPlaced) -> Any:
        threads.append(threading.current_thread())
        return handler(order)

    await called(wrapper)

    assert [thread is threading.main_thread() for thread in threads] == [False, True]


async def test_the_coroutine_of_a_plain_wrapper_has_the_context_that_the_wrapper_has_set() -> None:
    def of_a_tenant(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            tenant.set("north")
            return function(*args, **kwargs)

        return wrapper

    @of_a_tenant
    async def handler(order: OrderPlaced) -> None:
        got.append(tenant.get())

    await called(handler)

    assert got == ["north"]
    assert tenant.get() == "nobody"


async def test_a_coroutine_that_comes_out_of_a_thread_too_late_is_closed() -> None:
    threads, begun, release = Threads("pool", 1), threading.Event(), threading.Event()
    made: list[Coroutine[Any, Any, Any]] = []

    def function(order: OrderPlaced) -> Any:
        begun.set()
        release.wait(5)
        made.append(take(order))
        return made[0]

    handling = asyncio.ensure_future(awaitable(function, lambda: threads, promises=False)(PLACED))
    await eventually(begun.is_set, "it to begin", 5)
    handling.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await handling

    await eventually(lambda: inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED, "it to be closed", 5)
    assert got == []
    threads.close()


async def test_an_async_generator_that_is_cut_off_cleans_up() -> None:
    router = Router("shop")

    @router.on(OrderPlaced, timeout=0.01)
    async def handler(order: OrderPlaced) -> AsyncIterator[StockReserved]:
        try:
            yield StockReserved(order.order_id)
            await asyncio.get_running_loop().create_future()
        finally:
            got.append("cleaned up")

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(PLACED)
        await eventually(lambda: bool(probe.bus.health().problems), "it to have failed", 5)

    assert got == ["cleaned up"]
    assert probe.published(StockReserved) == []


# --- what partials bring ---------------------------------------------------------------------------------------------


async def with_two(order: OrderPlaced, db: Database) -> None:
    got.extend([order, db])


class TwoOfThem:
    async def _method(self, order: OrderPlaced, db: Database) -> None:
        got.extend([order, db])

    partial = functools.partialmethod(_method, db=None)


async def test_what_a_partial_brings_by_name_stays() -> None:
    mine, provided = Database(), Database()

    await called(functools.partial(with_two, db=mine), db=provided)
    await called(functools.partial(functools.partial(with_two, db=provided), db=mine), db=provided)
    await called(wrapped(functools.partial(with_two, db=mine)), db=provided)
    await called(TwoOfThem().partial, db=provided)

    assert got == [PLACED, mine, PLACED, mine, PLACED, mine, PLACED, None]


# --- what is refused -------------------------------------------------------------------------------------------------


def hiding(function: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


async def with_stars(*args: Any) -> None: ...


async def with_names(limit: int = 5, /, **kwargs: Any) -> None: ...


@functools.singledispatch
async def about_anything(order: object) -> None: ...


class Unbound:
    async def method(self, order: OrderPlaced) -> None: ...


class Answering:
    """An object with every attribute, as the mocks of test libraries have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Answering()

    async def __call__(self, *args: Any) -> None: ...


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "a wrapper that hides": (hiding(take), r"takes \(\*args: 'Any', \*\*kwargs: 'Any'\), .* put @functools.wraps"),
    "an object with every attribute": (Answering(), r"takes \(\*args: 'Any'\), which does not say"),
    "stars alone": (with_stars, r"takes \(\*args: 'Any'\), which does not say what to call it with"),
    "written in C": (print, r"takes \(\*args\), which does not say what to call it with"),
    "written in C, without a signature": (
        dict[str, str]().update,
        "does not say which parameters it has; write a function",
    ),
    "written in C, with a parameter": (got.append, "its parameter 'object', which has no annotation"),
    "a class": (AsyncObject, "is a class; register one of its objects, or a method of such an object"),
    "an unbound method": (Unbound.method, r"'self', which has no annotation; .*router.on\(...\)\(service.method\)"),
    "a cached coroutine function": (functools.lru_cache(take), "hands out one coroutine twice; leave the cache off"),
    "a dispatch of anything": (about_anything, "nobody can serve its parameter 'order: object'"),
}


@pytest.mark.parametrize(("function", "said"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_called_as_it_wants_is_refused_by_name(function: Callable[..., Any], said: str) -> None:
    router = Router("shop")
    router.on(OrderPlaced, name="handler")(function)

    with pytest.raises(ConfigurationError, match=rf"^handler 'shop.handler'.*{said}"):
        await Bus("memory://", router).start()


@pytest.mark.parametrize("name", ["of_class", "partial"])
def test_a_method_as_it_is_in_its_class_is_refused_where_it_is_registered(name: str) -> None:
    method: Any = vars(Service)[name]

    with pytest.raises(
        ConfigurationError, match=r"is a (class|partial)method: nobody can call that: decorate a function"
    ):
        Router("shop").on(OrderPlaced, name="handler")(method)


# --- handlers that never see their event -----------------------------------------------------------------------------


async def of_database(db: Database) -> None: ...


async def of_default(order: Any = None) -> None: ...


async def of_limit(*, limit: int = 5) -> None: ...


async def of_payload(order: OrderPlaced, db: Database) -> None: ...


async def of_envelope(db: Database, *, order: Event[OrderPlaced]) -> None: ...


async def of_delivery(db: Database, *, delivery: Delivery) -> None: ...


async def of_nothing() -> None: ...


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "never sees" in record.getMessage()]


@pytest.mark.parametrize("handler", [of_database, of_default, of_limit, with_names], ids=lambda f: f.__name__)
async def test_a_handler_that_takes_something_but_never_its_event_is_warned_of_once(
    handler: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    await called(handler, db=Database())

    (said,) = warnings_of(caplog)
    assert said.startswith("handler 'shop.handler' never sees what it is called for (order.placed)")
    assert "add a parameter annotated with the event class" in said


@pytest.mark.parametrize("handler", [of_payload, of_envelope, of_delivery, of_nothing], ids=lambda f: f.__name__)
async def test_a_handler_that_sees_its_event_or_takes_nothing_at_all_is_not_warned_of(
    handler: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    await called(handler, db=Database())

    assert warnings_of(caplog) == []
