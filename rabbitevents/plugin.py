"""Plugins: what happens around every event, in one chain per way, bound once at start."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

from rabbitevents.errors import ConfigurationError
from rabbitevents.events import Event
from rabbitevents.facts import Fact
from rabbitevents.message import Delivery, Message, Settlement
from rabbitevents.routing import Subscription
from rabbitevents.states import Check, Depth, Finding, Health, Load
from rabbitevents.topology import Topology
from rabbitevents.wire import Limits

T = TypeVar("T")

Consume: TypeAlias = Callable[[Delivery], Awaitable[Settlement]]
"""The rest of the way in: what comes of a delivery."""

ConsumeBatch: TypeAlias = Callable[[Sequence[Delivery]], Awaitable[list[Settlement | BaseException]]]
"""The rest of the way in for events that are handled together: what comes of each, or why it failed."""

Publish: TypeAlias = Callable[[Message], Awaitable[None]]
"""The rest of the way out: returns when the broker has taken responsibility, or raises."""


class Host(Protocol):
    """What a plugin may use of the bus it is plugged into."""

    @property
    def name(self) -> str:
        """The bus's name, which its events carry as their source."""
        ...

    @property
    def exchange(self) -> str:
        """The topic exchange that events are published to."""
        ...

    @property
    def plugins(self) -> Sequence[Plugin]:
        """The bus's plugins, the first one outermost."""
        ...

    @property
    def subscriptions(self) -> Sequence[Subscription]:
        """What the bus consumes."""
        ...

    def subscriptions_of(self, plugin: Plugin, /) -> Sequence[Subscription]:
        """Return those of the subscriptions whose chain has ``plugin`` in it: where no other stands in for it."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether the bus has been told to stop: a handler that is cancelled then is no failure."""
        ...

    @property
    def consumer_timeout(self) -> timedelta:
        """How long the broker lets a delivery go unsettled."""
        ...

    @property
    def limits(self) -> Limits:
        """The largest event."""
        ...

    @property
    def load(self) -> Mapping[str, Load]:
        """What each subscription has in this process at this moment."""
        ...

    def health(self) -> Health:
        """Say of every piece that should be running whether it runs."""
        ...

    async def depth(self, queue: str, /) -> Depth | None:
        """Look how many messages a queue has ready, and how many consumers; None if there is none of that name."""
        ...

    async def publish(self, payload: Any, /) -> Event[Any]:
        """Publish an event through the whole publish chain."""
        ...

    def prepare(self, payload: Any, /, **told: Any) -> tuple[Event[Any], Message]:
        """Put a payload into its envelope and write it as a message, as publishing it would; ``told`` as there."""
        ...

    async def publish_message(self, message: Message, /) -> None:
        """Publish what `prepare` wrote through the whole publish chain."""
        ...

    async def send(self, message: Message, /) -> None:
        """Publish a message past every plugin; return when it is confirmed, or raise a `PublishError`."""
        ...

    async def send_many(self, messages: Sequence[Message], /) -> list[Exception | None]:
        """Publish messages past every plugin, in flight together; return for each what kept it from being confirmed.

        One that reached no queue is an `UnroutableError`.
        """
        ...

    def report(self, fact: Fact, /) -> None:
        """Tell every observer what happened."""
        ...

    def provide(
        self, kind: type[T], value: T | None = None, /, *, factory: Callable[[Delivery], Any] | None = None
    ) -> None:
        """Let handlers ask for ``kind``; to be called before the lifespan yields for the first time."""
        ...

    async def pause(self, subscription: str, /, *, by: str = ..., reason: str = "") -> None:
        """Stop taking deliveries for a subscription, until all who paused it resume it.

        What has not begun goes to the end of the queue, at the cost of none of its deliveries.
        """
        ...

    async def resume(self, subscription: str, /, *, by: str = ..., one_at_a_time: bool = False) -> None:
        """Take deliveries again; ``one_at_a_time``, to see whether it goes well, until the next call.

        Not to be called in a handling of that subscription.
        """
        ...

    async def wait(self, delay: float, /) -> bool:
        """Wait for ``delay`` seconds, and say whether they have passed: False as soon as the bus is told to stop.

        For a delivery that is kept waiting, which is given back then (`REQUEUE`).
        """
        ...


class Look(Protocol):
    """What `Plugin.diagnose` may use: what the bus is to consume, and a look at its broker. No bus runs."""

    @property
    def subscriptions(self) -> Sequence[Subscription]:
        """What the bus consumes."""
        ...

    def subscriptions_of(self, plugin: Plugin, /) -> Sequence[Subscription]:
        """Return those of the subscriptions whose chain has ``plugin`` in it: where no other stands in for it."""
        ...

    async def depth(self, queue: str, /) -> Depth | None:
        """Look how many messages a queue has ready, and how many consumers; None if there is none of that name."""
        ...


class Plugin:
    """Something that happens around every event.

    Override what you need: a hook left alone is left out of the chain and costs nothing. One instance serves all of
    a bus's subscriptions, at once; what belongs to one event belongs into local variables.
    """

    role: ClassVar[str] = ""
    """What it does, in a word: "retry", "trace", "once", ... A chain has one plugin of a role; of those without one it
    may have several."""

    inside: ClassVar[frozenset[str]] = frozenset()
    """Roles that must stand further out, if they are there at all; checked at start."""

    def lifespan(self, host: Host) -> AbstractAsyncContextManager[None]:
        """Return what is entered before the bus consumes and left after it stopped consuming."""
        return _nothing()

    def topology(self, topology: Topology, subscription: Subscription) -> Topology:
        """Return what must be declared for ``subscription``, given what is to be declared so far. Must be pure."""
        return topology

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Do something around the handling of a delivery; ``await proceed(delivery)`` is the handling.

        An asyncio.CancelledError out of it ends the process's work if ``host.stopping``, and is a failure otherwise.
        """
        return await proceed(delivery)

    async def batch(self, proceed: ConsumeBatch, deliveries: Sequence[Delivery]) -> list[Settlement | BaseException]:
        """Do something around deliveries that are handled together; it stands in for `consume` where a handler takes batches.

        For what does its work once for all of them, as a transaction does; it stands innermost. Left alone, `consume`
        is called for each of them. ``await proceed(some)`` handles those, and returns for each, in their order, its
        settlement or its failure. Where it raises, all of them are handled again one by one.
        """
        return await proceed(deliveries)

    async def publish(self, proceed: Publish, message: Message) -> None:
        """Do something around the publishing of a message; ``await proceed(message)`` is the publishing."""
        await proceed(message)

    def forward(self, delivery: Delivery, message: Message) -> Message:
        """Return what goes on of ``message``, a copy of ``delivery`` on its way to a retry or to the dead letters.

        It is called once the chain has decided, in the task that ran the chain. It must neither wait nor raise.
        """
        return message

    def waits(self, subscription: Subscription) -> Iterable[tuple[timedelta, timedelta]]:
        """Return how long copies of that subscription's events may wait at the broker for it: ranges, from and to. Must be pure.

        A bus that only looks (``declare="passive"``) does not start where a queue for one of these is missing.
        """
        return ()

    def observe(self, fact: Fact) -> None:
        """Learn what happened elsewhere. It is called on the event loop and must neither wait nor raise."""

    def health(self) -> Iterable[Check]:
        """Return what this plugin adds to `Bus.health()`."""
        return ()

    def describe(self, subscription: Subscription) -> Iterable[tuple[str, str]]:
        """Return what ``rabbitevents explain`` says of the plugin there: lines of a short label and a text. Must be pure.

        Lines of several plugins under one label stand together. ``("if it fails", "tried again 5 times")``.
        """
        return ()

    async def diagnose(self, look: Look) -> Iterable[Finding]:
        """Return what ``rabbitevents doctor`` finds of what the plugin needs. It has a few seconds, and changes nothing.

        It is called without a lifespan: what it opens, it closes.
        """
        return ()

    def busy(self) -> str:
        """Return what is under way here beside the handlers, for a test to wait for; empty: nothing."""
        return ""

    def alone(self) -> str:
        """Return why one process must run the bus, and no others beside it (``run --workers``); empty: it need not."""
        return ""


@asynccontextmanager
async def _nothing() -> AsyncGenerator[None]:
    yield


def overrides(plugin: Plugin, hook: str) -> bool:
    """Say whether ``plugin`` does anything in ``hook``."""
    return getattr(type(plugin), hook) is not getattr(Plugin, hook)


def wrap(
    plugins: Iterable[Plugin], hook: str, innermost: Callable[[Any], Awaitable[Any]]
) -> Callable[[Any], Awaitable[Any]]:
    """Return ``innermost`` with ``hook`` of each plugin around it, the first one outermost."""
    chain = innermost
    for plugin in reversed([p for p in plugins if overrides(p, hook)]):
        # A partial, not a lambda: tenacity asks whether it is a coroutine function, and never awaits a lambda.
        chain = partial(getattr(plugin, hook), chain)
    return chain


def around_batches(plugins: Sequence[Plugin], where: str) -> tuple[list[Plugin], list[Plugin]]:
    """Return the plugins that go around each event of a batch, and those that go around the batch.

    Raises `ConfigurationError` where one of the latter stands outside of one of the former.
    """
    single = [p for p in plugins if overrides(p, "consume") and not overrides(p, "batch")]
    whole = [p for p in plugins if overrides(p, "batch")]
    if single and whole and plugins.index(whole[0]) < plugins.index(single[-1]):
        raise ConfigurationError(
            f"{where} takes batches, and {_name(whole[0])} goes around the whole of one: put it inside {_name(single[-1])}, "
            "which goes around each event"
        )
    return single, whole


def amending(plugins: Sequence[Plugin]) -> Callable[[Delivery, Message], Message] | None:
    """Return what the ``forward`` hooks do to a copy, the innermost plugin's first; None where there are none."""
    hooks = [plugin.forward for plugin in reversed(plugins) if overrides(plugin, "forward")]

    def amend(delivery: Delivery, message: Message) -> Message:
        for hook in hooks:
            message = hook(delivery, message)
        return message

    return amend if hooks else None


def standing_in(plugins: Sequence[Plugin], subscription: Subscription) -> tuple[Plugin, ...]:
    """Return a subscription's plugins: each of its own in the place of the bus's of the same role, or class without one.

    One that the bus has none of stands innermost, or else just outside of those that must be inside of it. The roles
    that the subscription is ``without`` are left out.
    """
    chain = [plugin for plugin in plugins if plugin.role not in subscription.without]
    for plugin in subscription.plugins:
        place = next((i for i, there in enumerate(chain) if _does_the_same(there, plugin)), None)
        if place is not None:
            chain[place] = plugin
        else:
            further_in = (i for i, there in enumerate(chain) if plugin.role and plugin.role in there.inside)
            chain.insert(next(further_in, len(chain)), plugin)
    return tuple(chain)


def _does_the_same(one: Plugin, other: Plugin) -> bool:
    return one.role == other.role if other.role else type(one) is type(other)


def check_without(plugins: Sequence[Plugin], subscription: Subscription, where: str) -> None:
    """Raise `ConfigurationError` if a subscription is without a role that the bus has not."""
    roles = [plugin.role for plugin in plugins if plugin.role]
    for role in sorted(subscription.without - set(roles)):
        raise ConfigurationError(
            f"{where} is without {role!r}, and the bus has no plugin of that role; it has {', '.join(roles) or 'none'}"
        )


def check_order(plugins: Sequence[Plugin], where: str) -> None:
    """Raise `ConfigurationError`, which says the right order, if a plugin stands outside of one that it must be inside of.

    Two of one role are refused too.
    """
    _check_instances(plugins, where)
    _check_roles(plugins, where)
    for place, plugin in enumerate(plugins):
        for further_in in plugins[place + 1 :]:
            if further_in.role and further_in.role in plugin.inside:
                raise ConfigurationError(
                    f"{where}: {_name(plugin)} must stand inside {_name(further_in)}; {_right_order(plugins)}"
                )


def _check_instances(plugins: Iterable[object], where: str) -> None:
    for plugin in plugins:
        if not isinstance(plugin, Plugin):
            raise ConfigurationError(
                f"{where}: {plugin!r} is no plugin; plugins=[...] takes instances, such as Retry()"
            )


def _check_roles(plugins: Sequence[Plugin], where: str) -> None:
    known: dict[str, Plugin] = {}
    for plugin in plugins:
        other = known.setdefault(plugin.role, plugin)
        if plugin.role and (other is not plugin or plugins.count(plugin) > 1):
            raise ConfigurationError(
                f"{where}: {_name(other)} and {_name(plugin)} both have the role {plugin.role!r}, and a chain has one of each: "
                "leave one out; for one handler, another one stands in with @router.on(..., plugins=[...])"
            )


def _right_order(plugins: Sequence[Plugin]) -> str:
    """Say what to write."""
    graph = {
        i: [j for j, other in enumerate(plugins) if other.role and other.role in p.inside]
        for i, p in enumerate(plugins)
    }
    try:
        order = tuple(TopologicalSorter(graph).static_order())
    except CycleError:
        return "and no order is right: leave one of them out, since each demands to stand inside the other"
    return f"write plugins=[{', '.join(_name(plugins[i]) for i in order)}]"


def _name(plugin: Plugin) -> str:
    return f"{type(plugin).__name__}()"


_AT_WORK: dict[tuple[int, int], Host] = {}
"""Which bus an instance is at work for, as long as it is; by process, since a forked one has buses of its own, and by
the instance's identity."""


@contextmanager
def at_work(plugin: Plugin, host: Host) -> Generator[None]:
    """Keep an instance for one bus at a time, if it has a lifespan, and so what belongs to that bus.

    Raises `ConfigurationError` while it is at work for another one.
    """
    if not overrides(plugin, "lifespan"):
        yield
        return
    which = (os.getpid(), id(plugin))
    other = _AT_WORK.setdefault(which, host)
    if other is not host:
        raise ConfigurationError(
            f"{_name(plugin)} is at work for bus {other.name!r}, and what it keeps belongs to that one: make another "
            f"instance for bus {host.name!r}"
        )
    try:
        yield
    finally:
        del _AT_WORK[which]
