"""One connection to RabbitMQ: plain aio-pika underneath, and a deadline on every await into it.

aio-pika does what a client library must: TLS, login, tuning, heartbeats. Recovery is not among it: the library's own
leaves channels dead after a failed restore (`docs/decisions/0002-plain-connections.md`), so a `Connection` that is
lost stays lost, and a `rabbitevents.brokers.rabbitmq.link.Link` makes the next one. The channels that publish and
consume are aiormq's, one layer below: each of aio-pika's leaves observers on the connection when it is closed. Those
that ask are our own (`rabbitevents.brokers.rabbitmq.control`).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeVar, cast

import aio_pika
from aiormq.abc import AbstractChannel

from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.calls import CLOSE_DEADLINE, RPC_DEADLINE, look, within
from rabbitevents.brokers.rabbitmq.control import ControlChannel
from rabbitevents.brokers.rabbitmq.frames import FRAME_LIMIT, OVERHEAD
from rabbitevents.brokers.rabbitmq.inbound import Turn
from rabbitevents.brokers.rabbitmq.tap import Lane, Tap
from rabbitevents.brokers.rabbitmq.transport import Transport
from rabbitevents.errors import BrokerError

T = TypeVar("T")

log: logging.Logger = logging.getLogger("rabbitevents.broker")

for _noisy in ("aiormq.connection", "aiormq.channel", "aio_pika"):
    if logging.getLogger(_noisy).level == logging.NOTSET:
        logging.getLogger(_noisy).setLevel(logging.CRITICAL)  # their DEBUG shows bodies; what their errors say, we say

QUIET = 0.8
"""Heartbeats without a sign from the broker after which health says so: it sends one every half of that time."""

AT_ONCE = 8
"""Questions to the broker side by side: it makes quorum queues twice as fast then, and no faster with more (measured)."""

GIVEN_UP = 2.5
"""Heartbeats without a sign from the broker after which its connection is broken off."""


class Connection:
    """One connection that stands, until it is lost."""

    def __init__(
        self,
        address: Address,
        connection: aio_pika.Connection,
        tap: Tap,
        transport: asyncio.WriteTransport,
        heartbeat: float,
        another: Callable[[], Awaitable[Connection]],
    ) -> None:
        self.address = address
        self.tap = tap
        self.transport = transport
        self.turn: Turn = Turn(transport)
        self.lost: asyncio.Future[str] = tap.lost
        self.another: Callable[[], Awaitable[Connection]] = another
        """Connects to the same place once more, for a question that may end a connection. Raises `BrokerError`."""
        self.quiet: str = ""
        """What is the matter, while nothing comes from the broker: not even the heartbeat that it sends twice as often."""
        self.fell_silent: bool = False
        """Whether it was broken off because nothing came from the broker."""
        self._connection = connection
        self._heartbeat = heartbeat
        self._control: list[ControlChannel] = []
        """The channels for questions that nobody asks on at the moment."""
        self._asking = asyncio.Semaphore(min(AT_ONCE, max(1, self.channel_max // 2)))
        self._questions = 0
        """How many are asked, or wait for their turn."""
        self._numbers: list[int] = []
        """The numbers of channels for questions that are free again."""
        self._lowest = self.channel_max + 1
        """The lowest number of a channel for questions so far: the client library counts up, and we count down."""

    @classmethod
    async def open(
        cls,
        address: Address,
        *,
        name: str,
        heartbeat: int,
        context: ssl.SSLContext | None,
        timeout: float,
        attempt: int = 0,
    ) -> Connection:
        """Connect; ``attempt`` turns among the addresses that a name has. Raises `BrokerError`.

        A caller that is cut off leaves nothing open, whatever was under way.
        """
        url = address.parsed.update_query(heartbeat=str(heartbeat), name=name)
        if not url.user:
            url = url.with_user("guest").with_password("guest")
        connection = aio_pika.Connection(url, ssl_context=context)
        made = Transport(attempt)
        connection.kwargs["transport_factory"] = made
        connecting = asyncio.ensure_future(connection.connect())
        try:
            await within(timeout, connecting, f"connecting to {address}")
            if made.tap is None or made.transport is None:
                raise BrokerError(f"connecting to {address}: the client library made no transport")
        except BaseException as error:
            await _leave_nothing(connection, connecting, made)
            if isinstance(error, BrokerError) and made.tap is not None and made.tap.closed is not None:
                code, text = made.tap.closed
                raise BrokerError(f"connecting to {address}: the broker refused: {text}", code=code) from error
            raise
        another = partial(cls.open, address, name=name, heartbeat=heartbeat, context=context, timeout=timeout)
        opened = cls(address, connection, made.tap, made.transport, heartbeat, another)
        made.tap.frame_limit = max(FRAME_LIMIT, opened.frame_max + OVERHEAD)
        return opened

    @property
    def server(self) -> Mapping[str, object]:
        """What the broker said of itself: its product, version, platform and cluster's name."""
        transport = self._connection.transport
        return {} if transport is None else cast("Mapping[str, object]", transport.connection.server_properties)

    @property
    def certificate(self) -> Mapping[str, object]:
        """The broker's certificate, as `ssl.SSLSocket.getpeercert` says it; empty without TLS, or where none is checked."""
        return cast("Mapping[str, object]", self.transport.get_extra_info("peercert") or {})

    @property
    def frame_max(self) -> int:
        """The largest frame that was agreed upon, in bytes; 128 KiB where the broker sets no limit (and keeps none)."""
        transport = self._connection.transport
        return (transport.connection.connection_tune.frame_max if transport is not None else 0) or 131_072

    @property
    def channel_max(self) -> int:
        """The highest number of a channel that was agreed upon."""
        transport = self._connection.transport
        return (transport.connection.connection_tune.channel_max if transport is not None else 0) or 65_535

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """Open a channel. Raises `BrokerError`. One that is opened for a caller who was cut off is closed again."""
        transport = self._connection.transport
        if self.lost.done() or transport is None:
            raise BrokerError("the connection is lost")
        opening = asyncio.ensure_future(transport.connection.channel(publisher_confirms=confirms))
        try:
            return await within(RPC_DEADLINE, opening, "opening a channel")
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    async def ask(self, question: Callable[[ControlChannel], Awaitable[T]], what: str) -> T:
        """Ask the broker something on a channel that this connection has for it. Raises `BrokerError`.

        `AT_ONCE` questions are asked side by side, each on a channel of its own; of these one is kept once nobody asks
        any more. One that is refused, or not answered, costs its channel.
        """
        self._questions += 1
        try:
            async with self._asking:
                channel = self._control_channel()
                answered = False
                try:
                    answer = await within(RPC_DEADLINE, question(channel), what)
                    answered = True
                finally:
                    if answered:
                        self._control.append(channel)
                    else:
                        channel.leave()
                return answer
        finally:
            self._questions -= 1
            while not self._questions and len(self._control) > 1:
                self._control.pop().leave()

    def _control_channel(self) -> ControlChannel:
        """Return a channel for a question: one that stands, or one that the question will open. Raises `BrokerError`."""
        while self._control:
            channel = self._control.pop()
            if not channel.is_closed:
                return channel
        if self.lost.done():
            raise BrokerError("the connection is lost")
        if self._numbers:
            number = self._numbers.pop()
        else:
            number = self._lowest = self._lowest - 1
        channel = ControlChannel(number, self.turn, self._forget_control)
        self.attach(channel)
        return channel

    def _forget_control(self, channel: ControlChannel) -> None:
        if self.tap.lanes.pop(channel.number, None) is not None:
            self._numbers.append(channel.number)

    def attach(self, lane: Lane) -> None:
        """Lead a channel's content frames to ``lane``."""
        self.tap.attach(lane)

    async def close_channel(self, channel: AbstractChannel, lane: Lane | None = None) -> None:
        """Close a channel politely, if that still can be. Its lane ends first. Does not raise."""
        if lane is not None:
            lane.lost("the channel was closed")
        try:
            if not self.lost.done() and not channel.is_closed:
                with suppress(BrokerError):
                    await within(CLOSE_DEADLINE, channel.close(), "closing a channel")
        finally:
            if lane is not None and self.tap.lanes.get(lane.number) is lane:
                del self.tap.lanes[lane.number]

    def watch(self, now: float) -> None:
        """Break the connection off if nothing came for two and a half heartbeats (event loop's clock)."""
        silence = now - self.tap.received
        said = f"nothing came from the broker for {silence:.0f} s"
        self.quiet = said if self._heartbeat and silence > QUIET * self._heartbeat else ""
        if self._heartbeat and silence > GIVEN_UP * self._heartbeat:
            self.fell_silent = True
            self.tap.abort(said)

    async def close(self, timeout: float = CLOSE_DEADLINE) -> None:
        """Close, politely within ``timeout`` seconds, or else at once. Does not raise."""
        self.tap.end_lanes("closed")
        polite = not self.lost.done() and self.tap.blocked is None  # a broker that blocks us does not read our close
        if not polite:
            self.tap.abort("closed")
        try:
            with suppress(BrokerError):
                await within(timeout, self._connection.close(), "closing the connection")
        finally:
            self.tap.abort("closed")


async def _leave_nothing(connection: aio_pika.Connection, connecting: asyncio.Future[None], made: Transport) -> None:
    """End an attempt that is given up: the work that is under way, and the socket that it may have made."""
    connecting.cancel()
    connecting.add_done_callback(look)
    if made.tap is not None:
        made.tap.abort("the connection could not be opened")
    with suppress(BrokerError):
        # It has no transport that it would close; unclosed, it would close itself when it is collected, on no loop.
        await within(CLOSE_DEADLINE, connection.close(), "closing what was not opened")


def _close_unwanted(opened: asyncio.Future[AbstractChannel]) -> None:
    """Close a channel that was opened for somebody who was cut off meanwhile."""
    if not opened.cancelled() and opened.exception() is None and not opened.result().is_closed:
        closing = within(CLOSE_DEADLINE, opened.result().close(), "closing a channel")
        asyncio.ensure_future(closing).add_done_callback(look)
