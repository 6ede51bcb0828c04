"""A tap without a socket: what tests of the lanes share."""

from __future__ import annotations

import asyncio

from pamqp import body as amqp_body
from pamqp import commands, frame

from rabbitevents.brokers import Deliver
from rabbitevents.brokers.rabbitmq.frames import HEARTBEAT
from rabbitevents.brokers.rabbitmq.inbound import InboundLane
from rabbitevents.brokers.rabbitmq.outbound import Answer, OutboundLane
from rabbitevents.brokers.rabbitmq.tap import Tap
from rabbitevents.message import Delivery, Message
from rabbitevents.properties import Properties, encode_properties


class Transport(asyncio.Transport):
    """A socket that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        """Go on: nothing more comes than the test feeds."""

    def resume_reading(self) -> None:
        """Go on."""

    def frames(self) -> list[frame.FrameTypes]:
        """What was written, read by pamqp."""
        found: list[frame.FrameTypes] = []
        while self.written:
            size, _, each = frame.unmarshal(bytes(self.written))
            found.append(each)
            del self.written[:size]
        return found


class Wired:
    """A tap with its control stream, and what its lanes delivered."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.control = asyncio.StreamReader(loop=loop)
        self.tap = Tap(self.control, loop)
        self.transport = Transport()
        self.tap.connection_made(self.transport)
        self.delivered: list[Delivery] = []
        self.rooms = 0

    def inbound(self, number: int = 1, body_limit: int = 1_000_000, deliver: Deliver | None = None) -> InboundLane:
        lane = InboundLane(
            number,
            self.transport,
            queue=f"q{number}",
            generation=1,
            deliver=deliver or self.delivered.extend,
            body_limit=body_limit,
        )
        self.tap.attach(lane)
        return lane

    def outbound(self, number: int = 1, frame_max: int = 131_072) -> OutboundLane:
        lane = OutboundLane(number, self.transport, frame_max=frame_max, on_room=self._room)
        self.tap.attach(lane)
        return lane

    def _room(self) -> None:
        self.rooms += 1

    def received(self, number: int) -> list[tuple[int, bytes]]:
        """Tags and bodies of what came on a channel."""
        return [(d.tag, d.body) for d in self.delivered if d.queue == f"q{number}"]

    def ended(self) -> str:
        """Why the connection was broken off; empty while it stands."""
        assert self.transport.aborted == self.tap.lost.done()
        return self.tap.lost.result() if self.tap.lost.done() else ""

    async def fed(self) -> bytes:
        """What aiormq would have read by now, without the heartbeats that the tap puts in."""
        self.control.feed_eof()
        return (await self.control.read()).replace(HEARTBEAT, b"")


def content_head(number: int, size: int, properties: bytes = b"\x00\x00", class_id: int = 60) -> bytes:
    """A content header, whatever it says."""
    head = class_id.to_bytes(2, "big") + b"\x00\x00" + size.to_bytes(8, "big") + properties
    return b"\x02" + number.to_bytes(2, "big") + len(head).to_bytes(4, "big") + head + b"\xce"


def body_frame(number: int, piece: bytes) -> bytes:
    return frame.marshal(amqp_body.ContentBody(piece), number)


def content(number: int, method: frame.FrameTypes, properties: bytes, body: bytes, chunk: int = 100) -> list[bytes]:
    """The frames of one message, its body in chunks."""
    return [
        frame.marshal(method, number),
        content_head(number, len(body), properties),
        *(body_frame(number, body[i : i + chunk]) for i in range(0, len(body), chunk)),
    ]


def a_delivery(number: int, tag: int, body: bytes) -> list[bytes]:
    deliver = commands.Basic.Deliver("tag", tag, False, "events", f"order.{number}")
    return content(number, deliver, encode_properties(Properties(message_id=f"{number}-{tag}")), body)


def deliveries(number: int, *bodies: bytes) -> bytes:
    """A channel's first deliveries as one stream."""
    return b"".join(f for tag, body in enumerate(bodies, 1) for f in a_delivery(number, tag, body))


def a_message(key: str, message_id: str, body: bytes = b"body") -> Message:
    return Message(exchange="events", routing_key=key, body=body, properties=Properties(message_id=message_id))


def published(lane: OutboundLane, *messages: Message, deadline: float = 100.0) -> list[asyncio.Future[Answer]]:
    return [lane.publish(m, encode_properties(m.properties), deadline) for m in messages]


def a_return(key: str, message_id: str, number: int = 1, body: bytes = b"body") -> bytes:
    method = commands.Basic.Return(312, "NO_ROUTE", "events", key)
    return b"".join(content(number, method, encode_properties(Properties(message_id=message_id)), body))


def an_ack(tag: int, multiple: bool = False, number: int = 1) -> bytes:
    return frame.marshal(commands.Basic.Ack(tag, multiple), number)
