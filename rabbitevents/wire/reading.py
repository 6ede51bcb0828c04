"""The way in: what was delivered, in whichever form, and the identity of what strangers send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

import msgspec

from rabbitevents.errors import DecodeError
from rabbitevents.expiration import now
from rabbitevents.ids import as_uuid, new_id, says_no_id
from rabbitevents.message import Delivery, Message
from rabbitevents.properties import Properties, glance
from rabbitevents.topology import DUE
from rabbitevents.wire.amqp import ENTITY_ID, ENTITY_TYPE, EVENT_VERSION, JSON
from rabbitevents.wire.cloudevents import CLOUDEVENT, cloud_headers, read_binary, read_structured
from rabbitevents.wire.document import DOCUMENT, document_in, read_document
from rabbitevents.wire.masstransit import MASSTRANSIT, read_envelope
from rabbitevents.wire.received import NOTHING, Found, Received
from rabbitevents.wire.words import BOM, LATEST_VERSION, carried, is_json, read_content_type, read_version, shown, utf_8

_ENVELOPES: Final = {CLOUDEVENT: read_structured, DOCUMENT: read_document, MASSTRANSIT: read_envelope}
"""What reads a body that says all of its event, by the content type."""

_OTHER_ENVELOPES: Final = frozenset({"application/cloudevents-batch+json"})
"""JSON, but no payload: what is inside is not understood."""

_SAYING_NOTHING: Final = frozenset({"application/octet-stream", "text/plain"})
"""What clients write where nobody told them what they send: the Java client's `MessageProperties`, Spring, NServiceBus."""

WATERMILL_ID: Final = "_watermill_message_uuid"
"""The header where Watermill has the message's id, the only word of another library that stands in for a property."""


def read(delivery: Delivery) -> Received:
    """Say what was delivered. Raises `DecodeError` for what is in none of the forms.

    A delivery that `identify` has seen is not read a second time.
    """
    _check_time(delivery)
    return _received(delivery)


def _received(delivery: Delivery) -> Received:
    found = delivery.found
    if not isinstance(found, Found):
        found = _find(delivery, delivery.properties)
    return Received(delivery, found.type, found.version, found.body, found.stated)


def _check_time(delivery: Delivery) -> None:
    """Raise `DecodeError` for what waited at the broker until its expiration was over: it must not be handled late.

    Only what waited is looked at: anything else the broker looks after itself.
    """
    if delivery.via_exchange.endswith(DUE):
        over = delivery.expires_at
        if over is not None and (late := now() - over) >= 0:
            raise DecodeError(f"its expiration was over {late / 1000:g} s ago", type=delivery.type)


def glean(delivery: Delivery) -> Received:
    """Say what was delivered as far as that can be read: what cannot is what its property or its routing key says.

    For handlers that ask for no payload. Raises `DecodeError` where not even AMQP's own words can be read, or the body
    was not kept; and for what is late.
    """
    _check_time(delivery)
    try:
        return _received(delivery)
    except DecodeError:
        if delivery.oversize:
            raise
        return Received(delivery, delivery.type, 1, delivery.body, NOTHING)


def identify(delivery: Delivery) -> None:
    """Settle once which event a delivery is, before anybody handles it: all see the same, and so do its copies.

    One in a foreign form gets the id and the type that its document states, and one without any id a new one. What
    cannot be read keeps what AMQP says of it: reading it will say why.
    """
    raw = delivery.raw
    if type(raw) is bytes and not delivery.oversize and (ours := glance(raw)) is not None and _is_version(ours[1]):
        # Nearly always: nothing is to be settled.
        delivery.identify(None, None, Found(*ours, delivery.body.removeprefix(BOM), NOTHING))
        return
    try:
        properties = delivery.properties
    except DecodeError:
        return
    try:
        found = _find(delivery, properties)
    except DecodeError:
        found = None
    is_ours = found is not None and found.stated is NOTHING and found.type == properties.type
    id = None if found is None or is_ours else _stated_id(delivery, found)
    if id is None and says_no_id(properties.message_id):
        id = _id_in_headers(delivery)
    if id is None and says_no_id(properties.message_id):
        id = new_id()
        properties = msgspec.structs.replace(properties, message_id=None)  # so that all see that it has none
    elif id is not None:
        properties = msgspec.structs.replace(properties, message_id=str(id))
    if found is not None and not is_ours:
        correlation_id = _stated_correlation(found) or properties.correlation_id
        properties = msgspec.structs.replace(properties, type=found.type, correlation_id=correlation_id)
    delivery.identify(properties, id, found)


def _is_version(number: int) -> bool:
    return 0 <= number <= LATEST_VERSION


def _stated_id(delivery: Delivery, found: Found) -> UUID | None:
    """Return the id that a document states, unique with its source; None where it states none."""
    stated: str | None = found.stated.get("id")
    return (
        None
        if stated is None or says_no_id(stated)
        else as_uuid(stated, _metadata(found).get("source", delivery.properties.app_id))
    )


def _id_in_headers(delivery: Delivery) -> UUID | None:
    try:
        said = delivery.headers.get(WATERMILL_ID)
    except DecodeError:
        return None
    return as_uuid(said, delivery.properties.app_id) if isinstance(said, str) and not says_no_id(said) else None


def _stated_correlation(found: Found) -> str | None:
    return carried(_metadata(found).get("correlation_id"))


def _metadata(found: Found) -> Mapping[str, str]:
    metadata: Mapping[str, str] = found.stated.get("metadata", NOTHING)
    return metadata


def _find(delivery: Delivery, properties: Properties) -> Found:
    if delivery.oversize:
        raise DecodeError(
            f"the body is {delivery.oversize:,} bytes, over the limit, and was not kept", type=delivery.type
        )
    stated = properties.content_type or JSON
    if stated == JSON and properties.type and not properties.content_encoding:
        version = delivery.peek(EVENT_VERSION)
        if version is not None:  # without reading the other headers: what speaks AMQP's own words as we do
            return Found(properties.type, read_version(version), delivery.body.removeprefix(BOM), NOTHING)
    content_type = read_content_type(stated)
    try:
        body = utf_8(delivery.body, stated, properties.content_encoding or "")
    except DecodeError as error:
        error.type = properties.type
        raise
    return _read(delivery, properties, content_type, body)


def _read(delivery: Delivery, properties: Properties, content_type: str, body: bytes) -> Found:
    """Read a body by the first of the forms that fits (`docs/wire-contract.md` has them in this order)."""
    if content_type in _ENVELOPES:
        return _ENVELOPES[content_type](delivery, body)
    headers = delivery.headers
    cloud = cloud_headers(headers)
    if cloud:
        return read_binary(delivery, body, cloud, content_type)
    if content_type in _OTHER_ENVELOPES or not (is_json(content_type) or content_type in _SAYING_NOTHING):
        raise DecodeError(f"the content type {shown(content_type)} is not understood", type=properties.type)
    compression = headers.get("compression")
    if isinstance(compression, str) and compression:
        raise DecodeError(f"the compression {shown(compression)} is not understood", type=properties.type)
    if EVENT_VERSION not in headers or not properties.type:
        document = document_in(delivery, body)
        if document is not None:
            return document
    return Found(delivery.type, read_version(headers.get(EVENT_VERSION, 1)), body, NOTHING)


def entity_of(message: Message) -> str | None:
    """Return which entity a message is about, "order/42"; None where it names none, or cannot be read."""
    kind, id = _entity(
        Delivery("", 0, 0, False, message.exchange, message.routing_key, message.body, message.properties)
    )
    return None if id is None else f"{kind or ''}/{id}"


_ENTITY_ID = bytes((len(ENTITY_ID),)) + ENTITY_ID.encode() + b"S"
"""How the header with an entity's id begins, where it is a text: name, type; then 4 bytes of length, and the id."""


def entity_id_in(delivery: Delivery) -> bytes | None:
    """Return the id of the entity that a delivery is about, in UTF-8; None where it names none, or cannot be read."""
    raw = delivery.raw
    if type(raw) is bytes and (at := raw.find(_ENTITY_ID)) >= 0 and raw.find(_ENTITY_ID, at + 1) < 0:
        start = at + len(_ENTITY_ID) + 4  # nearly always: without reading the properties
        return raw[start : start + int.from_bytes(raw[start - 4 : start], "big")]
    id = _entity(delivery)[1]
    return None if id is None else str(id).encode()


def _entity(delivery: Delivery) -> tuple[object, object]:
    try:
        kind, id = delivery.peek(ENTITY_TYPE), delivery.peek(ENTITY_ID)
        if id is None and delivery.peek(EVENT_VERSION) is None:  # not in AMQP's own words
            event = read(delivery).envelope(None)
            kind, id = event.entity_type, event.entity_id
    except DecodeError:
        return None, None
    return kind, id
