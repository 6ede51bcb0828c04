"""Plugins: chains in order both ways, what may stand where, and what a plugin may use of its bus."""

import asyncio
import inspect
import json
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from rabbitevents import (
    ACK,
    Binding,
    Bus,
    Check,
    ConfigurationError,
    Consume,
    Delivery,
    Exchange,
    Fact,
    Host,
    Message,
    Plugin,
    Publish,
    Queue,
    Router,
    Settlement,
    Subscription,
    Topology,
    event,
)
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.cli.extras import commands
from rabbitevents.facts import Held, Returned
from rabbitevents.options import Options
from rabbitevents.plugin import check_order, overrides, standing_in, wrap
from rabbitevents.properties import Properties
from rabbitevents.testing import running


@event("order.placed")
@frozen
class OrderPlaced:
    order_id: str


@event("order.confirmed")
@frozen
class OrderConfirmed:
    order_id: str


class Noting(Plugin):
    """Notes when each of its hooks begins and ends."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        self.notes.append(f"{self.name} enters {host.name}")
        yield
        self.notes.append(f"{self.name} leaves")

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        self.notes.append(f"{self.name} in")
        settlement = await proceed(delivery)
        self.notes.append(f"{self.name} back")
        return settlement

    async def publish(self, proceed: Publish, message: Message) -> None:
        self.notes.append(f"{self.name} out")
        await proceed(message)
        self.notes.append(f"{self.name} confirmed")


class Idle(Plugin):
    """Overrides nothing."""


class OnlyPublishes(Plugin):
    async def publish(self, proceed: Publish, message: Message) -> None:
        await proceed(message)


class Inheriting(OnlyPublishes):
    """Overrides nothing either, but its parent does."""


def handling(notes: list[str], done: asyncio.Event) -> Router:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> OrderConfirmed:
        notes.append("handler")
        return OrderConfirmed(order.order_id)

    @router.on(OrderConfirmed, plugins=[Noting("own", [])])
    async def confirmed(order: OrderConfirmed) -> None:
        done.set()

    return router


async def within_bounds(waited: Awaitable[Any]) -> None:
    async with asyncio.timeout(5):
        await waited


# --- chains ----------------------------------------------------------------------------------------------------------


async def test_the_first_plugin_stands_outermost_both_ways() -> None:
    notes, handled = list[str](), asyncio.Event()
    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> None:
        notes.append("handler")

    class Last(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            settlement = await proceed(delivery)
            asyncio.get_running_loop().call_soon(handled.set)
            return settlement

    async with Bus("memory://", router, plugins=[Noting("a", notes), Idle(), Noting("b", notes), Last()]) as bus:
        notes.clear()
        await bus.publish(OrderPlaced("o-1"))
        published = [note for note in notes if note.endswith(("out", "confirmed"))]
        await within_bounds(handled.wait())
        consumed = [note for note in notes if note not in published]

    assert published == ["a out", "b out", "b confirmed", "a confirmed"]
    assert consumed == ["a in", "b in", "handler", "b back", "a back"]


async def test_what_a_handler_returns_goes_through_the_publish_chain_inside_the_consume_chain() -> None:
    notes, done = list[str](), asyncio.Event()

    async with Bus("memory://", handling(notes, done), plugins=[Noting("a", notes)]) as bus:
        notes.clear()
        await bus.publish(OrderPlaced("o-1"))
        await within_bounds(done.wait())

    assert notes.index("a in") < notes.index("handler") < notes.index("a out", notes.index("handler"))
    assert notes.index("a out", notes.index("handler")) < notes.index("a back")


async def innermost(value: Any) -> Any:
    return value


def test_a_hook_left_alone_is_left_out_of_the_chain() -> None:
    assert wrap([Idle(), Idle()], "consume", innermost) is innermost
    assert wrap([OnlyPublishes(), Inheriting()], "consume", innermost) is innermost
    assert not overrides(Idle(), "publish")
    assert overrides(Inheriting(), "publish")
    assert not overrides(Inheriting(), "consume")


def test_a_chain_is_made_of_partials_that_know_what_they_are() -> None:
    chain = wrap([Noting("a", []), Noting("b", [])], "consume", innermost)

    assert inspect.iscoroutinefunction(chain)  # what tenacity asks before it awaits
    assert isinstance(chain, partial)
    (inner,) = chain.args
    assert isinstance(inner, partial)
    assert inner.args == (innermost,)


@given(st.lists(st.booleans(), max_size=6))
def test_any_chain_calls_each_plugin_once_in_order(acts: list[bool]) -> None:
    notes = list[str]()
    plugins: list[Plugin] = [Noting(str(place), notes) if acts_here else Idle() for place, acts_here in enumerate(acts)]

    asyncio.run(run(wrap(plugins, "publish", innermost)))

    acting = [str(place) for place, acts_here in enumerate(acts) if acts_here]
    assert notes == [*(f"{name} out" for name in acting), *(f"{name} confirmed" for name in reversed(acting))]


async def run(chain: Callable[[Any], Awaitable[Any]]) -> None:
    await chain(None)


async def test_what_a_plugin_raises_reaches_the_plugins_further_out() -> None:
    caught = asyncio.Queue[BaseException]()

    class Catching(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            try:
                return await proceed(delivery)
            except ZeroDivisionError as error:
                caught.put_nowait(error)
                return ACK

    class Raising(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            raise ZeroDivisionError("from the plugin")

    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> None: ...

    async with Bus("memory://", router, plugins=[Catching(), Raising()]) as bus:
        await bus.publish(OrderPlaced("o-1"))
        async with asyncio.timeout(5):
            error = await caught.get()

    assert str(error) == "from the plugin"


async def test_what_a_plugin_raises_on_the_way_out_reaches_the_publisher() -> None:
    class Raising(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            raise ZeroDivisionError("from the plugin")

    async with Bus("memory://", plugins=[Raising()]) as bus:
        with pytest.raises(ZeroDivisionError, match="from the plugin"):
            await bus.publish(OrderPlaced("o-1"))


async def test_a_handler_s_failure_that_no_plugin_takes_care_of_is_held_and_reported() -> None:
    held = asyncio.Queue[Fact]()

    class Watching(Plugin):
        def observe(self, fact: Fact) -> None:
            if isinstance(fact, Held):
                held.put_nowait(fact)

    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> None:
        raise ZeroDivisionError("SECRET")

    async with Bus("memory://", router, plugins=[Watching()]) as bus:
        await bus.publish(OrderPlaced("o-1"))
        async with asyncio.timeout(5):
            fact = await held.get()
        problems = [check.name for check in bus.health().problems]

    assert isinstance(fact, Held)
    assert (fact.subscription, fact.type, fact.error, fact.pause) == (
        "shop.handler",
        "order.placed",
        "ZeroDivisionError",
        1.0,
    )
    assert problems == ["subscription shop.handler"]


async def test_a_plugin_may_change_what_is_published() -> None:
    class Signing(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            await proceed(message.replace(headers={"meta-signed": "yes"}))

    broker, taken = EmbeddedBroker(), list[Message]()
    broker.witnesses.append(taken.append)
    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> None: ...

    async with Bus(broker.client(), router, plugins=[Signing()]) as bus:
        await bus.publish(OrderPlaced("o-1"))

    assert taken[0].headers["meta-signed"] == "yes"


async def test_sending_goes_past_every_plugin() -> None:
    notes = list[str]()
    broker, taken = EmbeddedBroker(), list[Message]()
    broker.witnesses.append(taken.append)

    broker.declare(Queue("there"), passive=False)
    message = Message(exchange="", routing_key="there", body=b"{}", properties=Properties(type="order.placed"))

    async with Bus(broker.client(), plugins=[Noting("a", notes)]) as bus:
        await bus.send(message)

    assert taken == [message]
    assert notes == ["a enters rabbitevents", "a leaves"]


# --- where each stands -----------------------------------------------------------------------------------------------


class Outer(Plugin):
    role: ClassVar[str] = "outer"


class Inner(Plugin):
    role: ClassVar[str] = "inner"
    inside: ClassVar[frozenset[str]] = frozenset({"outer"})


class Innermost(Plugin):
    role: ClassVar[str] = "innermost"
    inside: ClassVar[frozenset[str]] = frozenset({"inner", "outer", "nobody has this role"})


class Chicken(Plugin):
    role: ClassVar[str] = "chicken"
    inside: ClassVar[frozenset[str]] = frozenset({"egg"})


class Egg(Plugin):
    role: ClassVar[str] = "egg"
    inside: ClassVar[frozenset[str]] = frozenset({"chicken"})


ALL: list[type[Plugin]] = [Outer, Inner, Innermost, Idle]


def test_a_right_nesting_is_accepted() -> None:
    check_order([Outer(), Inner(), Innermost()], "the bus")
    check_order([Innermost()], "the bus")
    check_order([Idle(), Innermost(), Idle()], "the bus")
    check_order([Outer(), Idle(), Inner(), Idle()], "the bus")


def test_a_wrong_nesting_is_refused_with_the_right_one() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Bus("memory://", plugins=[Inner(), Outer()])

    assert str(refused.value) == "the bus: Inner() must stand inside Outer(); write plugins=[Outer(), Inner()]"


@given(st.lists(st.sampled_from(ALL), max_size=6, unique_by=lambda cls: cls.role or object()))
def test_the_order_that_an_error_says_is_right(classes: list[type[Plugin]]) -> None:
    try:
        check_order([cls() for cls in classes], "the bus")
    except ConfigurationError as error:
        said = re.search(r"write plugins=\[(.*)\]$", str(error))
        assert said is not None
        named = {cls.__name__: cls for cls in ALL}
        right = [named[name.removesuffix("()")] for name in said[1].split(", ")]

        assert sorted(cls.__name__ for cls in right) == sorted(cls.__name__ for cls in classes)
        check_order([cls() for cls in right], "the bus")


def test_plugins_that_exclude_each_other_are_refused_as_that() -> None:
    with pytest.raises(ConfigurationError, match=r"Chicken\(\) must stand inside Egg\(\); and no order is right"):
        Bus("memory://", plugins=[Chicken(), Egg()])


@pytest.mark.parametrize(
    ("thing", "shown"), [(Outer, "the class Outer"), (None, "None"), ("retry", "text"), (object(), "an object")]
)
def test_what_is_no_plugin_is_refused_and_said_to_be_what_it_is(thing: Any, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Bus: plugins has {shown} in it: it takes instances"):
        Bus("memory://", plugins=[thing])


async def test_a_wrong_nesting_of_a_handler_s_own_plugins_is_refused_at_start() -> None:
    router = Router("shop")

    @router.on(OrderPlaced, plugins=[Egg()])
    async def handler(order: OrderPlaced) -> None: ...

    with pytest.raises(ConfigurationError, match=r"subscription 'shop\.handler': Egg\(\) must stand inside Chicken"):
        async with Bus("memory://", router, plugins=[Chicken()]):
            pass


def of_own(*plugins: Plugin, without: Iterable[str] = ()) -> Subscription:
    """Return a subscription with plugins of its own."""
    return Subscription("shop.handler", "shop.handler", (), Options(), plugins, frozenset(without))


def test_a_handler_s_plugin_stands_in_for_the_bus_s_of_the_same_role() -> None:
    outer, inner, own_outer, idle = Outer(), Inner(), Outer(), Idle()

    assert standing_in([outer, inner], of_own()) == (outer, inner)
    assert standing_in([outer, inner], of_own(own_outer)) == (own_outer, inner)
    assert standing_in([outer, inner], of_own(idle)) == (outer, inner, idle)
    assert standing_in([outer, inner], of_own(idle, own_outer)) == (own_outer, inner, idle)
    assert standing_in([], of_own(own_outer)) == (own_outer,)


class Louder(Outer):
    pass


class Another(Plugin):
    role: ClassVar[str] = "outer"


class IdleToo(Idle):
    pass


@pytest.mark.parametrize("own", [Louder(), Another()], ids=["a subclass", "another class"])
def test_whoever_has_the_role_stands_in(own: Plugin) -> None:
    outer, inner = Outer(), Inner()

    assert standing_in([outer, inner], of_own(own)) == (own, inner)


def test_without_a_role_the_class_counts_and_a_subclass_is_another_one() -> None:
    idle, other, subclass = Idle(), Idle(), IdleToo()

    assert standing_in([idle], of_own(other)) == (other,)
    assert standing_in([idle], of_own(subclass)) == (idle, subclass)


def test_a_role_is_left_out_where_a_handler_says_none() -> None:
    outer, inner = Outer(), Inner()

    assert standing_in([outer, inner], of_own(without=["outer"])) == (inner,)


@pytest.mark.parametrize(
    "pair", [(Outer(), Outer()), (Outer(), Louder()), (Another(), Outer())], ids=["same", "subclass", "other"]
)
def test_two_plugins_of_one_role_are_refused(pair: tuple[Plugin, Plugin]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"the bus: .* both have the role 'outer', and a chain has one of each"
    ):
        Bus("memory://", name="shop", plugins=pair)


def test_one_plugin_twice_is_refused_and_two_without_a_role_are_not() -> None:
    outer = Outer()

    with pytest.raises(ConfigurationError, match=r"Outer\(\) and Outer\(\) both have the role"):
        Bus("memory://", name="shop", plugins=[outer, Inner(), outer])
    Bus("memory://", name="shop", plugins=[Idle(), Idle()])


async def test_a_handler_may_be_without_a_plugin_of_the_bus() -> None:
    notes = list[str]()
    router = Router("shop")

    class Loud(Noting):
        role: ClassVar[str] = "loud"

    loud = Loud("loud", notes)

    @router.on(OrderPlaced, plugins={"loud": None})
    async def quiet(order: OrderPlaced) -> None:
        notes.append("quiet")

    @router.on(OrderConfirmed)
    async def plain(order: OrderConfirmed) -> None:
        notes.append("plain")

    async with running(Bus("memory://", router, plugins=[loud])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        handled = [note for note in notes if note in ("loud in", "quiet")]
        await probe.bus.publish(OrderConfirmed("o-1"))
        await probe.settled()

        assert [each.name for each in probe.bus.subscriptions_of(loud)] == ["shop.plain"]
    assert handled == ["quiet"]
    assert "loud in" in notes


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        (
            {"retyr": None},
            "subscription 'shop.handler' is without 'retyr', and the bus has no plugin of that role; it has outer",
        ),
        ({"inner": Outer()}, "plugins has an Outer for the role 'inner', which is not its own"),
        ({"outer": Outer}, "it takes instances"),
    ],
)
async def test_a_role_that_cannot_be_meant_is_refused(plugins: dict[str, Any], said: str) -> None:
    async def handler(order: OrderPlaced) -> None: ...

    async def start() -> None:
        router = Router("shop")
        router.on(OrderPlaced, plugins=plugins)(handler)
        await Bus("memory://", router, plugins=[Outer()]).start()

    with pytest.raises(ConfigurationError) as refused:
        await start()

    assert said in str(refused.value)


class Keeping(Plugin):
    """Keeps something of its bus."""

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        yield


async def test_an_instance_that_keeps_something_is_at_work_for_one_bus_at_a_time() -> None:
    keeping, idle = Keeping(), Idle()

    async with Bus("memory://", name="first", plugins=[keeping, idle]):
        with pytest.raises(
            ConfigurationError, match=r"Keeping\(\) is at work for bus 'first'.*another instance for bus 'second'"
        ):
            await Bus("memory://", name="second", plugins=[keeping]).start()
        async with Bus("memory://", name="third", plugins=[idle]):
            pass
    async with Bus("memory://", name="fourth", plugins=[keeping]):
        pass


async def test_a_start_that_fails_gives_its_plugins_back() -> None:
    class Failing(Plugin):
        @asynccontextmanager
        async def lifespan(self, host: Host) -> AsyncGenerator[None]:
            raise OSError("no")
            yield

    keeping = Keeping()

    with pytest.raises(OSError, match="no"):
        await Bus("memory://", name="first", plugins=[keeping, Failing()]).start()

    async with Bus("memory://", name="second", plugins=[keeping]):
        pass


async def test_a_stand_in_works_for_its_handler_alone() -> None:
    bus_notes, own_notes = list[str](), list[str]()
    both = asyncio.Barrier(3)
    router = Router("shop")

    @router.on(OrderPlaced)
    async def plain(order: OrderPlaced) -> None:
        await both.wait()

    @router.on(OrderPlaced, plugins=[Noting("own", own_notes)])
    async def special(order: OrderPlaced) -> None:
        await both.wait()

    async with Bus("memory://", router, plugins=[Noting("bus's", bus_notes)]) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await within_bounds(both.wait())

    assert bus_notes.count("bus's in") == 1
    assert own_notes.count("own in") == 1
    assert "own out" not in own_notes  # published outside of the handler


async def test_what_a_handler_publishes_goes_through_the_plugins_that_stand_in_for_it() -> None:
    bus_notes, own_notes = list[str](), list[str]()
    done = asyncio.Event()
    router = Router("shop")

    @router.on(OrderPlaced, plugins=[Noting("own", own_notes)])
    async def special(order: OrderPlaced, bus: Bus) -> OrderPlaced | None:
        if order.order_id != "o-1":
            done.set()
            return None
        await bus.publish(OrderPlaced("by the bus"))
        return OrderPlaced("returned")

    async with Bus("memory://", router, plugins=[Noting("bus's", bus_notes)]) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await within_bounds(done.wait())

    assert own_notes.count("own out") == 2
    assert bus_notes.count("bus's out") == 1


# --- as long as the bus runs -----------------------------------------------------------------------------------------


async def test_lifespans_are_entered_in_order_and_left_in_reverse() -> None:
    notes = list[str]()
    router = Router("shop")

    @router.on(OrderPlaced, plugins=[Noting("own", notes)])
    async def handler(order: OrderPlaced) -> None: ...

    async with Bus("memory://", router, plugins=[Noting("a", notes), Idle(), Noting("b", notes)]):
        notes.append("runs")

    assert notes == [
        "a enters shop",
        "b enters shop",
        "own enters shop",
        "runs",
        "own leaves",
        "b leaves",
        "a leaves",
    ]


async def test_one_instance_that_stands_in_twice_is_entered_once() -> None:
    notes = list[str]()
    own = Noting("own", notes)
    router = Router("shop")

    @router.on(OrderPlaced, plugins=[own])
    async def one(order: OrderPlaced) -> None: ...

    @router.on(OrderPlaced, plugins=[own])
    async def other(order: OrderPlaced) -> None: ...

    async with Bus("memory://", router):
        pass

    assert notes == ["own enters shop", "own leaves"]


async def test_a_lifespan_that_fails_stops_the_start_and_leaves_the_others() -> None:
    notes = list[str]()

    class Refusing(Plugin):
        @asynccontextmanager
        async def lifespan(self, host: Host) -> AsyncGenerator[None]:
            raise ZeroDivisionError
            yield

    class Careful(Plugin):
        @asynccontextmanager
        async def lifespan(self, host: Host) -> AsyncGenerator[None]:
            try:
                yield
            finally:
                notes.append("left")

    before = asyncio.all_tasks()

    with pytest.raises(ZeroDivisionError):
        async with Bus("memory://", plugins=[Careful(), Refusing(), Noting("c", notes)]):
            notes.append("runs")

    assert notes == ["left"]
    assert asyncio.all_tasks() == before


async def test_a_lifespan_may_publish_send_and_report() -> None:
    facts, broker = list[Fact](), EmbeddedBroker()

    class Warmed(Fact, frozen=True):
        number: int

    class Warming(Plugin):
        @asynccontextmanager
        async def lifespan(self, host: Host) -> AsyncGenerator[None]:
            assert host.exchange == "events"
            assert [subscription.name for subscription in host.subscriptions] == ["shop.handler"]
            await host.publish(OrderConfirmed("o-1"))
            host.report(Warmed(5))
            yield

        def observe(self, fact: Fact) -> None:
            facts.append(fact)

    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> None: ...

    broker.declare(Exchange("events", "topic"), passive=False)
    async with Bus(broker.client(), router, plugins=[Warming()]):
        pass

    assert Warmed(5) in facts
    assert any(isinstance(fact, Returned) and fact.type == "order.confirmed" for fact in facts)


# --- topology --------------------------------------------------------------------------------------------------------


async def test_a_plugin_s_topology_is_declared_for_each_subscription_it_stands_in() -> None:
    class Parking(Plugin):
        def topology(self, topology: Topology, subscription: Subscription) -> Topology:
            assert subscription.queue in topology.queues
            parked = f"{subscription.queue}.parked"
            more: list[Queue | Binding] = [Queue(parked), Binding("events", parked, "park.me")]
            return topology + more

    router, broker = Router("shop"), EmbeddedBroker()

    @router.on(OrderPlaced)
    async def one(order: OrderPlaced) -> None: ...

    @router.on(OrderPlaced, plugins=[Idle()])
    async def other(order: OrderPlaced) -> None: ...

    async with Bus(broker.client(), router, plugins=[Parking()]):
        assert {"shop.one.parked", "shop.other.parked"} <= set(broker.queues)
        assert Binding("events", "shop.one.parked", "park.me") in broker.bindings


@given(st.permutations([Outer(), Inner(), Idle(), OnlyPublishes()]))
def test_a_queue_s_arguments_do_not_depend_on_the_plugins(plugins: list[Plugin]) -> None:
    async def arguments(plugins: Iterable[Plugin]) -> dict[str, Any]:
        router, broker = Router("shop"), EmbeddedBroker()
        router.on(OrderPlaced, name="handler")(print_order)
        async with Bus(broker.client(), router, plugins=[p for p in plugins if type(p) is not Outer]):
            return {name: queue.arguments for name, queue in broker.queues.items()}

    assert asyncio.run(arguments(plugins)) == asyncio.run(arguments([]))


async def print_order(order: OrderPlaced) -> None: ...


def test_topologies_are_added_in_order_and_each_thing_once() -> None:
    a, b, c = Exchange("a", "topic"), Queue("b"), Binding("a", "b", "c")

    more: list[Exchange | Queue | Binding] = [c, b]

    assert (Topology((a,)) + Topology((b, a)) + more).items == (a, b, c)
    assert Topology((a, b, c)).queues == ("b",)


# --- observing -------------------------------------------------------------------------------------------------------


class Happened(Fact, frozen=True):
    what: str


class Observing(Plugin):
    def __init__(self, facts: list[Fact]) -> None:
        self.facts = facts

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)


class Clumsy(Plugin):
    def observe(self, fact: Fact) -> None:
        raise ZeroDivisionError("an observer's own mistake")


async def test_every_observer_learns_what_is_reported() -> None:
    one, other = list[Fact](), list[Fact]()

    async with Bus("memory://", plugins=[Observing(one), Idle(), Observing(other)]) as bus:
        bus.report(Happened("once"))

    assert one.count(Happened("once")) == other.count(Happened("once")) == 1


async def test_an_observer_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    facts = list[Fact]()

    async with Bus("memory://", plugins=[Clumsy(), Observing(facts)]) as bus:
        bus.report(Happened("once"))
        await bus.publish(OrderPlaced("o-1"))

    assert Happened("once") in facts
    assert any(isinstance(fact, Returned) for fact in facts)
    assert "observing Happened failed" in caplog.text


async def test_reporting_with_no_observer_does_nothing() -> None:
    async with Bus("memory://", plugins=[Idle()]) as bus:
        bus.report(Happened("once"))


def test_a_fact_is_frozen() -> None:
    fact: Any = Happened("once")

    with pytest.raises(AttributeError):
        fact.what = "twice"
    assert msgspec.structs.replace(fact, what="twice") == Happened("twice")


# --- health ----------------------------------------------------------------------------------------------------------


class Ailing(Plugin):
    def health(self) -> Iterable[Check]:
        yield Check("store", False, "out of reach")
        yield Check("cache", True)


async def test_a_plugin_s_checks_are_part_of_the_bus_s_health() -> None:
    async with Bus("memory://", plugins=[Ailing(), Idle()]) as bus:
        health = bus.health()

    assert Check("store", False, "out of reach") in health.checks
    assert Check("cache", True) in health.checks
    assert not health.ok
    assert health.problems == (Check("store", False, "out of reach"),)


async def test_a_handler_s_own_plugin_adds_to_the_health_too() -> None:
    router = Router("shop")

    @router.on(OrderPlaced, plugins=[Ailing()])
    async def handler(order: OrderPlaced) -> None: ...

    async with Bus("memory://", router) as bus:
        assert [check.name for check in bus.health().problems] == ["store"]


async def test_a_bus_with_nothing_wrong_is_well() -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def handler(order: OrderPlaced) -> None: ...

    async with Bus("memory://", router) as bus:
        assert bus.health().ok, bus.health().problems
        assert "subscription shop.handler" in [check.name for check in bus.health().checks]
    assert not bus.health().ok


def test_commands_come_from_entry_points_of_whatever_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "somebodys_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rabbitevents.commands]\ngreet = json:dumps\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    found = commands()

    assert found["greet"].load() is json.dumps


@pytest.mark.parametrize("order", [("a_first", "b_second"), ("b_second", "a_first")])
def test_of_two_commands_of_one_name_the_first_by_the_name_of_what_it_leads_to_is_taken(
    order: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in order:
        metadata = tmp_path / package / f"{package}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[rabbitevents.commands]\ngreet = {package}:greet\n")
    monkeypatch.setattr(sys, "path", [*(str(tmp_path / package) for package in order), *sys.path])

    assert commands()["greet"].value == "a_first:greet"


class Retrying(Plugin):
    role = "retry"


class InsideRetry(Plugin):
    role = "trace"
    inside = frozenset({"retry"})


def test_a_handler_s_plugin_that_the_bus_has_none_of_stands_outside_of_what_must_be_inside_of_it() -> None:
    tracing, own, noting = InsideRetry(), Retrying(), Plugin()

    chain = standing_in([noting, tracing], of_own(own))

    assert chain == (noting, own, tracing)
    check_order(chain, "subscription")
