"""CloudEvents 1.0: structured, and binary with ``cloudEvents:`` or ``cloudEvents_`` headers.

Sources: CloudEvents 1.0.2, its JSON format, and its AMQP binding, section 3.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rabbitevents.errors import DecodeError, EncodeError
from rabbitevents.events import Event
from rabbitevents.message import Delivery
from rabbitevents.properties import Headers, HeaderValue
from rabbitevents.wire.amqp import JSON, metadata_text
from rabbitevents.wire.received import Found
from rabbitevents.wire.words import checked_type, is_json, plain, read_content_type, read_version, shown, text

CLOUDEVENT: Final = "application/cloudevents+json"

_PREFIXES = ("cloudEvents:", "cloudEvents_")
_KNOWN = frozenset(
    {"specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema"}
    | {"entitytype", "eventversion", "correlationid", "causationid"}
)
_RESERVED = _KNOWN | {"data", "data_base64"}
_RENAMED = {"source": "source", "correlationid": "correlation_id", "causationid": "causation_id"}


# --- writing -------------------------------------------------------------------------------------------------------


def binary_headers(event: Event[Any]) -> dict[str, HeaderValue]:
    """Return an event's attributes as headers. Raises `EncodeError`."""
    return {f"cloudEvents:{name}": value for name, value in _attributes_of(event).items()}


def structured(event: Event[Any], body: bytes) -> bytes:
    """Return an event as a structured CloudEvent, ``body`` its data. Raises `EncodeError`."""
    document = {**_attributes_of(event), "datacontenttype": JSON, "data": msgspec.Raw(body)}
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError as error:
        raise EncodeError(
            f"a text in the envelope of {event.type} is no UTF-8, which a CloudEvent cannot say"
        ) from error


def _attributes_of(event: Event[Any]) -> dict[str, str]:
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
        if name in _RESERVED or not re.fullmatch("[a-z0-9]+", name):
            raise EncodeError(
                f"metadata {name[:40]!r} of {event.type} cannot be a CloudEvents extension: "
                "its name must be lower-case letters and digits (CloudEvents 1.0.2, 3.1), and not one of the attributes"
            )
        extensions[name] = metadata_text(name, value, event)
    attributes.update({name: value for name, value in extensions.items() if value is not None})
    return attributes


# --- reading -------------------------------------------------------------------------------------------------------


def cloud_headers(headers: Headers) -> dict[str, HeaderValue]:
    """Return the CloudEvents attributes among ``headers``, under their own names."""
    return {k[12:]: v for k, v in headers.items() if k.startswith(_PREFIXES)}


def read_binary(delivery: Delivery, body: bytes, attributes: Mapping[str, Any], content_type: str) -> Found:
    """Read a CloudEvent whose attributes came as headers. Raises `DecodeError`."""
    return _found({**attributes, "datacontenttype": content_type}, body, delivery.properties.type)


def read_structured(delivery: Delivery, body: bytes) -> Found:
    """Read a CloudEvent that is all in the body (UTF-8). Raises `DecodeError`."""
    kind = delivery.properties.type
    try:
        parts = _parts(body)
        data = bytes(parts.pop("data", b"null"))
        encoded = parts.pop("data_base64", None)
        attributes = {name: plain(value) for name, value in parts.items()}
        if encoded is not None:
            data = base64.b64decode(msgspec.json.decode(bytes(encoded), type=str), validate=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError("the body is no CloudEvent: no JSON object, or no base64 in it", type=kind) from error
    return _found(attributes, data, kind)


_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _found(attributes: Mapping[str, Any], body: bytes, known: str | None) -> Found:
    kind = attributes.get("type")
    if not isinstance(kind, str) or attributes.get("specversion") != "1.0":
        raise DecodeError("a CloudEvent needs a type and the specversion 1.0", type=known)
    kind = checked_type(kind)
    content_type = read_content_type(text(attributes.get("datacontenttype") or JSON))
    if not is_json(content_type):
        raise DecodeError(f"the CloudEvent's data content type {shown(content_type)} is not understood", type=kind)
    given = {name: value for name, value in attributes.items() if value is not None}
    metadata = {name: text(value) for name, value in given.items() if name not in _KNOWN}
    metadata.update({ours: text(given[theirs]) for theirs, ours in _RENAMED.items() if theirs in given})
    stated = {
        "id": _id_of(given.get("id"), kind),
        "entity_type": given.get("entitytype"),
        "entity_id": given.get("subject"),
        "timestamp": given.get("time"),
        "metadata": metadata,
    }
    return Found(kind, read_version(given.get("eventversion", 1)), body, stated)


def _id_of(stated: object, kind: str) -> str | None:
    """Return a CloudEvent's id. Raises `DecodeError` for one that is neither text nor a whole number."""
    if stated is None or isinstance(stated, str):
        return stated
    if isinstance(stated, int) and not isinstance(stated, bool):
        return str(stated)
    raise DecodeError("the CloudEvent's id is no text", type=kind)
