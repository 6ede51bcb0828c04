"""A dead letter as a value: what it says of itself, whoever brought it to its queue, and the event that comes of it again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from typing import Any, Final, Self

import msgspec

from rabbitevents import DecodeError, Delivery, Headers, HeaderValue, Message
from rabbitevents_deadletter import labels
from rabbitevents_deadletter.harmless import harmless
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
        queue = delivery.queue.removesuffix(DEAD)
        if delivery.queue == LOST:  # the broker left both on it: the exchange it came out of, and its key there
            queue = delivery.via_routing_key if delivery.via_exchange == _DUE else ""
        digest = f"body:{sha256(delivery.body).hexdigest()[:16]}"
        try:
            headers = delivery.headers
        except DecodeError as error:
            # Nothing of it can be read but how it came: through the exchange that only the broker's dead letters take.
            reason = "rejected" if delivery.via_exchange else UNKNOWN
            return cls(delivery=delivery, queue=queue, id=digest, reason=reason, unreadable=str(error))
        if delivery.queue == LOST and not delivery.via_exchange:
            queue = _text(headers.get(labels.QUEUE))
        death = _death(delivery, queue)
        told = _told_by_broker(death, delivery) if death is not None else _told_by_plugin(headers)
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
            **told,
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
        return harmless(f"{self.type or '(no type)'} {self.id} in {self.dead_queue!r}")

    def digest(self, *, body: bool = True) -> bytes:
        """Return what tells this letter from others, at every look at it; without its body, after that was edited."""
        said = (
            self.dead_queue,
            self.id,
            self.type,
            self.cause,
            self.failed_at,
            self.replayed,
            self.attempts,
            self.host,
        )
        head = repr(said).encode("utf-8", "backslashreplace")
        return blake2b(head + self.body if body else head, digest_size=16).digest()

    def labelled(self) -> Message:
        """Return a letter that the broker brought as one that says itself why it is here. Raises `DecodeError`."""
        headers: dict[str, HeaderValue] = {
            **dict.fromkeys(labels.LABELS),
            labels.REASON: self.reason,
            labels.QUEUE: self.queue,
            labels.FAILED_AT: moment(self.failed_at or datetime.now(UTC)),
            labels.ORIGIN_EXCHANGE: self.exchange,
            labels.ORIGIN_ROUTING_KEY: self.routing_key,
        }
        return Message.copy_of(self.delivery, queue=self.dead_queue, headers=headers)

    def replay(self, *, body: bytes | None = None, to: str | None = None) -> Message:
        """Return the event as it goes back to the one queue whose handler failed: its first attempt, without labels.

        ``body`` stands in for its own, and a header says so if it is another one; ``to`` is another queue, such as the
        renamed one. Raises `DecodeError` for one whose properties cannot be read, or whose body was not kept.
        """
        if body == self.body and not self.delivery.oversize:
            body = None
        if body is None and self.delivery.oversize:
            raise DecodeError(f"its body of {self.size:,} bytes is over the limit of Bus(limits=...), and was not kept")
        headers: dict[str, HeaderValue] = {
            **dict.fromkeys(labels.LABELS),
            labels.ATTEMPT: 1,
            labels.ORIGIN_EXCHANGE: self.exchange,
            labels.ORIGIN_ROUTING_KEY: self.routing_key,
            labels.REPLAY_COUNT: self.replayed + 1,
            labels.REPLAYED_AT: moment(datetime.now(UTC)),
            labels.REPLAY_EDITED: True if body is not None else None,
        }
        queue = to or self.queue
        message = Message.copy_of(
            self.delivery, queue=queue, exchange=self.exchange, routing_key=self.routing_key, headers=headers
        )
        return message if body is None else msgspec.structs.replace(message, body=body)


_NOTHING: Mapping[str, HeaderValue] = {}

_DUE: Final = "delay.due"
"""The core's exchange that leads a retry back to its queue, whose name is the key."""


def _told_by_plugin(headers: Headers) -> dict[str, Any]:
    error = _text(headers.get(labels.ERROR))
    return {
        "reason": FAILED if error else _text(headers.get(labels.REASON)) or UNKNOWN,
        "error": error,
        "message": _text(headers.get(labels.MESSAGE)),
        "traceback": _text(headers.get(labels.TRACEBACK)),
        "failed_at": _time(headers.get(labels.FAILED_AT)),
        "attempts": _number(headers.get(labels.ATTEMPTS)),
        "handler": _text(headers.get(labels.HANDLER)),
        "host": _text(headers.get(labels.HOST)),
    }


def _told_by_broker(death: Mapping[str, HeaderValue], delivery: Delivery) -> dict[str, Any]:
    reason = GONE if delivery.queue == LOST else _text(death.get("reason")) or UNKNOWN
    return {"reason": reason, "failed_at": _from_seconds(_number(death.get("time")))}


def _death(delivery: Delivery, queue: str) -> Mapping[str, HeaderValue] | None:
    """Return what the broker says of how it left ``queue``; None for a message that the broker did not bring.

    The broker's own come through the dead letter exchange; ``x-death`` on any other is whatever its publisher wrote.
    The newest entry stands first (RabbitMQ 3.10 to 4.3).
    """
    deaths = delivery.headers.get("x-death") if delivery.via_exchange else None
    entries = [each for each in deaths if isinstance(each, Mapping)] if isinstance(deaths, list) else []
    if delivery.queue == LOST and delivery.via_exchange:  # it left the queue that it waited in
        return next(iter(entries), _NOTHING)
    return next((each for each in entries if each.get("queue") == queue), None)


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
    try:
        time = datetime.fromisoformat(_text(value))
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _from_seconds(seconds: int | None) -> datetime | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
