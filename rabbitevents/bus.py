"""The bus: what a service starts, publishes with, and stops."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, Unpack, cast, overload
from uuid import UUID

import msgspec

from rabbitevents import topology
from rabbitevents.arguments import Seconds, one_of, seconds, several, span, text, whole, wrong
from rabbitevents.brokers import Broker, Settings
from rabbitevents.brokers.home import Home
from rabbitevents.browsing import HOLD, Browsing
from rabbitevents.configuration import (
    Configuration,
    Declare,
    Told,
    broker_of,
    heartbeat_of,
    limits_of,
    routers_of,
    ssl_context_of,
)
from rabbitevents.consuming.batches import Batches, published
from rabbitevents.consuming.current import CURRENT
from rabbitevents.consuming.dispatch import Dispatch
from rabbitevents.consuming.factories import Factory, Provided, check_factory, check_kind
from rabbitevents.consuming.isolation import is_cancelled
from rabbitevents.consuming.keys import key_of
from rabbitevents.consuming.workers import APPLICATION, Workers
from rabbitevents.consuming.workforce import Workforce
from rabbitevents.errors import BrokerError, ConfigurationError, TopologyError
from rabbitevents.events import Event
from rabbitevents.facts import Fact
from rabbitevents.loops import run_to_the_end
from rabbitevents.message import Message
from rabbitevents.plugin import (
    Consume,
    Plugin,
    Publish,
    amending,
    around_batches,
    at_work,
    check_order,
    check_without,
    overrides,
    standing_in,
    wrap,
)
from rabbitevents.publishing.checks import check_message, check_several
from rabbitevents.publishing.delay import room_name, tiers
from rabbitevents.publishing.publishing import Publishing, Unroutable
from rabbitevents.publishing.writer import Checked, Writer
from rabbitevents.renaming import as_it_stands, check_names, old_names, renames
from rabbitevents.routing import Router, Subscription
from rabbitevents.states import Check, Depth, Health, Load
from rabbitevents.topology import Binding, Exchange, Queue, Topology
from rabbitevents.wire import Form, Limits

log: logging.Logger = logging.getLogger("rabbitevents.bus")

P = TypeVar("P")
T = TypeVar("T")

_MAY_NOT_LOOK: Final = 403

HARD_STOP = 5.0
"""Seconds that a stop may take beyond its grace period, whatever the broker does."""


class Bus:
    """A service's way to publish events and to handle them. Start it with ``async with bus:``, or with `run`.

    ::

        bus = Bus("amqp://user:password@host:5672/vhost", router, plugins=[DeadLetter(), Retry()], grace=20)

    Times are seconds, or a timedelta. Raises `ConfigurationError` for what cannot be meant.

    :param broker: Where to connect: a URL, or several of one cluster in a list (``amqp://``, ``amqps://``); ``memory://``
        for an embedded broker of its own; or a `Broker`. Signs such as ``@`` and ``/`` in a password are escaped (``%40``,
        ``%2F``). Of a URL's parameters count ``?heartbeat=`` (seconds), ``?auth=`` and the files of TLS (``?cafile=``,
        ``?certfile=``, ``?keyfile=``).
    :param routers: They bring the handlers. Without any, the bus only publishes.
    :param plugins: What stands around every event, the first one outermost: ``[DeadLetter(), Retry()]``. None by default.
    :param name: The events' source, and the connections' name. By default the first router's name, or "rabbitevents".
    :param exchange: The topic exchange that events are published to, "events" by default.
    :param declare: "active" (the default) declares what is missing; "passive" only looks whether it is there; "none"
        does neither.
    :param unroutable: What an event is that no queue is bound for: "warn" (the default) counts it and logs it once a type,
        "raise" makes it an `UnroutableError`, "ignore" leaves it.
    :param form: How events are written on the wire: "amqp" (the default), "cloudevents" or "cloudevents-binary".
    :param check: "always" (the default) reads each event back before it is published, and refuses what no consumer could
        read; "never" leaves that out.
    :param start_timeout: How long a broker that is away is waited for at the start: 30 s.
    :param publish_timeout: How long a publish may take: 30 s.
    :param grace: How long running handlers have to end at a stop: 30 s. With 0 they are cut off at once.
    :param consumer_timeout: The broker's own setting (30 min where it is not configured): what is held is given back at
        half of it.
    :param delivery_limit: How often the broker itself redelivers before it gives up on an event: 50.
    :param in_flight: How many publishes wait for their confirmation at a time: 1000. Further ones wait before they are sent.
    :param limits: The largest event, 1 MiB and 64 KiB of headers by default: ``Limits(body=4_000_000)``.
    :param ssl_context: What ``amqps://`` trusts, and shows of itself: ``ssl.create_default_context(cafile="ca.pem")``. By
        default what the system trusts.
    :param heartbeat: Whole seconds: a broker that is silent for two and a half of them is given up. 10; 0 is none.
    """

    def __init__(
        self,
        broker: str | Sequence[str] | Broker,
        *routers: Router,
        plugins: Sequence[Plugin] = (),
        name: str | None = None,
        exchange: str = "events",
        declare: Declare = "active",
        unroutable: Unroutable = "warn",
        form: Form = "amqp",
        check: Checked = "always",
        start_timeout: Seconds = 30.0,
        publish_timeout: Seconds = 30.0,
        grace: Seconds = 30.0,
        consumer_timeout: Seconds = timedelta(minutes=30),
        delivery_limit: int = 50,
        in_flight: int = 1000,
        limits: Limits | None = None,
        ssl_context: ssl.SSLContext | None = None,
        heartbeat: Seconds = 10,
    ) -> None:
        self.routers: tuple[Router, ...] = routers_of(routers)
        self.plugins: tuple[Plugin, ...] = several("Bus: plugins", plugins, Plugin, "plugins=[DeadLetter(), Retry()]")
        self.name: str = text(
            "Bus: name", (routers[0].name if routers else "rabbitevents") if name is None else name, such_as="shop"
        )
        self.exchange: str = text("Bus: exchange", exchange, such_as="events", most=200)
        self.configuration: Configuration = Configuration(
            name=self.name,
            exchange=exchange,
            declare=one_of("Bus: declare", declare, Declare),
            unroutable=one_of("Bus: unroutable", unroutable, Unroutable),
            form=one_of("Bus: form", form, Form),
            check=one_of("Bus: check", check, Checked),
            start_timeout=seconds("Bus: start_timeout", start_timeout, positive=True),
            publish_timeout=seconds("Bus: publish_timeout", publish_timeout, positive=True),
            grace=seconds("Bus: grace", grace),
            consumer_timeout=span("Bus: consumer_timeout", consumer_timeout, positive=True),
            delivery_limit=whole("Bus: delivery_limit", delivery_limit, why="-1 drops events on RabbitMQ 3.10"),
            in_flight=whole("Bus: in_flight", in_flight),
            limits=limits_of(limits),
            ssl_context=ssl_context_of(ssl_context),
            heartbeat=heartbeat_of(heartbeat),
        )
        self.consumer_timeout: timedelta = self.configuration.consumer_timeout
        self.limits: Limits = self.configuration.limits
        self._writer = Writer(self.exchange, self.name, form=form, check=check)
        self._broker = broker_of(broker, self.configuration)
        self._provided: dict[type, Provided] = {Bus: Provided(self)}
        self._publishing: Publishing | None = None
        self._publish_chain: Publish = self.send
        self.old_names: frozenset[str] = frozenset()
        """The former names (``was=``) that queues have still: found at the start, and by whoever looks at the broker."""
        self._workforce = Workforce()
        self._observers: tuple[Callable[[Fact], None], ...] = ()
        self._keeps_rejected: set[str] = set()
        """The queues that this bus declared with a dead-letter exchange."""
        self._stack: AsyncExitStack | None = None
        self._state: Literal["new", "starting", "running", "stopping", "stopped"] = "new"
        self._home = Home()
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._drain_until = 0.0
        self._stop_asked: asyncio.Event | None = None
        self._told_to_stop = asyncio.Event()
        check_order(self.plugins, "the bus")

    def __repr__(self) -> str:
        handlers = ", ".join(router.name for router in self.routers) or "none"
        plugins = ", ".join(type(plugin).__name__ for plugin in self.plugins) or "none"
        return f"<Bus {self.name!r} on {self.address}, {self._state}; routers: {handlers}; plugins: {plugins}>"

    def sibling(
        self,
        broker: str | Sequence[str] | Broker | None = None,
        *,
        routers: Sequence[Router] | None = None,
        plugins: Sequence[Plugin] | None = None,
        **settings: Unpack[Told],
    ) -> Bus:
        """Return another bus, not started: with the same handlers, plugins, settings and provided values, but as said here.

        :param broker: Where to connect. Without it, the sibling takes this bus's place on its broker: only one of the two
            may be started.
        :param routers: Those that stand in for this bus's; ``[]`` is none.
        :param plugins: Those that stand in for this bus's; ``[]`` is none.
        :param settings: Settings of `Bus` that are to be others: ``name="shop", grace=5``.
        """
        there = self._broker if broker is None else broker
        handlers = self.routers if routers is None else routers
        chain = self.plugins if plugins is None else plugins
        handlers = several("sibling: routers", handlers, Router, "routers=[router]")
        told: dict[str, Any] = {**msgspec.structs.asdict(self.configuration), **settings}
        other = Bus(there, *handlers, plugins=chain, **told)
        other._provided = {**self._provided, Bus: Provided(other)}
        return other

    # --- before the start ---

    def provide(self, kind: type[T], value: T | None = None, /, *, factory: Factory | None = None) -> None:
        """Let handlers ask for ``kind`` by annotation: always ``value``, or what ``factory(delivery)`` makes.

        A factory returns a value or an awaitable, or what is entered around the handler: a context manager or a
        generator, async or not. It sees the handler's failure at its ``yield``, and cannot make a success of it.
        Raises `ConfigurationError` once handlers are bound.
        """
        where = check_kind(kind)
        if self._state not in ("new", "starting"):
            raise ConfigurationError(f"{where}: the bus has started, and its handlers are bound")
        if (value is None) == (factory is None):
            raise ConfigurationError(f"{where}: give a value, or factory=")
        if factory is not None:
            check_factory(factory, where)
        self._provided[kind] = Provided(value, factory)

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """What the bus consumes. Raises `ConfigurationError` for two subscriptions of one queue."""
        found: dict[str, Subscription] = {}
        for subscription in (s for router in self.routers for each in router.subscriptions() for s in each.divided):
            if subscription.name in found:
                raise ConfigurationError(
                    f"two routers have the queue {subscription.name!r}: a router's name is its own"
                )
            found[subscription.name] = subscription
        check_names(found.values(), self.exchange)
        return tuple(as_it_stands(each, self.old_names) for each in found.values())

    def subscriptions_of(self, plugin: Plugin, /) -> tuple[Subscription, ...]:
        """Return those of the subscriptions whose chain has ``plugin`` in it: where no other stands in for it."""
        return tuple(s for s in self.subscriptions if any(each is plugin for each in standing_in(self.plugins, s)))

    @property
    def topology(self) -> Topology:
        """What the bus needs at the broker, targets before sources. Queues to wait in are made when first needed."""
        base = topology.base(self.exchange) if self.routers else topology.events(self.exchange)
        wanted: list[Exchange | Queue | Binding] = []
        subscriptions = self.subscriptions
        for subscription in subscriptions:
            if subscription.whole:
                wanted += topology.guard(subscription.whole, subscription.options.partitions)
            needed = topology.needed(
                subscription.queue,
                subscription.dead_queue,
                subscription.sources,
                self.exchange,
                self.configuration.delivery_limit,
                single_active_consumer=subscription.options.single_active_consumer,
                was=subscription.former,
            )
            for plugin in standing_in(self.plugins, subscription):
                needed = plugin.topology(needed, subscription)
            wanted += needed.items
        for subscription in subscriptions:
            if subscription.division is not None:
                wanted += topology.leading_to(subscription.division, subscription.leading_keys, self.exchange).items
        return base + wanted

    @property
    def waits(self) -> tuple[int, ...]:
        """How long copies of its events may have to wait at the broker, as its plugins say it: milliseconds, in order.

        For each there is a queue, ``delay.<ms>``, which is made when it is first needed; a bus that only looks needs it from
        the start.
        """
        ranges = [
            each
            for subscription in self.subscriptions
            for plugin in standing_in(self.plugins, subscription)
            for each in plugin.waits(subscription)
        ]
        return tuple(sorted({ms for shortest, longest in ranges for ms in tiers(shortest, longest)}))

    # --- life ---

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect, declare, and begin to consume.

        Raises `ConfigurationError` for what was written wrong, and `BrokerUnavailableError` when no broker can be used.
        A queue that exists with other arguments stops only itself, and where only limits differ not even that: `health`
        and the log say so.
        """
        if self._state != "new":
            raise ConfigurationError(f"this bus is {self._state}; a bus starts once, so make another one")
        self._state = "starting"
        self._home.settle()
        self._starting = asyncio.get_running_loop().create_task(self._start(), name="rabbitevents start")
        try:
            await asyncio.shield(self._starting)
        except BaseException as error:
            await self._give_up_starting()
            if isinstance(error, asyncio.CancelledError) and not is_cancelled():
                raise _stopped_before() from error
            raise
        if self._state != "starting":
            raise _stopped_before()
        self._state = "running"

    async def _give_up_starting(self) -> None:
        """End a start that is under way, which leaves nothing open. Does not raise."""
        self._state = "stopped"
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})

    async def _start(self) -> None:
        told = self.configuration
        self._publishing = self._new_publishing()
        async with AsyncExitStack() as stack:
            for router in self.routers:
                router.freeze()
            everybody = self._everybody()
            self._observers = tuple(p.observe for p in everybody if overrides(p, "observe"))
            self._publish_chain = wrap(self.plugins, "publish", self._running.send)
            if not any(overrides(plugin, "lifespan") for plugin in everybody):
                # What is written wrong is said before the broker is looked for.
                self._workforce.workers = self._new_workers()
            stack.push_async_callback(self._stop_broker)
            renamed = renames(self.subscriptions)
            settings = Settings(self.name, told.start_timeout, told.in_flight, told.limits, renamed)
            await self._broker.start(settings, self.report if self._observers else None)
            await self._look_for_old_names()
            await self._declare_topology()  # before anybody publishes: plugins do so as they are entered
            await self._look_for_rooms()
            await self._look_for_lost()
            for plugin in everybody:
                stack.enter_context(at_work(plugin, self))
                await stack.enter_async_context(plugin.lifespan(self))
            self._workforce.workers = self._workforce.workers or self._new_workers()
            stack.push_async_callback(self._stop_consuming)
            await self._workforce.start(self._broker)
            self._stack = stack.pop_all()

    async def _look_for_old_names(self) -> None:
        """Find the queues that are to be renamed, and were not yet: they are consumed under the names that they have."""
        self.old_names = await old_names(self.subscriptions, self._broker.depth)
        if self.old_names:
            self._workforce.workers = []  # made anew, for the queues that there are
            self._running.old_names = self.old_names
            log.info(
                "consumed under their former names: %s; once no older code runs, `rabbitevents topology migrate` leads over",
                ", ".join(sorted(self.old_names)),
            )

    def _new_publishing(self) -> Publishing:
        told = self.configuration
        return Publishing(
            self._broker,
            self._writer,
            exchange=told.exchange,
            timeout=told.publish_timeout,
            unroutable=told.unroutable,
            passive=told.declare != "active",
            home=lambda queue: self.topology.part(queue),
            report=self.report,
        )

    def _everybody(self) -> tuple[Plugin, ...]:
        """Return every plugin once: the bus's, and those that stand in for them somewhere."""
        own = [p for subscription in self.subscriptions for p in subscription.plugins]
        return tuple(dict.fromkeys((*self.plugins, *own)))

    def _new_workers(self) -> list[Workers]:
        return [self._workers(subscription) for subscription in self.subscriptions]

    def _workers(self, subscription: Subscription) -> Workers:
        plugins = standing_in(self.plugins, subscription)
        check_without(self.plugins, subscription, f"subscription {subscription.name!r}")
        check_order(plugins, f"subscription {subscription.name!r}")
        dispatch = Dispatch(
            subscription,
            self._provided,
            lambda: self._workforce.threads(subscription),
            self._running,
            owner=self,
            chain=wrap(plugins, "publish", self._running.send),
            stopping=lambda: self.stopping,
            patience=self.configuration.patience,
        )
        chain, batches = self._way_in(subscription, plugins, dispatch)
        return Workers(
            subscription,
            chain,
            forward=self._running.forward,
            amend=amending(plugins),
            report=self.report if self._observers else None,
            overdue=dispatch.overdue,
            may_reject=lambda: subscription.queue in self._keeps_rejected,
            consumer_timeout=self.configuration.consumer_timeout.total_seconds(),
            key_of=key_of(subscription, dispatch.payload),
            batches=batches,
        )

    def _way_in(
        self, subscription: Subscription, plugins: Sequence[Plugin], dispatch: Dispatch
    ) -> tuple[Consume, Batches | None]:
        """Return the chain that each delivery goes through; and where they meet, if they are handled together."""
        batch = subscription.options.batch
        if batch is None:
            return wrap(plugins, "consume", dispatch), None
        where = f"subscription {subscription.name!r}"
        if batch.within > self.consumer_timeout.total_seconds() / 2:
            raise ConfigurationError(
                f"{where}: {batch} lets its first event wait for more than half of the consumer timeout "
                f"({self.consumer_timeout.total_seconds():g} s), at whose end the broker takes it away"
            )
        single, together = around_batches(plugins, where)
        whole = wrap(together, "batch", published(dispatch)) if together else dispatch.together
        batches = Batches(subscription.name, batch, dispatch, whole)
        return wrap(single, "consume", batches), batches

    async def _declare_topology(self) -> None:
        told = self.configuration
        wanted = self.topology
        refused: Mapping[str, TopologyError] = {}
        if told.declare != "none":
            refused = await self._broker.declare(wanted, passive=told.declare == "passive")
        troubles = {name: error for name, error in refused.items() if not error.stands}
        queues = {subscription.queue for subscription in self.subscriptions}
        theirs = {name for each in self.subscriptions if each.queue in troubles for name in each.places}
        said: set[str] = set()
        for name, error in troubles.items():
            if name in wanted.foreign:
                if told.declare == "passive":  # else the queues that are to be bound to it say so
                    log.error("%s", error)
            elif name in queues:
                if str(error) not in said:  # one trouble of all partitions is said once
                    what = "subscription %s does not run as long as this is so: %s"
                    log.error(what, name, error, extra={"subscription": name})
                said.add(str(error))
            elif name not in theirs:  # the place of its dead letters is one trouble with a queue that does not run
                raise error
        # With other limits than ours, it has our dead-letter exchange all the same.
        unknown = {name for name, error in refused.items() if not error.stands or error.code != 406}
        declared = queues - unknown if told.declare == "active" else set[str]()
        self._keeps_rejected = {name for name in declared if topology.keeps_rejected(wanted, name)}
        used = queues - declared - troubles.keys()
        if used:
            log.warning(
                "declare=%r: nothing is known of the dead-letter exchanges of %s, which this bus did not declare, so what "
                "would be rejected there is held",
                told.declare,
                ", ".join(sorted(used)),
            )

    async def _look_for_rooms(self) -> None:
        """See that there are queues for all waits, where this bus makes none. Raises `TopologyError`."""
        if self.configuration.declare != "passive":
            return
        missing: list[str] = []
        for name in (room_name(ms) for ms in self.waits):
            try:
                there = await self._broker.depth(name)
            except BrokerError as error:
                if error.code != _MAY_NOT_LOOK:
                    raise
                continue
            missing += [name] if there is None else []
        if missing:
            text = (
                f"queues that events are to wait in do not exist: {', '.join(missing)}; this bus makes none (declare='passive'), "
                "and what is to be tried again later would find no place. rabbitevents topology apply MODULE:BUS makes them, "
                "with a user who may"
            )
            raise TopologyError(text, name=missing[0], code=404)

    async def _look_for_lost(self) -> None:
        """Say how much fell due while no queue was bound for it: the only moment at which that can be known is past."""
        told = self.configuration
        if not self.routers or told.unroutable == "ignore" or told.declare == "none":
            return
        with suppress(BrokerError):
            lost = await self._broker.depth(topology.DELAY_LOST)
            if lost is not None and lost.ready:
                log.warning(
                    "%d delayed or retried messages are kept in queue %r: no queue was bound for them when they fell due; "
                    "look with bus.browse(%r), and publish again what is still wanted (said at start)",
                    lost.ready,
                    topology.DELAY_LOST,
                    topology.DELAY_LOST,
                )

    async def serve(self, *, grace: Seconds | None = None, started: Callable[[], object] | None = None) -> None:
        """Run until SIGTERM or SIGINT (or `ask_to_stop`), then drain. A second signal does not wait for handlers.

        :param grace: How long running handlers have to end (seconds, or a timedelta); by default what the bus says.
        :param started: Called without arguments once the bus runs.
        """
        if grace is not None:
            self.configuration = msgspec.structs.replace(self.configuration, grace=seconds("serve: grace", grace))
        if started is not None and not callable(cast("object", started)):
            raise wrong("serve: started", started, "say a function without parameters")
        stop_asked = self._stop_asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        handled: list[signal.Signals] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
                loop.add_signal_handler(number, self.ask_to_stop)
                handled.append(number)
        asked = asyncio.ensure_future(stop_asked.wait())
        starting = asyncio.ensure_future(self.start())
        try:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():  # asked to stop while a broker is still being looked for
                starting.cancel()
                await asyncio.wait({starting})
            if not starting.cancelled():
                starting.result()
                if started is not None:
                    started()
                await asked
        finally:
            asked.cancel()
            await self.stop()
            for number in handled:
                loop.remove_signal_handler(number)

    def ask_to_stop(self) -> None:
        """Let `serve` end: the first time with grace, the second time at once."""
        if self._stop_asked is not None and not self._stop_asked.is_set():
            log.info("stopping: running handlers have %g s to end", self.configuration.grace)
            self._stop_asked.set()
        else:
            log.warning("stopping at once")
            self._workforce.hurry()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, on an event loop of its own.

        Unlike with ``asyncio.run``, a handler that will not be cancelled does not hold up the end of the process.
        """
        run_to_the_end(self.serve())

    async def stop(self) -> None:
        """Take nothing new, let running handlers end within the grace period, give back the rest, confirm, leave.

        Ends at most `HARD_STOP` seconds after the grace period, whatever handlers, plugins and the broker do. Whoever
        calls it while it is under way waits for its end; a start that is under way ends too, and leaves nothing open.

        Raises `ConfigurationError` when a handler calls it, which it would wait for, and on another event loop.
        """
        if asyncio.current_task() is self._starting or self._workforce.is_at_work(asyncio.current_task()):
            raise ConfigurationError(
                "stop() was called by what it has to wait for, a handler or a plugin's lifespan: call ask_to_stop() there, "
                "which `serve` and `run` wait for, or leave the stopping to whoever started the bus"
            )
        if self._state not in ("new", "stopped"):
            self._home.check()
        if self._state == "starting":
            await self._give_up_starting()
        if self._stack is not None:
            stack, self._stack = self._stack, None
            self._state = "stopping"
            self._told_to_stop.set()
            self._drain_until = asyncio.get_running_loop().time() + self.configuration.grace
            self._closing = asyncio.ensure_future(stack.aclose())
            self._closing.add_done_callback(self._closed)
        if self._closing is None or self._closing.done():
            return
        left = self._drain_until + HARD_STOP - 0.5 - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait({self._closing}, timeout=max(0.0, left))
        if not done:
            log.error("stopping took longer than the grace period and %g s; leaving", HARD_STOP)
            self._closing.cancel()
            await asyncio.wait({self._closing}, timeout=0.4)
        self._state = "stopped"
        if done and not self._closing.cancelled():
            self._closing.result()

    def _closed(self, closing: asyncio.Future[None]) -> None:
        self._state = "stopped"
        if not closing.cancelled():
            closing.exception()

    async def _stop_consuming(self) -> None:
        await self._workforce.stop(self._drain_until)

    async def _stop_broker(self) -> None:
        self._running.close()
        await self._broker.stop(asyncio.get_running_loop().time() + HARD_STOP / 2)

    # --- publishing ---

    @overload
    async def publish(
        self,
        payload: Event[P],
        /,
        *,
        exchange: str | None = None,
        key: str | None = None,
        delay: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> Event[P]: ...

    @overload
    async def publish(
        self,
        payload: P,
        /,
        *,
        id: UUID | str | None = None,
        exchange: str | None = None,
        key: str | None = None,
        delay: Seconds | None = None,
        timeout: Seconds | None = None,
        metadata: dict[str, str] | None = None,
        correlation_id: str | UUID | None = None,
    ) -> Event[P]: ...

    async def publish(
        self,
        payload: P | Event[P],
        /,
        *,
        id: UUID | str | None = None,
        exchange: str | None = None,
        key: str | None = None,
        delay: Seconds | None = None,
        timeout: Seconds | None = None,
        metadata: dict[str, str] | None = None,
        correlation_id: str | UUID | None = None,
    ) -> Event[P]:
        """Publish an event, and return it in its envelope once the broker has taken responsibility.

        Published while another event is handled, it is caused by that one, and its id derives from that one's and from
        what it says: a repeated attempt repeats its ids, and no two different events share one. With ``id`` its author
        says which event it is: a UUID is taken as it is; any other text names the event among those of its type, in a
        handler those that the handled event causes, elsewhere those of this bus's name.

        :param payload: An instance of an `@event` class; or an `Event`, which keeps its envelope, and so takes neither
            ``id`` nor ``metadata`` nor ``correlation_id``.
        :param id: Which event it is: a UUID, or a name that is this event's alone. By default a new one.
        :param exchange: Another team's exchange to publish it to, which must be there: ``exchange="partner",
            key="booking.made"``. With ``""``, AMQP's default exchange, ``key`` names the one queue. What no queue is bound
            for is as ``unroutable`` says, there too; a ``delay`` is refused there. By default the bus's own.
        :param key: The routing key; by default the event's type.
        :param delay: How long it waits at the broker first, 30 days at most: seconds, or a timedelta. A time that is past
            means at once.
        :param timeout: How long publishing may take: seconds, or a timedelta. By default the bus's ``publish_timeout``.
        :param metadata: Texts by name that travel with it: ``{"tenant": "acme"}``.
        :param correlation_id: What it belongs to, a text or a UUID. By default the handled event's, or else its own id.

        Raises `EncodeError` for what cannot be written, `ConfigurationError` for what cannot be meant, and a
        `PublishError` when it was not confirmed.
        """
        _ = self._running
        event, message = self._writer.prepare(
            payload,
            id=id,
            metadata=metadata,
            correlation_id=correlation_id,
            exchange=exchange,
            key=key,
            delay=delay,
            timeout=timeout,
        )
        await self._chain()(message)
        return event

    async def publish_message(self, message: Message, /) -> None:
        """Publish what `prepare` wrote through the whole publish chain; return, or raise, as `publish` does.

        :param message: As for `send`.
        """
        _ = self._running
        await self._chain()(check_message(message))

    def prepare(self, payload: P | Event[P], /, **told: Any) -> tuple[Event[P], Message]:
        """Put a payload into its envelope and write it as a message, as `publish` does, without sending it.

        For what sends it in another way, such as an outbox. The bus need not have started.

        :param payload: As for `publish`.
        :param told: What `publish` may be told, but for its timeout.
        """
        return self._writer.prepare(payload, **told)

    async def publish_many(self, payloads: Iterable[Any], /, *, timeout: Seconds | None = None) -> list[Event[Any]]:
        """Publish several events, in flight together. All are confirmed, or an ExceptionGroup of `PublishError` is raised.

        :param payloads: Instances of `@event` classes, or `Event` values, in a list or any other order.
        :param timeout: How long it may take: seconds, or a timedelta. By default the bus's ``publish_timeout``.
        """
        publishing = self._running
        check_several(payloads)
        prepared = [self._writer.prepare(payload, timeout=timeout) for payload in payloads]
        failed = await publishing.send_all([message for _, message in prepared], self._chain())
        if failed:
            raise ExceptionGroup(
                f"{len(failed)} of {len(prepared)} events were not confirmed", [error for _, error in failed]
            )
        return [event for event, _ in prepared]

    def _chain(self) -> Publish:
        """Return the publish chain: the handler's own where one of ours is at work, with the plugins that stand in there."""
        handling = CURRENT.get()
        return handling.chain if handling is not None and handling.owner is self else self._publish_chain

    async def send(self, message: Message, /) -> None:
        """Publish a message past every plugin, and return once the broker has taken responsibility.

        :param message: Its every field is of the type that it says, and its body bytes.

        Raises a `PublishError`; for a message that reached no queue as the bus's ``unroutable`` says. Raises `EncodeError`
        for a field that cannot be written.
        """
        await self._running.send(check_message(message))

    async def send_many(self, messages: Sequence[Message], /) -> list[Exception | None]:
        """Publish messages past every plugin, in flight together; return for each what kept it from being confirmed.

        One that reached no queue is an `UnroutableError`, whatever the bus's ``unroutable`` says; one that cannot be
        written, an `EncodeError`.

        :param messages: As for `send`.
        """
        return await self._running.forward_all(messages)

    @property
    def _running(self) -> Publishing:
        if self._publishing is None:
            raise ConfigurationError("the bus has not started: use it inside `async with bus:`")
        self._home.check()
        return self._publishing

    @property
    def unroutable(self) -> Counter[str]:
        """How many events of each type reached no queue."""
        return self._running.unroutable

    # --- while it runs ---

    def report(self, fact: Fact, /) -> None:
        """Tell every observer what happened. One that raises is logged, and does not keep it from the others."""
        for observe in self._observers:
            try:
                observe(fact)
            except Exception:
                # An observer's defect must not become the failure of what it observes.
                log.exception("observing %s failed", type(fact).__name__)

    async def pause(self, subscription: str, /, *, by: str = APPLICATION, reason: str = "") -> None:
        """Stop taking deliveries for a subscription; what has not begun is given back.

        :param subscription: ``<router>.<handler>``: "shop.payment.charge"; of one that is divided, all of its partitions, or
            one by its own name.
        :param by: Who pauses it, by default "the application". It stays paused until all who did have resumed it. What a
            plugin's pause gives back goes to the end of the queue, and is none of its deliveries.
        :param reason: Why, for health and observers.

        Raises `ConfigurationError` where there is none of that name.
        """
        self._home.check()
        pausing = (workers.pause(by, reason) for workers in self._workforce[subscription])
        await asyncio.shield(asyncio.gather(*pausing))  # who is cut off has asked for it all the same

    async def resume(self, subscription: str, /, *, by: str = APPLICATION, one_at_a_time: bool = False) -> None:
        """Take deliveries again.

        :param subscription: ``<router>.<handler>``.
        :param by: Who paused it.
        :param one_at_a_time: Whether to handle one at a time, to see whether it goes well, until the next call.

        Raises `ConfigurationError` where there is none of that name, and when a handler of that very subscription calls it.
        """
        self._home.check()
        workers = self._workforce[subscription]
        if any(each.is_at_work(asyncio.current_task()) for each in workers):
            raise ConfigurationError(
                f"resume({subscription!r}) was called by a handler of that subscription, which only others can resume"
            )
        resuming = (each.resume(by, one_at_a_time=one_at_a_time) for each in workers)
        await asyncio.shield(asyncio.gather(*resuming))

    async def wait(self, delay: float, /) -> bool:
        """Wait for ``delay`` seconds, and say whether they have passed: False as soon as the bus is told to stop.

        For a plugin that keeps a delivery waiting, which returns `REQUEUE` then.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._told_to_stop.wait()
        return not self._told_to_stop.is_set()

    def health(self) -> Health:
        """Say of every piece that should be running whether it runs."""
        checks = [Check("bus", self._state == "running", "" if self._state == "running" else self._state)]
        checks.extend(self._broker.health())
        checks.extend(self._workforce.checks())
        for plugin in self._everybody():
            checks.extend(plugin.health())
        return Health(tuple(checks))

    @property
    def stopping(self) -> bool:
        """Whether the bus has been told to stop: a handler that is cancelled then is no failure."""
        return self._state in ("stopping", "stopped")

    @property
    def broker(self) -> Broker:
        """The broker that the bus is on. Before the start another one may take its place."""
        return self._broker

    @broker.setter
    def broker(self, broker: Broker) -> None:
        if self._state != "new":
            raise ConfigurationError(
                f"this bus is {self._state} on {self.address}: its broker is chosen before it starts"
            )
        self._broker = broker

    @property
    def address(self) -> str:
        """The broker that the bus is connected to, or looks for; without a password."""
        return self._broker.address

    @property
    def grace(self) -> float:
        """How long running handlers have to end when the bus stops, in seconds."""
        return self.configuration.grace

    @property
    def load(self) -> Mapping[str, Load]:
        """What each subscription, and so each queue of that name, has in this process at this moment."""
        return self._workforce.load

    async def depth(self, queue: str, /) -> Depth | None:
        """Look how many messages a queue has ready, and how many consumers; None if there is none of that name.

        :param queue: Its name: "shop.payment.charge", or "shop.payment.charge.dead".

        Raises `BrokerError`.
        """
        self._home.check()
        return await self._broker.depth(text("depth: queue", queue, such_as="shop.payment.charge"))

    def browse(self, queue: str, /, *, hold: int = HOLD) -> Browsing:
        """Return a look into a queue: ``async with bus.browse(queue) as look: async for delivery in look: ...``.

        At most ``hold`` messages are kept at a time. Each goes back to its place, but those that
        `Browsing.acknowledge` takes out. A give-back counts at the broker as a delivery does.
        """
        return Browsing(
            self._broker, text("browse: queue", queue, such_as="shop.record"), whole("browse: hold", hold), self._home
        )


def _stopped_before() -> ConfigurationError:
    return ConfigurationError("the bus was stopped before it had started")
