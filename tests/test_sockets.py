"""The tap on real sockets, on both event loops, with TLS and without: a full socket, and a peer that stopped reading."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import trustme

from rabbitevents.brokers.rabbitmq.inbound import InboundLane
from rabbitevents.brokers.rabbitmq.outbound import Answer, OutboundLane
from rabbitevents.brokers.rabbitmq.tap import Tap
from rabbitevents.message import Delivery
from tests.loops import LOOPS
from tests.shop import eventually
from tests.wired import a_message, an_ack, deliveries, published

LARGE = bytes(900_000)


class Peer(asyncio.Protocol):
    """The other end of one connection; it reads only once it is told to."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = 0
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Connected:
    """A tap that is connected to a peer, and a publishing lane on it."""

    def __init__(self, peer: Peer, tap: Tap, transport: asyncio.Transport) -> None:
        self.peer, self.tap, self.transport = peer, tap, transport
        self.rooms = 0
        self.lane = OutboundLane(1, transport, frame_max=131_072, on_room=self._room)
        tap.attach(self.lane)
        self._fd = transport.get_extra_info("socket").fileno()
        self._socket = self._open()

    @classmethod
    async def to_peer(cls, tls: bool) -> Connected:
        loop = asyncio.get_running_loop()
        peer, authority = Peer(), trustme.CA()
        server_context, client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        client_context.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
        with authority.issue_cert("localhost").private_key_and_cert_chain_pem.tempfile() as certificate:
            server_context.load_cert_chain(certificate)
        server = await loop.create_server(lambda: peer, "127.0.0.1", 0, ssl=server_context if tls else None)
        transport, tap = await loop.create_connection(
            lambda: Tap(asyncio.StreamReader(), loop),
            *server.sockets[0].getsockname(),
            ssl=client_context if tls else None,
            server_hostname="localhost" if tls else None,
        )
        await eventually(lambda: hasattr(peer, "transport"), "the connection at its peer")
        peer.transport.pause_reading()
        server.close()
        return cls(peer, tap, transport)

    def _room(self) -> None:
        self.rooms += 1

    def _open(self) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{self._fd}")
        except OSError:
            return ""

    @property
    def closed(self) -> bool:
        """Whether this process has the socket no more."""
        return self._open() != self._socket

    async def fill(self) -> list[asyncio.Future[Answer]]:
        """Publish until the socket takes no more."""
        answers = list[asyncio.Future[Answer]]()
        while not self.tap.paused:
            answers += published(self.lane, a_message("k", str(len(answers)), LARGE))
            await asyncio.sleep(0)
        return answers


Test = Callable[[Connected], Awaitable[None]]
Run = Callable[[Test], None]


@pytest.fixture(params=[(loop, tls) for loop in LOOPS for tls in (False, True)], ids=lambda p: f"{p[0]}-{'tls' * p[1]}")
def connected(request: pytest.FixtureRequest) -> Run:
    """Run a test on one of the loops, with TLS or without."""
    loop, tls = cast("tuple[str, bool]", request.param)

    async def body(test: Test) -> None:
        connection = await Connected.to_peer(tls)
        try:
            await test(connection)
        finally:
            connection.tap.abort("the test is over")
            connection.peer.transport.abort()
            await eventually(lambda: connection.closed and connection.peer.lost.is_set(), "the end of both sides")

    def run(test: Test) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(body(test))

    return run


def test_a_connection_whose_peer_stopped_reading_is_broken_off_at_once(connected: Run) -> None:
    async def test(connection: Connected) -> None:
        answers = await connection.fill()
        ended = asyncio.get_running_loop().time()

        connection.tap.abort("silent")
        await eventually(lambda: connection.closed, "the closed socket")

        assert asyncio.get_running_loop().time() - ended < 1
        assert {a.result() for a in answers} == {Answer.LOST}
        connection.peer.transport.resume_reading()
        await asyncio.wait_for(connection.peer.lost.wait(), 5)
        assert connection.peer.received < len(answers) * len(LARGE)

    connected(test)


def test_a_connection_that_was_about_to_close_is_broken_off_too(connected: Run) -> None:
    async def test(connection: Connected) -> None:
        await connection.fill()

        connection.transport.close()
        await asyncio.sleep(0)
        still = connection.closed
        connection.tap.abort("silent")
        connection.tap.abort("once more")
        await eventually(lambda: connection.closed, "the closed socket")

        assert not still

    connected(test)


def test_a_full_socket_holds_publishers_until_it_takes_writes_again_and_nothing_is_missing(connected: Run) -> None:
    async def test(connection: Connected) -> None:
        answers = await connection.fill()
        rooms = connection.rooms

        connection.peer.transport.resume_reading()
        await eventually(lambda: not connection.tap.paused, "a socket that takes writes")
        answers += published(connection.lane, a_message("k", "last", LARGE))
        await eventually(lambda: connection.peer.received > len(answers) * len(LARGE), "everything at the peer")
        connection.peer.transport.write(an_ack(len(answers), multiple=True))
        await asyncio.wait_for(answers[-1], 5)

        assert rooms == 0
        assert connection.rooms > 0
        assert {a.result() for a in answers} == {Answer.CONFIRMED}

    connected(test)


def test_what_the_peer_writes_is_delivered_and_what_is_no_amqp_ends_the_connection(connected: Run) -> None:
    async def test(connection: Connected) -> None:
        came = list[Delivery]()
        lane = InboundLane(2, connection.transport, queue="q", generation=1, deliver=came.extend, body_limit=10_000_000)
        connection.tap.attach(lane)

        connection.peer.transport.write(deliveries(2, b"small", LARGE, b""))
        await eventually(lambda: len(came) == 3, "three deliveries")
        connection.peer.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await eventually(lambda: connection.closed, "the closed socket")

        assert [d.body for d in came] == [b"small", LARGE, b""]
        assert "what is no AMQP" in lane.ended.result()

    connected(test)
