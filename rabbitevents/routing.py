"""Which event reaches which handler: routers, and the subscriptions they come to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import msgspec

from rabbitevents import partitions
from rabbitevents.arguments import Seconds, kind_of, wrong
from rabbitevents.errors import ConfigurationError
from rabbitevents.events import event_type, is_event
from rabbitevents.options import Batch, Options, Ordered, options_of
from rabbitevents.topics import LONGEST, check_pattern, overlaps
from rabbitevents.topology import Exchange, Kind, Source, division

if TYPE_CHECKING:
    from rabbitevents.plugin import Plugin

H = TypeVar("H", bound=Callable[..., Any])


class Handler(msgspec.Struct, frozen=True):
    """One decorated function: what it is called for, and under which name."""

    name: str
    function: Callable[..., Any]
    classes: tuple[type, ...]
    """The event classes named in the decorator."""
    patterns: tuple[str, ...]
    """The topic patterns named in the decorator."""

    exchange: Exchange | None = None
    """What its queue is bound to; None: the bus's own exchange."""
    keys: tuple[str, ...] = ()
    """What its queue is bound by, where that is not what it is called for."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the handler is called for: the classes' types and their aliases, then the patterns."""
        return (*(name for cls in self.classes for name in event_type(cls).names), *self.patterns)

    @property
    def source(self) -> Source:
        """What the handler's queue is bound to, and by which keys."""
        return Source(self.exchange, self.keys or self.names)

    @property
    def routing_keys(self) -> tuple[str, ...]:
        """What the handler is known by: the classes' types, the patterns, and the keys of its queue."""
        return (*self.names, *self.keys)


class Subscription(msgspec.Struct, frozen=True):
    """A queue and what is done with its events: one handler, or several that share the queue."""

    name: str
    queue: str
    handlers: tuple[Handler, ...]
    options: Options
    plugins: tuple[Plugin, ...] = ()
    without: frozenset[str] = frozenset()
    """The roles of the bus's plugins that are left out here."""
    names_before: tuple[str, ...] = ()
    """What the queue was called before, the first name first."""
    whole: str = ""
    """The name of what this is a partition of; nothing for what is not divided."""

    @property
    def was(self) -> str:
        """The queue's former name, or nothing; as long as a queue of that name stands, it is ``queue``."""
        return self.names_before[-1] if self.names_before else ""

    @property
    def identity(self) -> str:
        """What derived ids and claims are made of: the first name that it had, or the whole's; else the name."""
        return self.names_before[0] if self.names_before else self.whole or self.name

    @property
    def former(self) -> str:
        """The former name, once the queue does not have it any more; else nothing."""
        return self.was if self.queue != self.was else ""

    @property
    def dead_queue(self) -> str:
        """The queue that holds what was given up on."""
        return f"{self.whole or self.queue}.dead"

    @property
    def division(self) -> Exchange | None:
        """The exchange that leads to this partition and the others; None for what is not divided."""
        return division(self.whole, self.options.partitions) if self.whole else None

    @property
    def routing_keys(self) -> tuple[str, ...]:
        """What the handlers are known by, each once."""
        return tuple(dict.fromkeys(key for handler in self.handlers for key in handler.routing_keys))

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the queue is bound to, and by which keys; a partition by how large its share is."""
        there = self.division
        return tuple(handler.source for handler in self.handlers) if there is None else (Source(there, ("1",)),)

    @property
    def leading_keys(self) -> tuple[str, ...]:
        """By which keys the handlers' events leave the exchange that they are published to."""
        return tuple(dict.fromkeys(key for handler in self.handlers for key in handler.source.keys))

    @property
    def places(self) -> tuple[str, ...]:
        """What else is of no use to anybody where the queue cannot be consumed."""
        there = self.division
        return (self.dead_queue,) if there is None else (self.dead_queue, there.name)

    @property
    def divided(self) -> tuple[Subscription, ...]:
        """The partitions, each a subscription of its own; this one alone where there are none."""
        if not self.options.partitions:
            return (self,)
        names = partitions.names(self.name, self.options.partitions)
        return tuple(msgspec.structs.replace(self, name=name, queue=name, whole=self.name) for name in names)


class Router:
    """A service's handlers. Their queues are named after it: ``<router>.<handler>``.

    :param name: Words of letters, digits, ``-`` and ``_``, with dots between them: "shop.payment".
    """

    def __init__(self, name: str) -> None:
        _check_name("the router's name", name, 'Router("shop")')
        self.name = name
        self._subscriptions: dict[str, Subscription] = {}
        self._frozen = False

    def __repr__(self) -> str:
        handlers = (handler.name for each in self._subscriptions.values() for handler in each.handlers)
        return f"<Router {self.name!r}; handlers: {', '.join(handlers) or 'none'}>"

    def on(
        self,
        *events: type | str,
        name: str | None = None,
        queue: str | None = None,
        was: str | Sequence[str] | None = None,
        exchange: str | Exchange | None = None,
        key: str | Iterable[str] | None = None,
        concurrency: int | None = None,
        prefetch: int | None = None,
        timeout: Seconds | None = None,
        ordered: Ordered = False,
        single_active_consumer: bool = False,
        partitions: int | None = None,
        batch: Batch | None = None,
        plugins: Iterable[Plugin] | Mapping[str, Plugin | None] = (),
    ) -> Callable[[H], H]:
        """Call the decorated function for each event of these classes or topic patterns. Returns it unchanged.

        ::

            @router.on(OrderPlaced, OrderCancelled, concurrency=20, timeout=30)
            async def record(order: OrderPlaced | OrderCancelled) -> None: ...

        :param events: Event classes, or topic patterns such as ``"order.*"`` and ``"#"``.
        :param name: The handler's name, which its queue keeps when the function is renamed. By default the function's.
        :param queue: A queue that several handlers of the router share, with exactly one handler per event type. By
            default each has its own.
        :param was: The whole name that the queue had before it was renamed: ``was="shop.charge"``. As long as a queue of that
            name stands, it is consumed, and none of the new name is made; ``rabbitevents topology migrate`` leads over to
            that. Ids and claims of idempotency stay those of the former name; of a queue that is renamed once more, say all
            of its names, the first one first, and they stay: ``was=("shop.charge", "shop.debit")``.
        :param exchange: Another team's exchange that the queue is bound to instead of the bus's own: its name, where it must
            be there, or an `Exchange` to declare it. By default the bus's own.
        :param key: What the queue is bound by, a routing key or several: ``"booking.#"``. By default the types and patterns.
            What comes by it and says no type that is known is read as the one class of the handler.
        :param concurrency: How many events are handled at a time in this process: 10.
        :param prefetch: How many deliveries the broker sends ahead, 1 to 2000: 100, or ``concurrency`` where that is more.
        :param timeout: How long one handling may take: seconds, or a timedelta. By default there is no limit.
        :param ordered: Whether the events of each entity are handled one after the other, in the order in which they come
            to this process; those of others go on beside them. What waits for a retry holds up the later ones of its entity,
            and nobody else. A function says in place of the entity what a payload belongs to:
            ``ordered=lambda order: order.customer_id``; None is nothing.
        :param single_active_consumer: Whether the broker gives events to one process at a time, and to the next one when that
            leaves: with ``ordered``, an order that holds across processes. It is an argument of the queue: a queue that stands
            without it has to be made anew (``rabbitevents topology migrate``).
        :param partitions: How many queues the events are divided among, 2 to 256: those of one entity are in one, and
            each has one process at a time. It is ``ordered`` and ``single_active_consumer`` for each, so the order of an
            entity holds across processes, which share the queues. ``concurrency`` and ``prefetch`` are for each. Another
            number is led over to by ``rabbitevents topology migrate``. RabbitMQ needs its plugin
            ``rabbitmq_consistent_hash_exchange``.
        :param batch: How several events come together for one call: the handler takes a ``list`` of them, and may return one
            entry for each, None, an event or several. ``concurrency`` is the number of such calls at a time: 1. What fails is
            each event's own matter: by `BatchError` those that it names; where the whole call fails, all are handled again
            one by one, before anything is counted.
        :param plugins: Each stands in for the bus's plugin of the same role (or class, where it has none):
            ``[Retry(stop=stop_after_attempt(2))]``. By role, None leaves one out: ``{"retry": None}``.

        Raises `ConfigurationError`.
        """
        told = options_of(concurrency, prefetch, timeout, ordered, single_active_consumer, batch, partitions)
        classes, patterns = _sorted_out(events)
        there = _exchange(exchange)
        keys = _keys(key, there, patterns)
        own, without = _own(plugins)
        former = _former(was)
        if told.partitions and (there is not None or former):
            raise ConfigurationError(
                f"on(...): partitions= cannot be said together with {'was' if former else 'exchange'}="
            )

        def register(function: H) -> H:
            if not callable(cast("object", function)):
                raise wrong("on(...): what stands below it", function, "nobody can call that: decorate a function")
            if self._frozen:
                raise ConfigurationError(
                    f"router {self.name!r} is in use by a bus that has started: register handlers before"
                )
            named = getattr(function, "__name__", None) if name is None else name
            if named in (None, "<lambda>"):
                what = named or f"a {type(function).__name__}"
                raise ConfigurationError(
                    f"router {self.name!r}: {what} has no name for its queue to be called after; say on(..., name=...)"
                )
            _check_name("the handler's name", named, 'name="charge"')
            handler = Handler(named, function, classes, patterns, there, keys)
            self._add(handler, queue, Subscription("", "", (handler,), told, own, without, former))
            return function

        return register

    def _add(self, handler: Handler, queue: str | None, told: Subscription) -> None:
        if queue is not None:
            _check_name("the queue's name", queue, 'queue="orders"')
        name = f"{self.name}.{handler.name if queue is None else queue}"
        if len(name.encode()) > 240:
            raise ConfigurationError(f"the queue name {name[:40]!r}... is longer than 240 bytes")
        if told.was == name:
            raise ConfigurationError(
                f"on(...): was={told.was!r} is the queue's name still: say the one that it had before"
            )
        there = self._subscriptions.get(name)
        if there is None:
            self._subscriptions[name] = msgspec.structs.replace(told, name=name, queue=name)
            return
        if queue is None:
            raise ConfigurationError(
                f"router {self.name!r} has a handler {handler.name!r} already: give one of the two a name="
            )
        if there.options.batch is not None or told.options.batch is not None:
            raise ConfigurationError(f"queue {name!r} is shared by several handlers, and none of them can take batches")
        others = (told.options, told.plugins, told.without)
        if others not in ((there.options, there.plugins, there.without), (Options(), (), frozenset())):
            raise ConfigurationError(
                f"queue {name!r} is shared: say how it works (concurrency, prefetch, timeout, ordered, single_active_consumer, "
                "plugins) at its first handler"
            )
        if told.names_before not in ((), there.names_before):
            raise ConfigurationError(f"queue {name!r} is shared: say its former name (was) at its first handler")
        _check_shared(name, there.handlers, handler)
        self._subscriptions[name] = msgspec.structs.replace(there, handlers=(*there.handlers, handler))

    def subscriptions(self) -> tuple[Subscription, ...]:
        """Return what was registered. Nothing can be registered any more after a bus has started with it (`freeze`)."""
        return tuple(self._subscriptions.values())

    def freeze(self) -> None:
        """Refuse what is registered from now on: the chains and bindings are made."""
        self._frozen = True


def _check_name(what: str, name: object, such_as: str) -> None:
    if not isinstance(name, str):
        raise wrong(what, name, f"say words, such as {such_as}")
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
        raise ConfigurationError(
            f"{what} {name[:40]!r} must be words of letters, digits, '-' and '_', with dots between; say another with name="
        )


def _all_texts(said: object) -> tuple[str, ...]:
    """Return a text, or those of a list or tuple that has nothing else; nothing, where it is otherwise."""
    told: tuple[object, ...] = tuple(cast("Sequence[object]", said)) if isinstance(said, list | tuple) else (said,)
    texts = tuple(each for each in told if isinstance(each, str))
    return texts if len(texts) == len(told) else ()


def _former(was: object) -> tuple[str, ...]:
    """Return a queue's former names, in their order. Raises `ConfigurationError` for what was the name of no queue of ours."""
    if was is None:
        return ()
    names = _all_texts(was)
    if not names:
        raise wrong(
            "on(...): was", was, 'say the queue\'s whole name: was="shop.charge", or all that it had, in their order'
        )
    for each in names:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", each) or len(each.encode()) > 240:
            raise ConfigurationError(
                f"on(...): was={each[:40]!r} is no queue's whole name, as `rabbitevents topology plan` and the broker say it: "
                'was="shop.charge"'
            )
    return names


def _own(plugins: Iterable[Plugin] | Mapping[str, Plugin | None]) -> tuple[tuple[Plugin, ...], frozenset[str]]:
    """Return a handler's own plugins, and the roles that it is without."""
    if not isinstance(plugins, Mapping):
        return _instances(plugins), frozenset()
    told = cast("Mapping[str, Plugin | None]", plugins)
    for role, plugin in told.items():
        if plugin is not None and getattr(plugin, "role", None) != role:
            raise ConfigurationError(
                f"on(...): plugins has {kind_of(plugin)} for the role {role!r}, which is not its own: say plugins=[...] for "
                "one that stands in, or None for a role that is left out"
            )
    here = [plugin for plugin in told.values() if plugin is not None]
    return _instances(here), frozenset(role for role, plugin in told.items() if plugin is None)


def _instances(plugins: Iterable[Plugin]) -> tuple[Plugin, ...]:
    """Return plugins. Whether each is one is seen by its role: the class is further up."""
    if isinstance(plugins, (str, bytes, type)) or not isinstance(cast("object", plugins), Iterable):
        raise wrong("on(...): plugins", plugins, "it takes a list, such as plugins=[Retry()]")
    found = tuple(plugins)
    for each in found:
        if isinstance(each, type) or not hasattr(each, "role"):
            raise ConfigurationError(
                f"on(...): plugins has {kind_of(each)} in it: it takes instances, such as plugins=[Retry()]"
            )
    return found


def _sorted_out(events: Sequence[object]) -> tuple[tuple[type, ...], tuple[str, ...]]:
    if not events:
        raise ConfigurationError(
            "on() needs the event classes or topic patterns that the handler is for, such as @router.on(OrderPlaced)"
        )
    for item in events:
        if isinstance(item, str):
            check_pattern(item)
        elif not is_event(item):
            raise _no_event(item)
    classes = tuple(e for e in events if isinstance(e, type))
    return classes, tuple(e for e in events if isinstance(e, str))


def _no_event(item: object) -> ConfigurationError:
    """Return the error that ``item`` is nothing that can be subscribed to."""
    if isinstance(item, type):
        return ConfigurationError(f"on({item.__name__}): not an event class; put @event(...) above it")
    if is_event(type(item)):
        name = type(item).__name__
        return ConfigurationError(f"on(...) was given an instance of {name}: it takes the class, on({name})")
    if isinstance(item, (list, tuple, set, frozenset)):
        return ConfigurationError(
            "on(...) takes classes one after the other, on(OrderPlaced, OrderCancelled), and no list"
        )
    if isinstance(item, UnionType):
        return ConfigurationError(f"on({item}): say the classes one after the other, with commas between them")
    if callable(item):
        name = getattr(item, "__name__", kind_of(item))
        return ConfigurationError(
            f"on({name}): that is no event class; if it is the handler, say what it is for: "
            f"@router.on(OrderPlaced) above {name}, with parentheses"
        )
    return wrong("on(...): an event", item, "say an event class, or a topic pattern such as 'order.*'")


def _exchange(said: object) -> Exchange | None:
    if said is None:
        return None
    there = Exchange(said, None) if isinstance(said, str) else said
    if not isinstance(there, Exchange):
        raise ConfigurationError(f"exchange= is of type {type(said).__name__}: say an exchange's name, or an Exchange")
    if there.kind is not None and there.kind not in get_args(Kind):
        raise ConfigurationError(f"exchange {there.name[:40]!r}: its kind is one of {', '.join(get_args(Kind))}")
    if not there.name:
        raise ConfigurationError("exchange='': nothing can be bound to AMQP's default exchange; say another one's name")
    if len(there.name.encode("utf-8", "replace")) > LONGEST:
        raise ConfigurationError(f"the exchange {there.name[:40]!r}... has a longer name than 255 bytes")
    return there


def _texts(said: object) -> tuple[str, ...]:
    if said is None:
        return ()
    if isinstance(said, str):
        return (said,)
    if isinstance(said, (bytes, bytearray)) or not isinstance(said, Iterable):
        raise ConfigurationError(f"key= is of type {type(said).__name__}: say a routing key, or several")
    keys = list(cast("Iterable[object]", said))
    if not keys:
        raise ConfigurationError("key= is empty: say what the queue is bound by, or leave it out")
    for key in keys:
        if not isinstance(key, str):
            raise ConfigurationError(f"key= has one of type {type(key).__name__}: a routing key is text")
    return tuple(dict.fromkeys(cast("list[str]", keys)))


def _keys(said: str | Iterable[str] | None, exchange: Exchange | None, patterns: Sequence[str]) -> tuple[str, ...]:
    keys = _texts(said)
    for key in keys:
        if len(key.encode("utf-8", "replace")) > LONGEST:
            raise ConfigurationError(f"the key {key[:40]!r}... is longer than 255 bytes")
        if key and (exchange is None or exchange.kind == "topic"):
            check_pattern(key)
    if exchange is not None and exchange.kind == "direct":
        for each in keys or patterns:
            if not {"*", "#"}.isdisjoint(each.split(".")):
                raise ConfigurationError(
                    f"{each[:40]!r} would match nothing: the exchange {exchange.name!r} is direct, and has no patterns; say key="
                )
    return keys


def _check_shared(queue: str, handlers: Iterable[Handler], new: Handler) -> None:
    for handler in handlers:
        if handler.exchange == new.exchange:
            ones, others = handler.routing_keys, new.routing_keys
        else:
            ones, others = handler.names, new.names
        for one in ones:
            for other in others:
                if overlaps(one, other):
                    what = repr(one) if one == other else f"events that fall under both {one!r} and {other!r}"
                    raise ConfigurationError(
                        f"queue {queue!r} has two handlers for {what}: {handler.name} and {new.name}; "
                        "on a shared queue exactly one handler takes each event type"
                    )
