"""A consuming channel: deliveries in, as lists; settlements out, coalesced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from rabbitevents.brokers import Deliver
from rabbitevents.brokers.rabbitmq.tap import (
    BASIC_ACK,
    BASIC_CANCEL,
    BASIC_DELIVER,
    BASIC_NACK,
    BASIC_REJECT,
    CHANNEL_CLOSE,
    METHOD,
    close_reason,
    frame,
)
from rabbitevents.message import Delivery

_MULTIPLE: Final = b"\x01"
_SINGLE: Final = b"\x00"


class InboundLane:
    """The content frames of one consuming channel.

    It is open until the channel ends, by whatever way; ``ended`` then says why. Deliveries come out with its
    ``generation``, so that nobody settles on a channel what another one brought.
    """

    def __init__(
        self,
        number: int,
        transport: asyncio.WriteTransport,
        *,
        queue: str,
        generation: int,
        deliver: Deliver,
        body_limit: int,
    ) -> None:
        self.number = number
        self.generation = generation
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.close_code: int = 0
        self._transport = transport
        self._queue = queue
        self._deliver = deliver
        self._body_limit = body_limit
        self._batch: list[Delivery] = []
        self._address_bytes = b""
        self._address = ("", "")
        self._tag = 0
        self._redelivered = False
        self._properties = b""
        self._size = 0
        self._got = 0
        self._pieces: list[bytes] = []
        self._settled = Settled()
        self._flushing = False
        self._call_soon: Callable[[Callable[[], None]], object] = asyncio.get_running_loop().call_soon

    @property
    def open(self) -> bool:
        """Whether the channel stands, and settlements on it mean something."""
        return not self.ended.done()

    def deliver_to(self, deliver: Deliver) -> None:
        """Send what comes from now on to ``deliver``."""
        self._deliver = deliver

    # --- in ---

    def method(self, buffer: bytes, at: int, end: int) -> bool:
        """Take a delivery's head; note a cancel or a close, which aiormq answers."""
        kind = buffer[at : at + 4]
        if kind == BASIC_DELIVER:
            at += 5 + buffer[at + 4]
            self._tag = int.from_bytes(buffer[at : at + 8], "big")
            self._redelivered = buffer[at + 8] == 1
            address = buffer[at + 9 : end]
            if address != self._address_bytes:
                self._address_bytes, self._address = address, _address(address)
            return True
        if kind == BASIC_CANCEL:
            self.lost("the broker cancelled the consumer")
        elif kind == CHANNEL_CLOSE:
            self.close_code, text, _, _ = close_reason(buffer, at)
            self.lost(f"the broker closed the channel: {self.close_code} {text}")
        return False

    def header(self, buffer: bytes, at: int, end: int) -> None:
        """Take a delivery's properties, as bytes, and how long its body is."""
        self._size = int.from_bytes(buffer[at + 4 : at + 12], "big")
        self._properties = buffer[at + 12 : end]
        self._got = 0
        if not self._size:
            self._complete(b"")

    def body(self, buffer: bytes, at: int, end: int) -> None:
        """Take a piece of a delivery's body; nothing of one over the limit is kept."""
        length = end - at
        if length == self._size and length <= self._body_limit:
            self._complete(buffer[at:end])
            return
        self._got += length
        if self._size <= self._body_limit:
            self._pieces.append(buffer[at:end])
        if self._got >= self._size:
            body = b"".join(self._pieces)
            self._pieces = []
            self._complete(body)

    def _complete(self, body: bytes) -> None:
        exchange, routing_key = self._address
        self._settled.delivered(self._tag)
        oversize = self._size if self._size > self._body_limit else 0
        self._batch.append(
            Delivery(
                self._queue,
                self._tag,
                self.generation,
                self._redelivered,
                exchange,
                routing_key,
                body,
                self._properties,
                oversize,
                channel=self,
            )
        )

    def flush(self) -> None:
        """Deliver what came together."""
        if self._batch:
            batch, self._batch = self._batch, []
            if self.open:
                self._deliver(batch)

    def lost(self, reason: str) -> None:
        """Learn that the channel, or its consumer, is gone: nothing more is settled here."""
        if not self.ended.done():
            self._batch = []
            self.ended.set_result(reason)

    def writable(self) -> None:
        """Nothing waits here: settlements are few bytes, and the transport keeps them."""

    # --- out ---

    def ack(self, tag: int) -> None:
        """Acknowledge, by the end of this turn of the loop."""
        if self._settled.add(tag) and not self._flushing:
            self._flushing = True
            self._call_soon(self.write_acks)

    def requeue(self, tag: int) -> None:
        """Give back to the queue, at once."""
        if self._settled.add_written(tag):
            self._write(BASIC_NACK + tag.to_bytes(8, "big") + b"\x02")  # requeue, not multiple

    def reject(self, tag: int) -> None:
        """Give to the broker's dead-lettering, at once."""
        if self._settled.add_written(tag):
            self._write(BASIC_REJECT + tag.to_bytes(8, "big") + b"\x00")

    def write_acks(self) -> None:
        """Write the acknowledgements that have come together."""
        self._flushing = False
        upto, singles = self._settled.take()
        if not self.open:
            return
        if upto:
            self._write(BASIC_ACK + upto.to_bytes(8, "big") + _MULTIPLE)
        for tag in singles:
            self._write(BASIC_ACK + tag.to_bytes(8, "big") + _SINGLE)

    def _write(self, payload: bytes) -> None:
        if self.open:
            self._transport.write(frame(METHOD, self.number, payload))


class Settled:
    """Which deliveries of a channel are outstanding, and which are settled without the broker having been told.

    Both are bounded by the window, however long one delivery is held.
    """

    def __init__(self) -> None:
        self._outstanding: dict[int, None] = {}
        self._untold: list[int] = []

    def delivered(self, tag: int) -> None:
        """Note a delivery. Tags count up."""
        self._outstanding[tag] = None

    def add(self, tag: int) -> bool:
        """Note an acknowledgement that is to be told; False for a tag that is settled already."""
        if not self.add_written(tag):
            return False
        self._untold.append(tag)
        return True

    def add_written(self, tag: int) -> bool:
        """Note a tag that is settled by a frame of its own; False for one that is settled already."""
        if tag not in self._outstanding:
            return False
        del self._outstanding[tag]
        return True

    def take(self) -> tuple[int, list[int]]:
        """Return what to tell: the tag of one ``multiple`` ack (0: none), and single tags beyond what is outstanding.

        A ``multiple`` ack must name a tag that the broker still holds, or it closes the channel (406).
        """
        untold, self._untold = self._untold, []
        first = next(iter(self._outstanding), None)
        if first is None:
            return max(untold, default=0), []
        return max((tag for tag in untold if tag < first), default=0), sorted(tag for tag in untold if tag > first)


def _address(data: bytes) -> tuple[str, str]:
    """Read exchange and routing key, two short strings."""
    split = 1 + data[0]
    exchange = data[1:split].decode("utf-8", "surrogateescape")
    return exchange, data[split + 1 : split + 1 + data[split]].decode("utf-8", "surrogateescape")
