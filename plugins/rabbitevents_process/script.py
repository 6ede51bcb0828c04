"""Which function of a process is called: decided by what came and what is kept, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

from rabbitevents import ConfigurationError, Event
from rabbitevents_process.errors import AlreadyRunningError, NoSuchProcessError, named
from rabbitevents_process.life import Life, TimedOut
from rabbitevents_process.reactions import Reaction, reaction
from rabbitevents_process.step import Step

Missing = Literal["retry", "ignore"]
"""What becomes of an event that finds no process and starts none."""

Idle = Literal["missing", "late", "stale"]
"""Why nothing is to be done: there is no process, it has ended, or a timeout is waited for no more."""


class Script:
    """A process's functions, by what they are for.

    :param process: The process's name.
    :param state: The state's class, or a union of classes.
    :param missing: What becomes of an event that finds no process and starts none.
    :param restart: Whether one that has ended may be started again.
    """

    def __init__(self, process: str, state: Any, *, missing: Missing, restart: bool) -> None:
        self.starts: dict[type, Reaction] = {}
        self.goes_on: dict[type, Reaction] = {}
        self.timeouts: dict[str, Reaction] = {}
        self._process = process
        self._state = state
        self._missing: Missing = missing
        self._restart = restart

    @property
    def classes(self) -> tuple[type, ...]:
        """The event classes that anything is done for."""
        return tuple(dict.fromkeys((*self.starts, *self.goes_on)))

    def add(self, kind: Literal["starts", "on"], classes: tuple[type, ...], function: Callable[..., Any]) -> None:
        """Add a function for events. Raises `ConfigurationError`."""
        known = self.starts if kind == "starts" else self.goes_on
        where = self._where(function)
        for cls in classes:
            if cls in known:
                raise ConfigurationError(
                    f"{where}: {known[cls].where} is for {cls.__name__} already, and one function takes each event"
                )
        known.update(dict.fromkeys(classes, reaction(function, where, kind, classes, self._state)))

    def add_timeout(self, name: str, function: Callable[..., Any]) -> None:
        """Add a function for a timeout. Raises `ConfigurationError`."""
        where = self._where(function)
        if name in self.timeouts:
            raise ConfigurationError(f"{where}: {self.timeouts[name].where} is for the timeout {name!r} already")
        self.timeouts[name] = reaction(function, where, "timeout", (), self._state)

    def _where(self, function: Callable[..., Any]) -> str:
        return f"process {self._process!r}: {getattr(function, '__name__', type(function).__name__)}"

    def choose(self, key: str, life: Life | None, event: Event[Any]) -> Reaction | Idle:
        """Return the function that is to be called; or why none is.

        :param key: The process's key.
        :param life: What is kept of it; None where nothing is.
        :param event: What came.

        Raises `NoSuchProcessError` and `AlreadyRunningError`, and `ConfigurationError` for a timeout that has no function.
        """
        if isinstance(event.payload, TimedOut):
            return self._timed_out(key, life, event.payload)
        cls = type(cast("object", event.payload))
        starts = self.starts.get(cls)
        if life is None or (life.ended and self._restart):
            if starts is not None:
                return starts
            return self._absent(key, cls) if life is None else "late"
        if life.ended:
            return "late"
        if (goes_on := self.goes_on.get(cls)) is not None:
            return goes_on
        raise AlreadyRunningError(
            f"{named(self._process, key)} runs already, and {cls.__name__} only starts one: say what it means then with "
            f"@{self._process}.on({cls.__name__})"
        )

    def _absent(self, key: str, cls: type) -> Idle:
        if self._missing == "ignore":
            return "missing"
        raise NoSuchProcessError(
            f"there is no {named(self._process, key)}, and {cls.__name__} does not start one: it came before what does, long "
            "after the end, or with a key of something else"
        )

    def _timed_out(self, key: str, life: Life | None, timed_out: TimedOut) -> Reaction | Idle:
        if life is None or not life.waits_for(timed_out):
            return "stale"
        found = self.timeouts.get(timed_out.name)
        if found is None:
            raise ConfigurationError(
                f"{named(self._process, key)} waits for {timed_out.name!r}, for which there is no function any more: write "
                f"@{self._process}.timeout({timed_out.name!r})"
            )
        return found

    def check(self, step: Step, where: str) -> None:
        """Raise `ConfigurationError` for a step whose timeouts nobody takes."""
        self._check_names((each.name for each in step.timeouts), where)
        self._check_names(step.cleared, where)

    def _check_names(self, names: Iterable[str], where: str) -> None:
        for name in names:
            if name not in self.timeouts:
                known = ", ".join(map(repr, self.timeouts)) or "none"
                raise ConfigurationError(
                    f"{where} names the timeout {name!r}, and no function is for it (there is {known}): write "
                    f"@{self._process}.timeout({name!r})"
                )
