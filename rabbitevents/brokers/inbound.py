"""A consuming channel: deliveries in, as lists; settlements out, coalesced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from rabbitevents.brokers import Deliver
from rabbitevents.brokers.lane import (
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
        self.close_code = 0
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
        self._settled.add(tag)
        if not self._flushing:
            self._flushing = True
            self._call_soon(self.write_acks)

    def requeue(self, tag: int) -> None:
        """Give back to the queue, at once."""
        self._settled.add_written(tag)
        self._write(BASIC_NACK + tag.to_bytes(8, "big") + b"\x02")  # requeue, not multiple

    def reject(self, tag: int) -> None:
        """Give to the broker's dead-lettering, at once."""
        self._settled.add_written(tag)
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
    """Which delivery tags of a channel are settled, and which of them the broker has not been told yet.

    Tags count from 1 without gaps. Up to ``_done`` everything is settled and told.
    """

    def __init__(self) -> None:
        self._done = 0
        self._untold: set[int] = set()
        self._told: set[int] = set()

    def add(self, tag: int) -> None:
        """Note an acknowledgement that is to be told."""
        self._untold.add(tag)

    def add_written(self, tag: int) -> None:
        """Note a tag that was settled by a frame of its own."""
        self._told.add(tag)

    def take(self) -> tuple[int, list[int]]:
        """Return what to tell: the tag of one ``multiple`` ack (0: none), and single tags beyond a gap.

        A ``multiple`` ack must name a tag that the broker still holds, or it closes the channel (406).
        """
        untold, told = self._untold, self._told
        at, upto = self._done + 1, 0
        while True:
            if at in untold:
                untold.remove(at)
                upto = at
            elif at in told:
                told.remove(at)
            else:
                break
            at += 1
        self._done = at - 1
        singles = sorted(untold)
        told.update(untold)
        untold.clear()
        return upto, singles


def _address(data: bytes) -> tuple[str, str]:
    """Read exchange and routing key, two short strings."""
    split = 1 + data[0]
    exchange = data[1:split].decode("utf-8", "surrogateescape")
    return exchange, data[split + 1 : split + 1 + data[split]].decode("utf-8", "surrogateescape")
