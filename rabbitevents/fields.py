"""What log records say of an event, under the same names everywhere: they go into ``extra``."""

from __future__ import annotations

from contextlib import suppress

from rabbitevents.errors import DecodeError
from rabbitevents.message import Delivery, Message
from rabbitevents.texts import printable

Fields = dict[str, str | int]
"""Fields of a log record: ``event_id``, ``event_type``, ``correlation_id``, and of a delivery ``subscription`` and
``attempt`` too."""


def event_fields(of: Delivery | Message) -> Fields:
    """Return what a log record says of a delivery, or of a message that goes out. Raises nothing.

    ``log.warning("%s is late", delivery.describe(), extra=event_fields(delivery))``. Of a delivery whose properties
    cannot be read, only the subscription is known. Texts have no ends of lines and no control signs in them.
    """
    if isinstance(of, Message):
        return _named(of.id, of.type, of.properties.correlation_id)
    fields: Fields = {"subscription": of.queue}
    with suppress(DecodeError):
        fields |= {**_named(str(of.id), of.type, of.properties.correlation_id), "attempt": of.attempt}
    return fields


def _named(id: str, type: str, correlation_id: str | None) -> Fields:
    named: Fields = {"event_id": id, "event_type": type, "correlation_id": correlation_id or id}
    return {name: printable(str(value)) for name, value in named.items()}
