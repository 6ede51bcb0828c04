"""What a handler's parameters ask for, decided once, at start; per event there is no inspection."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from rabbitevents.consuming.annotations import members, shown
from rabbitevents.consuming.callables import EMPTY, shape
from rabbitevents.consuming.factories import Factory, Provided
from rabbitevents.consuming.results import check_result, promises
from rabbitevents.errors import ConfigurationError
from rabbitevents.events import Event, event_type, is_event
from rabbitevents.message import Delivery
from rabbitevents.routing import Handler
from rabbitevents.wire import Received

log: logging.Logger = logging.getLogger("rabbitevents.consumer")

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
    """What a handler's parameters ask for. Raises `ConfigurationError` for one that nobody can serve.

    One that takes a ``batch`` is asked for lists of what others ask for: each `Get` is called for each event then, but
    for those in ``shared``, which are the same for all of them.
    """

    def __init__(self, handler: Handler, where: str, provided: Mapping[type, Provided], *, batch: bool = False) -> None:
        self._batch = batch
        self.shared: set[Get] = set()
        self.positional: list[Get] = []
        self.keywords: dict[str, Get] = {}
        self.factories: dict[type, Factory] = {}
        self.classes: tuple[type, ...] = handler.classes
        """The event classes that are read."""
        self.accepts_any: bool = False
        """Whether a type without a class here is taken too, as the decoded document."""
        self.reads_payload: bool = False
        self._handler = handler
        self._where = where
        self._provided = provided
        self._taken: list[tuple[type, ...] | None] = []
        found = shape(handler.function, where)
        if not batch:  # which returns a list with something for each: looked at when it does
            check_result(handler.function, found.result, where)
        self.promises: bool = promises(found.result)
        """Whether a plain function says that what it returns is to be awaited."""
        for parameter, hint in found.parameters:
            self._ask(parameter, hint)
        self.takes_payload_only: bool = self.positional == [get_payload] and not self.keywords
        self._settle_classes()
        self._check_sees_something(found.parameters)

    def _ask(self, parameter: inspect.Parameter, hint: Any) -> None:
        several = self._batch and get_origin(hint) is list
        get = self._serve(parameter, get_args(hint)[0] if several else hint)
        if get is None:
            return
        if self._batch and not several:
            if get in (get_payload, _get_envelope, _get_delivery):
                raise ConfigurationError(
                    f"{self._where} takes batches, and its parameter {_named(parameter, hint)} takes one: ask for "
                    f"list[{shown(hint)}]"
                )
            self.shared.add(get)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            self.keywords[parameter.name] = get
        else:
            self.positional.append(get)

    def _serve(self, parameter: inspect.Parameter, hint: Any) -> Get | None:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            return None
        kinds = members(hint)
        if kinds and all(map(_is_envelope, kinds)):
            self._expect(parameter, tuple(cls for kind in kinds for cls in _carried(kind)))
            return _get_envelope
        if kinds and all(map(is_event, kinds)):
            self._expect(parameter, kinds)
            return get_payload
        asks_for_events = any(is_event(kind) or _is_envelope(kind) for kind in kinds)
        for kind in () if asks_for_events else kinds:
            if kind is Delivery:
                return _get_delivery
            if isinstance(kind, type) and kind in self._provided:
                return self._get_provided(kind)
        if parameter.default is inspect.Parameter.empty or asks_for_events:
            raise ConfigurationError(
                f"{self._where}: nobody can serve its parameter {_named(parameter, hint)}; a handler may ask for its event class, "
                f"Event, Delivery, Bus, and whatever was given to bus.provide(){_way_out(parameter, hint)}"
            )
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            return None
        default = parameter.default
        return lambda received, payload, made: default

    def _get_provided(self, hint: type) -> Get:
        there = self._provided[hint]
        if there.factory is None:
            return lambda received, payload, made: there.value
        self.factories[hint] = there.factory
        return lambda received, payload, made: made[hint]

    def _expect(self, parameter: inspect.Parameter, classes: tuple[Any, ...]) -> None:
        """Note the classes that a parameter takes; Event without one, or Event[Any], takes whatever comes."""
        self.reads_payload = True
        if Any in classes or object in classes:
            self._taken.append(None)
            return
        wrong = next((cls for cls in classes if not is_event(cls)), None)
        if wrong is not None:
            raise ConfigurationError(
                f"{self._where}: {_named(parameter, wrong)} is no event class; put @event(...) above it"
            )
        missing = [cls.__name__ for cls in self._handler.classes if cls not in classes]
        if missing:
            raise ConfigurationError(
                f"{self._where} is registered for {', '.join(missing)}, which its parameter {parameter.name!r} does not take"
            )
        self._taken.append(classes)

    def _settle_classes(self) -> None:
        """Read those classes that every parameter for the event takes."""
        definite = [classes for classes in self._taken if classes is not None]
        self.accepts_any = bool(self._taken) and not definite
        if definite:
            self.classes = tuple(cls for cls in definite[0] if all(cls in others for others in definite))
            if not self.classes:
                raise ConfigurationError(
                    f"{self._where} has parameters for different events, and is called with one; ask for all of them in one, as A | B"
                )
        types: dict[str, type] = {}
        names = ((name, cls) for cls in (*self.classes, *self._handler.classes) for name in event_type(cls).names)
        for name, cls in names:
            other = types.setdefault(name, cls)
            if other is not cls:
                raise ConfigurationError(
                    f"{self._where} is for both {other.__name__} and {cls.__name__}, which are the same event type "
                    f"{name!r}; keep one of them, with version= and @upcast for what is older"
                )

    def _check_sees_something(self, parameters: tuple[tuple[inspect.Parameter, Any], ...]) -> None:
        """Refuse a wrapper that hides what it wraps; warn of a handler that takes something, but not its event.

        One without any parameter wants to know only that something happened.
        """
        stars = [p for p, _ in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        gets = (*self.positional, *self.keywords.values())
        if stars and not gets:
            raise ConfigurationError(
                f"{self._where} takes ({', '.join(map(str, stars))}), which does not say what to call it with; "
                "put @functools.wraps(function) above a decorator's wrapper, or give it annotated parameters"
            )
        if parameters and not self.reads_payload and _get_delivery not in gets:
            log.warning(
                "%s never sees what it is called for (%s): it asks neither for the event nor for Delivery; add a parameter "
                "annotated with the event class (a handler that wants to know only that it happened has no parameters)",
                self._where,
                ", ".join(self._handler.routing_keys),
            )


def _is_envelope(hint: Any) -> bool:
    return hint is Event or get_origin(hint) is Event


def _carried(envelope: Any) -> tuple[Any, ...]:
    """Return the classes that an envelope may carry."""
    args = get_args(envelope)
    return members(args[0]) if args else (Any,)


def _named(parameter: inspect.Parameter, hint: Any) -> str:
    if hint is EMPTY:
        return f"{parameter.name!r}, which has no annotation"
    return f"'{parameter.name}: {shown(hint)}'"


def _way_out(parameter: inspect.Parameter, hint: Any) -> str:
    if hint is EMPTY and parameter.name in ("self", "cls"):
        return "; a method is registered bound to its object, as in router.on(...)(service.method)"
    return ""
