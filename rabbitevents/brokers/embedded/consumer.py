"""A consumer of the embedded broker: the wish to have deliveries, and the channel that brings them."""

from __future__ import annotations

from collections.abc import Callable

from rabbitevents.brokers import Deliver, Trusted, Verdict
from rabbitevents.brokers.embedded.queues import Reader
from rabbitevents.brokers.embedded.server import Server
from rabbitevents.message import Delivery


class MemoryConsumer:
    """A queue being consumed, across broken connections, until it is closed.

    What is wanted (`cancel`, `resume`, `close`) is kept apart from what is there (a `Reader`, on a channel of its
    own), and nothing here waits: so a caller that is cut off leaves nothing half done. ``left`` is called once, when
    it is closed.
    """

    def __init__(
        self,
        server: Server,
        queue: str,
        prefetch: int,
        deliver: Deliver,
        trusted: Trusted | None,
        *,
        left: Callable[[MemoryConsumer], None],
    ) -> None:
        self.queue = queue
        self._server = server
        self._prefetch = prefetch
        self._deliver = deliver
        self._trusted = trusted
        self._left = left
        self._generation = 0
        self._reader: Reader | None = None
        self._wanted = True
        self._closed = False
        self._connected = False

    @property
    def running(self) -> bool:
        """Whether the broker has our consumer at this moment."""
        return self._reader is not None and self._reader.open and not self._reader.cancelled

    # --- what the client does ---

    def register(self) -> None:
        """Learn that there is a connection: read from the queue if that is wanted, as a new consumer."""
        self._connected = True
        queue = self._server.queues.get(self.queue)
        if queue is not None and self._wanted and not self._closed and not self.running:
            self._drop_channel()
            self._generation += 1
            self._reader = self._server.make_reader(
                queue, self._generation, self._prefetch, self._deliver, self._trusted
            )
            queue.read(self._reader)

    def drop(self) -> None:
        """Learn that the connection is lost, and the channel with it."""
        self._connected = False
        self._drop_channel()

    def _drop_channel(self) -> None:
        """Leave the channel: what it brought goes back."""
        if self._reader is not None:
            self._reader.close()

    # --- the seam ---

    def settle(self, delivery: Delivery, verdict: Verdict) -> bool:
        """Settle, unless the delivery is stale."""
        reader = self._reader
        return reader is not None and delivery.channel is reader and reader.settle(delivery.tag, verdict)

    def clear(self, delivery: Delivery) -> None:
        """Let one more come while ``delivery``, which crashed nothing, stays unsettled."""
        if self._reader is not None and delivery.channel is self._reader:
            self._reader.clear(delivery.tag)

    async def cancel(self) -> None:
        """Have nothing more delivered."""
        self._wanted = False
        if self._reader is not None:
            self._reader.cancel()

    async def resume(self) -> None:
        """Have deliveries again, on the same channel if it stands."""
        self._wanted = True
        if self._reader is not None and self._reader.open:
            self._reader.resume()
        elif self._connected:
            self.register()

    def give_back(self) -> int:
        """Give back all that is unsettled, and return how many; each goes to its place."""
        tags = list(self._reader.unsettled) if self._reader is not None else []
        return sum(self._reader.settle(tag, Verdict.REQUEUE) for tag in tags if self._reader is not None)

    async def close(self) -> None:
        """Give back what is not settled, for good."""
        if not self._closed:
            self._closed = True
            self._drop_channel()
            self._left(self)
