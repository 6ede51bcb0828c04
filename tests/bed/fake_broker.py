"""An AMQP 0-9-1 broker that follows a test's script: any frame order, delay, missing reply or close, in milliseconds.

It keeps no queues. What a client asks is granted and recorded, a publish is confirmed, and for each method a test can
say what happens instead.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, Self, TypeVar

from pamqp import commands as spec
from pamqp import header
from pamqp.base import Frame
from pamqp.heartbeat import Heartbeat

from rabbitevents.brokers.rabbitmq.moving import NOTICE
from rabbitevents.partitions import DIVIDED
from tests.bed.fake_connection import FakeConnection, Published, Receivable
from tests.bed.fake_replies import start, usual_reply
from tests.bed.loopback import LOOPBACK, free_port

F = TypeVar("F", bound=Receivable)
M = TypeVar("M", bound=Frame)
Reaction = Callable[[FakeConnection, int, M], Awaitable[None] | None]
PublishReaction = Callable[[FakeConnection, Published], Awaitable[None] | None]


class Received(NamedTuple, Generic[F]):
    """A frame, and where it came in."""

    connection: FakeConnection
    channel: int
    frame: F


class FakeBroker:
    """A broker at `url`, from `async with` on. `heartbeat` is what it proposes, in seconds; 0 is none.

    `mute` makes it accept and read without ever speaking; `beating` says whether it sends heartbeats. Both can change
    at any time. A callback that raises fails the test when the broker stops.
    """

    def __init__(self, *, heartbeat: int = 0, mute: bool = False, version: str = "4.0.5") -> None:
        self.mute = mute
        self.beating = True
        self.connections: list[FakeConnection] = []
        self.frames: list[Received[Receivable]] = []
        self._by_kind: dict[type[Any], list[Received[Any]]] = {}
        self.published: list[Published] = []
        self._heartbeat = heartbeat
        self._version = version
        self._port = free_port()
        self._reactions: dict[type[Frame], Callable[..., Awaitable[None] | None]] = {}
        self._react_to_publish: PublishReaction = _confirm
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The AMQP URL."""
        return f"amqp://guest:guest@{LOOPBACK}:{self._port}/"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for a client that is a bare socket."""
        return LOOPBACK, self._port

    @property
    def connection(self) -> FakeConnection:
        """The newest connection; raises IndexError when there was none."""
        return self.connections[-1]

    def on(self, method: type[M], reaction: Reaction[M]) -> None:
        """React to a method by `reaction(connection, channel, frame)`, plain or async, instead of by the usual answer.

        It runs before the connection's next frame is read; `connection.spawn` takes what lasts. For Basic.Publish it
        sees the bare method, before the content; see `on_publish`.
        """
        self._reactions[method] = reaction

    def on_publish(self, reaction: PublishReaction) -> None:
        """React to a complete message by `reaction(connection, published)` instead of confirming it."""
        self._react_to_publish = reaction

    def ignore(self, method: type[Frame]) -> None:
        """Give no answer to a method."""
        self._reactions[method] = _nothing

    def behave(self, method: type[Frame] | None = None) -> None:
        """Take the usual way again, for one method or, without, for everything."""
        if method is not None:
            self._reactions.pop(method, None)
            return
        self._reactions.clear()
        self._react_to_publish = _confirm

    def fail(
        self, method: type[M], *, times: int | None = None, code: int = 404, text: str = "NOT_FOUND", hard: bool = False
    ) -> None:
        """Answer a method by Channel.Close, or if `hard` by Connection.Close, `times` times or until `behave`."""
        left = times

        def refuse(connection: FakeConnection, channel: int, frame: M) -> None:
            nonlocal left
            if left is not None:
                left -= 1
                if left == 0:
                    self.behave(method)
            if hard:
                connection.close(code, text, frame)
            else:
                connection.close_channel(channel, code, text, frame)

        self.on(method, refuse)

    def answer(self, connection: FakeConnection, channel: int, frame: Frame) -> None:
        """Give the usual answer to a method; for callbacks that only delay or count."""
        if getattr(frame, "nowait", False):
            return
        if isinstance(frame, spec.Exchange.Declare) and frame.passive and frame.exchange in (NOTICE, DIVIDED):
            # All else that is looked for is there; these only while a queue is made anew, and where one was divided.
            connection.close_channel(channel, 404, "NOT_FOUND", frame)
            return
        reply = usual_reply(frame)
        if reply is not None:
            connection.send(channel, reply)

    async def received(self, kind: type[F], number: int = 1, timeout: float = 5) -> Received[F]:
        """Wait for the `number`th frame of a type since the broker was made, and return it.

        Raises TimeoutError, saying what came instead.
        """
        frames: list[Received[F]] = self._by_kind.setdefault(kind, [])
        await self.until(lambda: len(frames) >= number, timeout, f"{kind.__qualname__} number {number}")
        return frames[number - 1]

    async def publication(self, number: int = 1, timeout: float = 5) -> Published:
        """Wait for the `number`th complete message and return it; raises TimeoutError."""
        await self.until(lambda: len(self.published) >= number, timeout, f"message number {number}")
        return self.published[number - 1]

    async def until(self, condition: Callable[[], bool], timeout: float = 5, what: str = "condition") -> None:
        """Wait until `condition()` is true, looked at after each frame; raises TimeoutError."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            came = ", ".join(received.frame.__class__.__qualname__ for received in self.frames[-30:])
            raise TimeoutError(f"no {what} in {timeout} s; the last frames: {came}") from None

    def all(self, kind: type[F]) -> list[Received[F]]:
        """Return the frames of a type that came so far."""
        return list(self._by_kind.get(kind, []))

    async def start(self) -> Self:
        """Listen, on the same port each time."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self._port)
        return self

    async def stop(self) -> None:
        """Stop listening and drop all connections; raises what a callback raised."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._errors:
            raise self._errors.pop()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = FakeConnection(len(self.connections) + 1, reader, writer)
        self.connections.append(connection)
        task = asyncio.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._changed.set()

    async def _serve(self, connection: FakeConnection) -> None:
        try:
            async for channel, frame in connection.frames():
                received = Received(connection, channel, frame)
                self.frames.append(received)
                self._by_kind.setdefault(type(frame), []).append(received)
                await self._take(connection, channel, frame)
                self._changed.set()
        except Exception as error:  # a broken callback has to reach the test, which is not here
            self._errors.append(error)
        finally:
            await connection.finish()
            self._changed.set()

    async def _take(self, connection: FakeConnection, channel: int, frame: Receivable) -> None:
        closing = connection.ignores(channel) and not isinstance(frame, spec.Connection.Close | spec.Channel.Close)
        published = connection.track(channel, frame)
        if isinstance(frame, spec.Connection.CloseOk):
            connection.drop(reset=False)
        if self.mute or closing:
            return
        if published is not None:
            self.published.append(published)
            await _run(self._react_to_publish(connection, published))
        if isinstance(frame, header.ProtocolHeader):
            connection.send(0, start(self._version))
        elif isinstance(frame, Frame):
            await _run(self._reactions.get(type(frame), self._usual)(connection, channel, frame))

    def _usual(self, connection: FakeConnection, channel: int, frame: Frame) -> None:
        match frame:
            case spec.Connection.StartOk():
                connection.send(0, spec.Connection.Tune(2047, connection.frame_max, self._heartbeat))
            case spec.Connection.TuneOk() if frame.heartbeat:
                connection.spawn(self._beat(connection, frame.heartbeat / 2))
            case spec.Connection.Close():
                connection.send(0, spec.Connection.CloseOk())
                connection.drop(reset=False)
            case spec.Basic.Consume():
                frame.consumer_tag = frame.consumer_tag or f"ctag-{len(connection.consumers) + 1}"
                connection.consumers[frame.consumer_tag] = (channel, frame.queue)
            case spec.Basic.Cancel():
                connection.consumers.pop(frame.consumer_tag or "", None)
            case spec.Queue.Declare():
                frame.queue = frame.queue or f"amq.gen-{len(self.frames)}"
            case _:
                pass
        self.answer(connection, channel, frame)

    async def _beat(self, connection: FakeConnection, interval: float) -> None:
        while connection.open:
            await asyncio.sleep(interval)
            if self.beating and not self.mute:
                connection.send(0, Heartbeat())


def _confirm(connection: FakeConnection, published: Published) -> None:
    if published.delivery_tag:
        connection.send(published.channel, spec.Basic.Ack(published.delivery_tag))


def _nothing(connection: FakeConnection, channel: int, frame: Frame) -> None:
    pass


async def _run(outcome: Awaitable[None] | None) -> None:
    if inspect.isawaitable(outcome):
        await outcome
