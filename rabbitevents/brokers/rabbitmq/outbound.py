"""A publishing channel: messages out, coalesced; confirms, returns and refusals back in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from itertools import takewhile

import msgspec

from rabbitevents.brokers.rabbitmq.frames import (
    BASIC_ACK,
    BASIC_NACK,
    BASIC_PUBLISH,
    BASIC_RETURN,
    BODY,
    CHANNEL_CLOSE,
    CHANNEL_CLOSE_OK,
    CONTENT_HEAD,
    HEADER,
    METHOD,
    OVERHEAD,
    FrameError,
    close_reason,
    content_size,
    frame,
    named,
    read_tag,
    returned_from,
)
from rabbitevents.errors import DecodeError, EncodeError
from rabbitevents.message import Message
from rabbitevents.properties import decode_properties, short

_MANDATORY = b"\x01"
_CONTENT = b"\x00\x3c\x00\x00"
_METHODS_KEPT = 1024


class Answer(Enum):
    """What became of a publish."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"
    REFUSED = "refused"
    LOST = "lost"
    """The channel ended before the broker answered."""
    EXPIRED = "expired"
    """The deadline passed before the broker answered."""


_ANSWERS = {BASIC_ACK: Answer.CONFIRMED, BASIC_NACK: Answer.REFUSED}
_ANSWER_SIZE = 13
"""Bytes of both methods: their number, a delivery tag, and whether all before it are meant too."""


class Pending(msgspec.Struct, eq=False):
    """A publish that the broker has not answered. ``deadline`` is on the event loop's clock."""

    answer: asyncio.Future[Answer]
    deadline: float
    message: Message
    returned: bool = False
    given_up: bool = False
    """Whether it was seen that nobody waits for it any more: its deadline has passed, or its caller was cancelled."""


class OutboundLane:
    """The content frames of one publishing channel in confirm mode. Delivery tags count its publishes from 1."""

    def __init__(
        self, number: int, transport: asyncio.WriteTransport, *, frame_max: int, on_room: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.pending: dict[int, Pending] = {}
        """What the broker has not answered, by delivery tag, in the order of publishing."""
        self.unanswered: int = 0
        """How many of those nobody waits for any more. They stay, so that late answers and returns find them."""
        self.ended: asyncio.Future[str] = loop.create_future()
        self.close_code: int = 0
        self.closed_by_publish: bool = False
        self.unanswered_at_end: int = 0
        self._transport = transport
        self._chunk = frame_max - OVERHEAD
        self._on_room = on_room
        self._create_future = loop.create_future
        self._call_soon = loop.call_soon
        self._tag = 0
        self._out: list[bytes] = []
        self._methods: dict[tuple[str, str], bytes] = {}
        self._header_head = bytes((HEADER,)) + number.to_bytes(2, "big")
        self._body_head = b"\xce" + bytes((BODY,)) + number.to_bytes(2, "big")
        self._expected = METHOD
        self._left = 0
        self._returning = ("", "")
        self._last_returned = 0

    # --- out ---

    @property
    def waiting(self) -> int:
        """How many publishes somebody still waits for."""
        return len(self.pending) - self.unanswered

    def publish(self, message: Message, properties: bytes, deadline: float) -> asyncio.Future[Answer]:
        """Write a message, ``mandatory``, by the end of this turn of the loop; the future is its answer.

        Raises `EncodeError` for one that cannot be written, and nothing of it is: others go out as if it had not been.
        """
        key = (message.exchange, message.routing_key)
        method = self._methods.get(key) or self._method(key)
        body = message.body
        if type(body) is not bytes:  # a class of its own may say another length than it has
            raise EncodeError(f"{message.type}: its body is no bytes, but {type(body).__name__}")
        size = len(body)
        header = _CONTENT + size.to_bytes(8, "big") + properties
        if len(header) > self._chunk:
            self.check(properties, message)
        self._tag = tag = self._tag + 1
        future: asyncio.Future[Answer] = self._create_future()
        self.pending[tag] = Pending(future, deadline, message)
        out = self._out
        if not out:
            self._call_soon(self._write)
        if size <= self._chunk:
            out += (method, self._header_head, len(header).to_bytes(4, "big"), header)
            out += (self._body_head, size.to_bytes(4, "big"), body, b"\xce") if size else (b"\xce",)
        else:
            out += (method, self._header_head, len(header).to_bytes(4, "big"), header, b"\xce")
            out += (frame(BODY, self.number, body[i : i + self._chunk]) for i in range(0, size, self._chunk))
        return future

    def check(self, properties: bytes, message: Message) -> None:
        """Raise `EncodeError` for properties that do not fit one frame of this connection."""
        if len(properties) + CONTENT_HEAD > self._chunk:
            raise EncodeError(
                f"{message.type}: its headers are {len(properties):,} bytes, and the broker's frames hold {self._chunk:,}"
            )

    def _method(self, key: tuple[str, str]) -> bytes:
        exchange, routing_key = key
        payload = (
            BASIC_PUBLISH
            + b"\x00\x00"
            + short(exchange, "the exchange")
            + short(routing_key, "the routing key")
            + _MANDATORY
        )
        method = frame(METHOD, self.number, payload)
        if len(self._methods) >= _METHODS_KEPT:
            self._methods.clear()
        self._methods[key] = method
        return method

    def _write(self) -> None:
        out, self._out = self._out, []
        if self.ended.done():
            return
        try:
            self._transport.write(b"".join(out))
        except (RuntimeError, OSError) as error:
            # The broker counts publishes as we do: after one that it did not get, every answer would be another's.
            self.lost(f"what was published could not be written: {error}")

    def writable(self) -> None:
        """Let publishers go on."""
        self._on_room()

    # --- in ---

    def method(self, buffer: bytes, at: int, end: int) -> bool:
        """Take an answer; note a close, which aiormq answers."""
        if self._expected != METHOD:
            raise self._unexpected(METHOD)
        kind = buffer[at : at + 4]
        if kind in _ANSWERS:
            if end - at != _ANSWER_SIZE:
                raise FrameError(f"an answer of {end - at} bytes")
            tag, bits = read_tag(buffer, at + 4)
            self._answered(tag, bits & 1 == 1, _ANSWERS[kind])
            return True
        if kind == BASIC_RETURN:
            self._returning = returned_from(buffer, at, end)
            self._expected = HEADER
            return True
        if end - at < 4:
            raise FrameError(f"a method of {end - at} bytes")
        if kind == CHANNEL_CLOSE:
            self.close_code, said, class_id, method_id = close_reason(buffer, at, end)
            self.closed_by_publish = (class_id, method_id) == (60, 40)
            self.lost(f"the broker closed the channel: {self.close_code} {said}")
        elif kind == CHANNEL_CLOSE_OK:
            self.lost("the channel was closed")
        return False

    def _answered(self, tag: int, multiple: bool, answer: Answer) -> None:
        if not 0 < tag <= self._tag:
            raise FrameError(f"an answer to publish {tag} of {self._tag}")
        pending = self.pending
        for each in list(takewhile(tag.__ge__, pending)) if multiple else (tag,):
            publish = pending.pop(each, None)
            if publish is None:
                continue
            if publish.given_up:
                self.unanswered -= 1
            elif not publish.answer.done():
                returned = publish.returned and answer is Answer.CONFIRMED
                publish.answer.set_result(Answer.RETURNED if returned else answer)

    def header(self, buffer: bytes, at: int, end: int) -> None:
        """Take the properties of a returned message, and find the publish that it was."""
        if self._expected != HEADER:
            raise self._unexpected(HEADER)
        self._left = content_size(buffer, at, end)
        self._expected = BODY if self._left else METHOD
        try:
            message_id = decode_properties(buffer[at + CONTENT_HEAD : end]).message_id
        except DecodeError:
            message_id = None
        self._mark_returned(*self._returning, message_id)

    def body(self, buffer: bytes, at: int, end: int) -> None:
        """Pass over the body of a returned message: we have it."""
        if self._expected != BODY:
            raise self._unexpected(BODY)
        if not at < end <= at + self._left:
            raise FrameError(f"a body frame of {end - at} bytes where {self._left} are left")
        self._left -= end - at
        if not self._left:
            self._expected = METHOD

    def _unexpected(self, kind: int) -> FrameError:
        return FrameError(f"{named(kind)} where {named(self._expected)} belongs")

    def _mark_returned(self, exchange: str, routing_key: str, message_id: str | None) -> None:
        """Mark the oldest publish of this exchange, key and id that is not marked yet.

        A return names no delivery tag. Returns come in the order of publishing and before their ack (measured on
        3.10, 4.0 and 4.3), so the search goes on where the last one ended.
        """
        oldest = next(iter(self.pending), self._tag + 1)
        for tag in range(max(oldest, self._last_returned + 1), self._tag + 1):
            publish = self.pending.get(tag)
            if publish is None:
                continue
            message = publish.message
            if (
                message.routing_key == routing_key
                and message.exchange == exchange
                and message.properties.message_id == message_id
            ):
                publish.returned = True
                self._last_returned = tag
                return

    def flush(self) -> None:
        """Let publishers use the room that answers made."""
        self._on_room()

    def lost(self, reason: str) -> None:
        """Answer everything that still waits: nobody else will."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        pending, self.pending = self.pending, {}
        self.unanswered_at_end, self.unanswered = len(pending), 0
        for publish in pending.values():
            if not publish.answer.done():
                publish.answer.set_result(Answer.LOST)
        self._on_room()

    def expire(self, now: float) -> None:
        """Answer those whose deadline has passed. What nobody waits for any more makes room for others."""
        given_up = 0
        for publish in self.pending.values():
            if publish.given_up or (publish.deadline > now and not publish.answer.done()):
                continue
            publish.given_up = True
            given_up += 1
            if not publish.answer.done():
                publish.answer.set_result(Answer.EXPIRED)
        if given_up:
            self.unanswered += given_up
            self._on_room()
