"""A message as a row of the outbox, and a row as the message that it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Literal
from uuid import UUID
from zlib import crc32

import msgspec

from rabbitevents import DecodeError, Message, decode_properties, encode_properties, entity_of
from rabbitevents.texts import printable

COLUMNS: Final = (
    "shard",
    "entity",
    "event_id",
    "type",
    "exchange",
    "routing_key",
    "properties",
    "body",
    "delay_ms",
)
"""What a writer says of a row; the rest is the relay's, and the database's."""

Style = Literal["named", "format", "numeric", "qmark"]
"""How a driver's SQL names its parameters: ``:name``, ``%s``, ``$1``, ``?``."""

_MARKS: Final[dict[Style, str]] = {"format": "%s", "qmark": "?"}


class Row(msgspec.Struct, frozen=True):
    """What the relay reads of a row."""

    id: int
    entity: str | None
    type: str
    exchange: str | None
    routing_key: str
    properties: bytes
    body: bytes
    delay_ms: int | None
    attempts: int
    since: float = 0.0
    """When it was written, on the event loop's clock."""

    def describe(self) -> str:
        """Name the row for logs, in one printable line, never its body."""
        return printable(f"{self.type} (row {self.id})")

    def message(self, exchange: str, timeout: float) -> Message:
        """Return the message, to ``exchange`` where the row names none. Raises `DecodeError` for a broken row."""
        try:  # SQLite keeps in a column whatever is put there
            delay = None if self.delay_ms is None else timedelta(milliseconds=self.delay_ms)
            properties, body = bytes(self.properties), bytes(self.body)
        except (TypeError, ValueError, OverflowError) as error:
            raise DecodeError(f"row {self.id} holds what no message can be made of: {error}") from error
        return Message(
            exchange=exchange if self.exchange is None else self.exchange,
            routing_key=self.routing_key,
            body=body,
            properties=decode_properties(properties),
            after=delay,
            timeout=timeout,
        )


def row_of(message: Message, shards: int, *, own_exchange: bool = False) -> dict[str, Any]:
    """Return a message as a row; with ``own_exchange``, to the exchange of whichever bus relays it.

    Rows of one entity are in one shard, and so in one relay's hands. Raises `EncodeError`.
    """
    entity = entity_of(message)
    id = _uuid_of(message)
    return {
        "shard": crc32((entity or id.hex).encode("utf-8", "surrogatepass")) % shards,
        "entity": entity,
        "event_id": id,
        "type": message.type,
        "exchange": None if own_exchange else message.exchange,
        "routing_key": message.routing_key,
        "properties": encode_properties(message.properties),
        "body": message.body,
        "delay_ms": None if message.after is None else max(0, round(message.after.total_seconds() * 1000)),
    }


def _uuid_of(message: Message) -> UUID:
    """Return a message's id for people who look for it; what it travels with stands in its properties."""
    try:
        return UUID(message.id)
    except ValueError:
        return UUID(int=crc32(message.id.encode("utf-8", "surrogatepass")))


def statement_of(table: str, rows: Sequence[Mapping[str, Any]], style: Style) -> tuple[str, Any]:
    """Return one INSERT of ``rows`` for a driver of any kind, and its parameters. ``table`` is a name, quoted."""
    into = " ".join(("INSERT INTO", table, f"({', '.join(COLUMNS)})", "VALUES "))
    if style == "named":
        values = ", ".join(f"({', '.join(f':{name}_{i}' for name in COLUMNS)})" for i in range(len(rows)))
        named = {f"{name}_{i}": _plain(row[name]) for i, row in enumerate(rows) for name in COLUMNS}
        return into + values, named
    marks = iter(_MARKS.get(style) or f"${n + 1}" for n in range(len(rows) * len(COLUMNS)))
    values = ", ".join(f"({', '.join(next(marks) for _ in COLUMNS)})" for _ in rows)
    return into + values, [_plain(row[name]) for row in rows for name in COLUMNS]


def _plain(value: object) -> object:
    """Return a value as every driver takes it: a UUID as its 32 digits, which is how SQLite has it."""
    return value.hex if isinstance(value, UUID) else value
