"""Which event reaches which handler, and what a router refuses."""

import re
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import product
from time import process_time
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from rabbitevents import Bus, ConfigurationError, Event, Plugin, Router, event
from rabbitevents.options import Options
from rabbitevents.topics import matches, overlaps


@event("order.placed")
@frozen
class OrderPlaced:
    order_id: str


@event("order.paid")
@frozen
class OrderPaid:
    order_id: str


@event("stock.counted")
@frozen
class StockCounted:
    number: int


@frozen
class Unmarked:
    pass


async def handler(order: OrderPlaced) -> None: ...


async def other(order: OrderPaid) -> None: ...


# --- topic patterns --------------------------------------------------------------------------------------------------


def naive(pattern: list[str], key: list[str]) -> bool:
    """Say whether a key falls under a pattern, in the words of AMQP 0-9-1, 3.1.3.3."""
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(naive(pattern[1:], key[left_out:]) for left_out in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and naive(pattern[1:], key[1:])


def split(text: str) -> list[str]:
    return text.split(".") if text else []


words = st.sampled_from(["a", "b", "aa", "", "order", "é", "*a", "a#"])
keys = st.lists(words, max_size=6).map(".".join)
patterns = st.lists(words | st.sampled_from(["*", "#"]), max_size=6).map(".".join)


@settings(max_examples=500)
@given(patterns, keys)
def test_a_key_falls_under_a_pattern_as_the_specification_says(pattern: str, key: str) -> None:
    assert matches(pattern, key) == naive(split(pattern), split(key))


@given(st.lists(st.sampled_from(["*", "#", "a"]), min_size=1, max_size=4).map(".".join))
def test_a_key_is_only_words_whatever_signs_are_in_it(key: str) -> None:
    assert matches(key, key)
    assert matches("a", key) == (key == "a")


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("order.*", "order.placed", True),
        ("order.*", "order", False),
        ("order.*", "order.placed.twice", False),
        ("order.#", "order", True),
        ("order.#", "order.placed.twice", True),
        ("#.placed", "placed", True),
        ("#", "", True),
        ("*", "", False),
        ("#.#", "", True),
        ("#.*", "", False),
        ("#.*.#", "a", True),
        ("order.placed", "order.place", False),
        ("order.placed", "order.placedx", False),
        ("*.*", "a.", True),
    ],
)
def test_known_cases_of_topic_patterns(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


ALPHABET = ["a", "b"]
KEYS = [".".join(key) for length in range(7) for key in product(ALPHABET, repeat=length)]
small_patterns = st.lists(st.sampled_from([*ALPHABET, "*", "#"]), min_size=1, max_size=4).map(".".join)


@settings(max_examples=300)
@given(small_patterns, small_patterns)
def test_patterns_overlap_exactly_if_some_key_falls_under_both(one: str, other: str) -> None:
    # A shortest common key needs at most one word for each word of both patterns, and a third letter for none.
    found = any(naive(split(one), split(key)) and naive(split(other), split(key)) for key in KEYS)

    assert overlaps(one, other) == found
    assert overlaps(other, one) == found


@given(patterns)
def test_every_pattern_overlaps_itself_and_everything(pattern: str) -> None:
    assert overlaps(pattern, pattern)
    assert overlaps(pattern, "#")


hostile = st.lists(st.sampled_from(["#", "#", "#", "*", "a", "b"]), min_size=1, max_size=7).map(".".join)


@settings(max_examples=500)
@given(hostile, st.lists(st.sampled_from(["a", "b", "#", "*"]), max_size=6).map(".".join))
def test_patterns_of_many_hashes_say_what_the_specification_says(pattern: str, key: str) -> None:
    assert matches(pattern, key) == naive(split(pattern), split(key))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["#", "a"] * 40 + ["b"], ["a"] * 127),
        (["#", "a"] * 40 + ["b"], ["#", "a"] * 40 + ["c"]),
        (["#"] * 100 + ["b"], ["#"] * 100 + ["a"]),
        (["*", "#"] * 40 + ["b"], ["#", "*"] * 40 + ["a"]),
    ],
    ids=range(4),
)
def test_what_many_hashes_cost_is_no_more_than_the_words_multiplied(one: list[str], other: list[str]) -> None:
    began = process_time()

    assert not matches(".".join(one), ".".join(other))
    assert not overlaps(".".join(one), ".".join(other))
    assert process_time() - began < 2  # 20 ms; every way to split the words would take longer than the universe has


def test_no_key_of_a_stranger_is_kept_that_amqp_could_not_carry() -> None:
    tracemalloc.start()
    try:
        for number in range(20):
            key = f"{number}.{'k' * 1_000_000}"
            assert matches("#", key)
            assert not matches(key, "a")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 3_000_000  # the last key is alive


# --- routers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ", "a b", "a.", ".a", "a..b", "a*", "#", "a/b", "a\n", "é!"])
def test_a_router_s_name_that_is_no_queue_name_is_refused_and_shown(name: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(repr(name))):
        Router(name)


@pytest.mark.parametrize("name", ["shop", "shop.inventory", "shop-2", "a_b", "Läden"])
def test_a_router_s_name_is_words_with_dots_between(name: str) -> None:
    assert Router(name).name == name


def test_on_returns_the_function_unchanged() -> None:
    router = Router("shop")

    assert router.on(OrderPlaced)(handler) is handler
    assert router.on(OrderPlaced, name="again")(handler) is handler


def test_a_queue_is_named_after_the_router_and_the_handler() -> None:
    router = Router("shop")
    router.on(OrderPlaced)(handler)
    router.on(OrderPlaced, name="kept-name")(handler)
    router.on(OrderPaid, queue="orders")(other)

    names = [(s.name, s.queue, [h.name for h in s.handlers]) for s in router.subscriptions()]

    assert names == [
        ("shop.handler", "shop.handler", ["handler"]),
        ("shop.kept-name", "shop.kept-name", ["kept-name"]),
        ("shop.orders", "shop.orders", ["other"]),
    ]


def test_a_queue_is_bound_by_types_and_patterns_each_once() -> None:
    router = Router("shop")
    router.on(OrderPlaced, "payment.*", OrderPaid, "payment.*", "stock.#", OrderPlaced)(handler)

    assert router.subscriptions()[0].routing_keys == ("order.placed", "order.paid", "payment.*", "stock.#")


def test_a_shared_queue_is_bound_by_what_all_its_handlers_are_for() -> None:
    router = Router("shop")
    router.on(OrderPlaced, queue="orders")(handler)
    router.on(OrderPaid, "stock.*", queue="orders")(other)

    (subscription,) = router.subscriptions()

    assert [each.name for each in subscription.handlers] == ["handler", "other"]
    assert subscription.routing_keys == ("order.placed", "order.paid", "stock.*")


def test_options_have_bounded_defaults() -> None:
    router = Router("shop")
    router.on(OrderPlaced)(handler)

    assert router.subscriptions()[0].options == Options(concurrency=10, prefetch=100, timeout=None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"concurrency": 1}, Options(1, 100)),
        ({"concurrency": 500}, Options(500, 500)),
        ({"concurrency": 50, "prefetch": 20}, Options(50, 20)),
        ({"prefetch": 2000}, Options(10, 2000)),
        ({"timeout": 5}, Options(timeout=timedelta(seconds=5))),
        ({"timeout": 0.5}, Options(timeout=timedelta(milliseconds=500))),
        ({"timeout": timedelta(minutes=1)}, Options(timeout=timedelta(minutes=1))),
    ],
    ids=str,
)
def test_options_are_kept(given: dict[str, Any], expected: Options) -> None:
    router = Router("shop")
    router.on(OrderPlaced, **given)(handler)

    assert router.subscriptions()[0].options == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"concurrency": -1}, "concurrency=-1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"prefetch": 2001}, "prefetch=2001"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": -1.5}, "timeout=-1.5"),
        ({"timeout": timedelta(seconds=-1)}, "timeout=-1 day"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused_and_shown(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Router("shop").on(OrderPlaced, **given)


def test_a_handler_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs the event classes or topic patterns"):
        Router("shop").on()


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (Unmarked, "Unmarked): not an event class; put @event"),
        (int, "int): not an event class; put @event"),
        (None, "None: say an event class"),
        (5, "5: say an event class"),
        (OrderPlaced("o"), "an instance of OrderPlaced: it takes the class"),
        (OrderPlaced | OrderPaid, "OrderPaid): say the classes one after the other"),
        (handler, "handler): that is no event class"),
    ],
)
def test_what_is_no_event_class_is_refused_by_name(thing: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Router("shop").on(thing)


@pytest.mark.parametrize("pattern", ["", ".", "order.", ".order", "a..b", "é" * 128])
def test_what_is_no_topic_pattern_is_refused_and_shown(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(repr(pattern[:40]))):
        Router("shop").on(pattern)


@pytest.mark.parametrize("pattern", ["order.pl*", "order.#d", "**", "##", "a.*b.c"])
def test_a_sign_inside_a_word_is_refused_since_it_would_match_nothing(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="whole words"):
        Router("shop").on(pattern)


@pytest.mark.parametrize("names", [{"name": "a b"}, {"name": ""}, {"queue": ""}, {"queue": "a/b"}, {"name": "a..b"}])
def test_a_name_that_is_no_queue_name_is_refused(names: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be words"):
        Router("shop").on(OrderPlaced, **names)(handler)


def test_a_nameless_function_is_refused_with_the_way_out() -> None:
    nameless: Callable[[OrderPlaced], None] = lambda order: None  # noqa: E731

    with pytest.raises(ConfigurationError, match=r"<lambda>.*name="):
        Router("shop").on(OrderPlaced)(nameless)
    Router("shop").on(OrderPlaced, name="named")(nameless)


def test_a_queue_name_over_240_bytes_is_refused() -> None:
    Router("shop").on(OrderPlaced, name="n" * 235)(handler)

    with pytest.raises(ConfigurationError, match="240 bytes"):
        Router("shop").on(OrderPlaced, name="n" * 236)(handler)


def test_a_second_handler_of_the_same_name_is_refused_with_the_way_out() -> None:
    router = Router("shop")
    router.on(OrderPlaced)(handler)

    with pytest.raises(ConfigurationError, match=r"has a handler 'handler' already: give one of the two a name="):
        router.on(OrderPaid)(handler)


class Nameless:
    def __call__(self, order: OrderPlaced) -> None: ...


@pytest.mark.parametrize(
    ("nameless", "what"), [(partial(handler), "a partial"), (Nameless(), "a Nameless")], ids=["partial", "object"]
)
def test_what_has_no_name_of_its_own_must_be_given_one(nameless: Callable[..., Any], what: str) -> None:
    router = Router("shop")

    with pytest.raises(
        ConfigurationError, match=rf"router 'shop': {what} has no name .*; say on\(\.\.\., name=\.\.\.\)"
    ):
        router.on(OrderPlaced)(nameless)
    router.on(OrderPlaced, name="first")(nameless)

    assert [subscription.name for subscription in router.subscriptions()] == ["shop.first"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((OrderPlaced,), (OrderPlaced,)),
        ((OrderPlaced,), ("order.*",)),
        (("order.*",), (OrderPlaced,)),
        (("order.*",), ("*.placed",)),
        (("#",), (StockCounted,)),
        (("a.#.b",), ("a.*",)),
        ((StockCounted, OrderPaid), (OrderPlaced, "*.paid")),
    ],
    ids=str,
)
def test_two_handlers_for_one_type_on_a_shared_queue_are_refused_by_name(first: Any, second: Any) -> None:
    router = Router("shop")
    router.on(*first, queue="orders")(handler)

    with pytest.raises(ConfigurationError, match=r"'shop\.orders' has two handlers for .*handler and other") as refused:
        router.on(*second, queue="orders")(other)

    assert "exactly one handler" in str(refused.value)
    assert [each.name for each in router.subscriptions()[0].handlers] == ["handler"]


def test_the_same_type_on_queues_of_their_own_is_what_topics_are_for() -> None:
    router = Router("shop")
    router.on(OrderPlaced)(handler)
    router.on("#", name="audit")(other)

    assert len(router.subscriptions()) == 2


def test_options_of_a_shared_queue_are_said_at_its_first_handler_only() -> None:
    class Quiet(Plugin):
        pass

    router = Router("shop")
    quiet = Quiet()
    router.on(OrderPlaced, queue="orders", concurrency=3, plugins=[quiet])(handler)
    router.on(OrderPaid, queue="orders")(other)

    otherwise: list[dict[str, Any]] = [{"concurrency": 4}, {"timeout": 1}, {"prefetch": 5}, {"plugins": [Quiet()]}]
    for said in otherwise:
        with pytest.raises(ConfigurationError, match=r"'shop\.orders' is shared.*first handler"):
            router.on(StockCounted, queue="orders", **said)(handler)
    (subscription,) = router.subscriptions()
    assert (subscription.options.concurrency, subscription.plugins) == (3, (quiet,))


async def test_nothing_can_be_registered_once_a_bus_has_started() -> None:
    router = Router("shop")
    router.on(OrderPlaced)(handler)
    late = router.on(OrderPaid)

    async with Bus("memory://", router):
        with pytest.raises(ConfigurationError, match=r"router 'shop' is in use"):
            late(other)
        with pytest.raises(ConfigurationError, match=r"router 'shop' is in use"):
            router.on(OrderPaid)(other)

    assert [each.name for each in router.subscriptions()] == ["shop.handler"]


async def test_two_routers_cannot_have_the_same_queue() -> None:
    first, second = Router("shop"), Router("shop")
    first.on(OrderPlaced)(handler)
    second.on(OrderPlaced)(handler)

    with pytest.raises(ConfigurationError, match=r"two routers have the queue 'shop\.handler'"):
        async with Bus("memory://", first, second):
            pass


async def test_a_router_can_serve_several_buses() -> None:
    router = Router("shop")

    @router.on("order.*")
    async def audit(order: Event) -> None: ...

    async with Bus("memory://", router) as one, Bus("memory://", router) as another:
        assert one.subscriptions == another.subscriptions
