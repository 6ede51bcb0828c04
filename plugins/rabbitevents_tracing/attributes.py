"""What a span says of one event and of one failure: ids, types, sizes and names, never a body or what a header says.

``rabbitevents.entity.id`` and the like are headers too, but they are ids, and part of the wire contract. What a stranger
wrote is cut and escaped: of a text that is no UTF-8, or of a number of more than 64 bits, an exporter would make nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from os.path import basename
from typing import Any, Final

from opentelemetry.trace import Span, Status, StatusCode

from rabbitevents import Delivery, Message, RabbitEventsError
from rabbitevents.texts import name_of, printable
from rabbitevents_tracing.carrier import Headers, Times, seconds

Attributes = Mapping[str, str | int | float | bool]

LONGEST: Final = 255
"""Characters of an AMQP name; what a header says may be longer, and is cut."""

FRAMES: Final = 40
"""The innermost frames of a stack that are shown."""

_LONGEST_ERROR = 1000
_LARGEST = 2**53

_IDS = {"entity-type": "rabbitevents.entity.type", "entity-id": "rabbitevents.entity.id"}


def shown(text: str, longest: int = LONGEST) -> str:
    """Return a text as a span may say it."""
    return text if len(text) <= longest and text.isprintable() else printable(text[:longest])[:longest]


def number(value: object) -> int:
    """Return a number as a span may say it; 0 for what is none."""
    return max(0, min(int(value), _LARGEST)) if isinstance(value, int) else 0


def of_message(message: Message) -> dict[str, Any]:
    """Return what the span of a publish says."""
    said = ids(message.type, message.properties, message.headers)
    said["messaging.message.body.size"] = len(message.body)
    causation = message.headers.get("causation-id")
    if isinstance(causation, str):
        said["rabbitevents.causation.id"] = shown(causation)
    if message.after is not None:
        said["rabbitevents.delay"] = round(message.after.total_seconds(), 3)
    return said


def ids(type: str, properties: Any, headers: Headers) -> dict[str, Any]:
    """Return what each span of an event says: what one looks for it by."""
    said: dict[str, Any] = {"rabbitevents.event.type": shown(type)}
    if properties.message_id:
        said["messaging.message.id"] = shown(properties.message_id)
    if properties.correlation_id:
        said["messaging.message.conversation_id"] = shown(properties.correlation_id)
    for header, name in _IDS.items():
        value = headers.get(header)
        if isinstance(value, str):
            said[name] = shown(value)
    return said


def of_origin(delivery: Delivery) -> dict[str, Any]:
    """Return what a span says of an attempt where no span of its publish, in the same trace, says it."""
    properties, causation = delivery.properties, delivery.headers.get("causation-id")
    said: dict[str, Any] = {"messaging.message.body.size": delivery.oversize or len(delivery.body)}
    if isinstance(causation, str):
        said["rabbitevents.causation.id"] = shown(causation)
    if properties.app_id:
        said["rabbitevents.source"] = shown(properties.app_id)
    return said


def of_place(delivery: Delivery) -> dict[str, Any]:
    """Return what can always be said of a delivery, be its properties readable or not."""
    said: dict[str, Any] = {
        "messaging.rabbitmq.message.delivery_tag": delivery.tag,
        "rabbitevents.queue": delivery.queue,
    }
    if delivery.redelivered:
        said["rabbitevents.redelivered"] = True
    return said


def of_attempt(delivery: Delivery, headers: Headers, times: Times, now: int, *, is_new: bool) -> dict[str, Any]:
    """Return what is said of the attempt itself; one that is not ``is_new`` has not waited at the broker since the last."""
    said: dict[str, Any] = {"rabbitevents.attempt": number(delivery.attempt)}
    wait = seconds(times.since, now) if is_new else None
    if wait is not None:
        said["rabbitevents.wait"] = wait
    if count := number(delivery.delivery_count):
        said["rabbitevents.delivery_count"] = count
    if replays := number(headers.get("replay-count")):
        said["rabbitevents.replays"] = replays
    if is_new and times.replayed and (dead := seconds(times.forwarded, times.replayed)) is not None:
        said["rabbitevents.dead_for"] = dead
    return said


def fail(span: Span, error: BaseException, *, with_text: bool) -> None:
    """Say on a span that it failed, with which error, and the way to where that was raised.

    The text of an error that is not ours may quote the event, and is shown only ``with_text``.
    """
    if not span.is_recording():
        return
    name = shown(name_of(error))
    text = shown(str(error), _LONGEST_ERROR) if with_text or isinstance(error, RabbitEventsError) else ""
    stack = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)][-FRAMES:]
    lines = (shown(f'File "{code.co_filename}", line {line}, in {code.co_qualname}') for code, line in stack)
    said = {"exception.type": name, "exception.stacktrace": "\n".join(lines)}
    span.add_event("exception", {**said, "exception.message": text} if text else said)
    span.set_attributes({"error.type": name, "rabbitevents.outcome": "failed"})
    if stack:
        code, line = stack[-1]
        where = f"{basename(code.co_filename)}:{line} in {code.co_qualname}"
        span.set_attribute("rabbitevents.error.location", shown(where))
    span.set_status(Status(StatusCode.ERROR, f"{name}: {text}" if text else None))  # the name alone is error.type
