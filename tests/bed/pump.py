"""What carries the bytes of one connection in one direction, and the faults that it carries out."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from tests.bed.loopback import reset


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class Way:
    """How one direction behaves now, for all connections; `left` is how many bytes may pass before a cut."""

    flowing: asyncio.Event = field(default_factory=_set_event)
    discarding: bool = False
    rate: float | None = None
    latency: float = 0
    left: int | None = None
    passed: int = 0

    def restore(self) -> None:
        """Behave well again."""
        self.discarding, self.rate, self.latency, self.left = False, None, 0, None
        self.flowing.set()


@dataclass(frozen=True, slots=True)
class Load:
    """Bytes that are due at a time of the loop's clock; without bytes, the end of the stream, orderly or `torn`."""

    due: float
    data: bytes
    torn: bool = False


class Pump:
    """Carries bytes from `source` to `sink` as `way` says; at most 64 chunks are under way. `cut` ends the connection.

    `holed` says that it discarded something.
    """

    CHUNK: ClassVar[int] = 16_384

    def __init__(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Way, cut: Callable[[], None]
    ) -> None:
        self.holed = False
        self._source = source
        self._sink = sink
        self._way = way
        self._cut = cut
        self._ended = False
        self._under_way: asyncio.Queue[Load] = asyncio.Queue(maxsize=64)
        sink.transport.set_write_buffer_limits(high=0)

    async def run(self) -> None:
        """Carry until the stream ends."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._read())
            both.create_task(self._write())

    def end(self) -> None:
        """End the stream towards the sink by FIN; what still comes is thrown away."""
        if not self._ended and not self._sink.is_closing():
            with contextlib.suppress(OSError):  # that end was reset: there is nobody to tell
                self._sink.write_eof()
        self._ended = True

    async def _read(self) -> None:
        load = Load(0, b"begin")
        while load.data:
            await self._way.flowing.wait()
            load = await self._next_load()
            await self._under_way.put(load)

    async def _next_load(self) -> Load:
        torn = False
        try:
            data = await self._source.read(self.CHUNK)
        except OSError:
            data, torn = b"", True
        return Load(asyncio.get_running_loop().time() + self._way.latency, data, torn)

    async def _write(self) -> None:
        while True:
            load = await self._under_way.get()
            await asyncio.sleep(load.due - asyncio.get_running_loop().time())
            await self._way.flowing.wait()
            if load.data:
                await self._carry(load.data)
                continue
            self._finish(load)
            return

    def _finish(self, last: Load) -> None:
        if self._way.discarding:
            self.holed = True
        elif last.torn:
            reset(self._sink)
        else:
            self.end()

    async def _carry(self, data: bytes) -> None:
        for piece in self._pieces(data):
            await self._way.flowing.wait()
            if self._way.discarding:
                self.holed = True
            elif not self._ended:
                await self._hand_on(piece)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """Split into what passes in 10 ms, at the rate of the moment."""
        start = 0
        while start < len(data):
            rate = self._way.rate
            size = len(data) if rate is None else max(1, int(rate / 100))
            yield data[start : start + size]
            start += size

    async def _hand_on(self, piece: bytes) -> None:
        way = self._way
        allowed = piece if way.left is None else piece[: way.left]
        try:
            self._sink.write(allowed)
            await self._sink.drain()
        except OSError:  # that end is gone; the pump that reads from it carries the news
            self._ended = True
        way.passed += len(allowed)
        if way.left is not None:
            way.left -= len(allowed)
        if way.left == 0:
            way.left = None
            self._ended = True
            self._cut()
        elif way.rate is not None:
            await asyncio.sleep(len(allowed) / way.rate)
