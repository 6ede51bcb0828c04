"""Writing: a payload becomes an event, and the event a message. No broker is needed for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from hashlib import blake2b
from typing import Any, Literal, TypeVar, cast
from uuid import UUID

from rabbitevents.arguments import Seconds, wrong
from rabbitevents.consuming.current import CURRENT
from rabbitevents.errors import ConfigurationError
from rabbitevents.events import Event, EventType, Metadata, now
from rabbitevents.ids import canonical, named_id, new_id
from rabbitevents.message import Message
from rabbitevents.payload.codec import Codec
from rabbitevents.publishing.checks import (
    as_written,
    check_envelope,
    check_is_event,
    check_metadata,
    correlation_of,
    delay_of,
    timeout_of,
)
from rabbitevents.wire import Form, fits, shown, text_of, with_correlation, write

P = TypeVar("P")

Checked = Literal["always", "never"]
"""Whether what is published is read back first, so that what no consumer could read is an error here."""


class Writer:
    """Puts payloads into their envelopes, and writes them as messages: what `Bus.publish` does before it sends.

    :param exchange: The topic exchange that events go to.
    :param source: The events' source, a service's name; None where that is not known.
    :param form: How events are written on the wire.
    :param check: Whether each is read back first.
    """

    def __init__(
        self, exchange: str = "events", source: str | None = None, *, form: Form = "amqp", check: Checked = "always"
    ) -> None:
        self._exchange = exchange
        self._source = source
        self._form: Form = form
        self._encode = Codec[Any].encode_checked if check == "always" else Codec[Any].encode
        self._codecs: dict[type, Codec[Any]] = {}

    def prepare(
        self,
        payload: P | Event[P],
        *,
        id: UUID | str | None = None,
        metadata: Mapping[str, str] | None = None,
        correlation_id: str | UUID | None = None,
        exchange: str | None = None,
        key: str | None = None,
        delay: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> tuple[Event[P], Message]:
        """Put a payload into its envelope, and write it as a message. One that is in its envelope already keeps it.

        Raises `EncodeError` for what cannot be written, and `ConfigurationError` for an argument that cannot be meant.
        """
        after = None if delay is None else delay_of(delay)
        limit = None if timeout is None else timeout_of(timeout)
        where = () if exchange is None and key is None else self._elsewhere(exchange, key, after)
        if isinstance(payload, Event):
            given = cast("Event[P]", payload)
            check_envelope(given, id, metadata, correlation_id)
            inner: object = given.payload
            codec = self._codecs.get(type(inner)) or self._codec(inner)
            event = as_written(given, codec.spec)
            body = self._encode(codec, inner)
        else:
            codec = self._codecs.get(type(payload)) or self._codec(payload)
            body = self._encode(codec, payload)
            if metadata is not None:
                check_metadata(metadata)
            correlation = None if correlation_id is None else correlation_of(correlation_id)
            event = self._event(codec.spec, payload, body, id, metadata or {}, correlation, after, where)
        written, properties = write(event, body, self._form)
        return event, Message(
            exchange=self._exchange if exchange is None else exchange,
            routing_key=event.type if key is None else key,
            body=written,
            properties=properties,
            after=after,
            timeout=limit,
        )

    def prepare_all(self, payloads: Iterable[Any], timeout: float | None = None) -> list[Message]:
        """Write several payloads or events as messages."""
        return [self.prepare(payload, timeout=timeout)[1] for payload in payloads]

    def _event(
        self,
        spec: EventType,
        payload: P,
        body: bytes,
        id: UUID | str | None,
        metadata: Mapping[str, str],
        correlation_id: str | None,
        delay: timedelta | None,
        where: tuple[str, ...],
    ) -> Event[P]:
        """Make an event. While another one is handled, it is caused by that one, and its id derives from that one's."""
        if correlation_id is not None:
            correlation_id, metadata = with_correlation(correlation_id, metadata)
        handling = CURRENT.get()
        cause: str | None = None
        if handling is None:
            own = new_id() if id is None else _said_id(id) or named_id(self._source or "", spec.name, str(id))
            correlation_id = correlation_id or text_of(own)
        else:
            cause = handling.id
            correlation_id = correlation_id or handling.correlation_id
            if id is not None:
                own = _said_id(id) or handling.named_id(spec.name, str(id))
            elif handling.ended:
                own = new_id()
            else:
                own = handling.next_id(_digest(spec, body, metadata, correlation_id, delay, where))
        return Event(
            own,
            spec.name,
            spec.version,
            spec.entity,
            spec.entity_id(payload),
            now(),
            payload,
            Metadata(correlation_id, cause, self._source, metadata),
        )

    def _elsewhere(self, exchange: str | None, key: str | None, delay: timedelta | None) -> tuple[str, ...]:
        """Return where an event goes, as words. Raises `ConfigurationError` for what cannot be meant."""
        there = self._exchange if exchange is None else _short("exchange", exchange)
        if key is not None:
            _short("key", key)
        elif not there:
            raise ConfigurationError(
                "publish(exchange=''): AMQP's default exchange needs key=, which names the one queue"
            )
        if delay is not None and there != self._exchange:
            raise ConfigurationError(
                f"publish(exchange={there!r}, delay=...): only what goes to the bus's own exchange {self._exchange!r} can "
                "wait; publish an event there with delay=, and let its handler publish to the other exchange"
            )
        return (there, str(key))

    def _codec(self, payload: object) -> Codec[Any]:
        check_is_event(payload)
        codec = self._codecs[type(payload)] = Codec[Any](type(payload))
        return codec


def _short(what: str, text: object) -> str:
    """Return an exchange's name or a routing key. Raises `ConfigurationError` for what AMQP cannot say."""
    if not isinstance(text, str):
        raise ConfigurationError(f"publish({what}=...) is of type {type(text).__name__}: say text")
    if not fits(text):
        raise ConfigurationError(f"publish({what}={shown(text)}): AMQP carries at most 255 bytes of UTF-8")
    return text


def _said_id(id: UUID | str) -> UUID | None:
    """Return the UUID that an author gave as an event's id; None for a name of another form."""
    if isinstance(id, UUID):
        return id
    if not isinstance(cast("object", id), str):
        raise wrong("publish: id", id, "say a UUID, or a text that names this event alone")
    if not id.strip():
        raise ConfigurationError("publish(id=...) is blank: say a UUID, or a name that is this event's alone")
    return canonical(id)


def _digest(
    spec: EventType,
    body: bytes,
    metadata: Mapping[str, str],
    correlation_id: str,
    delay: timedelta | None,
    where: tuple[str, ...],
) -> bytes:
    """Return a digest of all that an event says, but its id and its time, and of where it goes if that was said."""
    words = [spec.name, str(spec.version), str(correlation_id), str(delay), *where]
    for pair in sorted(metadata.items()):
        words += map(str, pair)
    digest = blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=16)
    digest.update(b"\0" + body)
    return digest.digest()
