"""The way out: an event and its encoded payload become a body and properties, in the form that is asked for."""

from __future__ import annotations

from typing import Any, Literal

from rabbitevents.events import Event
from rabbitevents.properties import Properties
from rabbitevents.wire.amqp import JSON, headers_of, properties_of
from rabbitevents.wire.cloudevents import CLOUDEVENT, binary_headers, structured

Form = Literal["amqp", "cloudevents", "cloudevents-binary"]
"""In which form events are sent. All are understood on receipt, and the structured JSON document too."""


def write(event: Event[Any], body: bytes, form: Form) -> tuple[bytes, Properties]:
    """Return the body and the properties that ``event`` travels as; ``body`` is its payload as JSON.

    Raises `EncodeError`.
    """
    if form == "amqp":
        return body, properties_of(event, JSON, headers_of(event))
    if form == "cloudevents-binary":
        return body, properties_of(event, JSON, binary_headers(event))
    return structured(event, body), properties_of(event, CLOUDEVENT, {})
