"""The other end of `core_cost.py`: a process that speaks just enough AMQP to deliver and to confirm without end."""

from __future__ import annotations

import socket
import socketserver
import struct
from collections.abc import Generator
from contextlib import contextmanager

from pamqp import commands as spec
from pamqp import frame as wire
from pamqp.base import Frame

from tests.bed.fake_replies import start, usual_reply

BODY = (
    b'{"order_id":"order-00000001","customer_id":"customer-00001","total":87.25,"quantity":3,"note":"Please leave it"}'
)
ID = "01936b2e-7c1a-7e3b-9f00-0123456789ab"


def _short(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


def _long(text: str) -> bytes:
    return b"S" + len(text).to_bytes(4, "big") + text.encode()


_HEADERS = b"".join(
    (
        _short("event-version") + b"l" + (1).to_bytes(8, "big"),
        _short("event-time") + _long("2026-01-31T12:00:00.123456+00:00"),
        _short("entity-type") + _long("order"),
        _short("entity-id") + _long("order-00000001"),
    )
)
PROPERTIES = b"".join(
    (
        b"\xb4\xe8",
        _short("application/json"),
        len(_HEADERS).to_bytes(4, "big") + _HEADERS,
        b"\x02",
        _short(ID),
        _short(ID),
        (1_769_860_800).to_bytes(8, "big"),
        _short("order.placed"),
        _short("shop"),
    )
)
"""As the library itself publishes them, in both checkouts: the order of headers is the writer's."""

_HEAD = struct.Struct(">BHI")
_METHOD = struct.Struct(">HH")
_PUBLISH, _ACK = (60, 40), (60, 80)


class Peer(socketserver.BaseRequestHandler):
    """One connection of a broker that grants everything, delivers one event without end, and confirms at once."""

    request: socket.socket

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._prefetch: dict[int, int] = {}
        self._consumer: tuple[int, str, str] | None = None
        self._window = self._tag = self._settled = 0
        self._published: dict[int, int] = {}
        self._confirmed: dict[int, int] = {}
        self._content = b""

    def handle(self) -> None:
        data = b""
        with _ends_with_its_client():
            while more := self.request.recv(1 << 18):
                data += more
                if data.startswith(b"AMQP"):
                    data = data[8:]
                    self._send(0, start("4.0.5"))
                data = data[self._take(data) :]
                self._confirm()
                self._deliver()

    def _take(self, data: bytes) -> int:
        """React to all frames that are complete, and return where they end."""
        start = 0
        while len(data) >= start + 7:
            kind, channel, size = _HEAD.unpack_from(data, start)
            end = start + 8 + size
            if len(data) < end:
                break
            if kind == 1:
                self._method(channel, data[start:end])
            start = end
        return start

    def _method(self, channel: int, frame: bytes) -> None:
        method = _METHOD.unpack_from(frame, 7)
        if method == _PUBLISH:
            self._published[channel] = self._published.get(channel, 0) + 1
        elif method == _ACK:
            tag, multiple = struct.unpack_from(">QB", frame, 11)
            self._settled = tag if multiple else self._settled + 1
        else:
            self._answer(channel, wire.unmarshal(frame)[2])

    def _answer(self, channel: int, frame: object) -> None:
        match frame:
            case spec.Connection.StartOk():
                self._send(0, spec.Connection.Tune(2047, 131_072, 0))
            case spec.Connection.Close():
                self._send(0, spec.Connection.CloseOk())
            case spec.Basic.Qos():
                self._prefetch[channel] = frame.prefetch_count
                self._send(channel, spec.Basic.QosOk())
            case spec.Basic.Consume():
                self._send(channel, spec.Basic.ConsumeOk(frame.consumer_tag))
                self._begin(channel, frame.consumer_tag)
            case spec.Basic.Cancel():
                self._consumer = None
                self._send(channel, spec.Basic.CancelOk(frame.consumer_tag))
            case Frame() if not getattr(frame, "nowait", False) and (reply := usual_reply(frame)) is not None:
                self._send(channel, reply)
            case _:
                pass

    def _begin(self, channel: int, tag: str) -> None:
        if self._consumer is None or self._consumer[0] != channel:
            self._tag = self._settled = 0 if channel not in self._prefetch else self._tag
        payload = b"\x00\x3c\x00\x00" + len(BODY).to_bytes(8, "big") + PROPERTIES
        marshalled = _HEAD.pack(2, channel, len(payload)) + payload + b"\xce"
        body = _HEAD.pack(3, channel, len(BODY)) + BODY + b"\xce"
        self._content = marshalled + body
        self._consumer = (channel, tag, "order.placed")
        self._window = self._prefetch.get(channel, 1)

    def _deliver(self) -> None:
        """Deliver as many as the window has room for."""
        if self._consumer is None:
            return
        channel, consumer, key = self._consumer
        frames: list[bytes] = []
        while self._tag - self._settled < self._window:
            self._tag += 1
            frames.append(wire.marshal(spec.Basic.Deliver(consumer, self._tag, False, "events", key), channel))
            frames.append(self._content)
        self.request.sendall(b"".join(frames))

    def _confirm(self) -> None:
        for channel, tag in self._published.items():
            if self._confirmed.get(channel, 0) < tag:
                self._confirmed[channel] = tag
                self._send(channel, spec.Basic.Ack(tag, True))

    def _send(self, channel: int, frame: Frame) -> None:
        self.request.sendall(wire.marshal(frame, channel))


@contextmanager
def _ends_with_its_client() -> Generator[None]:
    try:
        yield
    except (ConnectionError, BrokenPipeError):
        return


def serve_as_peer() -> None:
    """Listen on a port that is printed, until killed."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Peer) as server:
        server.daemon_threads = True
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    serve_as_peer()
