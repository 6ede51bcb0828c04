"""How a connection reaches its broker: aiormq's transport factory, with our `Tap` as the protocol in between."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from rabbitevents.brokers.rabbitmq.calls import explain
from rabbitevents.brokers.rabbitmq.tap import Tap

SHARE = 3.0
"""Seconds that one of a name's several addresses has to accept a connection, before the next one is tried."""

WRITE_BUFFER = 1_048_576
"""Bytes that wait in the process for the socket before publishers are held."""


class Transport(TransportFactory):
    """Makes one connection's transport: an ordinary reader and writer for aiormq, and the tap for us.

    A name that stands for several addresses is tried at each of them, from number ``first`` on: a node that accepts
    connections and says nothing must not keep us from its neighbours, attempt after attempt.
    """

    def __init__(self, first: int = 0) -> None:
        self.tap: Tap | None = None
        self.transport: asyncio.Transport | None = None
        self._first = first

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, as aiormq asks for it. Raises its AMQPConnectionError. Cut off, it leaves nothing open."""
        loop = asyncio.get_running_loop()
        provider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        reader = asyncio.StreamReader(loop=loop)
        tap = Tap(reader, loop)
        try:
            sock = await self._connected(str(url.host), url.port or 0)
            try:
                transport, _ = await loop.create_connection(
                    lambda: tap, sock=sock, ssl=context, server_hostname=url.host if context is not None else None
                )
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise AMQPConnectionError(explain(error)) from error
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.tap, self.transport = tap, transport
        return reader, asyncio.StreamWriter(transport, tap, reader, loop)

    async def _connected(self, host: str, port: int) -> socket.socket:
        """Return a socket that is connected to one of the host's addresses. Raises OSError, the last one's."""
        loop = asyncio.get_running_loop()
        found = await _resolve(host, port)
        turn = self._first % len(found)
        refusal: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in (*found[turn:], *found[:turn]):
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            try:
                async with asyncio.timeout(SHARE if len(found) > 1 else None):
                    await loop.sock_connect(sock, address)
            except TimeoutError:
                sock.close()
                refusal = OSError(f"no answer from {address[0]} within {SHARE:g} s")
            except OSError as error:
                sock.close()
                refusal = error
            except BaseException:
                sock.close()
                raise
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        raise refusal


async def _resolve(host: str, port: int) -> list[Any]:
    """Return the addresses that a name stands for, as `socket.getaddrinfo` does."""
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
