"""A bus for code that is not asynchronous, one for each process that uses it."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast, overload
from uuid import UUID

from rabbitevents.arguments import Seconds, kind_of
from rabbitevents.brokers import Broker
from rabbitevents.bus import HARD_STOP, Bus
from rabbitevents.configuration import Told
from rabbitevents.errors import BrokerError, ConfigurationError
from rabbitevents.events import Event
from rabbitevents.plugin import Plugin
from rabbitevents.publishing.checks import check_several, timeout_of
from rabbitevents.states import Check, Health
from rabbitevents.sync.background import Background

P = TypeVar("P")

GRACE = 5.0
"""Seconds that plugins have to end when the bus is closed."""

MARGIN = 5.0
"""Seconds beyond a publish's own deadline after which its caller no longer waits for the event loop's word."""


class SyncBus:
    """A way to publish events from any thread, with the guarantees and the errors of `Bus.publish`.

    ::

        with SyncBus("amqp://user:password@host:5672/vhost", name="shop") as bus:
            bus.publish(OrderPlaced("o-1"))

    It connects at `start` (or ``with``), or else at the first publish in each process. Left open, it is closed as the
    interpreter ends. Raises `ConfigurationError` for what cannot be meant.

    :param broker: Where to connect: a URL, or several of one cluster in a list.
    :param plugins: What stands around every event, the first one outermost.
    :param settings: Those of `Bus`, as keywords, with the same defaults: ``name``, ``exchange``, ``declare``,
        ``unroutable``, ``form``, ``start_timeout``, ``publish_timeout``, ``grace`` (5 s here), ``consumer_timeout``,
        ``delivery_limit``, ``in_flight``, ``limits``, ``ssl_context``, ``heartbeat``.

    Every call blocks its thread, and so is refused where an event loop runs: `Bus` is for there.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *,
        plugins: Sequence[Plugin] = (),
        **settings: Unpack[Told],
    ) -> None:
        if isinstance(cast("object", broker), type) or hasattr(broker, "publish_many"):
            raise ConfigurationError(
                f"SyncBus takes URLs, since each process connects by itself, and no {kind_of(broker).partition(' ')[2]}"
            )
        settings.setdefault("grace", GRACE)
        self._new_bus: partial[Bus] = partial(Bus, broker, plugins=plugins, **settings)
        bus = self._new_bus()  # what was written wrong is said here
        told = self._told = bus.configuration
        self._address = bus.address
        self._start_timeout = told.start_timeout
        self._publish_timeout = told.publish_timeout
        self._closed = False
        self._processes: dict[int, _Process] = {}

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<SyncBus {self._told.name!r} on {self._address}, {state} in {len(self._processes)} processes>"

    # --- life ---

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Connect now, if this process has not yet; also again, after `close`.

        Raises `BrokerUnavailableError` when no broker can be used within ``start_timeout``.
        """
        _refuse_event_loop("start")
        self._life(reopen=True).wait_started(monotonic() + self._start_timeout + MARGIN)

    def close(self) -> None:
        """Take no more events, let those under way be confirmed, and leave; nothing, if that is done already.

        Ends within `GRACE` and a few seconds, whatever the broker and the plugins do. In a forked process it
        closes what that process opened, and leaves the parent's alone.
        """
        _refuse_event_loop("close")
        self._end(closed=True)

    def _end(self, *, closed: bool) -> None:
        process = self._process()
        with process.lock:
            self._closed = closed
            life, process.life = process.life, None
            if life is not None:
                life.ask_to_end()
        atexit.unregister(self.close)
        if life is not None:
            life.wait_ended(GRACE + HARD_STOP + 1)

    @contextmanager
    def elsewhere(self, broker: str | Sequence[str] | Broker, **settings: Unpack[Told]) -> Generator[None]:
        """Publish to another broker, as long as this is entered: ``with bus.elsewhere("amqp://other"):``.

        ``settings`` are those that are to be others meanwhile.
        What is open is closed before and after it; a bus that was closed is open meanwhile. It is for one process at a
        time, as in a test: others know nothing of it. Raises `ConfigurationError` for what is no broker.
        """
        _refuse_event_loop("elsewhere")
        there, was_closed = self._new_bus, self._closed
        meanwhile = partial(Bus, broker, **{**there.keywords, **settings})
        meanwhile()  # what was written wrong is said here
        self._end(closed=False)
        self._new_bus = meanwhile
        try:
            yield
        finally:
            self._new_bus = there
            self._end(closed=was_closed)

    def _process(self) -> _Process:
        """Return what belongs to this process. The parent's is never touched: its lock may be held for ever."""
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, _Process())

    def _life(self, *, reopen: bool = False) -> Background:
        """Return this process's bus at work, which may still be connecting."""
        process = self._process()
        with process.lock:
            if self._closed and not reopen:
                raise ConfigurationError("this SyncBus is closed; start() opens it again")
            self._closed = False
            if process.life is None or process.life.over:
                atexit.unregister(self.close)
                atexit.register(self.close)
                life = Background(self._new_bus())
                life.begin()
                process.life = life
            return process.life

    # --- publishing ---

    @overload
    def publish(
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
    def publish(
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

    def publish(
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

        See `Bus.publish`, also for its parameters.

        :param payload: An instance of an `@event` class, or an `Event`.
        :param id: A UUID, or a name that is this event's alone. By default a new one.
        :param delay: How long it waits at the broker first: seconds, or a timedelta.
        :param timeout: It bounds all of it, connecting included: seconds, or a timedelta; else ``publish_timeout``.
        :param metadata: Texts by name that travel with it.
        :param correlation_id: What it belongs to. By default its own id.

        Raises `EncodeError` for what cannot be written, `BrokerUnavailableError` while no broker was ever reached, a
        `PublishError` when it was not confirmed, and `BrokerError` when the event loop gave no word of it.
        """
        _refuse_event_loop("publish")
        deadline = monotonic() + (self._publish_timeout if timeout is None else timeout_of(timeout))
        life = self._life()
        life.wait_started(deadline)

        def work() -> Awaitable[Event[P]]:
            left = max(0.0, deadline - monotonic())
            return life.bus.publish(
                cast("P", payload),
                id=id,
                exchange=exchange,
                key=key,
                delay=delay,
                timeout=left,
                metadata=metadata,
                correlation_id=correlation_id,
            )

        return life.call(work, deadline, margin=MARGIN)

    def publish_many(self, payloads: Iterable[Any], /, *, timeout: Seconds | None = None) -> list[Event[Any]]:
        """Publish several events, in flight together. All are confirmed, or an ExceptionGroup of `PublishError` is raised.

        :param payloads: Instances of `@event` classes, or `Event` values, in a list or any other order.
        :param timeout: How long all of it may take: seconds, or a timedelta; else ``publish_timeout``.
        """
        _refuse_event_loop("publish_many")
        check_several(payloads)
        deadline = monotonic() + (self._publish_timeout if timeout is None else timeout_of(timeout, "publish_many"))
        events = list(payloads)  # here: what makes them may belong to this thread, as a database's cursor does
        life = self._life()
        life.wait_started(deadline)
        return life.call(
            lambda: life.bus.publish_many(events, timeout=max(0.0, deadline - monotonic())), deadline, margin=MARGIN
        )

    def health(self) -> Health:
        """Say how this process's bus is. It connects nowhere, and answers within two seconds.

        A process that has not published yet is well: it connects at its first publish. One whose bus has ended can
        publish again (``degraded``, and so ready): only a publish would show whether it works.
        """
        _refuse_event_loop("health")
        if self._closed:
            return Health((Check("bus", False, "closed; start() opens it again"),))
        life = self._process().life
        if life is None:
            return Health((Check("bus", True, "connects at the first publish in this process"),))
        if life.over:
            return Health((Check("bus", False, "it ended, or found no broker; the next publish tries anew", True),))
        try:
            return life.health()
        except BrokerError as error:
            return Health((Check("bus", False, str(error)),))


def _refuse_event_loop(method: str) -> None:
    """Raise `ConfigurationError` where an event loop runs: a call that blocks would stop everything on it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError(
        f"SyncBus.{method} would block the event loop that runs here: use Bus, with `await bus.publish(...)`, "
        f"or call it in a thread, with `await asyncio.to_thread(bus.{method}, ...)`"
    )


class _Process:
    """What a `SyncBus` has in one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.life: Background | None = None
