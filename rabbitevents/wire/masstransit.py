"""MassTransit's envelope, which says all of a message in its body: understood, never sent.

Source: masstransit.io, "Interoperability"; its `MessageEnvelope`. The type is the first of the URNs.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rabbitevents.errors import DecodeError
from rabbitevents.message import Delivery
from rabbitevents.wire.received import Found
from rabbitevents.wire.words import checked_type, plain, text

MASSTRANSIT: Final = "application/vnd.masstransit+json"


class _Envelope(msgspec.Struct, rename="camel"):
    message_type: list[str]
    message: msgspec.Raw
    message_id: str | None = None
    correlation_id: str | None = None
    conversation_id: str | None = None
    initiator_id: str | None = None
    source_address: str | None = None
    sent_time: str | None = None
    headers: dict[str, msgspec.Raw] | None = None


_envelope = msgspec.json.Decoder(_Envelope).decode


def read_envelope(delivery: Delivery, body: bytes) -> Found:
    """Read a body that must be MassTransit's envelope. Raises `DecodeError`."""
    try:
        envelope = _envelope(body)
        metadata = {
            name: text(value) for name, raw in (envelope.headers or {}).items() if (value := plain(raw)) is not None
        }
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(
            f"MassTransit's envelope cannot be read: {type(error).__name__}", type=delivery.properties.type
        ) from error
    said = {
        "correlation_id": envelope.correlation_id or envelope.conversation_id,
        "causation_id": envelope.initiator_id,
        "source": envelope.source_address,
    }
    metadata.update({name: value for name, value in said.items() if value is not None})
    stated: dict[str, Any] = {"id": envelope.message_id, "timestamp": envelope.sent_time, "metadata": metadata}
    kind = checked_type(envelope.message_type[0] if envelope.message_type else "")
    return Found(kind, 1, bytes(envelope.message), stated)
