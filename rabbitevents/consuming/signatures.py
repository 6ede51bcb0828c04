"""What a handler's parameters ask for, decided once, at start; per event there is no inspection."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Union, get_args, get_origin

import msgspec

from rabbitevents.errors import ConfigurationError
from rabbitevents.events import Event, is_event
from rabbitevents.message import Delivery
from rabbitevents.routing import Handler
from rabbitevents.wire import Received

Factory = Callable[[Delivery], Any]
"""Makes what a handler asked for: a value, or an async context manager that is entered around the handler."""


class Provided(msgspec.Struct, frozen=True):
    """What handlers may ask for by type: a value, or a factory of one for each delivery."""

    value: Any = None
    factory: Factory | None = None


Get = Callable[[Received, Any, Mapping[type, Any]], Any]
"""Gets one argument: from what was received, the decoded payload, and what factories made."""


def get_payload(received: Received, payload: Any, made: Mapping[type, Any]) -> Any:
    """Return the decoded payload."""
    return payload


def _get_envelope(received: Received, payload: Any, made: Mapping[type, Any]) -> Any:
    return received.envelope(payload)


def _get_delivery(received: Received, payload: Any, made: Mapping[type, Any]) -> Any:
    return received.delivery


class Signature:
    """What a handler's parameters ask for. Raises `ConfigurationError` for one that nobody can serve."""

    def __init__(self, handler: Handler, where: str, provided: Mapping[type, Provided]) -> None:
        self.positional: list[Get] = []
        self.keywords: dict[str, Get] = {}
        self.factories: dict[type, Factory] = {}
        self.classes: tuple[type, ...] = handler.classes
        self.accepts_any: bool = False
        self.reads_payload: bool = False
        self._handler = handler
        self._where = where
        self._provided = provided
        if inspect.isasyncgenfunction(callee(handler.function)):
            raise ConfigurationError(f"{where} is an async generator; return a list of events instead")
        for parameter, hint in _parameters(handler.function, where):
            get = self._serve(parameter, hint)
            if get is None:
                continue
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                self.keywords[parameter.name] = get
            else:
                self.positional.append(get)
        self.takes_payload_only: bool = self.positional == [get_payload] and not self.keywords

    def _serve(self, parameter: inspect.Parameter, hint: Any) -> Get | None:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            return None
        if hint is Delivery:
            return _get_delivery
        if hint is Event or get_origin(hint) is Event:
            self._expect(_members(get_args(hint)[0]) if get_args(hint) else (), parameter)
            return _get_envelope
        members = _members(hint)
        if members and all(map(is_event, members)):
            self._expect(members, parameter)
            return get_payload
        if isinstance(hint, type) and hint in self._provided:
            return self._get_provided(hint)
        if parameter.default is not inspect.Parameter.empty:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                return None
            default = parameter.default
            return lambda received, payload, made: default
        raise ConfigurationError(
            f"{self._where}: nobody can serve its parameter {_shown(parameter, hint)}; a handler may ask for its event class, "
            "Event, Delivery, Bus, and whatever was given to bus.provide()"
        )

    def _get_provided(self, hint: type) -> Get:
        there = self._provided[hint]
        if there.factory is None:
            return lambda received, payload, made: there.value
        self.factories[hint] = there.factory
        return lambda received, payload, made: made[hint]

    def _expect(self, members: tuple[Any, ...], parameter: inspect.Parameter) -> None:
        """Note the classes that a parameter takes; Event without one, or Event[Any], takes whatever comes."""
        self.reads_payload = True
        if not members or Any in members or object in members:
            self.accepts_any = True
            return
        wrong = next((m for m in members if not is_event(m)), None)
        if wrong is not None:
            raise ConfigurationError(
                f"{self._where}: {_shown(parameter, wrong)} is no event class; put @event(...) above it"
            )
        missing = [cls.__name__ for cls in self._handler.classes if cls not in members]
        if missing:
            raise ConfigurationError(
                f"{self._where} is registered for {', '.join(missing)}, which its parameter {parameter.name!r} does not take"
            )
        self.classes = tuple(members)


def _parameters(function: Callable[..., Any], where: str) -> list[tuple[inspect.Parameter, Any]]:
    try:
        hints = typing.get_type_hints(inspect.unwrap(callee(function)))
    except (NameError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{where}: its annotations cannot be resolved ({error}); classes used there must be importable from the module's top level"
        ) from error
    parameters = inspect.signature(function).parameters.values()
    return [(p, hints.get(p.name, inspect.Parameter.empty)) for p in parameters]


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _shown(parameter: inspect.Parameter, hint: Any) -> str:
    if hint is inspect.Parameter.empty:
        return f"{parameter.name!r}, which has no annotation"
    return f"'{parameter.name}: {getattr(hint, '__name__', hint)}'"


def callee(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that is called in the end: that of a partial, the method of an object that can be called."""
    target = function
    while isinstance(target, partial):
        inner: Callable[..., Any] = target.func
        target = inner
    return target if inspect.isroutine(target) else getattr(target, "__call__", target)  # noqa: B004
