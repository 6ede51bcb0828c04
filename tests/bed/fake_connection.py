"""The broker's end of one client's connection, as `FakeBroker` and a test's callbacks use it."""

import asyncio
import struct
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from pamqp import body, header
from pamqp import commands as spec
from pamqp import frame as wire
from pamqp.base import Frame
from pamqp.exceptions import PAMQPException
from pamqp.heartbeat import Heartbeat

from tests.bed.loopback import reset as end_by_reset

Sendable = Frame | header.ContentHeader | body.ContentBody | Heartbeat

_HEAD = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQ")
_FRAME_END = b"\xce"
_HEADER_FRAME = 2


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A frame that pamqp cannot read: its type and its payload."""

    kind: int
    payload: bytes


Receivable = wire.FrameTypes | Undecodable


@dataclass(slots=True)
class Published:
    """A message that a client published, complete when `len(body) == size`.

    `delivery_tag` counts the publishes of the channel since Confirm.Select and is 0 without confirms. `properties` is
    None when they cannot be decoded.
    """

    connection: "FakeConnection"
    channel: int
    delivery_tag: int
    exchange: str
    routing_key: str
    mandatory: bool
    properties: spec.Basic.Properties | None = None
    size: int = -1
    body: bytes = b""


class FakeConnection:
    """One accepted connection: what it sends is what the test says, true to the protocol or not.

    `number` counts the broker's connections from 1; `consumers` maps each consumer tag to its channel and queue.
    Nothing here waits: `drain` does, for tests that send more than a socket takes.
    """

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.consumers: dict[str, tuple[int, str]] = {}
        self.client_properties: dict[str, Any] = {}
        self.frame_max = 131_072
        self._reader = reader
        self._writer = writer
        self._closing: set[int] = set()
        self._confirmed: dict[int, int] = {}
        self._content: dict[int, Published] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> bool:
        """Whether we can still send."""
        return not self._writer.is_closing()

    def send(self, channel: int, *frames: Sendable) -> None:
        """Send frames; on a connection that is gone they are dropped, as a network would."""
        self.send_raw(b"".join(wire.marshal(frame, channel) for frame in frames))

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self.open:
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the socket takes more."""
        await self._writer.drain()

    def deliver(
        self,
        channel: int,
        consumer_tag: str,
        delivery_tag: int,
        body: bytes,
        properties: spec.Basic.Properties | bytes | None = None,
        *,
        exchange: str = "",
        routing_key: str = "",
        redelivered: bool = False,
    ) -> None:
        """Deliver a message. `properties` as bytes are sent as they are: property flags and list, decodable or not."""
        method = spec.Basic.Deliver(consumer_tag, delivery_tag, redelivered, exchange, routing_key)
        self._send_content(channel, method, properties, body)

    def give_back(self, published: Published, code: int = 312, text: str = "NO_ROUTE") -> None:
        """Return a message to its publisher by Basic.Return; the confirm is a thing apart."""
        method = spec.Basic.Return(code, text, published.exchange, published.routing_key)
        self._send_content(published.channel, method, published.properties, published.body)

    def block(self, reason: str = "low on memory") -> None:
        """Tell the client that publishing is blocked."""
        self.send(0, spec.Connection.Blocked(reason))

    def unblock(self) -> None:
        """Tell the client that it may publish again."""
        self.send(0, spec.Connection.Unblocked())

    def cancel(self, consumer_tag: str) -> None:
        """Cancel a consumer from the broker's side, as RabbitMQ does when its queue is deleted."""
        channel, _ = self.consumers.pop(consumer_tag)
        self.send(channel, spec.Basic.Cancel(consumer_tag, nowait=True))

    def close_channel(self, channel: int, code: int, text: str, cause: Frame | None = None) -> None:
        """Close a channel with an error; until the client's CloseOk its frames there get no reaction."""
        self._closing.add(channel)
        index = 0 if cause is None else cause.index
        self.send(channel, spec.Channel.Close(code, text, index >> 16, index & 0xFFFF))

    def close(self, code: int, text: str, cause: Frame | None = None) -> None:
        """Close the connection with an error; until the client's CloseOk nothing gets a reaction."""
        self._closing.add(0)
        index = 0 if cause is None else cause.index
        self.send(0, spec.Connection.Close(code, text, index >> 16, index & 0xFFFF))

    def drop(self, *, reset: bool = True) -> None:
        """Drop the TCP connection: by RST at once, or by FIN after what was sent."""
        if reset:
            end_by_reset(self._writer)
        else:
            self._writer.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a callback's slower part beside the connection's reading; it is cancelled when the broker stops."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def frames(self) -> AsyncIterator[tuple[int, Receivable]]:
        """Read (channel, frame) until the client is gone; the first is the protocol header."""
        try:
            greeting = await self._reader.readexactly(8)
            yield 0, wire.unmarshal(greeting)[2]
            while True:
                yield await self._frame()
        except (asyncio.IncompleteReadError, OSError, PAMQPException):
            return

    def ignores(self, channel: int) -> bool:
        """Whether the channel, or all of the connection, waits for the client's CloseOk."""
        return channel in self._closing or 0 in self._closing

    def track(self, channel: int, frame: Receivable) -> Published | None:
        """Follow the protocol's state; return the message that this frame completes, if it does."""
        match frame:
            case spec.Connection.StartOk():
                self.client_properties = dict(frame.client_properties)
            case spec.Connection.TuneOk():
                self.frame_max = frame.frame_max or self.frame_max
            case spec.Channel.Open():
                self._forget(channel)
            case spec.Channel.Close() | spec.Channel.CloseOk():
                self._forget(channel)
            case spec.Confirm.Select():
                self._confirmed.setdefault(channel, 0)
            case _:
                return self._track_content(channel, frame)
        return None

    async def finish(self) -> None:
        """Drop the connection and end all that still works for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writer.transport.abort()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def _frame(self) -> tuple[int, Receivable]:
        head = await self._reader.readexactly(_HEAD.size)
        kind, channel, size = _HEAD.unpack(head)
        rest = await self._reader.readexactly(size + 1)
        try:
            return channel, wire.unmarshal(head + rest)[2]
        except Exception:  # whatever a client sends, the broker of a test goes on and shows it
            return channel, Undecodable(kind, rest[:-1])

    def _track_content(self, channel: int, frame: Receivable) -> Published | None:
        message = self._content.get(channel)
        match frame:
            case spec.Basic.Publish():
                message = self._begin(channel, frame)
            case header.ContentHeader() if message:
                message.properties, message.size = frame.properties, frame.body_size
            case Undecodable(kind=kind) if message and kind == _HEADER_FRAME:
                message.size = _CONTENT.unpack_from(frame.payload)[2]
            case body.ContentBody() if message:
                message.body += frame.value
            case _:
                return None
        return self._content.pop(channel) if message.size == len(message.body) else None

    def _begin(self, channel: int, frame: spec.Basic.Publish) -> Published:
        if channel in self._confirmed:
            self._confirmed[channel] += 1
        tag = self._confirmed.get(channel, 0)
        message = Published(self, channel, tag, frame.exchange, frame.routing_key, bool(frame.mandatory))
        self._content[channel] = message
        return message

    def _forget(self, channel: int) -> None:
        self._closing.discard(channel)
        self._confirmed.pop(channel, None)
        self._content.pop(channel, None)
        self.consumers = {tag: place for tag, place in self.consumers.items() if place[0] != channel}

    def _send_content(
        self, channel: int, method: Frame, properties: spec.Basic.Properties | bytes | None, content: bytes
    ) -> None:
        listed = properties if isinstance(properties, bytes) else (properties or spec.Basic.Properties()).marshal()
        payload = _CONTENT.pack(spec.Basic.frame_id, 0, len(content)) + listed
        head = _HEAD.pack(_HEADER_FRAME, channel, len(payload)) + payload + _FRAME_END
        bodies = b"".join(wire.marshal(part, channel) for part in self._parts(content))
        self.send_raw(wire.marshal(method, channel) + head + bodies)

    def _parts(self, content: bytes) -> Iterator[body.ContentBody]:
        size = self.frame_max - 8
        for start in range(0, len(content), size):
            yield body.ContentBody(content[start : start + size])
