"""How a bus is wired: which handler is called for what, by which queue, through which plugins. No broker is asked.

The values are what ``rabbitevents explain --json`` writes: a field that is there stays, and keeps its meaning.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import msgspec

from rabbitevents.bus import Bus
from rabbitevents.consuming.annotations import alternatives
from rabbitevents.consuming.callables import shape
from rabbitevents.events import event_type, is_event
from rabbitevents.options import Ordered
from rabbitevents.partitions import names
from rabbitevents.plugin import Plugin, check_order, check_without, overrides, standing_in
from rabbitevents.routing import Handler, Subscription
from rabbitevents.texts import printable
from rabbitevents.topics import matches
from rabbitevents.topology import Arguments, Binding, Topology

HOOKS: Final = tuple(name for name, value in vars(Plugin).items() if callable(value) and not name.startswith("_"))
"""What a plugin may do, in the order in which `Plugin` says it."""


class EventWiring(msgspec.Struct, frozen=True, kw_only=True):
    """An event class: its type on the wire, its name in the code, and which versions are understood."""

    type: str
    name: str
    version: int
    oldest: int
    aliases: tuple[str, ...] = ()


class HandlerWiring(msgspec.Struct, frozen=True, kw_only=True):
    """A handler: the function, where it stands, what it is called for, and what it says that it publishes."""

    name: str
    function: str
    place: str
    events: tuple[EventWiring, ...]
    patterns: tuple[str, ...]
    publishes: tuple[EventWiring, ...]
    """By its return annotation: what it publishes itself, nobody knows before it does."""


class BoundTo(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange that a queue is bound to, and by which keys."""

    exchange: str
    keys: tuple[str, ...]


class PluginWiring(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin of a subscription's chain, and the hooks that it has."""

    name: str
    role: str
    hooks: tuple[str, ...]


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin says of itself there: `Plugin.describe`."""

    plugin: str
    label: str
    text: str


class SubscriptionWiring(msgspec.Struct, frozen=True, kw_only=True):
    """A queue, what leads to it, and what is done with its events. ``timeout`` is in seconds."""

    name: str
    queue: str
    dead_queue: str
    arguments: Arguments
    bound: tuple[BoundTo, ...]
    handlers: tuple[HandlerWiring, ...]
    workers: int
    prefetch: int
    timeout: float | None
    order: str
    """Within what events are handled one by one: "entity", the name of a function, or nothing."""
    was: str
    """The queue's former name, or nothing."""
    identity: str
    """What derived ids and claims are made of: the first name that it had."""
    partitions: tuple[str, ...] = ()
    """The queues that its events are divided among, of which ``queue`` is the first; nothing where there is one alone."""
    batch: str
    """How events come together for one call: "up to 100 within 0.2 s", or nothing."""
    plugins: tuple[PluginWiring, ...]
    """The first one outermost."""
    said: tuple[Said, ...]

    @property
    def published(self) -> tuple[EventWiring, ...]:
        """What its handlers say that they publish, each once."""
        return tuple(dict.fromkeys(event for handler in self.handlers for event in handler.publishes))


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    """A bus. ``schema`` is the number of this form of it: another one, when a field is taken away or means something else."""

    schema: int = 1
    bus: str
    broker: str
    exchange: str
    declare: str
    subscriptions: tuple[SubscriptionWiring, ...]
    elsewhere: tuple[EventWiring, ...]
    """What its handlers say that they publish, and no handler of this bus is called for."""


def wiring(bus: Bus) -> Wiring:
    """Describe a bus that is not started, as its start would find it. Raises `ConfigurationError`."""
    topology = bus.topology
    first = {each.whole or each.name: each for each in reversed(bus.subscriptions)}
    found = tuple(_subscription(bus, each, topology) for each in reversed(first.values()))
    known = {key for each in bus.subscriptions for handler in each.handlers for key in handler.names}
    published = dict.fromkeys(event for each in found for event in each.published)
    return Wiring(
        bus=bus.name,
        broker=bus.address,
        exchange=bus.exchange,
        declare=bus.configuration.declare,
        subscriptions=found,
        elsewhere=tuple(e for e in published if not any(matches(key, e.type) for key in known)),
    )


def _subscription(bus: Bus, subscription: Subscription, topology: Topology) -> SubscriptionWiring:
    chain = standing_in(bus.plugins, subscription)
    check_without(bus.plugins, subscription, f"subscription {subscription.name!r}")
    check_order(chain, f"subscription {subscription.name!r}")
    options = subscription.options
    queue = topology.queue(subscription.queue)
    there = subscription.division
    bound = _bound(topology, subscription.queue if there is None else there.name)
    return SubscriptionWiring(
        name=subscription.whole or subscription.name,
        queue=subscription.queue,
        dead_queue=subscription.dead_queue,
        arguments={} if queue is None else dict(sorted(queue.arguments.items())),
        bound=tuple(BoundTo(exchange=name, keys=keys) for name, keys in bound.items()),
        handlers=tuple(_handler(each, subscription.name) for each in subscription.handlers),
        workers=options.workers,
        prefetch=options.prefetch,
        timeout=None if options.timeout is None else options.timeout.total_seconds(),
        order=_order(options.ordered),
        was=subscription.was,
        identity=subscription.identity,
        partitions=names(subscription.whole, options.partitions) if subscription.whole else (),
        batch="" if options.batch is None else f"up to {options.batch.size} within {options.batch.within:g} s",
        plugins=tuple(_plugin(each) for each in chain),
        said=tuple(said for plugin in chain for said in _said(plugin, subscription)),
    )


def _order(ordered: Ordered) -> str:
    if isinstance(ordered, bool):
        return "entity" if ordered else ""
    return getattr(ordered, "__name__", type(ordered).__name__)


def _bound(topology: Topology, queue: str) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for item in topology.items:
        if isinstance(item, Binding) and item.queue == queue:
            found[item.exchange] = (*found.get(item.exchange, ()), item.routing_key)
    return dict(sorted(found.items()))


def _plugin(plugin: Plugin) -> PluginWiring:
    hooks = tuple(hook for hook in HOOKS if overrides(plugin, hook))
    return PluginWiring(name=type(plugin).__name__, role=plugin.role, hooks=hooks)


def _said(plugin: Plugin, subscription: Subscription) -> Iterator[Said]:
    for label, text in plugin.describe(subscription):
        yield Said(plugin=type(plugin).__name__, label=printable(label), text=printable(text))


def _handler(handler: Handler, subscription: str) -> HandlerWiring:
    function = handler.function
    result = shape(function, f"handler {handler.name!r} of {subscription!r}").result
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", handler.name)
    return HandlerWiring(
        name=handler.name,
        function=f"{module}.{name}" if module else name,
        place=place_of(function),
        events=tuple(map(_event, handler.classes)),
        patterns=handler.patterns,
        publishes=tuple(_event(each) for each in dict.fromkeys(_published(result))),
    )


def _event(cls: type) -> EventWiring:
    told = event_type(cls)
    return EventWiring(
        type=told.name, name=cls.__name__, version=told.version, oldest=told.oldest, aliases=told.aliases
    )


def _published(hint: Any) -> Iterator[type]:
    """Yield the event classes in an annotation, however deep in it."""
    for each in alternatives(hint):
        if is_event(get_origin(each) or each):
            yield get_origin(each) or each
        else:
            for inner in get_args(each):
                yield from _published(inner)


def place_of(function: Callable[..., Any]) -> str:
    """Return "shop/inventory.py:31", seen from the current folder; empty where a function says no place."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return ""
    path = Path(code.co_filename)
    here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{here}:{code.co_firstlineno}"


def meant(wired: Wiring, pattern: str) -> tuple[SubscriptionWiring, ...]:
    """Return the subscriptions that ``pattern`` is about: a queue, a handler, or an event type; topic patterns too."""
    return tuple(each for each in wired.subscriptions if _is_meant(each, pattern))


def _is_meant(each: SubscriptionWiring, pattern: str) -> bool:
    said = {each.name, each.queue, each.dead_queue, *each.partitions}
    said.update(name for h in each.handlers for name in (h.name, h.function, *(e.name for e in h.events)))
    types = {name for h in each.handlers for e in h.events for name in (e.type, *e.aliases)}
    patterns = {key for h in each.handlers for key in h.patterns}
    return (
        pattern in said
        or any(matches(pattern, name) for name in said | types | patterns)
        or any(matches(key, pattern) for key in patterns)
    )
