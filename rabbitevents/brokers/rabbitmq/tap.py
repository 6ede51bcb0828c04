"""The data plane: content frames, straight between the socket and our values.

aiormq keeps the connection: handshake, heartbeats, channels, declarations. Its transport is ours: the `Tap` looks at
each inbound frame, hands the content frames of channels that have a lane (deliver, return, ack, nack, and the headers
and bodies that follow) to that `Lane`, and feeds everything else on, as if nothing had happened. Outbound, a lane
writes whole messages, once per turn of the event loop.

Source: AMQP 0-9-1, sections 2.3.5 (frames), 4.2.6 (content), 1.8 (basic); RabbitMQ's confirms, returns and cancels
(https://www.rabbitmq.com/docs/confirms, https://www.rabbitmq.com/docs/consumer-cancel).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final, Protocol

HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
METHOD, HEADER, BODY = 1, 2, 3
FRAME_END: Final = 0xCE
OVERHEAD: Final = 8
"""Bytes of a frame around its payload: type, channel, size, end."""

FRAME_LIMIT: Final = 1_048_576
"""The largest frame in bytes that is taken for one, unless a larger one was agreed upon."""

READ_SIZE: Final = 262_144
"""Bytes that one read takes at most."""

_HEAD = struct.Struct(">BHI").unpack_from

CHANNEL_CLOSE: Final = b"\x00\x14\x00\x28"
BASIC_CANCEL: Final = b"\x00\x3c\x00\x1e"
BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28"
BASIC_RETURN: Final = b"\x00\x3c\x00\x32"
BASIC_DELIVER: Final = b"\x00\x3c\x00\x3c"
BASIC_ACK: Final = b"\x00\x3c\x00\x50"
BASIC_REJECT: Final = b"\x00\x3c\x00\x5a"
BASIC_NACK: Final = b"\x00\x3c\x00\x78"
CONNECTION_CLOSE: Final = b"\x00\x0a\x00\x32"
CONNECTION_BLOCKED: Final = b"\x00\x0a\x00\x3c"
CONNECTION_UNBLOCKED: Final = b"\x00\x0a\x00\x3d"


class Lane(Protocol):
    """What one channel's content frames go to. ``at`` and ``end`` bound a frame's payload in ``buffer``."""

    @property
    def number(self) -> int:
        """The channel's number."""
        ...

    def method(self, buffer: bytes, at: int, end: int) -> bool:
        """Take a method frame; False leaves it to aiormq (and may have been noted all the same)."""
        ...

    def header(self, buffer: bytes, at: int, end: int) -> None:
        """Take a content header frame."""
        ...

    def body(self, buffer: bytes, at: int, end: int) -> None:
        """Take a content body frame."""
        ...

    def flush(self) -> None:
        """Pass on what came together in one read."""
        ...

    def lost(self, reason: str) -> None:
        """Learn that the channel is gone."""
        ...

    def writable(self) -> None:
        """Learn that the socket takes writes again, after it did not."""
        ...


class Tap(asyncio.StreamReaderProtocol, asyncio.BufferedProtocol):
    """The protocol between a socket and aiormq's stream reader, with a branch for each lane.

    It counts time too: ``received`` is when the last bytes came (event loop's clock).
    """

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.lanes: dict[int, Lane] = {}
        self.lost: asyncio.Future[str] = loop.create_future()
        self.received: float = loop.time()
        self.blocked: str | None = None
        self.paused: bool = False
        self.on_blocked: Callable[[str | None], None] = _ignore
        self._time = loop.time
        self._space = memoryview(bytearray(READ_SIZE))
        self._control = reader
        self.frame_limit = FRAME_LIMIT
        self.closed: tuple[int, str] | None = None
        """Why the broker closed the connection, if it did: reply code and text."""
        self._rest = b""
        self._fed = 0.0
        self._raw = False
        self._transport_of_ours: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, to be able to break it off."""
        self._transport_of_ours = transport
        super().connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the transport the buffer that it reads into.

        Without one, asyncio makes a new object of 256 KiB for each read, which the allocator maps and unmaps
        (3 system calls and the page faults, 30 us an event where events come one at a time).
        """
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read into the buffer."""
        self.data_received(bytes(self._space[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Walk through the frames in ``data``; a frame that is not complete waits for the rest."""
        self.received = self._time()
        if self._raw:
            self._control.feed_data(data)
            return
        buffer = self._rest + data if self._rest else data
        at, size, touched = 0, len(buffer), None
        while size - at >= OVERHEAD:
            kind, channel, length = _HEAD(buffer, at)
            end = at + length + OVERHEAD
            if end > size:
                if kind not in (METHOD, HEADER, BODY, 8) or length > self.frame_limit:
                    self._not_amqp(buffer[at:], kind)
                    return
                break
            if buffer[end - 1] != FRAME_END:
                self._not_amqp(buffer[at:], kind)
                return
            lane = self.lanes.get(channel)
            if lane is None or kind == 8:
                self._to_control(buffer, at, end, channel, kind)
            else:
                touched = lane
                self._to_lane(lane, kind, buffer, at, end)
            at = end
        self._rest = buffer[at:]
        if touched is not None:
            self._after_lanes()

    def _to_lane(self, lane: Lane, kind: int, buffer: bytes, at: int, end: int) -> None:
        if kind == METHOD:
            if not lane.method(buffer, at + 7, end - 1):
                self._control.feed_data(buffer[at:end])
        elif kind == HEADER:
            lane.header(buffer, at + 7, end - 1)
        else:
            lane.body(buffer, at + 7, end - 1)

    def _to_control(self, buffer: bytes, at: int, end: int, channel: int, kind: int) -> None:
        if channel == 0 and kind == METHOD:
            method = buffer[at + 7 : at + 11]
            if method == CONNECTION_BLOCKED:
                self.blocked = buffer[at + 12 : end - 1].decode("utf-8", "replace")
                self.on_blocked(self.blocked)
            elif method == CONNECTION_UNBLOCKED:
                self.blocked = None
                self.on_blocked(None)
            elif method == CONNECTION_CLOSE:
                code, text, _, _ = close_reason(buffer, at + 7)
                self.closed = (code, text)
                self.end_lanes(f"the broker closed the connection: {code} {text}")  # aiormq answers, and ends it
        self._control.feed_data(buffer[at:end])

    def _after_lanes(self) -> None:
        for lane in tuple(self.lanes.values()):
            lane.flush()
        if self.received - self._fed >= 1.0:
            # The broker sends no heartbeats while other traffic flows, and aiormq sees only what it is fed:
            # it would call a busy connection stuck after three intervals.
            self._fed = self.received
            self._control.feed_data(HEARTBEAT)

    def _not_amqp(self, buffer: bytes, kind: int) -> None:
        """Hand a stream that is not made of frames to aiormq, which says what is wrong; once lanes stand, break it off."""
        if self.lanes:
            self.abort(f"the broker sent what is no AMQP frame (type {kind})")
            return
        self._raw = True
        self._control.feed_data(buffer)

    def abort(self, reason: str) -> None:
        """Break the connection off at once, without a word to the broker."""
        self._end(reason)
        if isinstance(self._transport_of_ours, asyncio.Transport):
            self._transport_of_ours.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every lane."""
        self._end(str(exc) if exc is not None else "the broker closed the connection")
        super().connection_lost(exc)

    def _end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        self.end_lanes(reason)

    def end_lanes(self, reason: str) -> None:
        """End every lane: nothing more is written on this connection, and nobody waits for it."""
        for lane in tuple(self.lanes.values()):
            lane.lost(reason)
        self.lanes.clear()

    def pause_writing(self) -> None:
        """Hold the lanes' publishers: the socket is full."""
        self.paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """Let the lanes' publishers go on."""
        self.paused = False
        super().resume_writing()
        for lane in tuple(self.lanes.values()):
            lane.writable()


def _ignore(_: str | None) -> None:
    """Nobody asked."""


def close_reason(buffer: bytes, at: int) -> tuple[int, str, int, int]:
    """Read a channel.close at ``at``: reply code, text, and the class and method that caused it."""
    code = int.from_bytes(buffer[at + 4 : at + 6], "big")
    text_end = at + 7 + buffer[at + 6]
    text = buffer[at + 7 : text_end].decode("utf-8", "replace")
    cause = buffer[text_end : text_end + 4]
    return code, text, int.from_bytes(cause[:2], "big"), int.from_bytes(cause[2:], "big")


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return one whole frame."""
    return b"".join((bytes((kind,)), channel.to_bytes(2, "big"), len(payload).to_bytes(4, "big"), payload, b"\xce"))
