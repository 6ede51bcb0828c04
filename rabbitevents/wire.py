"""How an event looks on the wire, written and read here and nowhere else (`docs/wire-contract.md` is the table).

Three forms are understood: AMQP's own words (properties and headers, the body is the payload alone), the structured
JSON document, and CloudEvents 1.0 (structured, and binary with ``cloudEvents:`` or ``cloudEvents_`` headers).
Sources: CloudEvents 1.0.2, its JSON format, and its AMQP binding, section 3.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar, cast
from uuid import UUID

import msgspec

from rabbitevents.errors import DecodeError, EncodeError
from rabbitevents.events import Document, Event, Metadata, now
from rabbitevents.message import Delivery, Message, as_uuid
from rabbitevents.payload.codec import read_document
from rabbitevents.properties import Headers, HeaderValue, Properties, encode_properties, short

P = TypeVar("P")

Form = Literal["amqp", "cloudevents", "cloudevents-binary"]
"""In which form events are sent. All are understood on receipt, and the structured JSON document too."""

JSON: Final = "application/json"
DOCUMENT: Final = "application/vnd.rabbitevents.event+json"
CLOUDEVENT: Final = "application/cloudevents+json"

EVENT_VERSION: Final = "event-version"
ENTITY_TYPE: Final = "entity-type"
ENTITY_ID: Final = "entity-id"
EVENT_TIME: Final = "event-time"
CAUSATION_ID: Final = "causation-id"
META: Final = "meta-"

_CLOUD_PREFIXES = ("cloudEvents:", "cloudEvents_")
_PLAIN_ENCODINGS = frozenset({None, "", "identity", "utf-8", "UTF-8"})


class Limits(msgspec.Struct, frozen=True):
    """The largest event, in bytes, both ways. The broker's own limit for a body is 16 MiB (4.0), 128 MiB before."""

    body: int = 1_048_576
    headers: int = 65_536
    """Properties and headers together, encoded. They must fit one AMQP frame (128 KiB)."""

    def check(self, message_body: bytes, properties: bytes, name: str) -> None:
        """Raise `EncodeError` for a body, or encoded properties, over the limit."""
        if len(message_body) > self.body:
            raise EncodeError(
                f"{name}: the body is {len(message_body):,} bytes, over the limit of {self.body:,}: "
                "send a reference to it instead, or raise Bus(limits=Limits(body=...))"
            )
        if len(properties) > self.headers:
            raise EncodeError(f"{name}: its headers are {len(properties):,} bytes, over the limit of {self.headers:,}")

    def check_message(self, message: Message) -> None:
        """Raise `EncodeError` for a message that a bus with these limits cannot publish."""
        short(message.routing_key, f"the routing key of {message.type[:40]}")
        self.check(message.body, encode_properties(message.properties), message.type)


# --- writing -------------------------------------------------------------------------------------------------------


def write(event: Event[P], body: bytes, form: Form) -> tuple[bytes, Properties]:
    """Return the body and the properties that ``event`` travels as; ``body`` is its payload as JSON. Raises `EncodeError`."""
    if form == "amqp":
        return body, _properties(event, JSON, _headers(event))
    if form == "cloudevents-binary":
        headers: dict[str, HeaderValue] = {f"cloudEvents:{k}": v for k, v in _cloud_attributes(event).items()}
        return body, _properties(event, JSON, headers)
    document = {**_cloud_attributes(event), "datacontenttype": JSON, "data": msgspec.Raw(body)}
    return msgspec.json.encode(document), _properties(event, CLOUDEVENT, {})


_json = msgspec.json.Encoder().encode


def text_of(value: UUID | datetime) -> str:
    """Return a UUID, or a time in RFC 3339, as text (0.15 us by msgspec; 0.45 and 0.65 by their own methods)."""
    return _json(value)[1:-1].decode().replace("Z", "+00:00")


def _properties(event: Event[Any], content_type: str, headers: Headers) -> Properties:
    metadata = event.metadata
    return Properties(
        content_type=content_type,
        headers=headers,
        correlation_id=metadata.correlation_id,
        message_id=text_of(event.id),
        timestamp=_posix(event.timestamp),
        type=event.type,
        app_id=metadata.source,
    )


def _posix(time: datetime) -> int | None:
    """Return AMQP's timestamp; None before 1970, which it cannot say (the event-time header can)."""
    seconds = int(time.timestamp())
    return seconds if seconds >= 0 else None


def _headers(event: Event[Any]) -> dict[str, HeaderValue]:
    headers: dict[str, HeaderValue] = {EVENT_VERSION: event.version, EVENT_TIME: text_of(event.timestamp)}
    if event.entity_type is not None:
        headers[ENTITY_TYPE] = event.entity_type
    if event.entity_id is not None:
        headers[ENTITY_ID] = event.entity_id
    metadata = event.metadata
    if metadata.causation_id is not None:
        headers[CAUSATION_ID] = metadata.causation_id
    for name, value in metadata.extra.items():
        headers[META + name] = _metadata_text(name, value, event)
    return headers


def _metadata_text(name: str, value: object, event: Event[Any]) -> str:
    if not isinstance(value, str):
        raise EncodeError(f"metadata {name!r} of {event.type} must be text, not {type(value).__name__}")
    if not name or len(META + name) > 128:
        raise EncodeError(f"metadata {name[:40]!r} of {event.type}: a header's name has at most 128 characters")
    return value


def _cloud_attributes(event: Event[Any]) -> dict[str, str]:
    """Return CloudEvents attributes, metadata as extensions. Raises `EncodeError` for what cannot be one."""
    metadata = event.metadata
    attributes = {
        "specversion": "1.0",
        "id": str(event.id),
        "source": metadata.source or "rabbitevents",
        "type": event.type,
        "time": event.timestamp.isoformat(),
        "eventversion": str(event.version),
    }
    extensions: dict[str, str | None] = {
        "subject": event.entity_id,
        "entitytype": event.entity_type,
        "correlationid": metadata.correlation_id,
        "causationid": metadata.causation_id,
    }
    for name, value in metadata.extra.items():
        if name in _CLOUD_RESERVED or not re.fullmatch("[a-z0-9]+", name):
            raise EncodeError(
                f"metadata {name[:40]!r} of {event.type} cannot be a CloudEvents extension: "
                "its name must be lower-case letters and digits (CloudEvents 1.0.2, 3.1), and not one of the attributes"
            )
        extensions[name] = _metadata_text(name, value, event)
    attributes.update({name: value for name, value in extensions.items() if value is not None})
    return attributes


# --- reading -------------------------------------------------------------------------------------------------------


class Received(msgspec.Struct, frozen=True):
    """What a delivery says of its event: enough to choose a handler; the rest is read when somebody asks."""

    delivery: Delivery
    type: str
    version: int
    body: bytes
    """The payload as JSON."""
    stated: Mapping[str, Any]
    """What a structured document or CloudEvents attributes say, under the names of the structured document."""

    def envelope(self, payload: P) -> Event[P]:
        """Return the event with ``payload`` in it."""
        delivery, stated = self.delivery, self.stated
        properties = delivery.properties
        headers = properties.headers
        return Event(
            id=delivery.id,
            type=self.type,
            version=self.version,
            entity_type=_stated_text(stated.get("entity_type", headers.get(ENTITY_TYPE))),
            entity_id=_stated_text(stated.get("entity_id", headers.get(ENTITY_ID))),
            timestamp=read_time(stated.get("timestamp", headers.get(EVENT_TIME)), properties.timestamp),
            payload=payload,
            metadata=self._metadata(properties),
        )

    def _metadata(self, properties: Properties) -> Metadata:
        stated: Any = self.stated.get("metadata")
        headers = properties.headers
        extra = {k[len(META) :]: str(v) for k, v in headers.items() if k.startswith(META)}
        known: Mapping[str, Any] = {} if stated is None else stated
        extra.update({k: str(v) for k, v in known.items() if k not in _KNOWN_METADATA})
        return Metadata(
            correlation_id=_stated_text(known.get("correlation_id", properties.correlation_id)),
            causation_id=_stated_text(known.get("causation_id", headers.get(CAUSATION_ID))),
            source=_stated_text(known.get("source", properties.app_id)),
            extra=extra,
        )


_KNOWN_METADATA = frozenset({"correlation_id", "causation_id", "source"})
_NOTHING: Mapping[str, Any] = {}


class _Document(msgspec.Struct):
    """The structured JSON document."""

    type: str
    payload: msgspec.Raw
    id: str | None = None
    entity_type: str | None = None
    entity_id: str | int | None = None
    timestamp: str | int | float | None = None
    version: int | float | str | None = None
    metadata: dict[str, Any] | None = None


def read(delivery: Delivery) -> Received:
    """Say what was delivered. Raises `DecodeError` for what is in none of the forms."""
    if delivery.oversize:
        raise DecodeError(
            f"the body is {delivery.oversize:,} bytes, over the limit, and was not kept", type=delivery.type
        )
    properties = delivery.properties
    if properties.content_encoding not in _PLAIN_ENCODINGS:
        raise DecodeError(
            f"the content encoding {properties.content_encoding!r} is not understood", type=properties.type
        )
    content_type = properties.content_type
    if content_type == JSON and properties.type is not None and EVENT_VERSION in properties.headers:
        return Received(
            delivery, properties.type, read_version(properties.headers[EVENT_VERSION]), delivery.body, _NOTHING
        )
    return _read_foreign(delivery, (content_type or JSON).partition(";")[0].strip().lower())


def _read_foreign(delivery: Delivery, content_type: str) -> Received:
    if content_type == CLOUDEVENT:
        return _read_cloudevent(delivery)
    if content_type == DOCUMENT:
        return _read_document(delivery, msgspec.json.Decoder(_Document))
    cloud = cloud_headers(delivery.headers)
    if cloud:
        return _from_cloud(delivery, {**cloud, "datacontenttype": content_type}, delivery.body)
    if content_type != JSON:
        raise DecodeError(f"the content type {content_type!r} is not understood", type=delivery.properties.type)
    if _looks_like_document(delivery):
        return _read_document(delivery, msgspec.json.Decoder(_Document))
    version = read_version(delivery.headers.get(EVENT_VERSION, 1))
    return Received(delivery, delivery.type, version, delivery.body, _NOTHING)


def _looks_like_document(delivery: Delivery) -> bool:
    """Say whether a JSON body is the structured document: it carries a type of its own, which no property contradicts.

    (The property is there when `identify` has been here before, and in the copy that a retry is.)
    """
    body, known = delivery.body, delivery.properties.type
    if b'"payload"' not in body or b'"type"' not in body:
        return False
    document = read_document(body)
    if not isinstance(document, dict) or "payload" not in document:
        return False
    stated: object = cast("Document", document).get("type")
    return isinstance(stated, str) and known in (None, stated)


def _read_document(delivery: Delivery, decoder: msgspec.json.Decoder[_Document]) -> Received:
    try:
        document = decoder.decode(delivery.body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(
            f"the structured document cannot be read: {type(error).__name__}", type=delivery.type
        ) from error
    stated = {
        "id": document.id,
        "entity_type": document.entity_type,
        "entity_id": None if document.entity_id is None else str(document.entity_id),
        "timestamp": document.timestamp,
        "metadata": document.metadata or {},
    }
    version = 1 if document.version is None else read_version(document.version)
    return Received(delivery, document.type, version, bytes(document.payload), stated)


def cloud_headers(headers: Headers) -> dict[str, HeaderValue]:
    """Return the CloudEvents attributes among ``headers``, under their own names."""
    return {k[12:]: v for k, v in headers.items() if k.startswith(_CLOUD_PREFIXES)}


def _read_cloudevent(delivery: Delivery) -> Received:
    try:
        parts = _CLOUDEVENT.decode(delivery.body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError("the body is no CloudEvent: no JSON object", type=delivery.properties.type) from error
    data = bytes(parts.pop("data", b"null"))
    attributes = {name: read_document(bytes(value)) for name, value in parts.items()}
    encoded = attributes.pop("data_base64", None)
    if encoded is not None:
        try:
            return _from_cloud(delivery, attributes, base64.b64decode(str(encoded), validate=True))
        except ValueError as error:
            raise DecodeError("the CloudEvent's data_base64 is no base64", type=delivery.properties.type) from error
    return _from_cloud(delivery, attributes, data)


_CLOUDEVENT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CLOUD_KNOWN = frozenset(
    {"specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema"}
    | {"entitytype", "eventversion", "correlationid", "causationid"}
)
_CLOUD_RESERVED = _CLOUD_KNOWN | {"data", "data_base64"}


def _from_cloud(delivery: Delivery, attributes: Mapping[str, Any], body: bytes) -> Received:
    kind = attributes.get("type")
    if not isinstance(kind, str) or attributes.get("specversion") != "1.0":
        raise DecodeError("a CloudEvent needs a type and the specversion 1.0", type=delivery.properties.type)
    content_type = str(attributes.get("datacontenttype") or JSON).partition(";")[0].strip().lower()
    if content_type != JSON:
        raise DecodeError(f"the CloudEvent's data content type {content_type!r} is not understood", type=kind)
    metadata = {k: v for k, v in attributes.items() if k not in _CLOUD_KNOWN}
    renamed = {"source": "source", "correlationid": "correlation_id", "causationid": "causation_id"}
    metadata.update(
        {ours: attributes[theirs] for theirs, ours in renamed.items() if attributes.get(theirs) is not None}
    )
    stated = {
        "id": attributes.get("id"),
        "entity_type": attributes.get("entitytype"),
        "entity_id": attributes.get("subject"),
        "timestamp": attributes.get("time"),
        "metadata": metadata,
    }
    return Received(delivery, kind, read_version(attributes.get("eventversion", 1)), body, stated)


def identify(delivery: Delivery) -> None:
    """Give a delivery in a foreign form the id and the type that its document states, so that all see the same event.

    Does nothing for one in AMQP's own words, and nothing for one that cannot be read: reading it will say so.
    """
    try:
        properties = delivery.properties
        if properties.message_id is not None and EVENT_VERSION in properties.headers:
            return
        received = read(delivery)
    except DecodeError:
        return
    stated = received.stated.get("id")
    message_id = str(as_uuid(str(stated))) if stated else properties.message_id
    named = msgspec.structs.replace(properties, message_id=message_id, type=received.type)
    msgspec.structs.force_setattr(delivery, "raw", named)


def read_version(value: object) -> int:
    """Read a schema version: ``1``, ``"1"`` or ``"1.0"``. Raises `DecodeError`."""
    if type(value) is int:
        return value
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not number.is_integer() or number < 0:
        raise DecodeError(f"the event version {str(value)[:20]!r} is no whole number")
    return int(number)


def read_time(stated: object, seconds: int | None) -> datetime:
    """Read an event's time: RFC 3339 text with up to nanoseconds, or a number of seconds (or ms, us, ns) since 1970.

    AMQP's own timestamp stands in for a missing or unreadable one, and this moment for both.
    """
    return _time(stated) or _time(seconds) or now()


def _time(stated: object) -> datetime | None:
    """Read a time; None for one that is missing, or that no datetime can be."""
    try:
        if isinstance(stated, str):
            time = datetime.fromisoformat(stated)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        if isinstance(stated, (int, float)) and stated >= 0:
            scale = next(s for s in (1, 1_000, 1_000_000, 1_000_000_000) if stated / s < _LATEST)
            return datetime.fromtimestamp(stated / scale, UTC)
    except (ValueError, OverflowError, StopIteration):
        return None
    return None


_LATEST = 100_000_000_000
"""Seconds since 1970 (the year 5138): from there on a number of seconds is one of milliseconds, and so forth."""


def _stated_text(value: object) -> str | None:
    return None if value is None else str(value)
