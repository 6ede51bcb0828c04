"""The way out: an event and its encoded payload become a body and properties, in the form that is asked for."""

from __future__ import annotations

from typing import Any, Literal

from rabbitevents.events import Event
from rabbitevents.properties import HeaderValue, Properties
from rabbitevents.wire.amqp import ENTITY_ID, JSON, headers_of, properties_of
from rabbitevents.wire.cloudevents import CLOUDEVENT, binary_headers, structured

Form = Literal["amqp", "cloudevents", "cloudevents-binary"]
"""In which form events are sent. All are understood on receipt, and the structured JSON document too."""


def write(event: Event[Any], body: bytes, form: Form) -> tuple[bytes, Properties]:
    """Return the body and the properties that ``event`` travels as; ``body`` is its payload as JSON.

    Whatever the form, a header says the entity: by that RabbitMQ divides events among partitions. Raises `EncodeError`.
    """
    if form == "amqp":
        return body, properties_of(event, JSON, headers_of(event))
    entity: dict[str, HeaderValue] = {} if event.entity_id is None else {ENTITY_ID: event.entity_id}
    if form == "cloudevents-binary":
        return body, properties_of(event, JSON, {**binary_headers(event), **entity})
    return structured(event, body), properties_of(event, CLOUDEVENT, entity)
