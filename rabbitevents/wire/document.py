"""The structured JSON document, which says all of an event in its body: understood, never sent."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rabbitevents.errors import DecodeError
from rabbitevents.message import Delivery
from rabbitevents.wire.received import Found
from rabbitevents.wire.words import checked_type, plain, read_version, text

DOCUMENT: Final = "application/vnd.rabbitevents.event+json"


class _Document(msgspec.Struct):
    type: str
    payload: msgspec.Raw
    id: str | int | None = None
    entity_type: str | None = None
    entity_id: str | int | None = None
    timestamp: str | int | float | None = None
    version: int | float | str | None = None
    metadata: dict[str, msgspec.Raw] | None = None


class _Claim(msgspec.Struct):
    """What makes a body a document, whatever else of it cannot be read."""

    type: str
    payload: msgspec.Raw
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    timestamp: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    version: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    @property
    def whole(self) -> bool:
        """Whether it has what only an envelope has all of."""
        return msgspec.UNSET not in (self.id, self.timestamp, self.version)


_document = msgspec.json.Decoder(_Document).decode
_claim = msgspec.json.Decoder(_Claim).decode

_REFUSED = (msgspec.MsgspecError, ValueError, RecursionError)


def read_document(delivery: Delivery, body: bytes) -> Found:
    """Read a body that must be a document. Raises `DecodeError`."""
    try:
        return _found(_document(body))
    except _REFUSED as error:
        raise DecodeError(
            f"the structured document cannot be read: {type(error).__name__}", type=delivery.type
        ) from error


def document_in(delivery: Delivery, body: bytes) -> Found | None:
    """Read a JSON body that may be a document; None for any other body, such as a payload with such fields of its own.

    It is one if the type that it states is what the ``type`` property says, or where that says nothing the routing
    key; with another routing key, if it has an id, a timestamp and a version as well. (The property is there when
    `identify` has been here before, and in the copy that a retry is.) Raises `DecodeError` for one that cannot be read.
    """
    if b'"payload"' not in body or b'"type"' not in body:
        return None
    try:
        claim = _claim(body)
    except msgspec.ValidationError:
        return None
    except _REFUSED:
        return read_document(delivery, body)  # which says why it is no JSON at all
    return read_document(delivery, body) if _is_one(claim, delivery) else None


def _is_one(claim: _Claim, delivery: Delivery) -> bool:
    known = delivery.properties.type
    if not claim.type or known:
        return bool(claim.type) and claim.type == known
    return claim.type == delivery.routing_key or claim.whole


def _found(document: _Document) -> Found:
    metadata = document.metadata or {}
    stated: dict[str, Any] = {
        "id": None if document.id is None else str(document.id),
        "entity_type": document.entity_type,
        "entity_id": None if document.entity_id is None else str(document.entity_id),
        "timestamp": document.timestamp,
        "metadata": {name: text(value) for name, raw in metadata.items() if (value := plain(raw)) is not None},
    }
    version = 1 if document.version is None else read_version(document.version)
    return Found(checked_type(document.type), version, bytes(document.payload), stated)
