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


_document = msgspec.json.Decoder(_Document).decode
_claim = msgspec.json.Decoder(_Claim).decode

_REFUSED = (msgspec.MsgspecError, ValueError, RecursionError)


def read_document(delivery: Delivery) -> Found:
    """Read a body that must be a document. Raises `DecodeError`."""
    try:
        return _found(_document(delivery.body))
    except _REFUSED as error:
        raise DecodeError(
            f"the structured document cannot be read: {type(error).__name__}", type=delivery.type
        ) from error


def document_in(delivery: Delivery) -> Found | None:
    """Read a JSON body that may be a document: one that carries a type of its own, which no property contradicts.

    (The property is there when `identify` has been here before, and in the copy that a retry is.) None for any other
    body. Raises `DecodeError` for a document that cannot be read in full.
    """
    body, known = delivery.body, delivery.properties.type
    if b'"payload"' not in body or b'"type"' not in body:
        return None
    try:
        document = _document(body)
    except msgspec.ValidationError:
        return read_document(delivery) if _claims_to_be_one(body, known) else None
    except _REFUSED:
        return read_document(delivery)
    return _found(document) if _agrees(document.type, known) else None


def _claims_to_be_one(body: bytes, known: str | None) -> bool:
    try:
        return _agrees(_claim(body).type, known)
    except msgspec.ValidationError:
        return False
    except _REFUSED:
        return True


def _agrees(stated: str, known: str | None) -> bool:
    return bool(stated) and (not known or stated == known)


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
