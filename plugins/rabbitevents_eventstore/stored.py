"""An event as a row of the store, and a row as the event that it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

import msgspec

from rabbitevents import Codec, ConfigurationError, DecodeError, EncodeError, Event, Metadata, Writer
from rabbitevents.texts import cut, printable
from rabbitevents_eventstore.errors import entity

P = TypeVar("P")


class Stored(msgspec.Struct, Generic[P], frozen=True):
    """An event that is in the store.

    ``position`` is its place among all events, from 1 on, with holes. ``version`` is its place among those of its entity,
    from 1 on, without. (``event.version`` is that of its schema.)
    """

    position: int
    version: int
    event: Event[P]

    @property
    def payload(self) -> P:
        """What happened: the instance of an `@event` class."""
        return self.event.payload


class Shelf:
    """The classes that a store knows, and how rows are made of their instances, and instances of rows.

    Raises `ConfigurationError` for a class that is no event, and for two that have one name.
    """

    def __init__(self, classes: Iterable[type]) -> None:
        self._codecs: dict[str, Codec[Any]] = {}
        self._names: dict[type, tuple[str, ...]] = {}
        for cls in dict.fromkeys(classes):
            codec = Codec[Any](cls)
            self._names[cls] = codec.spec.names
            for name in codec.spec.names:
                if name in self._codecs:
                    raise ConfigurationError(f"EventStore: events has two classes for {name!r}: leave one of them out")
                self._codecs[name] = codec
        told = sorted(f"{name} {codec.spec.version}" for name, codec in self._codecs.items())
        self.versions: str = ", ".join(told)
        """Which types there are, in which versions: what is made of their events depends on those."""

    def names(self, classes: Iterable[type] | None) -> list[str]:
        """Return the names under which classes are stored; all that are known for None."""
        if classes is None:
            return list(self._codecs)
        return [name for cls in classes for name in self._known(cls)]

    def _known(self, cls: type) -> tuple[str, ...]:
        names = self._names.get(cls)
        if names is None:
            named = getattr(cls, "__name__", type(cls).__name__)
            raise ConfigurationError(
                f"{named} is not among the store's events: say EventStore(engine, events=[{named}, ...])"
            )
        return names

    def envelope(self, payload: Any, writer: Writer, entity_type: str, entity_id: str) -> tuple[Event[Any], bytes]:
        """Return an event of an entity, and its payload as it is stored. Raises `EncodeError` and `ConfigurationError`."""
        event, message = writer.prepare(payload)
        inner: object = event.payload
        self._known(type(inner))
        own, theirs = (event.entity_type, event.entity_id), (entity_type, entity_id)
        if any(mine not in (None, told) for mine, told in zip(own, theirs, strict=True)):
            raise ConfigurationError(
                f"append: {type(event.payload).__name__} is about {entity(*map(str, own))}, and was to be appended to "
                f"{entity(*theirs)}: an event is its own entity's"
            )
        return msgspec.structs.replace(event, entity_type=entity_type, entity_id=entity_id), message.body

    def row(self, event: Event[Any], body: bytes, version: int) -> dict[str, Any]:
        """Return an event as a row. Raises `EncodeError`."""
        given = event.metadata
        try:
            metadata = msgspec.json.encode({**msgspec.structs.asdict(given), "extra": dict(given.extra)})
        except (msgspec.MsgspecError, ValueError) as error:
            raise EncodeError(f"{event.type} {event.id}: its metadata cannot be written as JSON") from error
        return {
            "entity_type": event.entity_type,
            "entity_id": event.entity_id,
            "version": version,
            "event_id": event.id,
            "type": event.type,
            "schema_version": event.version,
            "timestamp": event.timestamp.astimezone(UTC),
            "metadata": metadata,
            "body": body,
        }

    def stored(self, row: Mapping[str, Any]) -> Stored[Any]:
        """Return what a row says. Raises `DecodeError`, which says which one it was, and nothing that it holds."""
        type, version = cast("str", row["type"]), cast("int", row["schema_version"])
        codec = self._codecs.get(type)
        if codec is None:
            raise DecodeError(
                f"{_place(row)} is of a type that the store does not know: add it to its events=", type=type
            )
        try:
            payload = codec.decode(bytes(row["body"]), version)
            metadata = msgspec.json.decode(bytes(row["metadata"]), type=_Metadata)
        except (DecodeError, msgspec.MsgspecError) as error:
            said = error if isinstance(error, DecodeError) else "its metadata cannot be read"
            raise DecodeError(f"{_place(row)} cannot be read: {said}", type=type) from error
        event = Event(
            cast("UUID", row["event_id"]),
            type,
            version,
            row["entity_type"],
            row["entity_id"],
            _aware(row["timestamp"]),
            payload,
            Metadata(metadata.correlation_id, metadata.causation_id, metadata.source, MappingProxyType(metadata.extra)),
        )
        return Stored(row["position"], row["version"], event)


class _Metadata(msgspec.Struct):
    correlation_id: str | None = None
    causation_id: str | None = None
    source: str | None = None
    extra: dict[str, str] = {}


def _aware(moment: datetime) -> datetime:
    """Return a moment in UTC: SQLite keeps no time zone."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _place(row: Mapping[str, Any]) -> str:
    """Name a row for errors, in one printable line."""
    return printable(f"event {row['event_id']} ({cut(row['type'], 80)}, position {row['position']})")
