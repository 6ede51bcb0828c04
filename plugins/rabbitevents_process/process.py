"""A process: a router whose functions answer an event and a state with a `Step`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any, Final, TypeVar, cast

import attrs

from rabbitevents import ConfigurationError, Plugin, Router, Subscription
from rabbitevents.arguments import Seconds, flag, instance, one_of, span, text, whole, wrong
from rabbitevents_process.documents import Documents
from rabbitevents_process.handling import handler
from rabbitevents_process.keeping import Keeping
from rabbitevents_process.life import TimedOut, timed_out
from rabbitevents_process.plot import Plot
from rabbitevents_process.reactions import members
from rabbitevents_process.script import Missing, Script
from rabbitevents_process.tables import ProcessTables
from rabbitevents_process.tending import Tending

F = TypeVar("F", bound=Callable[..., Any])

EVENTS: Final = "events"
"""The name of a process's one handler, and so of its queue: ``<process>.events``."""


class Process(Router):
    """A router with a state: what several events of one thing come to, over hours or weeks.

    ::

        fulfilment = Process("fulfilment", Fulfilment, key="order_id")

        @fulfilment.starts(OrderPlaced)
        def begin(order: OrderPlaced) -> Step:
            return Step(Fulfilment(order.order_id), timeout=Timeout("unpaid", timedelta(minutes=30)))

        @fulfilment.on(CardCharged)
        def pay(card: CardCharged, state: Fulfilment) -> Step:
            return Step(DONE, OrderConfirmed(state.order_id))

        @fulfilment.timeout("unpaid")
        def give_up(state: Fulfilment) -> Step:
            return Step(DONE, OrderCancelled(state.order_id))

        bus = Bus(url, fulfilment, plugins=[DeadLetter(), Retry(), Inbox(sessions), Outbox(engine)])

    For each key there is one row, locked while an event of it is handled. The new state, what is published, the timeouts
    and the inbox's mark commit together. The functions are called on the event loop, possibly several times for an event,
    and are to decide and do nothing else.

    :param name: The router's name, and that of the process in the table; its queue is ``<name>.events``.
    :param state: The class of the state: of attrs, a dataclass or a pydantic model, or a union of several.
    :param key: Which process an event is for: the name of the attribute that all its events have, or a function of the
        payload.
    :param version: The version of the state's shape, from 1 on: 1. `upcast` leads there from older ones.
    :param missing: What becomes of an event that finds no process and starts none: "retry" (the default) fails with
        `NoSuchProcessError`, which `Retry` repeats and `DeadLetter` keeps; "ignore" acknowledges it.
    :param restart: Whether one that has ended may be started again, as long as that is known: False.
    :param keep: For how long it is known that one has ended: 30 days.
    :param tables: Where the states are.
    :param concurrency: As for `Router.on`.
    :param prefetch: As for `Router.on`.
    :param timeout: As for `Router.on`.
    :param plugins: As for `Router.on`.

    Raises `ConfigurationError`; at start too, for tables that are missing, and without `Inbox` and `Outbox`.
    """

    def __init__(
        self,
        name: str,
        state: Any,
        *,
        key: str | Callable[[Any], object],
        version: int = 1,
        missing: Missing = "retry",
        restart: bool = False,
        keep: Seconds = timedelta(days=30),
        tables: ProcessTables | None = None,
        concurrency: int | None = None,
        prefetch: int | None = None,
        timeout: Seconds | None = None,
        plugins: Iterable[Plugin] | Mapping[str, Plugin | None] = (),
    ) -> None:
        super().__init__(name)
        if isinstance(state, str) or not all(isinstance(each, type) for each in members(state)):
            raise wrong("Process: state", state, "say the class of the state, or several as A | B")
        if not isinstance(key, str) and not callable(key):
            raise wrong(
                "Process: key", key, "say the attribute that its events have, such as 'order_id', or a function"
            )
        self.state: Any = state
        """The class of the state, or a union."""
        self.tables: ProcessTables = (
            ProcessTables()
            if tables is None
            else instance("Process: tables", tables, ProcessTables, "say ProcessTables(schema='messaging')")
        )
        self.script: Script = Script(
            name,
            state,
            missing=one_of("Process: missing", missing, Missing),
            restart=flag("Process: restart", restart),
        )
        """Its functions."""
        self.timed_out: type[TimedOut] = timed_out(name)
        """The class of its timeouts."""
        self._key = key
        self._version = whole("Process: version", version)
        self._steps: dict[int, Any] = {}
        self._keeping = Keeping(self.tables, name)
        kept = span("Process: keep", keep, positive=True)
        self._tending = Tending(name, self.tables, self._keeping, kept, self._described)
        self._told: dict[str, Any] = {
            "concurrency": concurrency,
            "prefetch": prefetch,
            "timeout": timeout,
            "plugins": _with(plugins, self._tending),
        }
        self._made: tuple[Subscription, ...] = ()
        self._plot: Plot | None = None

    def __repr__(self) -> str:
        classes = ", ".join(cls.__name__ for cls in self.script.classes)
        return f"<Process {self.name!r}; events: {classes or 'none'}>"

    # --- what is decorated ---

    def starts(self, *events: type) -> Callable[[F], F]:
        """Call the decorated function for an event whose key has no process: its step is the first one.

        :param events: Event classes. One that is to mean something to a running process too is said to `on` as well.

        Raises `ConfigurationError`.
        """
        return self._registering("starts", events, {})

    def on(self, *events: type | str, **told: Any) -> Callable[[F], F]:
        """Call the decorated function for an event whose key has a process. It may ask for the state.

        :param events: Event classes.
        :param told: Nothing: what `Router.on` takes beside the events is said of the process, once.

        Raises `ConfigurationError`.
        """
        return self._registering("on", events, told)

    def _registering(self, kind: Any, events: tuple[Any, ...], told: dict[str, Any]) -> Callable[[F], F]:
        if told:
            said = next(iter(told))
            raise ConfigurationError(
                f"process {self.name!r}: on(..., {said}=...): a process has one queue: say {said}= where it is made, "
                "Process(...), as far as it takes it"
            )
        for each in events:
            if isinstance(each, str):
                raise ConfigurationError(
                    f"process {self.name!r}: on({each[:40]!r}): a process is for event classes, which have its key"
                )
        Router("check").on(*events)  # which says what is wrong with what
        for cls in events:
            self._check_key(cls)

        def register(function: F) -> F:
            self._open()
            self.script.add(kind, events, function)
            return function

        return register

    def timeout(self, name: str) -> Callable[[F], F]:
        """Call the decorated function when a timeout of that name has come, and has been neither replaced nor cleared.

        :param name: Its name, which a `Step` sets with ``timeout=Timeout(name, after)``.

        Raises `ConfigurationError`.
        """
        said = text(f"{self.name}.timeout: name", name, such_as="unpaid")

        def register(function: F) -> F:
            self._open()
            self.script.add_timeout(said, function)
            return function

        return register

    def upcast(self, *, from_version: int) -> Callable[[F], F]:
        """Lead the document of a state of an older version to the next one, as `rabbitevents.upcast` does for events.

        :param from_version: The version of the documents that the function takes; it returns them as the next one.

        Raises `ConfigurationError`.
        """
        number = whole(f"{self.name}.upcast: from_version", from_version)
        if number >= self._version:
            raise ConfigurationError(
                f"process {self.name!r} is version {self._version}: no step leads on from version {number}"
            )

        def register(function: F) -> F:
            self._open()
            if number in self._steps:
                raise ConfigurationError(f"process {self.name!r} has a step from version {number} already")
            self._steps[number] = function
            return function

        return register

    def _open(self) -> None:
        """Raise `ConfigurationError` once a bus has started; until then, what was made of the functions is made anew."""
        if self._frozen:
            raise ConfigurationError(f"process {self.name!r} is in use by a bus that has started: register before")
        self._made, self._plot = (), None

    def _check_key(self, cls: type) -> None:
        names = _field_names(cls)
        if isinstance(self._key, str) and self._key not in names and not hasattr(cls, self._key):
            raise ConfigurationError(
                f"process {self.name!r}: {cls.__name__} has no {self._key!r} to be its key (it has {', '.join(names)}); where "
                "events name it differently, say key= as a function of the event"
            )

    # --- as a router ---

    def subscriptions(self) -> tuple[Subscription, ...]:
        """Return its one queue, with all that its functions are for."""
        if not self._made and self.script.classes:
            router = Router(self.name)
            classes = (*self.script.classes, self.timed_out)
            router.on(*classes, name=EVENTS, **self._told)(handler(self.plot, self._keeping, classes))
            self._made = router.subscriptions()
        return self._made

    def freeze(self) -> None:
        """Refuse what is registered from now on. Raises `ConfigurationError` for a process that nothing starts."""
        if not self.script.starts:
            raise ConfigurationError(
                f"process {self.name!r} is started by nothing: write @{self.name}.starts(...) above the function that begins it"
            )
        super().freeze()

    @property
    def plot(self) -> Plot:
        """What it does with an event. Raises `ConfigurationError` for versions that do not lead to the state's."""
        if self._plot is None:
            documents = Documents(self.name, self.state, self._version, self._steps)
            key = attrgetter(self._key) if isinstance(self._key, str) else self._key
            self._plot = Plot(self.name, key, self.script, documents, self.timed_out)
        return self._plot

    def _described(self) -> Iterable[tuple[str, str]]:
        """Say what ``rabbitevents explain`` says of it."""
        for label, found in (
            ("starts", {cls.__name__: each for cls, each in self.script.starts.items()}),
            ("goes on", {cls.__name__: each for cls, each in self.script.goes_on.items()}),
            ("waits for", self.script.timeouts),
        ):
            for name, each in found.items():
                yield label, f"{name}: {each.name}"


def _with(plugins: Any, ours: Plugin) -> Any:
    """Return a queue's own plugins, in either of the forms that `Router.on` takes, and one of ours."""
    if isinstance(plugins, Mapping):
        return {**cast("Mapping[str, Any]", plugins), ours.role: ours}
    return [*plugins, ours]


def _field_names(cls: type) -> Sequence[str]:
    """Return the names of an event class's fields."""
    if attrs.has(cls):
        return [each.name for each in attrs.fields(cls)]
    fields = vars(cls).get("__pydantic_fields__")
    if isinstance(fields, dict):
        return list(cast("Mapping[str, object]", fields))
    return [each.name for each in dataclasses.fields(cast("Any", cls))]
