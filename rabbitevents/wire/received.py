"""What a delivery says of its event, whichever form it came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from rabbitevents.events import Event, Metadata
from rabbitevents.message import Delivery
from rabbitevents.properties import Headers
from rabbitevents.wire.amqp import CAUSATION_ID, ENTITY_ID, ENTITY_TYPE, EVENT_TIME, FULL_CORRELATION, META
from rabbitevents.wire.times import read_time
from rabbitevents.wire.words import carried, readable, text

P = TypeVar("P")

_KNOWN_METADATA = frozenset({"correlation_id", "causation_id", "source"})

NOTHING: Mapping[str, Any] = {}
"""What is stated where only AMQP's own words speak."""


class Found(msgspec.Struct, frozen=True):
    """What was read of a delivery. It is kept there, so that nobody reads it twice; it does not hold the delivery."""

    type: str
    version: int
    body: bytes
    """The payload as JSON."""
    stated: Mapping[str, Any]
    """What a structured document or CloudEvents attributes say, under the names of the structured document."""


class Received(msgspec.Struct, frozen=True):
    """A delivery and what it says of its event: enough to choose a handler; the rest is read when somebody asks."""

    delivery: Delivery
    type: str
    version: int
    body: bytes
    stated: Mapping[str, Any]

    @property
    def correlation_id(self) -> str | None:
        """What the event's cascade shares, as it goes on with what is published meanwhile; None where it says none."""
        return carried(self._said_correlation())

    def envelope(self, payload: P) -> Event[P]:
        """Return the event with ``payload`` in it. Raises `DecodeError` for headers that cannot be read."""
        delivery, stated = self.delivery, self.stated
        headers = delivery.headers
        return Event(
            id=delivery.id,
            type=self.type,
            version=self.version,
            entity_type=_text(stated.get("entity_type", headers.get(ENTITY_TYPE))),
            entity_id=_text(stated.get("entity_id", headers.get(ENTITY_ID))),
            timestamp=read_time(stated.get("timestamp", headers.get(EVENT_TIME)), delivery.properties.timestamp),
            payload=payload,
            metadata=self._metadata(headers),
        )

    def _metadata(self, headers: Headers) -> Metadata:
        known: Mapping[str, str] = self.stated.get("metadata", NOTHING)
        extra = {k[len(META) :]: text(v) for k, v in headers.items() if k.startswith(META)}
        extra.update({k: v for k, v in known.items() if k not in _KNOWN_METADATA})
        said = self._said_correlation()
        correlation_id = carried(said)
        if said is not None and correlation_id != said:
            extra[FULL_CORRELATION] = readable(said)
        return Metadata(
            correlation_id=correlation_id,
            causation_id=_text(known.get("causation_id", headers.get(CAUSATION_ID))),
            source=known.get("source", self.delivery.properties.app_id),
            extra=extra,
        )

    def _said_correlation(self) -> str | None:
        known: Mapping[str, str] = self.stated.get("metadata", NOTHING)
        return known.get("correlation_id", self.delivery.properties.correlation_id)


def _text(value: object) -> str | None:
    return None if value is None else text(value)
