"""What a handler says that it returns is looked at when the bus starts, and what it returns is looked at once."""

from __future__ import annotations

import asyncio
import collections.abc as abc
import functools
import logging
from collections import deque
from datetime import timedelta
from types import FunctionType
from typing import Any, Literal, NamedTuple, NewType, NoReturn, Protocol, TypeAlias, TypedDict, TypeVar, cast

import pytest
from attrs import frozen
from tenacity import stop_after_attempt, wait_none

from rabbitevents import Bus, ConfigurationError, EncodeError, Event, Fact, Plugin, Router, TopologyError, event
from rabbitevents.facts import Held
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry

T = TypeVar("T")


@event("order.placed")
@frozen
class OrderPlaced:
    order_id: str


class Stock:
    """A base of events, and no event itself."""


@event("stock.reserved")
@frozen
class StockReserved(Stock):
    order_id: str


@event("stock.missing")
@frozen
class StockMissing(Stock):
    order_id: str


@frozen
class Unmarked:
    order_id: str


class HasOrder(Protocol):
    order_id: str


class Document(TypedDict):
    order_id: str


class Batch(NamedTuple):
    reserved: StockReserved
    missing: StockMissing


Reservation = NewType("Reservation", StockReserved)
Number = NewType("Number", int)
Stocks = StockReserved | StockMissing

A: TypeAlias = StockReserved
B: TypeAlias = StockMissing


async def ended(order: OrderPlaced) -> Any: ...
def ended_plainly(order: OrderPlaced) -> Any: ...
async def generated(order: OrderPlaced) -> Any:
    yield StockReserved(order.order_id)


def returning(hint: Any, like: abc.Callable[..., Any] = ended) -> Router:
    """A router whose handler says that it returns ``hint``."""
    function = FunctionType(cast("FunctionType", like).__code__, globals(), "handler")
    function.__annotations__ = {"order": OrderPlaced, "return": hint}
    router = Router("shop")
    router.on(OrderPlaced)(function)
    return router


# --- annotations -----------------------------------------------------------------------------------------------------

FINE = [
    None, A, A | None, A | B, A | B | None, Stocks, Reservation, Stock, Stock | None, HasOrder, T, Any, object,
    NoReturn, Event, Event[A], Event[A] | None, list[A], list[A | B], list[A] | A | None, list[Any], list[Event[A]],
    tuple[A, B], tuple[A, ...], tuple[()], set[A], frozenset[A], deque[A], abc.Iterable[A], abc.Iterator[A | B],
    abc.Sequence[Stock], abc.Collection[A], abc.Generator[A, None, int], list, tuple, abc.Iterable, Batch,
    "StockReserved | None",
]  # fmt: skip


@pytest.mark.parametrize("hint", FINE, ids=str)
async def test_what_can_be_published_may_be_said_to_be_returned(hint: Any) -> None:
    for like in (ended, ended_plainly):
        async with Bus("memory://", returning(hint, like)) as bus:
            assert bus.health().ready


WRONG = [
    (int, "int"), (bool, "bool"), (str, "str"), (bytes, "bytes"), (float | None, "float"), (A | str, "str"),
    (Number, "int"), (Literal[True], "Literal"), (Unmarked, "Unmarked"), (dict[str, A], "dict"), (Document, "Document"),
    (abc.Mapping[str, A], "Mapping"), (list[int], "list[int], with int in it"), (list[Unmarked], "with Unmarked in it"),
    (tuple[A, int], "with int in it"), (list[A | None], "with NoneType in it"), (list[list[A]], "with list"),
    (abc.Generator[int, None, A], "with int in it"), (list[A] | int, "int"), (type[A], "type"), (timedelta, "timedelta"),
    (abc.Callable[..., A], "Callable"), ("list[int]", "with int in it"),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "named"), WRONG, ids=str)
async def test_what_cannot_be_published_is_refused_at_start_by_name(hint: Any, named: str) -> None:
    for like in (ended, ended_plainly):
        with pytest.raises(ConfigurationError) as error:
            await Bus("memory://", returning(hint, like)).start()

        said = str(error.value)
        assert said.startswith("handler 'shop.handler' says that it returns ")
        assert named in said
        assert said.endswith("; a handler returns None, an event, or an iterable of events")


LATER = [abc.Awaitable, abc.Coroutine[Any, Any, A], asyncio.Task[A], asyncio.Future[A | None], abc.Awaitable[list[A]]]


@pytest.mark.parametrize("hint", LATER, ids=str)
async def test_a_plain_function_may_say_that_it_returns_what_is_awaited(hint: Any) -> None:
    async with Bus("memory://", returning(hint, ended_plainly)) as bus:
        assert bus.health().ready

    with pytest.raises(ConfigurationError, match="says that it returns"):  # a coroutine function awaits it itself
        await Bus("memory://", returning(hint, ended)).start()


async def test_what_comes_of_what_is_awaited_is_looked_at() -> None:
    with pytest.raises(ConfigurationError, match="says that it returns int"):
        await Bus("memory://", returning(abc.Awaitable[int], ended_plainly)).start()


@pytest.mark.parametrize("hint", [abc.AsyncIterator[A], abc.AsyncGenerator[A, None], abc.AsyncIterable[A | B], Any])
async def test_an_async_generator_may_say_what_it_yields(hint: Any) -> None:
    async with Bus("memory://", returning(hint, generated)) as bus:
        assert bus.health().ready


@pytest.mark.parametrize("hint", [abc.AsyncIterator[int], abc.AsyncGenerator[int, A]])
async def test_what_an_async_generator_yields_is_looked_at(hint: Any) -> None:
    with pytest.raises(ConfigurationError, match="with int in it"):
        await Bus("memory://", returning(hint, generated)).start()


async def test_a_coroutine_function_that_says_it_returns_an_async_iterator_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"says that it returns .*AsyncIterator"):
        await Bus("memory://", returning(abc.AsyncIterator[A], ended)).start()


async def test_what_a_wrapper_repeats_of_the_function_it_wraps_is_not_held_against_it() -> None:
    async def count(order: OrderPlaced) -> int:
        return 5

    @functools.wraps(count)
    async def wrapper(*args: Any, **kwargs: Any) -> None:
        await count(*args, **kwargs)

    router = Router("shop")
    router.on(OrderPlaced)(wrapper)

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

        assert probe.bus.health().ready


# --- what comes of a failure that no waiting can change --------------------------------------------------------------


class Watch(Plugin):
    def __init__(self) -> None:
        self.held: list[Held] = []

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, Held):
            self.held.append(fact)


def failing(result: Any) -> tuple[Router, list[str]]:
    """A router whose handler returns ``result``, or raises it; and its calls."""
    router, calls = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> Any:
        calls.append(order.order_id)
        if isinstance(result, Exception):
            raise result
        return result() if callable(result) else result

    return router, calls


AGAIN = Retry(stop=stop_after_attempt(3), wait=wait_none())

FINAL: dict[str, Any] = {
    "return True": True,
    "return 'done'": "done",
    "a forgotten await": lambda: ended(OrderPlaced("o-1")),
    "what cannot be encoded": EncodeError("too large"),
    "a group": ExceptionGroup("two", [EncodeError("too large"), ConfigurationError("wrong")]),
}


@pytest.mark.parametrize("result", FINAL.values(), ids=FINAL)
@pytest.mark.parametrize("plugins", [[], [AGAIN]], ids=["no plugin", "Retry"])
async def test_what_no_waiting_can_change_is_one_failure_and_held_until_a_restart(
    result: Any, plugins: list[Plugin], caplog: pytest.LogCaptureFixture
) -> None:
    (router, calls), watch = failing(result), Watch()

    with caplog.at_level(logging.ERROR):
        async with running(Bus("memory://", router, plugins=[*plugins, watch])) as probe:
            await probe.bus.publish(OrderPlaced("o-1"))
            await probe.settled()
            load = probe.bus.load["shop.handler"]

    assert calls == ["o-1"]
    assert [fact.pause for fact in watch.held] == [None]
    assert load.held == 1
    assert [record for record in caplog.messages if "not tried again before a restart" in record]


@pytest.mark.parametrize("result", FINAL.values(), ids=FINAL)
async def test_what_no_waiting_can_change_is_a_dead_letter_at_once(result: Any) -> None:
    router, calls = failing(result)

    async with running(Bus("memory://", router, plugins=[DeadLetter(), AGAIN])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        depth = await probe.bus.depth("shop.handler.dead")

    assert calls == ["o-1"]
    assert depth is not None
    assert depth.ready == 1


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        TopologyError("may not be declared", name="delay.500", code=403),
        ExceptionGroup("one of them passes", [EncodeError("too large"), OSError()]),
    ],
    ids=["a handler's", "what the broker may be told", "a group"],
)
async def test_what_may_pass_is_tried_again_after_a_pause(error: Exception) -> None:
    (router, _), watch = failing(error), Watch()

    async with running(Bus("memory://", router, plugins=[watch])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert watch.held[0].pause == 1.0


@pytest.mark.parametrize("in_a_task", [False, True], ids=["a coroutine", "a task"])
async def test_a_forgotten_await_is_said(in_a_task: bool) -> None:
    def forgotten() -> object:
        coroutine = ended(OrderPlaced("o-1"))
        return asyncio.ensure_future(coroutine) if in_a_task else coroutine

    (router, _), watch = failing(forgotten), Watch()

    async with running(Bus("memory://", router, plugins=[watch])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert "and nobody awaited it: `await` it in the handler" in watch.held[0].error
