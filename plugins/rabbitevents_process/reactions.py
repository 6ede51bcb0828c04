"""The functions of a process, and what each of them asks for: looked at once, when it is decorated."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from rabbitevents import ConfigurationError, Event
from rabbitevents_process.step import Step

Asked = Literal["event", "envelope", "state", "session"]
"""What a parameter asks for."""

Kind = Literal["starts", "on", "timeout"]
"""What a function is for."""

_SEES: typing.Final[dict[Kind, str]] = {
    "starts": "its event, Event[...] or AsyncSession (it has no state yet)",
    "on": "its event, Event[...], the state or AsyncSession",
    "timeout": "the state or AsyncSession (it has no event)",
}
"""What a function of each kind may ask for."""

_UNSEEN: typing.Final[dict[Kind, tuple[Asked, ...]]] = {
    "starts": ("state",),
    "on": (),
    "timeout": ("event", "envelope"),
}
"""What there is none of for a function of each kind."""


class Reaction(msgspec.Struct, frozen=True):
    """One decorated function, ready to be called."""

    function: Callable[..., Any]
    where: str
    """How errors name it."""
    asks: tuple[tuple[str, Asked, bool], ...]
    """Each parameter's name, what it asks for, and whether it must be named."""

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def asks_for(self, wanted: Asked) -> bool:
        """Say whether one of its parameters asks for that."""
        return any(what == wanted for _, what, _ in self.asks)

    def call(self, event: Event[Any], state: Any, session: AsyncSession | None) -> Awaitable[Any] | Any:
        """Call it; what a coroutine function returns is to be awaited, and then to be checked by `step`."""
        values: dict[Asked, Any] = {
            "event": event.payload,
            "envelope": event,
            "state": state,
            "session": session,
        }
        args = [values[what] for _, what, by_name in self.asks if not by_name]
        return self.function(*args, **{name: values[what] for name, what, by_name in self.asks if by_name})

    def step(self, answer: object) -> Step:
        """Return what it answered. Raises `ConfigurationError` for anything but a `Step`."""
        if not isinstance(answer, Step):
            raise ConfigurationError(
                f"{self.where} returned {type(answer).__name__}: return Step(state, ...), or Step(DONE, ...) at the end"
            )
        return answer


def reaction(function: Callable[..., Any], where: str, kind: Kind, classes: Sequence[type], state: Any) -> Reaction:
    """Look at a function. Raises `ConfigurationError` for what nobody can serve.

    :param function: What was decorated.
    :param where: How errors name it.
    :param kind: By what it was decorated.
    :param classes: The event classes that it is called for.
    :param state: The process's state, as an annotation.
    """
    try:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{where}: its annotations cannot be resolved ({error}); classes used there must be importable from the module's "
            "top level"
        ) from error
    asks: list[tuple[str, Asked, bool]] = []
    for parameter in parameters:
        what = _asked(hints.get(parameter.name), classes, state)
        if what is None or what in _UNSEEN[kind] or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(
                f"{where}: nobody can serve its parameter {parameter.name!r}; it may ask, by an annotation, for {_SEES[kind]}"
            )
        asks.append((parameter.name, what, parameter.kind is parameter.KEYWORD_ONLY))
    return Reaction(function, where, tuple(asks))


def _asked(hint: Any, classes: Sequence[type], state: Any) -> Asked | None:
    """Return what an annotation asks for; None for what nobody can serve."""
    if hint is Event or get_origin(hint) is Event:
        carried = members(get_args(hint)[0]) if get_args(hint) else (Any,)
        return "envelope" if Any in carried or set(classes) <= set(carried) else None
    kinds = set(members(hint))
    if classes and set(classes) <= kinds:
        return "event"
    if hint is not None and set(members(state)) <= kinds:
        return "state"
    return "session" if isinstance(hint, type) and issubclass(hint, AsyncSession) else None


def members(hint: Any) -> tuple[Any, ...]:
    """Return what an annotation allows, but for None."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(each for each in get_args(hint) if each is not NoneType)
    return (hint,)
