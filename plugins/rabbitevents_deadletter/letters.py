"""A dead letter as a value: what it says of itself, whoever brought it to its queue, and the event that comes of it again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from typing import Any, Final, Self

import msgspec

from rabbitevents import DecodeError, Delivery, Headers, HeaderValue, Message
from rabbitevents.partitions import undivided
from rabbitevents.texts import printable
from rabbitevents_deadletter import labels
from rabbitevents_deadletter.labels import DEAD, LOST, moment

FAILED: Final = "failed"
"""The reason of a dead letter that the plugin brought; RabbitMQ's own are `rejected`, `delivery_limit`, `expired` and `maxlen`."""

GONE: Final = "lost"
"""The reason of one whose queue was gone when it came back from its wait."""

UNKNOWN: Final = "unknown"
"""The reason of one that neither the plugin nor the broker brought."""


class DeadLetterMessage(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One message of a dead letter queue. Its texts come from whoever published it: escape them before showing them."""

    delivery: Delivery
    """As the broker delivered it."""
    queue: str
    """The queue whose handler failed: where a replay goes. Empty for an event that was published with a delay and that
    nobody was there for: a replay publishes it again."""
    id: str
    """The event's id; ``body:`` and a digest for a message that has none, or whose properties cannot be read."""
    type: str = ""
    reason: str = UNKNOWN
    """Why it is here: `FAILED`, or the broker's word."""
    error: str = ""
    """The exception's class, with its module; empty unless the reason is `FAILED`."""
    message: str = ""
    """What the exception said, at most 2 kB; empty where that was left out."""
    traceback: str = ""
    failed_at: datetime | None = None
    attempts: int | None = None
    handler: str = ""
    host: str = ""
    exchange: str = ""
    """Where its event was published first."""
    routing_key: str = ""
    replayed: int = 0
    """How often it was replayed before."""
    replayed_at: datetime | None = None
    unreadable: str = ""
    """Why its properties cannot be read; empty where they can."""

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Read what was delivered from ``<queue>.dead``. Raises nothing, whatever that is."""
        digest = f"body:{sha256(delivery.body).hexdigest()[:16]}"
        try:
            headers = delivery.headers
        except DecodeError as error:
            # Nothing of it can be read but how it came: through the exchange that only the broker's dead letters take.
            reason = "rejected" if delivery.via_exchange else UNKNOWN
            return cls(delivery=delivery, queue=_queue(delivery, {}), id=digest, reason=reason, unreadable=str(error))
        queue = _queue(delivery, headers)
        death = _death(delivery, queue)
        exchange, routing_key = _origin(delivery, death)
        return cls(
            delivery=delivery,
            queue=queue,
            id=delivery.properties.message_id or digest,
            type=delivery.properties.type or routing_key,
            exchange=exchange,
            routing_key=routing_key,
            replayed=_number(headers.get(labels.REPLAY_COUNT)) or 0,
            replayed_at=_time(headers.get(labels.REPLAYED_AT)),
            **_told(delivery, headers, death),
        )

    @property
    def dead_queue(self) -> str:
        """The queue that it is in."""
        return self.delivery.queue

    @property
    def body(self) -> bytes:
        """The body, byte for byte as it was published; empty where it was over the looking bus's limit."""
        return self.delivery.body

    @property
    def size(self) -> int:
        """The body's size in bytes."""
        return self.delivery.oversize or len(self.delivery.body)

    @property
    def headers(self) -> Headers:
        """All headers, labels included; none where they cannot be read."""
        return {} if self.unreadable else self.delivery.headers

    @property
    def is_nameless(self) -> bool:
        """Whether its id is made of its body, for want of another."""
        return bool(self.unreadable) or not self.delivery.properties.message_id

    @property
    def cause(self) -> str:
        """What it died of: the exception's class, or the broker's reason."""
        return self.error or self.reason

    def __repr__(self) -> str:
        return f"<DeadLetterMessage {self.describe()}>"

    def describe(self) -> str:
        """Name it for logs and errors, with nothing in it that a terminal could take amiss; never the body."""
        return printable(f"{self.type or '(no type)'} {self.id} in {self.dead_queue!r}")

    def digest(self, *, body: bool = True) -> bytes:
        """Return what tells this letter from others, at every look at it; without its body, after that was edited."""
        which = self.dead_queue, self.id, self.type, self.cause
        head = repr((*which, self.failed_at, self.replayed, self.attempts, self.host))
        return blake2b(head.encode("utf-8", "backslashreplace") + self.body * body, digest_size=16).digest()

    def labelled(self) -> Message:
        """Return a letter that the broker brought as one that says itself why it is here. Raises `DecodeError`."""
        said = {labels.REASON: self.reason, labels.QUEUE: self.queue}
        said[labels.FAILED_AT] = moment(self.failed_at or datetime.now(UTC))
        return Message.copy_of(self.delivery, queue=self.dead_queue, headers=self._headers(said))

    def replay(self, *, body: bytes | None = None, to: str | None = None) -> Message:
        """Return the event as it goes back to the one queue whose handler failed: its first attempt, without labels.

        ``body`` stands in for its own, and a header says so if it is another one; ``to`` is another queue, such as the
        renamed one. Raises `DecodeError` for one whose properties cannot be read, or whose body was not kept.
        """
        edited = body is not None and (body != self.body or self.delivery.oversize > 0)
        said: dict[str, HeaderValue] = {
            labels.ATTEMPT: 1,
            labels.REPLAY_COUNT: self.replayed + 1,
            labels.REPLAYED_AT: moment(datetime.now(UTC)),
            labels.REPLAY_EDITED: edited or None,
        }
        return Message.copy_of(
            msgspec.structs.replace(self.delivery, body=body, oversize=0) if edited else self.delivery,
            queue=to or self.queue,
            exchange=self.exchange,
            routing_key=self.routing_key,
            headers=self._headers(said),
        )

    def _headers(self, said: Headers) -> Headers:
        """Return what is laid over its event's own headers: no label of before, where it was published first, ``said``."""
        origin = {labels.ORIGIN_EXCHANGE: self.exchange, labels.ORIGIN_ROUTING_KEY: self.routing_key}
        return {**dict.fromkeys(labels.LABELS), **origin, **said}


_DUE: Final = "delay.due"
"""The core's exchange that leads a retry back to its queue, whose name is the key."""


def _queue(delivery: Delivery, headers: Headers) -> str:
    """Return the queue whose handler failed. On what is lost the broker left the exchange it came out of, and its key there."""
    if delivery.queue != LOST:
        return delivery.queue.removesuffix(DEAD)
    if delivery.via_exchange:
        return delivery.via_routing_key if delivery.via_exchange == _DUE else ""
    return _text(headers.get(labels.QUEUE))


def _told(delivery: Delivery, headers: Headers, death: Mapping[str, HeaderValue] | None) -> dict[str, Any]:
    """Return why it is here: as the broker says it, which brought it, or else as its labels do."""
    if death is not None:
        reason = GONE if delivery.queue == LOST else _text(death.get("reason")) or UNKNOWN
        return {"reason": reason, "failed_at": _time(death.get("time"))}
    error = _text(headers.get(labels.ERROR))
    return {
        "reason": FAILED if error else _text(headers.get(labels.REASON)) or UNKNOWN,
        "error": error,
        "failed_at": _time(headers.get(labels.FAILED_AT)),
        "attempts": _number(headers.get(labels.ATTEMPTS)),
        **{name: _text(headers.get(f"dead-letter-{name}")) for name in ("message", "traceback", "handler", "host")},
    }


def _death(delivery: Delivery, queue: str) -> Mapping[str, HeaderValue] | None:
    """Return what the broker says of how it left ``queue``; None for a message that the broker did not bring.

    The broker's own come through the dead letter exchange; ``x-death`` on any other is whatever its publisher wrote.
    The newest entry stands first (RabbitMQ 3.10 to 4.3).
    """
    deaths = delivery.headers.get("x-death") if delivery.via_exchange else None
    entries = [each for each in deaths if isinstance(each, Mapping)] if isinstance(deaths, list) else []
    if delivery.queue == LOST and delivery.via_exchange:  # it left the queue that it waited in
        return entries[0] if entries else {}
    return next((each for each in entries if undivided(str(each.get("queue"))) == queue), None)


def _origin(delivery: Delivery, death: Mapping[str, HeaderValue] | None) -> tuple[str, str]:
    """Say where the event was published first: a copy of ours knows it, of any other the broker does."""
    if death is None or labels.ORIGIN_EXCHANGE in delivery.headers:
        return delivery.exchange, delivery.routing_key
    if delivery.queue == LOST:
        return delivery.via_exchange.removesuffix(".due"), delivery.via_routing_key
    keys = death.get("routing-keys")
    first = keys[0] if isinstance(keys, list) and keys else None
    return _text(death.get("exchange")), _text(first) or delivery.routing_key


def _text(value: HeaderValue) -> str:
    return value if isinstance(value, str) else ""


def _number(value: HeaderValue) -> int | None:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _time(value: HeaderValue) -> datetime | None:
    """Read a time: RFC 3339, or the broker's seconds since 1970. None for what is none."""
    try:
        if not isinstance(value, str):
            return datetime.fromtimestamp(value, UTC) if isinstance(value, int) else None
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
