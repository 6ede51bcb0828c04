"""The values that cross the house: a `Message` goes out, a `Delivery` comes in, a `Settlement` answers it.

All three are frozen. Who wants another one makes a copy; who wants a delivery settled returns a settlement, and the
consumer settles, once, in one place.
"""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from typing import Final, Protocol
from uuid import UUID

import msgspec

from rabbitevents.errors import DecodeError, EncodeError
from rabbitevents.expiration import EXPIRES_AT, ends, milliseconds, now
from rabbitevents.ids import as_uuid, new_id, says_no_id
from rabbitevents.properties import NO_HEADERS, Headers, HeaderValue, Properties, Table, decode_properties
from rabbitevents.texts import printable

ATTEMPT: Final = "attempt"
"""The header that counts deliveries of one event to one handler, ours: 1 when absent. The broker's counts differ
from version to version (RabbitMQ 3.10 to 4.3) and are never taken for it."""

ORIGIN_EXCHANGE: Final = "origin-exchange"
ORIGIN_ROUTING_KEY: Final = "origin-routing-key"
"""Where a copy was first published: a copy that comes back to one queue keeps what its event was routed by."""

NEVER_COPIED = frozenset({"CC", "BCC", "x-delivery-count", "x-acquired-count", "x-delay"})
"""Headers that would route a copy elsewhere, or count against it; ``x-death`` and its like besides, by prefix."""

_NEVER_COPIED_PREFIXES = ("x-death", "x-first-death-", "x-last-death-")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What is published: where to, what, and AMQP's properties. Its bytes are final.

    An empty ``exchange`` is AMQP's default exchange: the routing key then names the one queue. With ``after``, the
    message waits that long at the broker first. ``timeout`` is how long publishing it may take, in seconds (None: as
    long as the bus says); neither is written on the wire.
    """

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties
    after: timedelta | None = None
    timeout: float | None = None

    @property
    def id(self) -> str:
        """The event's id as it travels (AMQP's message_id); empty for a message that has none."""
        return self.properties.message_id or ""

    @property
    def type(self) -> str:
        """The event's type; the routing key where the property is missing."""
        return self.properties.type or self.routing_key

    @property
    def headers(self) -> Headers:
        """The headers, not to be changed; `replace` makes a message with others."""
        return self.properties.headers

    def __repr__(self) -> str:
        return f"<Message {self.describe()}>"

    def waiting(self) -> Message:
        """Return it as it waits at the broker: it expires no earlier than its wait ends, by a header."""
        lasts = milliseconds(self.properties.expiration)
        if lasts is None or self.after is None:
            return self
        over = self.headers.get(EXPIRES_AT, now() + round(self.after.total_seconds() * 1000) + lasts)
        properties = msgspec.structs.replace(
            self.properties, expiration=None, headers={**self.headers, EXPIRES_AT: over}
        )
        return msgspec.structs.replace(self, properties=properties)

    def describe(self) -> str:
        """Name the message for logs and errors: type, id and destination in one printable line, never the body."""
        to = f"exchange {self.exchange!r}" if self.exchange else f"queue {self.routing_key!r}"
        return printable(f"{self.type} {self.id or '(no id)'} to {to}")

    def replace(
        self, *, exchange: str | None = None, routing_key: str | None = None, headers: Headers | None = None
    ) -> Message:
        """Return a copy that goes elsewhere, or with ``headers`` laid over its own (a value of None removes one)."""
        properties = self.properties
        if headers is not None:
            properties = msgspec.structs.replace(properties, headers=_merged(properties.headers, headers))
        return Message(
            exchange=self.exchange if exchange is None else exchange,
            routing_key=self.routing_key if routing_key is None else routing_key,
            body=self.body,
            properties=properties,
            after=self.after,
            timeout=self.timeout,
        )

    @staticmethod
    def copy_of(
        delivery: Delivery,
        *,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        headers: Headers = NO_HEADERS,
        after: timedelta | None = None,
    ) -> Message:
        """Return what was delivered as a message to ``queue``, or to ``exchange`` with ``routing_key``.

        Body and properties are kept, ``headers`` laid over (a value of None removes one). It is always persistent,
        carries an id, and remembers where its event was first published. Left out is what only its first journey
        meant: ``x-death`` and its like, ``CC``, ``BCC``, the broker-checked user_id. What comes back to the same queue
        keeps what is left of its expiration, counted from AMQP's timestamp where it has one; what goes elsewhere, to the
        dead letters say, does not expire.
        Raises `DecodeError` when the delivery's properties cannot be read, or its body was not kept; `EncodeError` when
        its time will be over before it has waited.
        """
        if delivery.oversize:
            raise DecodeError(
                f"{delivery.describe()}: its body ({delivery.oversize:,} bytes) is over the limit, and was not "
                "kept; Bus(limits=Limits(body=...)) raises it"
            )
        old = delivery.properties
        kept = {
            k: v
            for k, v in delivery.headers.items()
            if k not in NEVER_COPIED and not k.startswith(_NEVER_COPIED_PREFIXES)
        }
        kept.pop(EXPIRES_AT, None)
        left = _time_left(delivery, after) if queue == delivery.queue else None
        if left is not None:
            kept[EXPIRES_AT] = now() + left
        kept[ORIGIN_EXCHANGE] = delivery.exchange
        kept[ORIGIN_ROUTING_KEY] = delivery.routing_key
        properties = msgspec.structs.replace(
            old,
            headers=_merged(kept, headers),
            message_id=str(delivery.id) if says_no_id(old.message_id) else old.message_id,
            delivery_mode=2,
            expiration=None if left is None else str(left),
            user_id=None,
        )
        return Message(
            exchange="" if queue else exchange,
            routing_key=queue or routing_key or delivery.routing_key,
            body=delivery.body,
            properties=properties,
            after=after,
        )


def _time_left(delivery: Delivery, after: timedelta | None) -> int | None:
    """Return how much of its time an event has, in milliseconds. Raises `EncodeError` where that is less than ``after``."""
    over = delivery.expires_at
    if over is None:
        return None
    left = max(0, over - now())
    if after is not None and after.total_seconds() * 1000 >= left:
        wait = round(after.total_seconds(), 3)
        raise EncodeError(
            f"{delivery.describe()}: its expiration leaves it {left / 1000:g} s, and it would have to wait {wait:g} s"
        )
    return left


def _merged(under: Headers, over: Headers) -> dict[str, HeaderValue]:
    return {name: value for name, value in {**under, **over}.items() if value is not None or name not in over}


class Channel(Protocol):
    """The channel that brought a delivery, as far as whoever handles it needs to know."""

    @property
    def open(self) -> bool:
        """Whether it stands, and what it brought can still be settled."""
        ...


class Delivery(msgspec.Struct, frozen=True, eq=False):
    """What a broker delivered to one queue: everything AMQP knew, read when somebody asks.

    ``tag`` numbers the deliveries of one channel; ``generation`` numbers the channels of one subscription, so that
    a delivery whose channel is gone is known to be stale. ``redelivered`` is the broker's word and no attempt number.
    """

    queue: str
    tag: int
    generation: int
    redelivered: bool
    via_exchange: str
    via_routing_key: str
    body: bytes
    raw: bytes | Properties
    oversize: int = 0
    """The body's size in bytes where it was over the limit and therefore not kept; else 0."""
    fence: int | None = None
    """The fencing token of the claim under which it is handled: it grows with each claim of the same event, so that a
    resource can refuse what an owner writes whose claim has passed to another. None where nobody claims."""
    counted: int = 0
    """The attempt's number where an attempt further out is repeated in this process; 0: as the header says."""
    channel: Channel | None = None
    """The channel that brought it; None for a delivery that no broker brought."""
    found: object = None
    """What `rabbitevents.wire` read of it, kept so that a document is parsed once."""
    _properties: Properties | None = None
    _id: UUID | None = None

    @property
    def stale(self) -> bool:
        """Whether its channel is gone: the broker delivers it again, and nothing can be settled here any more."""
        return self.channel is not None and not self.channel.open

    @property
    def expires_at(self) -> int | None:
        """When its time is over, in milliseconds since 1970; None without expiration. Raises `DecodeError`."""
        properties = self.properties
        return ends(self.peek(EXPIRES_AT), properties.expiration, properties.timestamp)

    @property
    def place(self) -> tuple[str, int, int]:
        """What tells it from every other delivery in this process, also of the same event: queue, generation, tag."""
        return self.queue, self.generation, self.tag

    @property
    def properties(self) -> Properties:
        """AMQP's basic properties, their headers read when somebody asks. Raises `DecodeError` for broken ones."""
        known = self._properties
        if known is None:
            raw = self.raw
            known = decode_properties(raw) if isinstance(raw, bytes) else raw
            msgspec.structs.force_setattr(self, "_properties", known)
        return known

    @property
    def headers(self) -> Headers:
        """The headers, not to be changed. Raises `DecodeError` when they cannot be read."""
        headers = self.properties.headers
        return headers.read() if isinstance(headers, Table) else headers

    def peek(self, name: str) -> HeaderValue:
        """Return one header, or None, without reading the others where that can be: for what every event is asked."""
        headers = self.properties.headers
        return headers.peek(name) if isinstance(headers, Table) else headers.get(name)

    def identify(self, properties: Properties | None, id: UUID | None, found: object) -> None:
        """Note which event it is, once, before anybody handles it: what `rabbitevents.wire` found out."""
        keep = msgspec.structs.force_setattr
        keep(self, "found", found)
        if properties is not None and properties is not self._properties:
            keep(self, "_properties", properties)
        if id is not None:
            keep(self, "_id", id)

    @property
    def exchange(self) -> str:
        """Where the event was published first, also when this is a copy that came back by another way."""
        return _text(self.headers.get(ORIGIN_EXCHANGE), self.via_exchange)

    @property
    def routing_key(self) -> str:
        """What the event was routed by first, also when this is a copy that came back by another way."""
        return _text(self.headers.get(ORIGIN_ROUTING_KEY), self.via_routing_key)

    @property
    def type(self) -> str:
        """The event's type; the routing key where the property is missing."""
        return self.properties.type or self.routing_key

    @property
    def id(self) -> UUID:
        """The event's id: AMQP's message_id, by the law of `as_uuid`. One that says no id gets a new one, and keeps it."""
        id = self._id
        if id is None:
            properties = self.properties
            text = properties.message_id
            id = new_id() if text is None or says_no_id(text) else as_uuid(text, properties.app_id)
            msgspec.structs.force_setattr(self, "_id", id)
        return id

    @property
    def attempt(self) -> int:
        """Which delivery of this event to this handler it is, from 1, counted by ourselves."""
        if self.counted:
            return self.counted
        count = self.peek(ATTEMPT)
        return count if isinstance(count, int) and count > 0 else 1

    @property
    def delivery_count(self) -> int:
        """How often the broker says that it came back unsettled (``x-delivery-count``); 0 where it does not say."""
        count = self.peek("x-delivery-count")
        return count if isinstance(count, int) else 0

    def marked(self, *, attempt: int | None = None, fence: int | None = None) -> Delivery:
        """Return the same delivery for those further in, as attempt number ``attempt`` or under the token ``fence``."""
        counted = self.counted if attempt is None else attempt
        return msgspec.structs.replace(self, counted=counted, fence=self.fence if fence is None else fence)

    def replace(self, *, attempt: int, after: timedelta | None = None) -> Message:
        """Return a copy to the same queue, as attempt number ``attempt``, which waits ``after`` first."""
        return Message.copy_of(self, queue=self.queue, headers={ATTEMPT: attempt}, after=after)

    def __repr__(self) -> str:
        return f"<Delivery {self.describe()}>"

    def describe(self) -> str:
        """Name the delivery for logs and errors: type, id and queue in one printable line, never the body. Raises nothing."""
        try:
            return printable(f"{self.type} {self.properties.message_id or '(no id)'} from queue {self.queue!r}")
        except DecodeError:
            return f"a delivery with unreadable properties from queue {self.queue!r}"


def _text(value: HeaderValue, otherwise: str) -> str:
    return value if isinstance(value, str) else otherwise


def again(delivery: Delivery, copy: Message) -> Delivery:
    """Return a delivery as its ``copy`` would come back from a wait at the broker, still to be settled as it came."""
    return msgspec.structs.replace(
        delivery, raw=copy.properties, counted=0, fence=None, found=None, _properties=copy.properties, _id=None
    )


class Outcome(Enum):
    """What becomes of a delivery."""

    ACK = "ack"
    """Done. The broker forgets it."""
    FORWARD = "forward"
    """A copy is published and confirmed, and only then this one acknowledged."""
    REQUEUE = "requeue"
    """Given back to the queue, because this process stops."""
    REJECT = "reject"
    """Handed to the broker's own dead-lettering, for what no copy can carry."""


class Settlement(msgspec.Struct, frozen=True):
    """The answer to a delivery, and what led to it.

    For `Outcome.FORWARD`, ``message`` is the copy; its ``after`` says how long it waits at the broker first.
    ``error`` is the failure that led here, for those who report it.
    """

    outcome: Outcome
    message: Message | None = None
    error: BaseException | None = None


ACK: Final = Settlement(Outcome.ACK)
REQUEUE: Final = Settlement(Outcome.REQUEUE)
REJECT: Final = Settlement(Outcome.REJECT)


def forward(message: Message, *, error: BaseException | None = None) -> Settlement:
    """Return the settlement that publishes ``message`` and then acknowledges, or does neither and tries again.

    A copy with ``after`` must go to a queue (by the default exchange) or to the bus's own events exchange.
    """
    return Settlement(Outcome.FORWARD, message, error)
