"""The lane: frames split anywhere, channels interleaved, answers matched, acknowledgements coalesced."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version

import pytest
from aiormq.connection import Connection, TransportFactory
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body as amqp_body
from pamqp import commands, frame, header

from rabbitevents.brokers.rabbitmq.inbound import InboundLane, Settled
from rabbitevents.brokers.rabbitmq.outbound import Answer, OutboundLane
from rabbitevents.brokers.rabbitmq.tap import HEARTBEAT, Tap
from rabbitevents.message import Delivery, Message
from rabbitevents.properties import Properties, encode_properties


class Transport(asyncio.Transport):
    """A socket that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        """Go on: nothing more comes than the test feeds."""

    def resume_reading(self) -> None:
        """Go on."""

    def frames(self) -> list[frame.FrameTypes]:
        """What was written, read by pamqp."""
        found: list[frame.FrameTypes] = []
        while self.written:
            size, _, each = frame.unmarshal(bytes(self.written))
            found.append(each)
            del self.written[:size]
        return found


class Wired:
    """A tap with its control stream, and what its lanes delivered."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.control = asyncio.StreamReader(loop=loop)
        self.tap = Tap(self.control, loop)
        self.transport = Transport()
        self.tap.connection_made(self.transport)
        self.delivered: list[Delivery] = []

    def inbound(self, number: int, body_limit: int = 1_000_000) -> InboundLane:
        lane = InboundLane(
            number,
            self.transport,
            queue=f"q{number}",
            generation=1,
            deliver=self.delivered.extend,
            body_limit=body_limit,
        )
        self.tap.lanes[number] = lane
        return lane

    def outbound(self, number: int = 1, frame_max: int = 131_072) -> OutboundLane:
        lane = OutboundLane(number, self.transport, frame_max=frame_max, on_room=lambda: None)
        self.tap.lanes[number] = lane
        return lane

    def fed(self) -> bytes:
        """What aiormq would have read by now, without the heartbeats that the tap puts in."""
        self.control.feed_eof()
        return bytes(self.control._buffer).replace(HEARTBEAT, b"")  # type: ignore[attr-defined]


def content(number: int, method: frame.FrameTypes, properties: bytes, body: bytes, chunk: int = 100) -> list[bytes]:
    """The frames of one message, its body in chunks."""
    head = b"\x00\x3c\x00\x00" + len(body).to_bytes(8, "big") + properties
    raw_header = b"\x02" + number.to_bytes(2, "big") + len(head).to_bytes(4, "big") + head + b"\xce"
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)]
    return [
        frame.marshal(method, number),
        raw_header,
        *(frame.marshal(amqp_body.ContentBody(piece), number) for piece in pieces),
    ]


def a_delivery(number: int, tag: int, body: bytes) -> list[bytes]:
    deliver = commands.Basic.Deliver("tag", tag, False, "events", f"order.{number}")
    return content(number, deliver, encode_properties(Properties(message_id=f"{number}-{tag}")), body)


def interleaved(messages: list[list[bytes]], order: list[int]) -> list[bytes]:
    """The frames of messages on different channels, mixed in the given order, each channel's own in sequence."""
    queues = [list(frames) for frames in messages]
    mixed: list[bytes] = []
    for choice in order:
        waiting = [queue for queue in queues if queue]
        if waiting:
            mixed.append(waiting[choice % len(waiting)].pop(0))
    return mixed + [each for queue in queues for each in queue]


BODIES = st.lists(st.binary(max_size=350), min_size=1, max_size=4)


@given(st.lists(BODIES, min_size=1, max_size=3), st.lists(st.integers(0, 5), max_size=60), st.data())
@settings(max_examples=150, deadline=None)
async def test_a_stream_cut_anywhere_gives_the_same_deliveries(
    channels: list[list[bytes]], order: list[int], data: st.DataObject
) -> None:
    messages = [
        [f for tag, body in enumerate(bodies, 1) for f in a_delivery(number, tag, body)]
        for number, bodies in enumerate(channels, 1)
    ]
    others = [frame.marshal(commands.Queue.DeclareOk("q", 1, 2), 9), frame.marshal(commands.Basic.QosOk(), 1)]
    frames = interleaved(messages, order)
    frames[len(frames) // 2 : len(frames) // 2] = others
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    wired = Wired()
    for number in range(1, len(channels) + 1):
        wired.inbound(number)

    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        wired.tap.data_received(stream[start:end])

    for number, bodies in enumerate(channels, 1):
        mine = [d for d in wired.delivered if d.queue == f"q{number}"]
        assert [(d.tag, d.body, d.properties.message_id) for d in mine] == [
            (tag, body, f"{number}-{tag}") for tag, body in enumerate(bodies, 1)
        ]
        assert {(d.via_exchange, d.via_routing_key) for d in mine} <= {("events", f"order.{number}")}
    assert wired.fed() == b"".join(others)


async def test_every_single_cut_and_one_byte_at_a_time_give_the_same_deliveries() -> None:
    stream = b"".join(f for tag, body in enumerate((b"one", b"", b"x" * 250), 1) for f in a_delivery(1, tag, body))
    expected = [(1, b"one"), (2, b""), (3, b"x" * 250)]
    cuts = [[stream[:at], stream[at:]] for at in range(len(stream) + 1)]

    for pieces in [*cuts, [bytes((b,)) for b in stream]]:
        wired = Wired()
        wired.inbound(1)
        for piece in pieces:
            wired.tap.data_received(piece)

        assert [(d.tag, d.body) for d in wired.delivered] == expected


async def test_deliveries_of_one_read_come_as_one_list() -> None:
    wired, batches = Wired(), list[int]()
    lane = wired.inbound(1)
    lane.deliver_to(lambda batch: batches.append(len(batch)))

    wired.tap.data_received(b"".join(f for tag in range(1, 8) for f in a_delivery(1, tag, b"x")))

    assert batches == [7]


async def test_aiormq_is_fed_a_heartbeat_while_lanes_are_busy() -> None:
    wired = Wired()
    wired.inbound(1)
    moments = iter([10.0, 10.2, 10.4, 11.3])
    wired.tap._time = lambda: next(moments)  # pyright: ignore[reportPrivateUsage]

    for tag in range(1, 5):
        wired.tap.data_received(b"".join(a_delivery(1, tag, b"x")))

    wired.control.feed_eof()
    assert await wired.control.read() == HEARTBEAT * 2


async def test_a_body_over_the_limit_is_not_kept() -> None:
    wired = Wired()
    wired.inbound(1, body_limit=200)

    wired.tap.data_received(b"".join(a_delivery(1, 1, b"y" * 201) + a_delivery(1, 2, b"y" * 200)))

    assert [(d.tag, len(d.body), d.oversize) for d in wired.delivered] == [(1, 0, 201), (2, 200, 0)]


@pytest.mark.parametrize(
    "junk", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x00\x09\x01", b"\x01\x00\x01\x00\x00\x00\x01xx"]
)
async def test_what_is_no_amqp_breaks_a_running_connection_off(junk: bytes) -> None:
    wired = Wired()
    lane = wired.inbound(1)

    wired.tap.data_received(junk)

    assert wired.transport.aborted
    assert lane.ended.done()


async def test_what_is_no_amqp_goes_to_aiormq_during_the_handshake() -> None:
    wired = Wired()

    wired.tap.data_received(b"AMQP\x00\x00\x09\x01")

    wired.control.feed_eof()
    assert await wired.control.read() == b"AMQP\x00\x00\x09\x01"


# --- answers --------------------------------------------------------------------------------------------------------


def a_message(key: str, message_id: str, body: bytes = b"body") -> Message:
    return Message(exchange="events", routing_key=key, body=body, properties=Properties(message_id=message_id))


def published(lane: OutboundLane, *messages: Message) -> list[asyncio.Future[Answer]]:
    return [lane.publish(m, encode_properties(m.properties), 100.0) for m in messages]


def a_return(key: str, message_id: str, number: int = 1) -> bytes:
    method = commands.Basic.Return(312, "NO_ROUTE", "events", key)
    return b"".join(content(number, method, encode_properties(Properties(message_id=message_id)), b"body"))


async def test_a_multiple_ack_answers_everything_up_to_it() -> None:
    wired = Wired()
    answers = published(wired.outbound(), *(a_message("k", str(i)) for i in range(5)))

    wired.tap.data_received(frame.marshal(commands.Basic.Ack(2, False), 1))
    wired.tap.data_received(frame.marshal(commands.Basic.Nack(4, True), 1))

    assert [a.result() if a.done() else None for a in answers] == [
        Answer.REFUSED,
        Answer.CONFIRMED,
        Answer.REFUSED,
        Answer.REFUSED,
        None,
    ]


@given(st.lists(st.sampled_from(["bound", "free"]), min_size=1, max_size=30), st.data())
@settings(max_examples=100, deadline=None)
async def test_returns_are_matched_though_all_have_the_same_id(keys: list[str], data: st.DataObject) -> None:
    wired = Wired()
    answers = published(wired.outbound(), *(a_message(key, "same") for key in keys))
    upto = 0

    for tag, key in enumerate(keys, 1):
        if key == "free":
            wired.tap.data_received(a_return("free", "same"))
        if tag == len(keys) or data.draw(st.booleans()):
            wired.tap.data_received(frame.marshal(commands.Basic.Ack(tag, True), 1))
            upto = tag

    assert upto == len(keys)
    assert [a.result() is Answer.RETURNED for a in answers] == [key == "free" for key in keys]


async def test_when_the_channel_ends_every_publish_has_an_answer_at_once() -> None:
    wired = Wired()
    lane = wired.outbound()
    answers = published(lane, a_message("k", "1"), a_message("k", "2"))

    wired.tap.data_received(frame.marshal(commands.Channel.Close(404, "NOT_FOUND - no exchange 'events'", 60, 40), 1))

    assert [a.result() for a in answers] == [Answer.LOST, Answer.LOST]
    assert (lane.close_code, lane.closed_by_publish, lane.unanswered_at_end) == (404, True, 2)


async def test_a_cancelled_publish_harms_no_other() -> None:
    wired = Wired()
    answers = published(wired.outbound(), *(a_message("k", str(i)) for i in range(3)))

    answers[1].cancel()
    wired.tap.data_received(frame.marshal(commands.Basic.Ack(3, True), 1))

    assert [a.cancelled() or a.result() for a in answers] == [Answer.CONFIRMED, True, Answer.CONFIRMED]


async def test_a_publish_past_its_deadline_is_answered_and_a_late_confirm_harms_nobody() -> None:
    wired = Wired()
    lane = wired.outbound()
    answers = published(lane, a_message("k", "1"), a_message("k", "2"))

    lane.expire(101.0)
    wired.tap.data_received(frame.marshal(commands.Basic.Ack(2, True), 1))

    assert [a.result() for a in answers] == [Answer.EXPIRED, Answer.EXPIRED]
    assert not lane.pending


@given(st.lists(st.binary(max_size=10_000), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
async def test_what_is_written_reads_as_amqp_whatever_its_size(bodies: list[bytes]) -> None:
    wired = Wired()
    messages = [a_message("key", str(i), body) for i, body in enumerate(bodies)]
    published(wired.outbound(frame_max=4096), *messages)

    await asyncio.sleep(0)
    frames = wired.transport.frames()

    bodies_read: list[bytes] = []
    for each in frames:
        if isinstance(each, header.ContentHeader):
            bodies_read.append(b"")
        elif isinstance(each, amqp_body.ContentBody):
            assert len(each.value) <= 4088
            bodies_read[-1] += each.value
        else:
            assert isinstance(each, commands.Basic.Publish)
            assert (each.exchange, each.routing_key, each.mandatory) == ("events", "key", True)
    assert bodies_read == bodies


# --- settling --------------------------------------------------------------------------------------------------------


@given(st.permutations(range(1, 25)), st.data())
@settings(max_examples=200, deadline=None)
async def test_every_tag_is_told_exactly_once_in_whatever_order(order: list[int], data: st.DataObject) -> None:
    settled, told, unsettled = Settled(), set[int](), set(range(1, 25))
    for tag in range(1, 25):
        settled.delivered(tag)

    def tell(upto: int, singles: list[int]) -> None:
        if upto:
            assert upto not in told, "a multiple ack must name a tag that the broker still holds"
            covered = {tag for tag in range(1, upto + 1) if tag not in told}
            assert not covered & unsettled
            told.update(covered)
        for tag in singles:
            assert tag not in told | unsettled
            told.add(tag)

    for tag in order:
        unsettled.discard(tag)
        if data.draw(st.booleans()):
            settled.add(tag)
        else:
            settled.add_written(tag)
            told.add(tag)
        if data.draw(st.booleans()):
            tell(*settled.take())
    tell(*settled.take())

    assert told == set(range(1, 25))


async def test_acks_of_one_turn_are_one_frame() -> None:
    wired = Wired()
    lane = wired.inbound(1)

    wired.tap.data_received(b"".join(f for tag in range(1, 101) for f in a_delivery(1, tag, b"x")))
    for tag in range(1, 101):
        lane.ack(tag)
        lane.ack(tag)
    await asyncio.sleep(0)

    acks = wired.transport.frames()
    assert [(a.delivery_tag, a.multiple) for a in acks if isinstance(a, commands.Basic.Ack)] == [(100, True)]
    assert len(acks) == 1


async def test_nothing_is_settled_on_a_channel_that_ended() -> None:
    wired = Wired()
    lane = wired.inbound(1)
    wired.tap.data_received(b"".join(a_delivery(1, 1, b"x") + a_delivery(1, 2, b"x")))
    lane.ack(1)

    wired.tap.data_received(frame.marshal(commands.Basic.Cancel("tag", True), 1))
    await asyncio.sleep(0)
    lane.requeue(2)

    assert not lane.open
    assert wired.transport.frames() == []


def test_what_the_tap_leans_on_is_there_in_this_version_of_aiormq() -> None:
    parameters = inspect.signature(Connection.__init__).parameters

    assert "transport_factory" in parameters
    assert inspect.iscoroutinefunction(TransportFactory.create)
    assert version("aiormq").startswith("7.2.")
