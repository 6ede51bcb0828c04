"""The data plane: content frames, straight between the socket and our values.

aiormq keeps the connection: handshake, heartbeats, channels, declarations. Its transport is ours: the `Tap` looks at
each inbound frame, hands the content frames of channels that have a lane (deliver, return, ack, nack, and the headers
and bodies that follow) to that `Lane`, and feeds everything else on, as if nothing had happened. Outbound, a lane
writes whole messages, once per turn of the event loop.

A stream that contradicts itself ends the connection, and nothing of its last read is delivered: where one frame is
not what it says, the next ones are not either.

Source: RabbitMQ's confirms, returns and cancels (https://www.rabbitmq.com/docs/confirms,
https://www.rabbitmq.com/docs/consumer-cancel).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from rabbitevents.brokers.rabbitmq.frames import (
    BODY,
    CONNECTION_BLOCKED,
    CONNECTION_CLOSE,
    CONNECTION_CLOSE_OK,
    CONNECTION_UNBLOCKED,
    FRAME_END,
    FRAME_LIMIT,
    HEADER,
    HEARTBEAT,
    KINDS,
    METHOD,
    OVERHEAD,
    FrameError,
    blocked_because,
    close_reason,
    named,
    read_head,
)

READ_SIZE: Final = 262_144
"""Bytes that one read takes at most."""

_HEARTBEAT_PAUSE: Final = 1.0
"""Seconds between two heartbeats that aiormq is fed while lanes are busy."""


class Lane(Protocol):
    """What one channel's content frames go to. ``at`` and ``end`` bound a frame's payload in ``buffer``.

    `method`, `header` and `body` raise `FrameError` for a frame that cannot stand where it stands.
    """

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
        self.frame_limit = FRAME_LIMIT
        self.closed: tuple[int, str] | None = None
        """Why the broker closed the connection, if it did: reply code and text."""
        self._time = loop.time
        self._space = memoryview(bytearray(READ_SIZE))
        self._control = reader
        self._rest = b""
        self._fed = 0.0
        self._raw = False
        self._over = ""
        """Why no lane stands here any more."""
        self._transport_of_ours: asyncio.Transport | None = None

    def attach(self, lane: Lane) -> None:
        """Lead a channel's content frames to ``lane``. It ends at once on a connection that has ended."""
        self.lanes[lane.number] = lane
        if self._over:
            lane.lost(self._over)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, to be able to break it off."""
        self._transport_of_ours = cast("asyncio.Transport", transport)  # uvloop's is one in all but its ancestry
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
        """Take frames; one that is not complete waits for the rest."""
        self.received = self._time()
        if self._raw:
            self._control.feed_data(data)
        elif not self.lost.done():
            self._walk(self._rest + data if self._rest else data)

    def _walk(self, buffer: bytes) -> None:
        """Lead each frame to where it belongs."""
        lanes, limit, size = self.lanes, self.frame_limit, len(buffer)
        touched: list[Lane] = []
        last: Lane | None = None
        at = channel = 0
        try:
            while size - at >= OVERHEAD:
                kind, channel, length = read_head(buffer, at)
                end = at + length + OVERHEAD
                if end > size or length > limit:
                    if kind in KINDS and length <= limit:
                        break
                    self._not_amqp(buffer[at:], f"{named(kind)} of {length} bytes")
                    return
                if buffer[end - 1] != FRAME_END:
                    self._not_amqp(buffer[at:], f"{named(kind)} that does not end where it says")
                    return
                lane = lanes.get(channel)
                if lane is None:
                    self._to_control(buffer, at, end, channel, kind)
                else:
                    if lane is not last:
                        last = lane
                        touched.append(lane)
                    if kind == METHOD:
                        if not lane.method(buffer, at + 7, end - 1):
                            self._control.feed_data(buffer[at:end])
                    elif kind == HEADER:
                        lane.header(buffer, at + 7, end - 1)
                    elif kind == BODY:
                        lane.body(buffer, at + 7, end - 1)
                    else:
                        raise FrameError(named(kind))
                at = end
        except FrameError as error:
            self.abort(f"the broker sent what is no AMQP: {error}, on channel {channel}")
            return
        self._rest = buffer[at:]
        if touched:
            self._after_lanes(touched)

    def _to_control(self, buffer: bytes, at: int, end: int, channel: int, kind: int) -> None:
        if kind not in KINDS and self.lanes:
            raise FrameError(named(kind))
        if channel == 0 and kind == METHOD:
            method = buffer[at + 7 : at + 11]
            if method == CONNECTION_BLOCKED:
                self.blocked = blocked_because(buffer, at + 7, end - 1)
                self.on_blocked(self.blocked)
            elif method == CONNECTION_UNBLOCKED:
                self.blocked = None
                self.on_blocked(None)
            elif method == CONNECTION_CLOSE:
                self.closed = close_reason(buffer, at + 7, end - 1)[:2]
                self.end_lanes("the broker closed the connection: {} {}".format(*self.closed))  # aiormq answers
            elif method == CONNECTION_CLOSE_OK:
                self.end_lanes("the connection was closed")
        self._control.feed_data(buffer[at:end])

    def _after_lanes(self, touched: list[Lane]) -> None:
        for lane in touched if len(touched) == 1 else dict.fromkeys(touched):
            lane.flush()
        if self.received - self._fed >= _HEARTBEAT_PAUSE:
            # The broker sends no heartbeats while other traffic flows, and aiormq sees only what it is fed:
            # it would call a busy connection stuck after three intervals.
            self._fed = self.received
            self._control.feed_data(HEARTBEAT)

    def _not_amqp(self, rest: bytes, what: str) -> None:
        """Hand a stream that is not made of frames to aiormq, which says what is wrong; once lanes stand, end it."""
        if self.lanes:
            raise FrameError(what)
        self._raw = True
        self._control.feed_data(rest)

    def abort(self, reason: str) -> None:
        """Break the connection off at once, without a word to the broker, whatever still waits to be written."""
        self._end(reason)
        if self._transport_of_ours is not None:
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
        """End every lane: nothing more is written on this connection, and nobody waits for it.

        They stay where they are, and take what still comes for them: aiormq is not there for it.
        """
        self._over = self._over or reason
        for lane in tuple(self.lanes.values()):
            lane.lost(reason)

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
