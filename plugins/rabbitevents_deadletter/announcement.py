"""The event that says that another one was given up on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import uuid5

from attrs import frozen

from rabbitevents import Delivery, Event, Metadata, event
from rabbitevents_deadletter.labels import REPLAY_COUNT

PROCESSING_FAILED: Final = "event.processing.failed"


@event(PROCESSING_FAILED, version=1, entity="event", key="event_id")
@frozen
class EventProcessingFailed:
    """An event was given up on, and is in a dead letter queue. Ids and names; neither its body nor its headers."""

    event_id: str
    event_type: str
    queue: str
    """The queue that it was consumed from; its dead letter queue is that name and ``.dead``."""
    handler: str
    error: str
    """The class of the exception."""
    attempts: int
    failed_at: datetime


def announce(
    delivery: Delivery, failed: EventProcessingFailed, source: str, *, identity: str
) -> Event[EventProcessingFailed]:
    """Put the announcement into its envelope, caused by the event that failed.

    Its id is the same when the same failure is announced again, after a crash in between. ``identity`` is the
    subscription's, which stays when its queue is given another name.
    """
    return Event(
        id=uuid5(delivery.id, f"{identity} {failed.attempts} {delivery.headers.get(REPLAY_COUNT, 0)}"),
        type=PROCESSING_FAILED,
        version=1,
        entity_type="event",
        entity_id=failed.event_id,
        timestamp=failed.failed_at.astimezone(UTC),
        payload=failed,
        metadata=Metadata(delivery.properties.correlation_id or failed.event_id, failed.event_id, source),
    )
