"""JSON over HTTP, read and never written, of a server that may be anything: bounded in time and in size.

One GET a connection, so that nothing is left of an answer that is late, endless or no HTTP. What it says names no
password.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, cast

import msgspec
from yarl import URL

from rabbitevents.brokers.rabbitmq.calls import explain
from rabbitevents.errors import BrokerError, ConfigurationError

if TYPE_CHECKING:
    from socket import socket

DEADLINE: Final = 4.0
"""Seconds that an answer may take, from connecting to its last byte."""

LARGEST: Final = 32 * 1024 * 1024
"""Bytes that an answer may have: some 50,000 queues with the columns that are asked for."""

AT_A_TIME: Final = 4
"""Questions at a time."""


class Answer(msgspec.Struct, frozen=True):
    """What was answered: a status, and a document of JSON."""

    status: int
    document: object


class Site:
    """Asks one server. ``login`` is what stands behind ``Basic``; empty, nobody logs in."""

    def __init__(self, url: URL, *, login: str = "", context: ssl.SSLContext | None = None) -> None:
        self.skew: float | None = None
        """How many seconds our clock is ahead of the server's, as of the last answer, give or take one."""
        self._url = url
        self._login = f"Authorization: Basic {login}\r\n" if login else ""
        self._context = (context or ssl.create_default_context()) if url.scheme == "https" else None
        self._turn = asyncio.Semaphore(AT_A_TIME)

    def __str__(self) -> str:
        return str(self._url.with_user(None)).rstrip("/")

    def ends_with(self, path: str) -> bool:
        """Say whether the URL is one of ``path`` already."""
        return self._url.raw_path.rstrip("/").endswith(path)

    async def get(self, path: str, *, deadline: float = DEADLINE) -> Answer:
        """Ask for ``PATH`` below the URL. A server that says that it is not well is an answer (503).

        Raises `BrokerError` for everything else that is no document, with the status as its code.
        """
        try:
            async with self._turn, asyncio.timeout(deadline):
                raw = await self._exchange(f"{self._url.raw_path.rstrip('/')}{path}")
        except TimeoutError:
            raise BrokerError(f"{self}: no answer within {deadline:g} s") from None
        except OSError as error:
            raise BrokerError(f"{self}: {explain(error)}") from error
        return self._answer(raw)

    async def _exchange(self, target: str) -> bytes:
        host = self._url.host or ""
        reader, writer = await asyncio.open_connection(host, self._url.port, ssl=self._context)
        try:
            named = f"[{host}]" if ":" in host else host
            writer.write(
                f"GET {target or '/'} HTTP/1.1\r\nHost: {named}:{self._url.port}\r\n{self._login}"
                "Accept: application/json\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n".encode()
            )
            raw = bytearray()
            while more := await reader.read(262_144):
                raw += more
                if len(raw) > LARGEST:
                    raise BrokerError(f"{self}: the answer is longer than {LARGEST // 1024 // 1024} MiB")
            return bytes(raw)
        finally:
            writer.transport.abort()

    def _answer(self, raw: bytes) -> Answer:
        response = http.client.HTTPResponse(cast("socket", _Received(raw)), method="GET")
        try:
            response.begin()
            body = response.read()
        except (http.client.HTTPException, ValueError) as error:
            raise BrokerError(f"{self}: what answers there speaks no HTTP, or broke off") from error
        self._note_time(response.headers.get("Date"))
        if response.status not in (200, 503):
            redirected = ", a redirection: say the URL that it leads to" if 300 <= response.status < 400 else ""
            raise BrokerError(f"{self} answers {response.status}{redirected}", code=response.status)
        try:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError("encoded, which was not asked for")
            return Answer(response.status, json.loads(body))
        except (ValueError, RecursionError) as error:
            raise BrokerError(f"{self} answers {response.status} with what is no JSON") from error

    def _note_time(self, date: str | None) -> None:
        try:
            self.skew = None if date is None else time.time() - parsedate_to_datetime(date).timestamp()
        except ValueError:
            self.skew = None


class _Received:
    """Bytes, where `http.client` wants a socket to read them from."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        """Return them as a file."""
        return io.BytesIO(self._raw)


def read_url(told: str, what: str, such_as: str) -> URL:
    """Read an HTTP URL. Raises `ConfigurationError`, which shows nothing of it: a password may be anywhere in there."""
    write = f"write {such_as}, or https://"
    try:
        url = URL(told.strip())
    except ValueError:
        raise ConfigurationError(f"{what} cannot be read: {write}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(f"{what} does not begin with http:// and a host: {write}")
    if url.query_string or url.fragment or "@" in url.raw_path or any(sign in told for sign in "\r\n "):
        raise ConfigurationError(
            f"{what} has more than a path in it; in a password @ is written %40, ? %3F, # %23 and / %2F: {write}"
        )
    return url
