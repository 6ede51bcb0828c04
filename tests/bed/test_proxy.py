"""The proxy breaks what it is told to, and nothing else."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Literal

import pytest

from tests.bed.loopback import LOOPBACK, free_port, reset
from tests.bed.proxy import Direction, Proxy

BOTH: tuple[Direction, Direction] = ("to_server", "to_client")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that sends back what it gets, counts it, and knows how its last connection ended."""

    def __init__(self) -> None:
        self.port = free_port()
        self.got = 0
        self.ends: asyncio.Queue[Literal["FIN", "RST"]] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        try:
            while data := await reader.read(65_536):
                self.got += len(data)
                writer.write(data)
                await writer.drain()
            self.ends.put_nowait("FIN")
        except OSError:
            self.ends.put_nowait("RST")
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """Serve for one test."""
    echo = Echo()
    server = await asyncio.start_server(echo.serve, LOOPBACK, echo.port)
    yield echo
    server.close()


@pytest.fixture
async def between(echo: Echo) -> AsyncIterator[Proxy]:
    """A proxy before the echo."""
    async with Proxy(LOOPBACK, echo.port) as proxy:
        yield proxy


@pytest.fixture
async def stream(between: Proxy) -> AsyncIterator[Stream]:
    """A client's connection through the proxy, in use."""
    reader, writer = await asyncio.open_connection(LOOPBACK, between.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    yield reader, writer
    writer.close()


async def _comes(reader: asyncio.StreamReader, size: int, timeout: float = 0.2) -> bool:
    try:
        await asyncio.wait_for(reader.readexactly(size), timeout)
    except TimeoutError:
        return False
    return True


async def test_everything_passes_and_is_counted(between: Proxy, echo: Echo, stream: Stream) -> None:
    reader, writer = stream
    body = bytes(range(256)) * 20_000

    writer.write(body)

    assert await reader.readexactly(len(body)) == body
    assert [between.passed(way) for way in BOTH] == [len(body) + 5] * 2
    assert (between.accepted, between.connections, echo.got) == (1, 1, len(body) + 5)


async def test_an_orderly_end_passes(between: Proxy, echo: Echo, stream: Stream) -> None:
    reader, writer = stream

    writer.write_eof()

    assert await echo.ends.get() == "FIN"
    assert await reader.read() == b""
    await asyncio.sleep(0.01)
    assert between.connections == 0


async def test_a_reset_passes(echo: Echo, stream: Stream) -> None:
    reset(stream[1])

    assert await echo.ends.get() == "RST"


async def test_a_cut_is_a_reset_at_both_ends(between: Proxy, echo: Echo, stream: Stream) -> None:
    between.cut()

    with pytest.raises(ConnectionResetError):
        await stream[0].read()
    assert await echo.ends.get() == "RST"


async def test_a_close_is_an_orderly_end_at_both_ends(between: Proxy, echo: Echo, stream: Stream) -> None:
    between.close()

    assert await stream[0].read() == b""
    assert await echo.ends.get() == "FIN"


@pytest.mark.parametrize("direction", BOTH)
async def test_a_stall_loses_nothing(between: Proxy, stream: Stream, direction: Direction) -> None:
    reader, writer = stream
    between.stall(to_server=direction == "to_server", to_client=direction == "to_client")

    writer.write(b"one")
    assert not await _comes(reader, 3)
    between.restore()

    assert await _comes(reader, 3, 5)


async def test_a_stalled_way_takes_no_more_than_its_buffers(between: Proxy, stream: Stream) -> None:
    _, writer = stream
    between.stall()

    writer.write(bytes(64 * 1024 * 1024))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(writer.drain(), 0.3)
    writer.transport.abort()


async def test_a_black_hole_swallows_bytes_and_the_end(between: Proxy, echo: Echo, stream: Stream) -> None:
    reader, writer = stream
    between.black_hole(to_client=False)

    writer.write(b"one")
    assert not await _comes(reader, 3)
    writer.write_eof()
    await asyncio.sleep(0.1)

    assert (echo.got, echo.ends.empty()) == (5, True)
    between.restore()
    assert await echo.ends.get() == "RST"


async def test_a_black_hole_one_way_lets_the_other_pass(between: Proxy, echo: Echo, stream: Stream) -> None:
    reader, writer = stream
    between.black_hole(to_server=False)

    writer.write(b"one")

    assert not await _comes(reader, 3)
    assert echo.got == 8


async def test_a_rate_holds_in_bytes_per_second(between: Proxy, stream: Stream) -> None:
    reader, writer = stream
    between.slow(100_000, to_client=False)
    started = time.monotonic()

    writer.write(bytes(30_000))
    await reader.readexactly(30_000)

    assert 0.25 < time.monotonic() - started < 1


async def test_a_delay_costs_latency_and_not_throughput(between: Proxy, stream: Stream) -> None:
    reader, writer = stream
    between.delay(0.1)
    started = time.monotonic()

    writer.write(bytes(400_000))
    await reader.readexactly(400_000)

    assert 0.2 <= time.monotonic() - started < 1


@pytest.mark.parametrize("size", [0, 1, 100_003])
async def test_a_cut_after_bytes_is_exact(between: Proxy, echo: Echo, stream: Stream, size: int) -> None:
    between.cut_after(size, "to_server")

    stream[1].write(bytes(1_000_000))

    assert await echo.ends.get() == "RST"
    assert echo.got == 5 + size
    assert between.passed("to_server") == 5 + size


async def test_half_a_close_leaves_the_other_half(between: Proxy, stream: Stream) -> None:
    reader, writer = stream
    before = between.passed("to_server")

    between.half_close("to_client")

    assert await reader.read() == b""
    writer.write(b"still here")
    await asyncio.sleep(0.1)
    assert between.passed("to_server") == before + 10


async def test_refused_is_refused_until_accepted_again(between: Proxy, stream: Stream) -> None:
    reader, writer = stream
    await between.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(LOOPBACK, between.port)
    writer.write(b"old")
    assert await _comes(reader, 3, 5)

    await between.accept()

    _, second = await asyncio.open_connection(LOOPBACK, between.port)
    second.close()


async def test_a_server_that_is_away_resets_the_client() -> None:
    async with Proxy(LOOPBACK, free_port()) as proxy:
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)

        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


def test_a_url_keeps_all_but_host_and_port() -> None:
    proxy = Proxy.before("amqps://user:p%40ss@localhost:5671/v%2Fh?heartbeat=5")

    url = proxy.url_for("amqps://user:p%40ss@localhost:5671/v%2Fh?heartbeat=5")

    assert url == f"amqps://user:p%40ss@127.0.0.1:{proxy.port}/v%2Fh?heartbeat=5"
