"""Health over HTTP: what is answered to whom, and a server just large enough for an orchestrator's questions.

Three questions, as paths: ``/live`` (does the process turn at all; restart it if not), ``/ready`` (does the work go on:
connected, every expected consumer running, no subscription stuck) and ``/health`` (every check, and 503 for the least
of them that fails). On the same port ``/metrics`` is Prometheus's page.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self, cast

import msgspec

from rabbitevents.errors import ConfigurationError
from rabbitevents.states import Check, Health

__all__ = ["DEADLINE", "HEAD_LIMIT", "MOST_CONNECTIONS", "Answer", "HealthServer", "Look", "answer"]

Look = Callable[[], Health]
"""Says how things are: `Bus.health`, or another of that kind. It is called on the event loop, and must not wait."""

Measured = Callable[[], Awaitable[bytes]]
"""Returns what is measured, as Prometheus reads it. It may raise whatever a collector does."""

QUESTIONS: Final = "/live, /ready, /health, /metrics"
"""What a `HealthServer` answers."""

SUPERVISOR: Final = "supervisor"
"""The check of whoever replaces what has ended; it fails when that cannot be done."""

HEAD_LIMIT: Final = 8192
"""Bytes that a request may have."""

DEADLINE: Final = 5.0
"""Seconds that a connection may last, from being accepted to being closed."""

MOST_CONNECTIONS: Final = 64
"""Connections at a time; for a further one the oldest that has asked nothing is closed."""

JSON: Final = "application/json"

log: logging.Logger = logging.getLogger("rabbitevents.bus")


class Answer(msgspec.Struct, frozen=True):
    """What is answered: an HTTP status, and a document, in JSON unless ``media`` says otherwise."""

    status: HTTPStatus
    body: bytes
    media: str = JSON


def answer(look: Look, path: str) -> Answer:
    """Answer the question that the last word of ``path`` asks; an unknown one is not found (404)."""
    question = path.rstrip("/").rpartition("/")[2]
    if question not in ("live", "ready", "health"):
        return Answer(HTTPStatus.NOT_FOUND, _document("ask for /live, /ready or /health", ()))
    health = look()
    if question == "live":
        # Whoever answers turns. A bus that has ended while its process stays will not come back by itself; one of several
        # workers that has ended, or hangs, is replaced without the others being killed: unless that is what fails.
        beyond = [check for check in health.problems if check.name == SUPERVISOR or _has_ended(check)]
        return _said(not beyond, beyond)
    if question == "ready":
        return _said(health.ready, (check for check in health.problems if not check.degraded))
    return _said(health.ok, health.checks)


def _has_ended(check: Check) -> bool:
    return check.name == "bus" and check.detail == "stopped"


def _said(ok: bool, checks: Iterable[Check]) -> Answer:
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, _document("ok" if ok else "failing", checks))


def _document(status: str, checks: Iterable[Check]) -> bytes:
    told = (msgspec.structs.asdict(check) for check in checks)
    found = [{name: value for name, value in each.items() if value is not None} for each in told]
    return json.dumps({"status": status, "checks": found}).encode()  # ASCII, whatever a broker's text has in it


class HealthServer:
    """Answers ``GET /live``, ``/ready``, ``/health`` and ``/metrics`` on a port, as long as it is entered (``async with``).

    It speaks as much HTTP/1.1 as kubelet, load balancers, Prometheus and curl need: one request a connection, at most
    `HEAD_LIMIT` bytes, within `DEADLINE` seconds. ``port`` 0 is any free one; ``host`` None is every address of the
    machine. ``measured`` makes the page of metrics; by default it is that of this process. Raises `ConfigurationError`
    for what is no port, and, when it is entered, where the port cannot be had.
    """

    def __init__(self, look: Look, port: int, host: str | None = None, *, measured: Measured | None = None) -> None:
        if (
            not isinstance(cast("object", port), int) or not 0 <= port <= 65_535
        ):  # the kernel would take it modulo 65,536
            raise ConfigurationError(
                f"health cannot be served on {_place(host, port)}: say a port from 0 (any that is free) to 65535"
            )
        self.port: int = port
        self._look = look
        self._host = host
        self._measured = measured or _measured
        self._measuring: asyncio.Task[Answer] | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        """Those of them that have asked nothing yet, the oldest first."""

    async def __aenter__(self) -> Self:
        try:
            self._server = await self._listening(self.port)
            ports = [each.getsockname()[1] for each in self._server.sockets]
            if len(set(ports)) > 1:  # port 0 was another free one for IPv4 than for IPv6
                self._server.close()
                self._server = await self._listening(ports[0])
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"health cannot be served on {_place(self._host, self.port)}: {error}; say another port, or 0 for any that is free"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=DEADLINE)

    async def _listening(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._accept, self._host, port, limit=HEAD_LIMIT)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_CONNECTIONS and not self._drop_a_silent_one():
            writer.transport.abort()
            return
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="rabbitevents health")
        self._open.add(connection)
        self._silent[connection] = writer.transport
        connection.add_done_callback(self._forget)

    def _drop_a_silent_one(self) -> bool:
        """Close the connection that has been silent for longest: whoever opens many and asks nothing starves nobody."""
        if not self._silent:
            return False
        oldest = next(iter(self._silent))
        self._silent.pop(oldest).abort()
        self._open.discard(oldest)
        oldest.cancel()
        return True

    def _forget(self, connection: asyncio.Task[None]) -> None:
        self._open.discard(connection)
        self._silent.pop(connection, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                writer.write(await self._response(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # whoever asked has gone, or does not say what they want
        finally:
            writer.transport.abort()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request, and return the response to it. What a request's headers say changes nothing."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _document("too large", ())))
        finally:
            self._silent.pop(cast("asyncio.Task[None]", asyncio.current_task()), None)
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(Answer(HTTPStatus.BAD_REQUEST, _document("this is no HTTP/1.1 request", ())))
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _response(Answer(HTTPStatus.METHOD_NOT_ALLOWED, _document("use GET", ())))
        path = target.partition("?")[0].rstrip("/")
        found = await self._metrics() if path.endswith("/metrics") else answer(self._look, path)
        return _response(found, head_only=method == "HEAD")

    async def _metrics(self) -> Answer:
        """Answer with the metrics. They are collected once at a time, for however many ask meanwhile."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.get_running_loop().create_task(_page(self._measured), name="rabbitevents metrics")
        return await asyncio.shield(self._measuring)


async def _page(measured: Measured) -> Answer:
    try:
        from rabbitevents.exposition import CONTENT_TYPE_LATEST
    except ModuleNotFoundError:
        missing = "prometheus_client is not installed: pip install 'rabbitevents[otel]' brings it"
        return Answer(HTTPStatus.NOT_FOUND, _document(missing, ()))
    try:
        return Answer(HTTPStatus.OK, await measured(), CONTENT_TYPE_LATEST)
    except Exception:
        # Collectors are anybody's, and an orchestrator's port has to go on answering.
        log.exception("the metrics could not be read")
        return Answer(
            HTTPStatus.INTERNAL_SERVER_ERROR, _document("the metrics could not be read; the log says why", ())
        )


async def _measured() -> bytes:
    from rabbitevents.exposition import exposition

    return await asyncio.to_thread(exposition)


def _place(host: str | None, port: object) -> str:
    return f"port {port!r}" if host is None else f"{host}:{port}"


def _response(answer: Answer, *, head_only: bool = False) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.media}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head_only else answer.body)
