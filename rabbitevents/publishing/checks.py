"""What is said at a publish, checked at its caller: further on it would be a broken connection, or silence."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

import msgspec

from rabbitevents.arguments import LONGEST, kind_of, seconds, span, wrong
from rabbitevents.errors import ConfigurationError, EncodeError
from rabbitevents.events import Event, EventType, Metadata, event_type, is_event
from rabbitevents.message import Message
from rabbitevents.properties import Properties

P = TypeVar("P")


def delay_of(value: object) -> timedelta:
    """Return how long an event waits first. A time that is past means at once: it was computed, and the event is due."""
    return span("publish: delay", value, least=-LONGEST)


def timeout_of(value: object, method: str = "publish") -> float:
    """Return how long a publish may take, in seconds."""
    return seconds(f"{method}: timeout", value)


def correlation_of(value: object) -> str:
    """Return a correlation id as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, UUID):
        return str(value)
    raise wrong("publish: correlation_id", value, "say a text or a UUID")


def check_metadata(metadata: object) -> None:
    """Raise `ConfigurationError` for what is not text by text."""
    if not isinstance(metadata, Mapping):
        raise wrong("publish: metadata", metadata, 'say a dict of texts, such as {"tenant": "acme"}')
    for name, value in cast("Mapping[object, object]", metadata).items():
        if not isinstance(name, str):
            raise ConfigurationError(f"publish: metadata has {kind_of(name)} for a name: say a text")
        if not isinstance(value, str):
            raise ConfigurationError(
                f"publish: metadata[{name[:40]!r}] is {kind_of(value)}: say a text, such as str(...)"
            )


def check_envelope(event: Event[Any], id: object, metadata: object, correlation_id: object) -> None:
    """Raise for what cannot be said besides an envelope (`ConfigurationError`), and for a wrong one (`EncodeError`)."""
    if id is not None or metadata is not None or correlation_id is not None:
        said = "id" if id is not None else "metadata" if metadata is not None else "correlation_id"
        raise ConfigurationError(
            f"publish: {said}= was given for an Event, which has an envelope of its own: "
            "publish its payload with it, or the Event without"
        )
    if not _is_as_usual(event):
        _look_closely(event)


def as_written(event: Event[P], spec: EventType) -> Event[P]:
    """Return an envelope that says the version in which its payload is written: its class's.

    One that was received may have come in another, and its payload was led up, or read without what is newer.
    """
    return event if event.version == spec.version else msgspec.structs.replace(event, version=spec.version)


def _is_as_usual(event: Event[Any]) -> bool:
    """Say whether an envelope is like nearly every one, in a tenth of the time that `_look_closely` takes."""
    here = event.metadata
    return (
        type(event.id) is UUID
        and type(event.type) is str
        and type(event.version) is int
        and type(event.timestamp) is datetime
        and event.timestamp.tzinfo is not None
        and (event.entity_type is None or type(event.entity_type) is str)
        and (event.entity_id is None or type(event.entity_id) is str)
        and type(here) is Metadata
        and (here.correlation_id is None or type(here.correlation_id) is str)
        and (here.causation_id is None or type(here.causation_id) is str)
        and (here.source is None or type(here.source) is str)
        and here.extra == {}
    )


def _look_closely(event: Event[Any]) -> None:
    """Raise for the first field that cannot be meant."""
    stamp = cast("object", event.timestamp)
    if isinstance(stamp, datetime) and stamp.tzinfo is None:
        raise EncodeError(f"{_named(event)}: its timestamp has no time zone: say datetime.now(UTC)")
    for name, kinds in _ENVELOPE.items():
        _check_field(_named(event), name, getattr(event, name), kinds)
    for name in ("correlation_id", "causation_id", "source"):
        _check_field(_named(event), f"metadata.{name}", getattr(event.metadata, name), (str, None))
    check_metadata(event.metadata.extra)


_ENVELOPE: dict[str, tuple[type | None, ...]] = {
    "id": (UUID,),
    "type": (str,),
    "version": (int,),
    "entity_type": (str, None),
    "entity_id": (str, None),
    "timestamp": (datetime,),
    "metadata": (Metadata,),
}
"""What may stand in an envelope's fields; None: nothing."""

_MESSAGE: dict[str, tuple[type | None, ...]] = {
    "exchange": (str,),
    "routing_key": (str,),
    "body": (bytes,),
    "properties": (Properties,),
    "after": (timedelta, None),
    "timeout": (float, int, None),
}

_PROPERTIES: dict[str, tuple[type | None, ...]] = {
    "headers": (Mapping,),
    **dict.fromkeys(("delivery_mode", "priority", "timestamp"), (int, None)),
    **dict.fromkeys(
        (
            *("content_type", "content_encoding", "correlation_id", "reply_to", "expiration"),
            *("message_id", "type", "user_id", "app_id", "cluster_id"),
        ),
        (str, None),
    ),
}


def _named(event: Event[Any]) -> str:
    return f"an Event of {type(event.payload).__name__}"


def _check_field(whose: str, name: str, value: object, kinds: Iterable[type | None]) -> None:
    """Raise `EncodeError` for a field that holds something else than it may."""
    if isinstance(value, tuple(kind or type(None) for kind in kinds)) and not isinstance(value, bool):
        return
    wanted = " or ".join("None" if kind is None else kind.__name__ for kind in kinds)
    hint = ", such as text.encode()" if kinds == (bytes,) else ""
    raise EncodeError(f"{whose}: its {name} is {kind_of(value)}: say {wanted}{hint}")


def check_message(message: object) -> Message:
    """Return a message whose every field can be written. Raises `ConfigurationError` and `EncodeError`."""
    if not isinstance(message, Message):
        raise wrong("send: message", message, "say a Message; an event is published by publish(...)")
    for name, kinds in _MESSAGE.items():
        _check_field("a message", name, getattr(message, name), kinds)
    for name, kinds in _PROPERTIES.items():
        _check_field("a message", f"properties.{name}", getattr(message.properties, name), kinds)
    for name in message.headers:
        _check_field("a message", "header's name", name, (str,))
    if message.timeout is not None:
        seconds("send: message.timeout", message.timeout)
    return message


def check_several(payloads: object) -> None:
    """Raise `ConfigurationError` for what is one event, or no events, where several are to be published."""
    given = payloads
    one = isinstance(payloads, (Event, str, bytes, Mapping, type)) or is_event(type(payloads))
    if one or not isinstance(payloads, Iterable):
        raise wrong(
            "publish_many: payloads",
            given,
            "say a list of events; one alone is published by publish(...)",
        )


def check_is_event(payload: object) -> None:
    """Raise `ConfigurationError` for what is no instance of an event class, with what to do instead."""
    kind = type(payload)
    if is_event(kind):
        return
    if isinstance(payload, type):
        raise ConfigurationError(
            f"publish({payload.__name__}): that is the class and no event; publish an instance, {payload.__name__}(...)"
        )
    if inspect.isawaitable(payload):
        raise ConfigurationError(f"publish: {kind_of(payload)} is no event; await it, and publish what comes of it")
    if isinstance(payload, Message):
        raise ConfigurationError("publish: a Message is no event; `send` publishes it as it is")
    if isinstance(payload, (list, tuple, set, frozenset)):
        raise ConfigurationError(f"publish: a {kind.__name__} is no event; publish_many(...) publishes several")
    if kind.__module__ == "builtins":
        raise ConfigurationError(
            f'publish: {kind_of(payload)} is no event; publish an instance of a class with @event("its.name") above it'
        )
    event_type(kind)  # raises
