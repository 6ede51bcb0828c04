"""A TCP proxy on loopback that breaks what passes through it, when and how a test says.

Modes hold for open and for new connections, each way on its own: "to_server" and "to_client".
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Literal, Self
from urllib.parse import urlsplit

from tests.bed.loopback import LOOPBACK, free_port, reset
from tests.bed.pump import Pump, Way

Direction = Literal["to_server", "to_client"]


class Proxy:
    """Stands at `url_for(url)` in front of the broker at `host` and `port`, inside of `async with`.

    `accepted` counts the connections since the start, `passed` the bytes that went each way.
    """

    def __init__(self, host: str, port: int) -> None:
        self.accepted = 0
        self.port = free_port()
        self._target = (host, port)
        self._ways: dict[Direction, Way] = {"to_server": Way(), "to_client": Way()}
        self._links: set[Link] = set()
        self._server: asyncio.Server | None = None
        self._errors: list[BaseException] = []

    @classmethod
    def before(cls, url: str) -> Self:
        """Make a proxy in front of the broker that an AMQP URL names, port included."""
        parts = urlsplit(url)
        return cls(parts.hostname or LOOPBACK, parts.port or 5672)

    @property
    def connections(self) -> int:
        """How many connections are open, or look so to one end."""
        return len(self._links)

    def passed(self, direction: Direction) -> int:
        """How many bytes were handed on in a direction, over all connections."""
        return self._ways[direction].passed

    def url_for(self, url: str) -> str:
        """Return the same URL, but through the proxy."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}{at}{LOOPBACK}:{self.port}").geturl()

    def restore(self) -> None:
        """Pass everything again. A connection that lost bytes is cut: no stream goes on with a hole in it."""
        for way in self._ways.values():
            way.restore()
        for link in [link for link in self._links if link.holed]:
            link.cut()

    def stall(self, *, to_client: bool = True, to_server: bool = True) -> None:
        """Stop reading and writing with all sockets open, as a cable that is unplugged: nothing is lost."""
        for way in self._chosen(to_client, to_server):
            way.flowing.clear()

    def black_hole(self, *, to_client: bool = True, to_server: bool = True) -> None:
        """Read and discard, ends of connections included: the sender believes that all went well."""
        for way in self._chosen(to_client, to_server):
            way.discarding = True

    def slow(self, rate: float, *, to_client: bool = True, to_server: bool = True) -> None:
        """Pass at most `rate` bytes per second on each connection."""
        for way in self._chosen(to_client, to_server):
            way.rate = rate

    def delay(self, seconds: float, *, to_client: bool = True, to_server: bool = True) -> None:
        """Deliver everything `seconds` later; what is under way is at most 1 MiB a connection."""
        for way in self._chosen(to_client, to_server):
            way.latency = seconds

    def cut_after(self, size: int, direction: Direction) -> None:
        """Let `size` more bytes pass in a direction, then cut the connection that carried the last one."""
        self._ways[direction].left = size

    def cut(self) -> None:
        """End every connection at once by RST, to both ends."""
        for link in list(self._links):
            link.cut()

    def close(self) -> None:
        """End every connection by FIN, to both ends."""
        for link in list(self._links):
            link.close()

    def half_close(self, direction: Direction) -> None:
        """End one direction of every connection by FIN; the other goes on."""
        for link in self._links:
            link.half_close(direction)

    async def refuse(self) -> None:
        """Refuse new connections; the open ones go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Accept new connections again, on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port, limit=Pump.CHUNK)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        links = list(self._links)
        self.cut()
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)
        await asyncio.sleep(0)  # the callbacks of the last links
        if self._errors:
            raise self._errors.pop()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = Link(self._target, reader, writer, self._ways)
        self._links.add(link)
        link.task.add_done_callback(lambda task: self._forget(link, task))

    def _forget(self, link: "Link", task: asyncio.Task[None]) -> None:
        self._links.discard(link)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    def _chosen(self, to_client: bool, to_server: bool) -> Iterator[Way]:
        if to_client:
            yield self._ways["to_client"]
        if to_server:
            yield self._ways["to_server"]


class Link:
    """One client's connection and ours to the broker for it."""

    def __init__(
        self,
        target: tuple[str, int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ways: dict[Direction, Way],
    ) -> None:
        self._target = target
        self._client = (reader, writer)
        self._writers = [writer]
        self._ways = ways
        self._pumps: dict[Direction, Pump] = {}
        self.task = asyncio.create_task(self._run())

    @property
    def holed(self) -> bool:
        """Whether bytes were discarded in either direction."""
        return any(pump.holed for pump in self._pumps.values())

    def cut(self) -> None:
        """End both connections by RST."""
        for writer in self._writers:
            reset(writer)
        self.task.cancel()

    def close(self) -> None:
        """End both connections by FIN."""
        for writer in self._writers:
            writer.close()
        self.task.cancel()

    def half_close(self, direction: Direction) -> None:
        """End one direction by FIN."""
        if direction in self._pumps:
            self._pumps[direction].end()

    async def _run(self) -> None:
        try:
            if await self._connect():
                await asyncio.gather(*(pump.run() for pump in self._pumps.values()))
        finally:
            for writer in self._writers:
                writer.close()
            with contextlib.suppress(OSError):
                await asyncio.gather(*(writer.wait_closed() for writer in self._writers))

    async def _connect(self) -> bool:
        reader, writer = self._client
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target, limit=Pump.CHUNK)
        except OSError:  # the broker refuses: so do we, as far as an accepted connection can
            reset(writer)
            return False
        self._writers.append(server_writer)
        to_server, to_client = self._ways["to_server"], self._ways["to_client"]
        self._pumps["to_server"] = Pump(reader, server_writer, to_server, self.cut)
        self._pumps["to_client"] = Pump(server_reader, writer, to_client, self.cut)
        return True
