"""The way out: a payload becomes an event, the event a message, and the message is the broker's responsibility."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

from rabbitevents.brokers import Broker
from rabbitevents.consuming.dispatch import CURRENT
from rabbitevents.errors import UnroutableError
from rabbitevents.events import Event, Metadata, event_type, now
from rabbitevents.facts import Report, Returned
from rabbitevents.fields import event_fields
from rabbitevents.ids import new_id
from rabbitevents.message import Message
from rabbitevents.payload.codec import Codec
from rabbitevents.publishing.delay import Delays
from rabbitevents.wire import Form, text_of, write

log: logging.Logger = logging.getLogger("rabbitevents.publish")

P = TypeVar("P")

Unroutable = Literal["warn", "raise", "ignore"]
"""What an event is that no queue is bound for: counted and logged once a type, an error, or nothing at all."""


class Publishing:
    """Makes events and messages, and sends them.

    ``source`` is the events' source, ``form`` how they are written, ``timeout`` how long publishing may take (seconds).
    """

    def __init__(
        self,
        broker: Broker,
        *,
        exchange: str,
        source: str,
        form: Form,
        timeout: float,
        unroutable: Unroutable,
        passive: bool,
        report: Report,
    ) -> None:
        self.unroutable: Counter[str] = Counter()
        """How many events of each type reached no queue."""
        self._broker = broker
        self._delays = Delays(broker, exchange, passive=passive)
        self._exchange = exchange
        self._source = source
        self._form: Form = form
        self._timeout = timeout
        self._on_unroutable: Unroutable = unroutable
        self._report = report
        self._codecs: dict[type, Codec[Any]] = {}
        self._time = asyncio.get_running_loop().time

    def event(self, payload: P | Event[P], metadata: dict[str, str] | None, correlation_id: str | None) -> Event[P]:
        """Put a payload into its envelope; one that is in its envelope already keeps it.

        Made while another event is handled, it is caused by that one, and its id derives from that one's.
        """
        if isinstance(payload, Event):
            return cast("Event[P]", payload)
        spec = event_type(type(payload))
        handling = CURRENT.get()
        cause: str | None = None
        if handling is None:
            id = new_id()
            correlation_id = correlation_id or text_of(id)
        else:
            id, cause = handling.next_id(spec.name), handling.id
            correlation_id = correlation_id or handling.correlation_id
        return Event(
            id,
            spec.name,
            spec.version,
            spec.entity,
            spec.entity_id(payload),
            now(),
            payload,
            Metadata(correlation_id, cause, self._source, metadata or {}),
        )

    def message(self, event: Event[Any], delay: timedelta | None, timeout: float | None) -> Message:
        """Write an event as a message. Raises `EncodeError`."""
        payload: object = event.payload
        body, properties = write(event, self._codec(type(payload)).encode(payload), self._form)
        return Message(
            exchange=self._exchange,
            routing_key=event.type,
            body=body,
            properties=properties,
            after=delay,
            timeout=timeout,
        )

    def _codec(self, kind: type[Any]) -> Codec[Any]:
        codec = self._codecs.get(kind)
        if codec is None:
            codec = self._codecs[kind] = Codec(kind)
        return codec

    async def send(self, message: Message) -> None:
        """Publish a message; one that reaches no queue is what ``unroutable`` says. Raises a `PublishError`."""
        publish = self._broker.publish if message.after is None else self._delays.publish
        if not await publish(message, self._deadline(message)):
            self._note_unroutable(message)

    async def forward(self, message: Message) -> None:
        """Publish a copy of a delivery; one that reaches no queue is an error here. Raises a `PublishError`."""
        if not await self._delays.publish(message, self._deadline(message)):
            raise UnroutableError(message)

    def close(self) -> None:
        """Declare no waiting queues any more."""
        self._delays.close()

    def _deadline(self, message: Message) -> float:
        return self._time() + (self._timeout if message.timeout is None else message.timeout)

    def _note_unroutable(self, message: Message) -> None:
        if self._on_unroutable == "raise" or message.exchange != self._exchange:
            raise UnroutableError(message)
        if self._on_unroutable == "ignore":
            return
        self.unroutable[message.type] += 1
        if self.unroutable[message.type] == 1:
            log.warning(
                "%s: no queue is bound for it (said once; unroutable='raise' makes it an error)",
                message.describe(),
                extra=event_fields(message),
            )
        self._report(Returned(message.type, message.id))
