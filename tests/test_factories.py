"""Factories of what handlers ask for: whatever makes it, it is opened before the handler, and left after it."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Self, cast

import pytest
from attrs import frozen

from rabbitevents import Bus, ConfigurationError, Delivery, Event, Router, event
from rabbitevents.consuming.factories import Factory
from rabbitevents.testing import running
from tests.shop import eventually


@event("order.placed")
@frozen
class OrderPlaced:
    order_id: str


@event("stock.reserved")
@frozen
class StockReserved:
    order_id: str


class Session:
    """Something that is made for each delivery."""


class Database:
    """Something that is made for each delivery, too."""


seen: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


async def handled(factory: Any, error: Exception | None = None, *, outer: Any = None) -> str:
    """Handle one event with what ``factory`` makes. Return what is the matter after it, "" for nothing."""
    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced, database: Database, session: Session) -> StockReserved:
        seen.append("handled with " + type(session).__name__)
        if error is not None:
            raise error
        return StockReserved(order.order_id)

    bus = Bus("memory://", router, unroutable="ignore")
    bus.provide(Database, factory=outer or (lambda delivery: Database()))
    bus.provide(Session, factory=factory)
    async with running(bus) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(
            lambda: bool(probe.published(StockReserved) or probe.bus.health().problems), "it to be handled", 5
        )
        await probe.settled()
        problems = [check.detail for check in probe.bus.health().problems]
        assert bool(problems) is not bool(probe.published(StockReserved))
    return "; ".join(problems)


# --- what is made and left -------------------------------------------------------------------------------------------


class Failing:
    """Notes how it was left."""

    def noted(self, error: BaseException | None) -> None:
        seen.append(f"left by {type(error).__name__}" if error is not None else "left")


class AsyncScope(Failing):
    async def __aenter__(self) -> Session:
        seen.append("entered")
        return Session()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.noted(error)


class Scope(Failing):
    def __enter__(self) -> Session:
        seen.append("entered")
        return Session()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.noted(error)


class Acquired(AsyncScope):
    """What the pools of databases hand out: it can be awaited, and it can be entered."""

    def __await__(self) -> Generator[Any, None, Session]:
        raise AssertionError("what is only awaited is never given back")
        yield


def generate(delivery: Delivery) -> Generator[Session]:
    seen.append("entered")
    try:
        yield Session()
    except BaseException as error:
        seen.append(f"left by {type(error).__name__}")
        raise
    seen.append("left")


async def generate_async(delivery: Delivery) -> AsyncGenerator[Session]:
    for session in generate(delivery):
        try:
            yield session
        except BaseException as error:
            seen.append(f"left by {type(error).__name__}")
            raise
    # the plain generator has said that it is left


async def scope_later(delivery: Delivery) -> AsyncScope:
    return AsyncScope()


async def plain_scope_later(delivery: Delivery) -> Scope:
    return Scope()


class Maker:
    async def __call__(self, delivery: Delivery) -> AsyncIterator[Session]:
        async for session in generate_async(delivery):
            yield session

    def method(self, delivery: Delivery) -> Iterator[Session]:
        return generate(delivery)


def more(extra: int, delivery: Delivery) -> Iterator[Session]:
    return generate(delivery)


def with_database(function: Callable[..., Any]) -> Callable[[Delivery], Any]:
    @functools.wraps(function)
    def wrapper(delivery: Delivery) -> Any:
        return function(1, delivery)

    return wrapper


LEFT: dict[str, Factory] = {
    "a generator": generate,
    "an async generator": generate_async,
    "a context manager": contextmanager(generate),
    "an async context manager": asynccontextmanager(generate_async),
    "an object that is entered": lambda delivery: Scope(),
    "an object that is entered asynchronously": lambda delivery: AsyncScope(),
    "one that could be awaited, too": lambda delivery: Acquired(),
    "a coroutine of a context manager": scope_later,
    "a coroutine of a plain context manager": plain_scope_later,
    "a lambda of a generator": lambda delivery: generate(delivery),
    "a lambda of a coroutine": lambda delivery: scope_later(delivery),
    "a method": Maker().method,
    "a partial": functools.partial(more, 1),
    "a wrapper that brings an argument": with_database(more),
}


@pytest.mark.parametrize("factory", LEFT.values(), ids=LEFT)
async def test_what_is_entered_is_left_when_the_handler_has_ended(factory: Any) -> None:
    assert await handled(factory) == ""

    assert seen == ["entered", "handled with Session", "left"]


@pytest.mark.parametrize("factory", LEFT.values(), ids=LEFT)
async def test_what_is_entered_sees_the_handler_s_failure(factory: Any) -> None:
    assert "ZeroDivisionError" in await handled(factory, ZeroDivisionError())

    assert seen[:3] == ["entered", "handled with Session", "left by ZeroDivisionError"]


async def make_later(delivery: Delivery) -> Session:
    return Session()


class Later:
    def __await__(self) -> Generator[Any, None, Session]:
        yield from ()
        return Session()


def make_awaitable(delivery: Delivery) -> Awaitable[Session]:
    return Later()


class CoroutineMaker:
    async def __call__(self, delivery: Delivery) -> Session:
        return Session()


AWAITED: dict[str, Factory] = {
    "a coroutine function": make_later,
    "a partial of one": functools.partial(make_later),
    "a lambda of one": lambda delivery: make_later(delivery),
    "an object": CoroutineMaker(),
    "an awaitable": make_awaitable,
}


@pytest.mark.parametrize("factory", AWAITED.values(), ids=AWAITED)
async def test_what_has_to_be_awaited_is_awaited(factory: Any) -> None:
    assert await handled(factory) == ""

    assert seen == ["handled with Session"]


async def test_a_value_that_is_provided_as_it_is_is_never_entered() -> None:
    router, scope = Router("shop"), Scope()

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced, there: Scope) -> None:
        assert there is scope
        seen.append("handled")

    bus = Bus("memory://", router)
    bus.provide(Scope, scope)
    async with running(bus) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert seen == ["handled"]


# --- what swallows ---------------------------------------------------------------------------------------------------


def swallow_in_a_generator(delivery: Delivery) -> Iterator[Session]:
    with suppress(ZeroDivisionError):
        yield Session()


async def swallow_in_an_async_generator(delivery: Delivery) -> AsyncIterator[Session]:
    with suppress(ZeroDivisionError):
        yield Session()


@asynccontextmanager
async def swallow_in_a_context_manager(delivery: Delivery) -> AsyncGenerator[Session]:
    with suppress(ZeroDivisionError):
        yield Session()


class Swallowing(Session):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        return True


class AsyncSwallowing(Session):
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        return True


SWALLOWING: dict[str, Factory] = {
    "a generator": swallow_in_a_generator,
    "an async generator": swallow_in_an_async_generator,
    "an async context manager": swallow_in_a_context_manager,
    "an object": lambda delivery: Swallowing(),
    "an async object": lambda delivery: AsyncSwallowing(),
}


@pytest.mark.parametrize("factory", SWALLOWING.values(), ids=SWALLOWING)
async def test_a_factory_that_swallows_its_handler_s_failure_makes_no_success_of_it(factory: Any) -> None:
    assert "ZeroDivisionError" in await handled(factory, ZeroDivisionError())


@pytest.mark.parametrize("factory", SWALLOWING.values(), ids=SWALLOWING)
async def test_a_factory_that_swallows_what_another_one_raises_makes_no_success_of_it(factory: Any) -> None:
    def fail_to_enter(delivery: Delivery) -> Session:
        raise ZeroDivisionError

    def fail_to_leave(delivery: Delivery) -> Iterator[Session]:
        yield Session()
        raise ZeroDivisionError

    assert "ZeroDivisionError" in await handled(fail_to_enter, outer=factory)
    assert "ZeroDivisionError" in await handled(fail_to_leave, outer=factory)


async def test_a_factory_may_give_its_handler_s_failure_another_name() -> None:
    def rename(delivery: Delivery) -> Iterator[Session]:
        try:
            yield Session()
        except ZeroDivisionError as error:
            raise LookupError from error

    assert "LookupError" in await handled(rename, ZeroDivisionError())


async def test_a_generator_that_does_not_yield_once_is_a_failure() -> None:
    def never(delivery: Delivery) -> Iterator[Session]:
        yield from ()

    def twice(delivery: Delivery) -> Iterator[Session]:
        yield Session()
        yield Session()

    assert "RuntimeError" in await handled(never)
    assert "RuntimeError" in await handled(twice)


async def test_what_a_handler_returns_is_looked_at_while_what_it_asked_for_is_open() -> None:
    router, open_ = Router("shop"), list[Session]()

    def make(delivery: Delivery) -> Iterator[Session]:
        open_.append(Session())
        try:
            yield open_[0]
        except ConfigurationError:
            seen.append("rolled back")
        finally:
            open_.clear()

    @router.on(OrderPlaced, name="wrong")
    async def return_true(order: OrderPlaced, session: Session) -> Any:
        return True

    @router.on(OrderPlaced, name="lazy")
    async def return_lazily(order: OrderPlaced, session: Session) -> Any:
        return (StockReserved(f"{order.order_id} {there is session}") for there in open_)

    bus = Bus("memory://", router, unroutable="ignore")
    bus.provide(Session, factory=make)
    async with running(bus) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        assert seen == ["rolled back"]
        assert probe.published(StockReserved) == [StockReserved("o-1 True")]
        assert "returned a bool" in probe.bus.health().problems[0].detail


# --- what is refused -------------------------------------------------------------------------------------------------


class Unfit:
    def __init__(self, *, url: str = "") -> None: ...


def without_a_parameter() -> Session:
    return Session()


async def with_two(delivery: Delivery, other: int) -> AsyncIterator[Session]:
    yield Session()


def by_name(*, delivery: Delivery) -> Session:
    return Session()


@asynccontextmanager
async def managed_without_a_parameter() -> AsyncGenerator[Session]:
    yield Session()


UNFIT: dict[str, tuple[Any, str]] = {
    "no parameter": (without_a_parameter, r"called with the delivery, and takes \(\)"),
    "two parameters": (with_two, r"called with the delivery, and takes \(delivery: 'Delivery', other: 'int'\)"),
    "a parameter by name": (by_name, r"called with the delivery, and takes \(\*, delivery: 'Delivery'\)"),
    "a context manager": (managed_without_a_parameter, r"called with the delivery, and takes \(\)"),
    "a class": (Unfit, r"called with the delivery, and takes \(\*, url: 'str' = ''\)"),
    "a bound partial": (functools.partial(cast("Any", more), 1, None), r"called with the delivery, and takes \(\)"),
    "an object": (Session(), "the factory is a Session, which nobody can call"),
}


@pytest.mark.parametrize(("factory", "said"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_called_with_a_delivery_is_refused_when_it_is_provided(factory: Any, said: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"^provide\(Session\): the factory is {said.removeprefix('the factory is ')}"
    ):
        Bus("memory://").provide(Session, factory=factory)


UNASKABLE: dict[str, tuple[Any, str]] = {
    "an object": (Session(), r"^provide\(\.\.\.\) was given a Session to be asked for: it takes the class"),
    "text": ("Session", r"^provide\(\.\.\.\) was given text to be asked for"),
    "a generic alias": (list[int], r"^provide\(\.\.\.\) was given a GenericAlias to be asked for"),
    "a union": (Session | None, r"^provide\(\.\.\.\) was given a Union(Type)? to be asked for"),
    "an event class": (OrderPlaced, r"^provide\(OrderPlaced\): what handlers get for OrderPlaced is what came"),
    "the envelope": (Event, r"^provide\(Event\): what handlers get for Event is what came"),
    "the delivery": (Delivery, r"^provide\(Delivery\): what handlers get for Delivery is what came"),
}


@pytest.mark.parametrize(("kind", "said"), UNASKABLE.values(), ids=UNASKABLE)
def test_what_no_handler_can_ask_for_is_not_provided(kind: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Bus("memory://").provide(kind, Session())


def test_a_factory_that_does_not_say_what_it_takes_is_believed() -> None:
    written_in_c: Any = dict

    Bus("memory://").provide(dict, factory=written_in_c)
