"""A consuming channel: deliveries in, as lists; settlements out, coalesced."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from itertools import groupby, islice
from typing import Final

from rabbitevents.brokers import Deliver, Verdict
from rabbitevents.brokers.rabbitmq.frames import (
    BASIC_ACK,
    BASIC_CANCEL,
    BASIC_DELIVER,
    BASIC_NACK,
    BASIC_REJECT,
    BODY,
    CHANNEL_CLOSE,
    CHANNEL_CLOSE_OK,
    CONTENT_HEAD,
    HEADER,
    METHOD,
    FrameError,
    close_reason,
    content_size,
    delivery_address,
    frame,
    named,
    read_tag,
)
from rabbitevents.message import Delivery

_MULTIPLE: Final = b"\x01"
_SINGLE: Final = b"\x00"
_REQUEUE: Final = b"\x02"  # and not multiple
_REQUEUE_ALL: Final = b"\x03"  # and multiple
_DROP: Final = b"\x00"
_BACK_AT_ONCE: Final = 16


class Turn:
    """What the consuming channels of a connection write by the end of a turn of the loop: one system call for all."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._due: list[Callable[[], bytes]] = []
        self._call_soon: Callable[[Callable[[], None]], object] = asyncio.get_running_loop().call_soon

    def soon(self, frames: Callable[[], bytes]) -> None:
        """Write what ``frames`` returns then."""
        if not self._due:
            self._call_soon(self._write)
        self._due.append(frames)

    def _write(self) -> None:
        due, self._due = self._due, []
        if out := b"".join([frames() for frames in due]):
            self._transport.write(out)


class InboundLane:
    """The content frames of one consuming channel.

    It is ``open`` until the channel ends, by whatever way, or is left; ``ended`` then says why. It ends before its
    channel does: nothing is written to a channel that is closing. Deliveries come out with its ``generation``, so that
    nobody settles on a channel what another one brought.

    A channel's frames have one order: a delivery, its header, its body; and the delivery tags count up from 1 without
    a gap (rabbit_channel's ``next_tag``, the same from 3.10 to 4.3). What breaks that order is a `FrameError`.
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
        turn: Turn | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.generation = generation
        self.open: bool = True
        """Whether the channel stands, and settlements on it mean something."""
        self.ended: asyncio.Future[str] = loop.create_future()
        self.close_code: int = 0
        self._transport = transport
        self._queue = queue
        self._deliver = deliver
        self._body_limit = body_limit
        self._batch: list[Delivery] = []
        self._expected = METHOD
        self._address_bytes = b""
        self._address = ("", "")
        self._tag: int = 0
        self._redelivered = False
        self._properties = b""
        self._size = 0
        self._left = 0
        self._pieces: list[bytes] = []
        self._windows: list[int] = []
        """The last tag that each of the channel's earlier consumers brought, as far as it matters."""
        self._settled = Settled()
        self._outstanding = self._settled.outstanding
        self._flushing = False
        self._turn = Turn(transport) if turn is None else turn

    # --- in ---

    def method(self, buffer: bytes, at: int, end: int) -> bool:
        """Take a delivery's head; note a cancel or a close, which aiormq answers."""
        if self._expected != METHOD:
            raise self._unexpected(METHOD)
        kind = buffer[at : at + 4]
        if kind != BASIC_DELIVER:
            self._other_method(kind, buffer, at, end)
            return False
        at += 5 + buffer[at + 4]
        if end - at < 11:  # delivery tag, redelivered, and the lengths of exchange and routing key
            raise FrameError("a basic.deliver that is shorter than its fields")
        tag, redelivered = read_tag(buffer, at)
        if tag != self._tag + 1:
            raise FrameError(f"delivery {tag} after delivery {self._tag}")
        address = buffer[at + 9 : end]
        if address != self._address_bytes:
            self._address_bytes, self._address = address, delivery_address(address)
        self._tag, self._redelivered, self._expected = tag, redelivered == 1, HEADER
        return True

    def _other_method(self, kind: bytes, buffer: bytes, at: int, end: int) -> None:
        if end - at < 4:
            raise FrameError(f"a method of {end - at} bytes")
        if kind == BASIC_CANCEL:
            self.lost("the broker cancelled the consumer")
        elif kind == CHANNEL_CLOSE:
            self.close_code, said, _, _ = close_reason(buffer, at, end)
            self.lost(f"the broker closed the channel: {self.close_code} {said}")
        elif kind == CHANNEL_CLOSE_OK:
            self.lost("the channel was closed")

    def header(self, buffer: bytes, at: int, end: int) -> None:
        """Take a delivery's properties, as bytes, and how long its body is."""
        if self._expected != HEADER:
            raise self._unexpected(HEADER)
        self._size = self._left = content_size(buffer, at, end)
        self._properties = buffer[at + CONTENT_HEAD : end]
        self._expected = BODY
        if not self._left:
            self._complete(b"")

    def body(self, buffer: bytes, at: int, end: int) -> None:
        """Take a piece of a delivery's body; nothing of one over the limit is kept."""
        length, left = end - at, self._left
        if self._expected != BODY:
            raise self._unexpected(BODY)
        if not 0 < length <= left:
            raise FrameError(f"a body frame of {length} bytes where {left} are left")
        if length == self._size and length <= self._body_limit:
            self._complete(buffer[at:end])
            return
        self._left = left - length
        if self._size <= self._body_limit:
            self._pieces.append(buffer[at:end])
        if not self._left:
            body = b"".join(self._pieces)
            self._pieces = []
            self._complete(body)

    def _complete(self, body: bytes) -> None:
        self._expected = METHOD
        tag, size = self._tag, self._size
        exchange, routing_key = self._address
        self._outstanding[tag] = None
        self._batch.append(
            Delivery(
                self._queue,
                tag,
                self.generation,
                self._redelivered,
                exchange,
                routing_key,
                body,
                self._properties,
                size if size > self._body_limit else 0,
                None,  # by position: keywords cost as much again
                0,
                self,
            )
        )

    def _unexpected(self, kind: int) -> FrameError:
        where = f"inside delivery {self._tag}" if self._expected != METHOD else f"after delivery {self._tag}"
        return FrameError(f"{named(kind)} {where}, where {named(self._expected)} belongs")

    def flush(self) -> None:
        """Deliver what came together."""
        if self._batch:
            batch, self._batch = self._batch, []
            if self.open:
                self._deliver(batch)

    # --- the end ---

    def lost(self, reason: str) -> None:
        """Learn that the channel, or its consumer, is gone: nothing more is settled here."""
        if self.open:
            self.open = False
            self.ended.set_result(reason)

    def leave(self, reason: str) -> None:
        """End, before whoever calls closes the channel: write out what was acknowledged, and nothing after that."""
        self.write_acks()
        self.lost(reason)

    def writable(self) -> None:
        """Nothing waits here: settlements are few bytes, and the transport keeps them."""

    # --- out ---

    def settle(self, tag: int, verdict: Verdict) -> bool:
        """Settle a delivery: an acknowledgement by the end of this turn of the loop, anything else at once.

        False, and nothing is done, when it is settled already or the lane has ended.
        """
        if not self.open or tag not in self._outstanding:
            return False
        if verdict is Verdict.ACK:
            self._settled.add(tag)
            if not self._flushing:
                self._flushing = True
                self._turn.soon(self._acks)
        else:
            self._settled.add_written(tag)
            method, bits = (BASIC_NACK, _REQUEUE) if verdict is Verdict.REQUEUE else (BASIC_REJECT, _DROP)
            self._write(method, tag, bits)
        return True

    def write_acks(self) -> None:
        """Write the acknowledgements that have come together."""
        if acks := self._acks():
            self._transport.write(acks)

    def _acks(self) -> bytes:
        """Return the frames of the acknowledgements that have come together, which are written by whoever takes them."""
        self._flushing = False
        if not self.open:
            return b""
        upto, singles = self._settled.take()
        acks = [self._frame(BASIC_ACK, tag, _SINGLE) for tag in singles]
        return b"".join((self._frame(BASIC_ACK, upto, _MULTIPLE), *acks) if upto else acks)

    def end_window(self) -> None:
        """Note that what comes from now on comes by another consumer."""
        first = next(iter(self._outstanding), self._tag + 1)
        self._windows = [tag for tag in dict.fromkeys([*self._windows, self._tag]) if tag >= first]

    def give_back(self) -> int:
        """Give back the first of what is unsettled, once no consumer is left on the channel; return how many.

        A quorum queue keeps the order of up to 32 messages of one consumer that come back by one request, and of up to
        32 requests of a channel (RabbitMQ 3.10: maps of more keys have none): so they go by themselves, half as many.
        """
        self.write_acks()
        tags = list(islice(self._outstanding, _BACK_AT_ONCE * 32)) if self.open else []
        requests = groupby(enumerate(tags), lambda each: (each[0] // 32, bisect_left(self._windows, each[1])))
        returned = [[tag for _, tag in together] for _, together in islice(requests, _BACK_AT_ONCE)]
        for together in returned:
            self._write(BASIC_NACK, together[-1], _REQUEUE_ALL)
            for tag in together:
                del self._outstanding[tag]
        return sum(map(len, returned))

    def _write(self, method: bytes, tag: int, bits: bytes) -> None:
        self._transport.write(self._frame(method, tag, bits))

    def _frame(self, method: bytes, tag: int, bits: bytes) -> bytes:
        return frame(METHOD, self.number, method + tag.to_bytes(8, "big") + bits)


class Settled:
    """Which deliveries of a channel are outstanding, and which are settled without the broker having been told.

    Both are bounded by the window, however long one delivery is held.
    """

    def __init__(self) -> None:
        self.outstanding: dict[int, None] = {}
        """The tags of what is delivered and not settled, counting up. Who delivers adds to it."""
        self._untold: list[int] = []

    def add(self, tag: int) -> None:
        """Note an acknowledgement, of an outstanding tag, that is to be told."""
        del self.outstanding[tag]
        self._untold.append(tag)

    def add_written(self, tag: int) -> None:
        """Note that an outstanding tag is settled by a frame of its own."""
        del self.outstanding[tag]

    def take(self) -> tuple[int, list[int]]:
        """Return what to tell: the tag of one ``multiple`` ack (0: none), and single tags beyond what is outstanding.

        A ``multiple`` ack must name a tag that the broker still holds, or it closes the channel (406).
        """
        untold, self._untold = self._untold, []
        first = next(iter(self.outstanding), None)
        if first is None:
            return max(untold, default=0), []
        return max((tag for tag in untold if tag < first), default=0), sorted(tag for tag in untold if tag > first)
