"""One connection to RabbitMQ: plain aio-pika underneath, and a deadline on every await into it.

aio-pika does what a client library must: TLS, login, tuning, heartbeats, channels. Recovery is not among it: the
library's own leaves channels dead after a failed restore (`docs/decisions/0002-plain-connections.md`), so a `Wire`
that is lost stays lost, and a `rabbitevents.brokers.link.Link` makes the next one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import aio_pika
import aiormq
import msgspec
from aiormq.abc import AbstractChannel
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from rabbitevents.brokers.rabbitmq.tap import FRAME_LIMIT, OVERHEAD, Lane, Tap
from rabbitevents.errors import BrokerError, ConfigurationError, TopologyError

T = TypeVar("T")

log: logging.Logger = logging.getLogger("rabbitevents.broker")

for _noisy in ("aiormq.connection", "aiormq.channel", "aio_pika"):
    if logging.getLogger(_noisy).level == logging.NOTSET:
        logging.getLogger(_noisy).setLevel(logging.CRITICAL)  # their DEBUG shows bodies; what their errors say, we say

RPC_DEADLINE = 10.0
"""Seconds that the broker has to answer one question (declare, consume, open a channel)."""

CLOSE_DEADLINE = 2.0
"""Seconds that a connection has to close politely, before it is broken off."""


class Address(msgspec.Struct, frozen=True):
    """A broker's URL, shown without its password."""

    url: str

    @property
    def parsed(self) -> URL:
        """The URL in parts."""
        return URL(self.url)

    def __str__(self) -> str:
        url = self.parsed
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        return f"{url.scheme}://{url.user + '@' if url.user else ''}{url.host}:{port}{url.raw_path}"

    def __repr__(self) -> str:
        return f"Address({self!s})"


def addresses(urls: Sequence[str]) -> tuple[Address, ...]:
    """Check URLs. Raises `ConfigurationError` for one that cannot be meant."""
    for number, text in enumerate(urls, 1):
        which = "the broker's URL" if len(urls) == 1 else f"URL number {number}"
        try:
            url = URL(text)
        except ValueError:
            url = URL()
        if url.scheme not in ("amqp", "amqps") or not url.host:  # not shown: a password may be anywhere in it
            raise ConfigurationError(
                f"{which} cannot be read; write amqp://user:password@host:5672/vhost, amqps:// for TLS, "
                "or memory:// for the embedded broker (and %2F and the like for signs such as / in a password)"
            )
        if url.query.get("no_verify_ssl", "0") != "0":
            raise ConfigurationError(
                f"{which}: no_verify_ssl would switch TLS's checks off; pass ssl_context= to say so in code"
            )
    if not urls:
        raise ConfigurationError("a bus needs the URL of at least one broker")
    return tuple(Address(text) for text in urls)


async def within(seconds: float, work: Awaitable[T], what: str) -> T:
    """Await ``work`` in a task of its own, at most ``seconds``. Raises `BrokerError` for all that goes wrong in there.

    The client library raises CancelledError for lost connections, and plain RuntimeErrors; neither leaves this room.
    A caller that is cancelled leaves the work running: a question that is broken off in the middle would cost its
    channel, and once it cost the connection.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.add_done_callback(_retrieve)
        raise
    if not done:
        task.cancel()
        task.add_done_callback(_retrieve)
        raise BrokerError(f"{what}: no answer within {seconds:g} s")
    if task.cancelled():
        raise BrokerError(f"{what}: the connection broke off")
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, BrokerError | TopologyError):
        raise error
    raise BrokerError(f"{what}: {explain(error)}", code=_code(error)) from error


def _close_unwanted(opened: asyncio.Future[None], channel: aio_pika.abc.AbstractChannel) -> None:
    """Close a channel that was opened for somebody who was cancelled meanwhile."""
    if not opened.cancelled() and opened.exception() is None and not channel.is_closed:
        asyncio.ensure_future(within(CLOSE_DEADLINE, channel.close(), "closing a channel")).add_done_callback(_retrieve)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the outcome of a task that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def explain(error: BaseException) -> str:
    """Say in words what a connection or the client library raised."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the broker's certificate was not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "nobody listens there (connection refused)"
    text = str(error)
    return text.removeprefix("None ") or type(error).__name__


def _code(error: BaseException) -> int:
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    if isinstance(error, aiormq.exceptions.ProbableAuthenticationError):
        return 403
    known: dict[type[BaseException], int] = {
        aiormq.exceptions.ChannelAccessRefused: 403,
        aiormq.exceptions.ChannelNotFoundEntity: 404,
        aiormq.exceptions.ChannelLockedResource: 405,
        aiormq.exceptions.ChannelPreconditionFailed: 406,
        aiormq.exceptions.ConnectionNotAllowed: 530,
    }
    return (
        known.get(type(error))
        or next((a for a in error.args if isinstance(a, int)), 0)
        or (code if isinstance(code, int) else 0)
    )


class _TapFactory(TransportFactory):
    """Makes aiormq's transport: an ordinary reader and writer, with our `Tap` as the protocol between."""

    def __init__(self) -> None:
        self.tap: Tap | None = None
        self.transport: asyncio.Transport | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        provider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        reader = asyncio.StreamReader(loop=loop)
        tap = Tap(reader, loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: tap, str(url.host), url.port or 0, ssl=context, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(explain(error)) from error
        transport.set_write_buffer_limits(high=1_048_576)
        self.tap, self.transport = tap, transport
        return reader, asyncio.StreamWriter(transport, tap, reader, loop)


QUIET = 0.8
"""Heartbeats without a sign from the broker after which health says so: it sends one every half of that time."""

GIVEN_UP = 2.5
"""Heartbeats without a sign from the broker after which its connection is broken off."""


class Wire:
    """One connection that stands, until it is lost."""

    def __init__(
        self,
        address: Address,
        connection: aio_pika.Connection,
        tap: Tap,
        transport: asyncio.Transport,
        heartbeat: float,
    ) -> None:
        self.address = address
        self.tap = tap
        self.transport = transport
        self.lost: asyncio.Future[str] = tap.lost
        self._connection = connection
        self.quiet: str = ""
        """What is the matter, while nothing comes from the broker: not even the heartbeat that it sends twice as often."""
        self._heartbeat = heartbeat
        self._channels: dict[int, aio_pika.abc.AbstractChannel] = {}

    @classmethod
    async def open(
        cls, address: Address, *, name: str, heartbeat: int, context: ssl.SSLContext | None, timeout: float
    ) -> Wire:
        """Connect. Raises `BrokerError`."""
        url = address.parsed.update_query(heartbeat=str(heartbeat), name=name)
        if not url.user:
            url = url.with_user("guest").with_password("guest")
        connection = aio_pika.Connection(url, ssl_context=context)
        factory = _TapFactory()
        connection.kwargs["transport_factory"] = factory
        try:
            await within(timeout, connection.connect(), f"connecting to {address}")
        except BaseException as error:
            # It has no transport that it would close; unclosed, it would close itself when it is collected, on no loop.
            await connection.close()
            if factory.tap is not None:
                factory.tap.abort("the connection could not be opened")
                if factory.tap.closed is not None and isinstance(error, BrokerError):
                    code, text = factory.tap.closed
                    raise BrokerError(f"connecting to {address}: the broker refused: {text}", code=code) from error
            raise
        if factory.tap is None or factory.transport is None:
            raise BrokerError(f"connecting to {address}: the client library made no transport")
        wire = cls(address, connection, factory.tap, factory.transport, heartbeat)
        factory.tap.frame_limit = max(FRAME_LIMIT, wire.frame_max + OVERHEAD)
        return wire

    @property
    def frame_max(self) -> int:
        """The largest frame that was agreed upon, in bytes; 128 KiB where the broker sets no limit (and keeps none)."""
        transport = self._connection.transport
        return (transport.connection.connection_tune.frame_max if transport is not None else 0) or 131_072

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """Open a channel. Raises `BrokerError`."""
        if self.lost.done():
            raise BrokerError("the connection is lost")
        channel = self._connection.channel(publisher_confirms=confirms)
        opening = asyncio.ensure_future(channel.initialize())
        try:
            await within(RPC_DEADLINE, opening, "opening a channel")
        except asyncio.CancelledError:
            opening.add_done_callback(lambda opened: _close_unwanted(opened, channel))
            raise
        underlay = await channel.get_underlay_channel()
        self._channels[underlay.number] = channel  # the library keeps channels by weak references only
        return underlay

    def attach(self, lane: Lane) -> None:
        """Lead a channel's content frames to ``lane``."""
        self.tap.lanes[lane.number] = lane

    async def close_channel(self, channel: AbstractChannel, lane: Lane | None = None) -> None:
        """Close a channel politely, if that still can be. Does not raise."""
        kept = self._channels.pop(channel.number, None)
        if kept is not None and not self.lost.done() and not channel.is_closed:
            with suppress(BrokerError):
                await within(CLOSE_DEADLINE, kept.close(), "closing a channel")
        if lane is not None:
            lane.lost("the channel was closed")
            if self.tap.lanes.get(lane.number) is lane:
                del self.tap.lanes[lane.number]

    def watch(self, now: float) -> None:
        """Break the connection off if nothing came for two and a half heartbeats (event loop's clock)."""
        silence = now - self.tap.received
        said = f"nothing came from the broker for {silence:.0f} s"
        self.quiet = said if self._heartbeat and silence > QUIET * self._heartbeat else ""
        if self._heartbeat and silence > GIVEN_UP * self._heartbeat:
            self.tap.abort(said)

    async def close(self, timeout: float = CLOSE_DEADLINE) -> None:
        """Close, politely within ``timeout`` seconds, or else at once. Does not raise."""
        self.tap.end_lanes("closed")
        polite = not self.lost.done() and self.tap.blocked is None  # a broker that blocks us does not read our close
        if not polite:
            self.tap.abort("closed")
        with suppress(BrokerError):
            await within(timeout, self._closing(), "closing the connection")
        self.tap.abort("closed")

    async def _closing(self) -> None:
        await self._connection.close()
