"""What a span says of one event and of one failure: ids, types, sizes and names, never a body or what a header says.

``rabbitevents.entity.id`` and the like are headers too, but they are ids, and part of the wire contract. What a stranger
wrote is cut and escaped: of a text that is no UTF-8, or of a number of more than 64 bits, an exporter would make nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, ItemsView, Iterator, Mapping
from os.path import basename
from typing import Final

from opentelemetry.trace import Span, Status, StatusCode

from rabbitevents import DecodeError, Delivery, Message, Properties, RabbitEventsError
from rabbitevents.texts import name_of, printable
from rabbitevents_tracing.carrier import Headers, Times, seconds

Value = str | int | float | bool
Attributes = Mapping[str, Value]

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
    if not isinstance(value, int):
        return 0
    return int(value) if 0 <= value <= _LARGEST else max(0, min(value, _LARGEST))


class Said(Mapping[str, Value]):
    """Attributes that are made when somebody asks for one: of an event that nobody samples, none is.

    They are all there when a span begins, for samplers and processors, and OpenTelemetry's SDK takes them in at once.
    """

    __slots__ = ("_known", "_make")

    def __init__(self, make: Callable[[], dict[str, Value]]) -> None:
        self._make = make
        self._known: dict[str, Value] | None = None

    def _made(self) -> dict[str, Value]:
        known = self._known
        if known is None:
            known = self._known = self._make()
        return known

    def __getitem__(self, name: str) -> Value:
        return self._made()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())

    def items(self) -> ItemsView[str, Value]:
        """Return them with their names, as a dict does."""
        return self._made().items()


def of_publish(destination: Attributes, message: Message) -> dict[str, Value]:
    """Return what the span of a publish says."""
    said = {**destination, **ids(message.type, message.properties, message.headers)}
    said["messaging.message.body.size"] = len(message.body)
    causation = message.headers.get("causation-id")
    if isinstance(causation, str):
        said["rabbitevents.causation.id"] = shown(causation)
    if message.after is not None:
        said["rabbitevents.delay"] = round(message.after.total_seconds(), 3)
    return said


def ids(type: str, properties: Properties, headers: Headers) -> dict[str, Value]:
    """Return what each span of an event says: what one looks for it by."""
    said: dict[str, Value] = {"rabbitevents.event.type": shown(type)}
    if properties.message_id:
        said["messaging.message.id"] = shown(properties.message_id)
    if properties.correlation_id:
        said["messaging.message.conversation_id"] = shown(properties.correlation_id)
    for header, name in _IDS.items():
        value = headers.get(header)
        if isinstance(value, str):
            said[name] = shown(value)
    return said


def of_delivery(delivery: Delivery) -> dict[str, Value]:
    """Return what each span of a delivery says; its queue, and no more, where its properties cannot be read."""
    try:
        return {**ids(delivery.type, delivery.properties, delivery.headers), "rabbitevents.queue": delivery.queue}
    except DecodeError:
        return {"rabbitevents.queue": delivery.queue}


def of_origin(delivery: Delivery) -> dict[str, Value]:
    """Return what a span says of an attempt where no span of its publish, in the same trace, says it."""
    properties, causation = delivery.properties, delivery.headers.get("causation-id")
    said: dict[str, Value] = {"messaging.message.body.size": delivery.oversize or len(delivery.body)}
    if isinstance(causation, str):
        said["rabbitevents.causation.id"] = shown(causation)
    if properties.app_id:
        said["rabbitevents.source"] = shown(properties.app_id)
    return said


def of_place(delivery: Delivery) -> dict[str, Value]:
    """Return what can always be said of a delivery, be its properties readable or not."""
    said: dict[str, Value] = {
        "messaging.rabbitmq.message.delivery_tag": delivery.tag,
        "rabbitevents.queue": delivery.queue,
    }
    if delivery.redelivered:
        said["rabbitevents.redelivered"] = True
    return said


def of_attempt(delivery: Delivery, headers: Headers, times: Times, now: int, *, is_new: bool) -> dict[str, Value]:
    """Return what is said of the attempt itself; one that is not ``is_new`` has not waited at the broker since the last."""
    said: dict[str, Value] = {"rabbitevents.attempt": number(delivery.attempt)}
    wait = seconds(times.since, now) if is_new else None
    if wait is not None:
        said["rabbitevents.wait"] = wait
    if count := delivery.delivery_count:
        said["rabbitevents.delivery_count"] = number(count)
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
