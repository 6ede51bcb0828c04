"""What a span says of one event and of one failure: ids, types, sizes and names, never a body or what a header says.

``rabbitevents.entity.id`` and the like are headers too, but they are ids, and part of the wire contract.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from os.path import basename
from typing import Any

from opentelemetry.trace import Span, Status, StatusCode

from rabbitevents import Delivery, Message, RabbitEventsError
from rabbitevents_tracing.carrier import waited

Attributes = dict[str, str | int | float | bool]

_LONGEST = 255
_HEADERS = {
    "entity-type": "rabbitevents.entity.type",
    "entity-id": "rabbitevents.entity.id",
    "causation-id": "rabbitevents.causation.id",
}


def of_message(message: Message) -> Attributes:
    """Return what the span of a publish says."""
    attributes = _of_event(message.type, message.properties, len(message.body))
    if message.after is not None:
        attributes["rabbitevents.delay"] = message.after.total_seconds()
    return attributes


def of_delivery(delivery: Delivery, *, here_before: bool) -> Attributes:
    """Return what the span of an attempt says; one that was ``here_before`` has not waited at the broker since.

    Raises `DecodeError` for a delivery whose properties cannot be read.
    """
    properties = delivery.properties
    attributes = of_place(delivery)
    attributes.update(_of_event(delivery.type, properties, delivery.oversize or len(delivery.body)))
    attributes["rabbitevents.attempt"] = delivery.attempt
    if properties.app_id:
        attributes["rabbitevents.source"] = properties.app_id
    if delivery.delivery_count:
        attributes["rabbitevents.delivery_count"] = delivery.delivery_count
    wait = None if here_before else waited(properties.headers, delivery.attempt, properties.timestamp)
    if wait is not None:
        attributes["rabbitevents.wait"] = wait
    return attributes


def of_place(delivery: Delivery) -> Attributes:
    """Return what can always be said of a delivery, be its properties readable or not."""
    attributes: Attributes = {
        "messaging.rabbitmq.message.delivery_tag": delivery.tag,
        "rabbitevents.queue": delivery.queue,
    }
    if delivery.redelivered:
        attributes["rabbitevents.redelivered"] = True
    return attributes


def _of_event(type: str, properties: Any, size: int) -> Attributes:
    attributes: Attributes = {"rabbitevents.event.type": type, "messaging.message.body.size": size}
    if properties.message_id:
        attributes["messaging.message.id"] = properties.message_id
    if properties.correlation_id:
        attributes["messaging.message.conversation_id"] = properties.correlation_id
    headers: Mapping[str, object] = properties.headers
    for header, name in _HEADERS.items():
        value = headers.get(header)
        if isinstance(value, str):
            attributes[name] = value[:_LONGEST]
    return attributes


def error_type(error: BaseException) -> str:
    """Name an error by its class, with the module it is from."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def fail(span: Span, error: BaseException, *, with_text: bool) -> None:
    """Say on a span that it failed, with which error, and where that was raised.

    The text of an error that is not ours may quote the event, and is shown only ``with_text``.
    """
    if not span.is_recording():
        return
    name = error_type(error)
    span.set_attribute("error.type", name)
    where = _location(error)
    if where is not None:
        span.set_attribute("rabbitevents.error.location", where)
    shown = with_text or isinstance(error, RabbitEventsError)
    span.set_status(Status(StatusCode.ERROR, f"{name}: {error}" if shown else name))


def _location(error: BaseException) -> str | None:
    """Say where an error was raised: file, line and function."""
    where = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        where = frame.f_code, line
    return f"{basename(where[0].co_filename)}:{where[1]} in {where[0].co_qualname}" if where is not None else None
