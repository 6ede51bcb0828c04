"""The way in: what was delivered, in whichever form, and the identity of what strangers send."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import msgspec

from rabbitevents.errors import DecodeError
from rabbitevents.ids import as_uuid, new_id, says_no_id
from rabbitevents.message import Delivery
from rabbitevents.properties import Properties, glance
from rabbitevents.wire.amqp import EVENT_VERSION, JSON
from rabbitevents.wire.cloudevents import CLOUDEVENT, cloud_headers, read_binary, read_structured
from rabbitevents.wire.document import DOCUMENT, document_in, read_document
from rabbitevents.wire.received import NOTHING, Found, Received
from rabbitevents.wire.words import LATEST_VERSION, carried, read_content_type, read_version, shown

_PLAIN_ENCODINGS = frozenset({None, "", "identity", "utf-8", "UTF-8"})


def read(delivery: Delivery) -> Received:
    """Say what was delivered. Raises `DecodeError` for what is in none of the forms.

    A delivery that `identify` has seen is not read a second time.
    """
    found = delivery.found
    if not isinstance(found, Found):
        found = _find(delivery, delivery.properties)
    return Received(delivery, found.type, found.version, found.body, found.stated)


def identify(delivery: Delivery) -> None:
    """Settle once which event a delivery is, before anybody handles it: all see the same, and so do its copies.

    One in a foreign form gets the id and the type that its document states, and one without any id a new one. What
    cannot be read keeps what AMQP says of it: reading it will say why.
    """
    raw = delivery.raw
    if type(raw) is bytes and not delivery.oversize and (ours := glance(raw)) is not None and _is_version(ours[1]):
        delivery.identify(None, None, Found(*ours, delivery.body, NOTHING))  # nearly always: nothing is to be settled
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
    if properties.content_encoding not in _PLAIN_ENCODINGS:
        raise DecodeError(
            f"the content encoding {shown(properties.content_encoding or '')} is not understood", type=properties.type
        )
    content_type = properties.content_type
    if content_type == JSON and properties.type:
        version = delivery.peek(EVENT_VERSION)
        if version is not None:
            return Found(properties.type, read_version(version), delivery.body, NOTHING)
    return _find_foreign(delivery, read_content_type(content_type or JSON))


def _find_foreign(delivery: Delivery, content_type: str) -> Found:
    if content_type == CLOUDEVENT:
        return read_structured(delivery)
    if content_type == DOCUMENT:
        return read_document(delivery)
    cloud = cloud_headers(delivery.headers)
    if cloud:
        return read_binary(delivery, cloud, content_type)
    if content_type != JSON:
        raise DecodeError(f"the content type {shown(content_type)} is not understood", type=delivery.properties.type)
    document = document_in(delivery)
    if document is not None:
        return document
    return Found(delivery.type, read_version(delivery.headers.get(EVENT_VERSION, 1)), delivery.body, NOTHING)
