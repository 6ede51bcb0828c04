"""The tap: frames split anywhere, channels interleaved, and what is no AMQP ends the connection."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from aiormq.connection import Connection, TransportFactory
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, frame

from rabbitevents.brokers.rabbitmq.frames import FRAME_LIMIT, HEARTBEAT
from tests.wired import Wired, a_delivery, a_message, an_ack, content_head, deliveries, published

HELLO = frame.marshal(commands.Connection.Blocked("memory"), 0)


def interleaved(messages: list[list[bytes]], order: list[int]) -> list[bytes]:
    """The frames of messages on different channels, mixed in the given order, each channel's own in sequence."""
    queues = [list(frames) for frames in messages]
    mixed: list[bytes] = []
    for choice in order:
        waiting = [queue for queue in queues if queue]
        if waiting:
            mixed.append(waiting[choice % len(waiting)].pop(0))
    return mixed + [each for queue in queues for each in queue]


def feed(wired: Wired, stream: bytes, cuts: list[int]) -> None:
    """Feed a stream in pieces."""
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        wired.tap.data_received(stream[start:end])


BODIES = st.lists(st.binary(max_size=350), min_size=1, max_size=4)
CUTS = st.lists(st.floats(0, 1), max_size=10)


@given(st.lists(BODIES, min_size=1, max_size=3), st.lists(st.integers(0, 5), max_size=60), CUTS)
@settings(max_examples=150, deadline=None)
async def test_a_stream_cut_anywhere_gives_the_same_deliveries(
    channels: list[list[bytes]], order: list[int], cuts: list[float]
) -> None:
    messages = [
        [f for tag, body in enumerate(bodies, 1) for f in a_delivery(number, tag, body)]
        for number, bodies in enumerate(channels, 1)
    ]
    others = [frame.marshal(commands.Basic.QosOk(), number) for number in range(1, len(channels) + 1)]
    others.append(frame.marshal(commands.Queue.DeclareOk("q", 1, 2), 9))
    frames = interleaved([[o, *m] for o, m in zip(others, [*messages, []], strict=True)], order)
    stream = b"".join(frames)
    wired = Wired()
    for number in range(1, len(channels) + 1):
        wired.inbound(number)

    feed(wired, stream, [int(cut * len(stream)) for cut in cuts])

    for number, bodies in enumerate(channels, 1):
        mine = [d for d in wired.delivered if d.queue == f"q{number}"]
        assert [(d.tag, d.body, d.properties.message_id) for d in mine] == [
            (tag, body, f"{number}-{tag}") for tag, body in enumerate(bodies, 1)
        ]
        assert {(d.via_exchange, d.via_routing_key) for d in mine} <= {("events", f"order.{number}")}
    assert await wired.fed() == b"".join(f for f in frames if f in others)


async def test_every_single_cut_and_one_byte_at_a_time_give_the_same_deliveries() -> None:
    bodies = (b"one", b"", b"x" * 250)
    stream = deliveries(1, *bodies)
    cuts = [[stream[:at], stream[at:]] for at in range(len(stream) + 1)]

    for pieces in [*cuts, [bytes((b,)) for b in stream]]:
        wired = Wired()
        wired.inbound()
        for piece in pieces:
            wired.tap.data_received(piece)

        assert wired.received(1) == list(enumerate(bodies, 1))


async def test_deliveries_of_one_read_come_as_one_list() -> None:
    wired, batches = Wired(), list[int]()
    wired.inbound(deliver=lambda batch: batches.append(len(batch)))

    wired.tap.data_received(deliveries(1, *[b"x"] * 7))

    assert batches == [7]


async def test_deliveries_of_interleaved_channels_come_as_one_list_each() -> None:
    wired, batches = Wired(), list[list[tuple[str, int]]]()
    for number in (1, 2, 3):
        wired.inbound(number, deliver=lambda batch: batches.append([(d.queue, d.tag) for d in batch]))
    one, two = [[f for tag in (1, 2) for f in a_delivery(number, tag, b"x")] for number in (1, 2)]

    wired.tap.data_received(b"".join(interleaved([one, two], [0, 1] * 6)))

    assert batches == [[("q1", 1), ("q1", 2)], [("q2", 1), ("q2", 2)]]


async def test_a_read_looks_only_at_the_lanes_that_it_touches() -> None:
    wired = Wired()
    wired.inbound(1)
    wired.outbound(2)

    wired.tap.data_received(deliveries(1, b"x"))

    assert wired.rooms == 0


async def test_aiormq_is_fed_a_heartbeat_while_lanes_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired()
    wired.inbound()
    moments = iter([10.0, 10.2, 10.4, 11.3])
    monkeypatch.setattr(wired.tap, "_time", lambda: next(moments))

    for tag in range(1, 5):
        wired.tap.data_received(b"".join(a_delivery(1, tag, b"x")))

    wired.control.feed_eof()
    assert await wired.control.read() == HEARTBEAT * 2


# --- what is no AMQP ------------------------------------------------------------------------------------------------

DELIVERED = b"".join(a_delivery(1, 1, b"whole"))

NO_AMQP = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "another version": b"AMQP\x00\x00\x09\x01",
    "a frame without its end": b"\x01\x00\x01\x00\x00\x00\x01xx",
    "an unknown type, whole": b"\x05\x00\x01\x00\x00\x00\x01x\xce",
    "an unknown type, whole, on a channel without a lane": b"\x05\x00\x09\x00\x00\x00\x01x\xce",
    "an unknown type, its end not here yet": b"\x05\x00\x01\x00\x00\x00\x09x",
    "an unknown type, on a channel without a lane, its end not here yet": b"\x05\x00\x09\x00\x00\x00\x09x",
    "a heartbeat on a channel": b"\x08\x00\x01\x00\x00\x00\x00\xce",
    "a size over the limit": b"\x03\x00\x01" + (FRAME_LIMIT + 1).to_bytes(4, "big") + b"x",
    "a size over the limit, whole": b"\x03\x00\x09"
    + (FRAME_LIMIT + 1).to_bytes(4, "big")
    + b"x" * FRAME_LIMIT
    + b"x\xce",
    "a close of the connection, too short": b"\x01\x00\x00\x00\x00\x00\x07\x00\x0a\x00\x32\x00\xc8\x09\xce",
    "a close of the connection, too long": frame.marshal(commands.Connection.Close(200, "", 0, 0), 0)[:6]
    + b"\x0c\x00\x0a\x00\x32\x00\xc8\x00\x00\x00\x00\x00\x00\xce",
    "an alarm whose text is too short": b"\x01\x00\x00\x00\x00\x00\x06\x00\x0a\x00\x3c\x09x\xce",
}


@pytest.mark.parametrize("what", NO_AMQP)
async def test_what_is_no_amqp_breaks_a_running_connection_off(what: str) -> None:
    wired = Wired()
    inbound, outbound = wired.inbound(1), wired.outbound(2)
    answer, *_ = published(outbound, a_message("k", "1"))

    wired.tap.data_received(DELIVERED + NO_AMQP[what])
    wired.tap.data_received(DELIVERED)

    assert "what is no AMQP" in wired.ended()
    assert not inbound.open
    assert answer.done()
    assert not wired.delivered


async def test_nothing_that_comes_after_the_end_is_looked_at() -> None:
    wired = Wired()
    wired.inbound()

    wired.tap.abort("enough")
    wired.tap.data_received(HELLO + DELIVERED)

    assert not wired.delivered
    assert wired.tap.blocked is None
    assert await wired.fed() == b""


async def test_the_largest_frame_that_was_agreed_upon_is_taken() -> None:
    wired = Wired()
    wired.inbound(body_limit=2**24)
    wired.tap.frame_limit = 2**21
    body = bytes(2**21)

    wired.tap.data_received(a_delivery(1, 1, b"")[0] + content_head(1, len(body)))
    wired.tap.data_received(b"\x03\x00\x01" + len(body).to_bytes(4, "big") + body + b"\xce")

    assert wired.received(1) == [(1, body)]


async def test_what_is_no_amqp_goes_to_aiormq_during_the_handshake() -> None:
    wired = Wired()

    wired.tap.data_received(b"AMQP\x00\x00")
    wired.tap.data_received(b"\x09\x01")
    wired.tap.data_received(b"more")

    wired.control.feed_eof()
    assert await wired.control.read() == b"AMQP\x00\x00\x09\x01more"


def streams(bodies: dict[int, list[int]]) -> tuple[list[tuple[int, bytes]], dict[int, list[tuple[int, bytes]]]]:
    """Frames with their channels, and what they deliver; each body of one sign, another one for each tag."""
    sent = {n: [(tag, bytes((64 * n + tag,)) * size) for tag, size in enumerate(s, 1)] for n, s in bodies.items()}
    frames = [(n, f) for n, messages in sent.items() for tag, body in messages for f in a_delivery(n, tag, body)]
    return frames, sent


def mutated(frames: list[tuple[int, bytes]], how: str, where: int) -> list[bytes]:
    """A stream in which one thing is other than sent."""
    raw = [f for _, f in frames]
    if how == "dropped":
        return raw[:where] + raw[where + 1 :]
    if how == "doubled":
        return raw[: where + 1] + raw[where:]
    if how == "reordered":
        later = next((i for i in range(where + 1, len(raw)) if frames[i][0] == frames[where][0]), where)
        raw[where], raw[later] = raw[later], raw[where]
    return raw


SIZES = st.dictionaries(st.sampled_from([1, 2]), st.lists(st.integers(0, 230), min_size=1, max_size=4), min_size=1)


def is_prefix(received: list[tuple[int, bytes]], sent: list[tuple[int, bytes]]) -> bool:
    return sent[: len(received)] == received


@given(SIZES, st.sampled_from(["sent", "dropped", "doubled", "reordered"]), st.floats(0, 0.999), CUTS)
@settings(max_examples=300, deadline=None)
async def test_frames_dropped_doubled_or_reordered_end_the_connection_or_change_nothing(
    sizes: dict[int, list[int]], how: str, where: float, cuts: list[float]
) -> None:
    frames, sent = streams(sizes)
    ends = {number: (len(bodies) + 1, b"the end") for number, bodies in sent.items()}
    stream = b"".join(mutated(frames, how, int(where * len(frames))))
    stream += b"".join(f for number, end in ends.items() for f in a_delivery(number, *end))
    wired = Wired()
    for number in (1, 2):
        wired.inbound(number)

    feed(wired, stream, [int(cut * len(stream)) for cut in cuts])

    everything = {number: [*bodies, ends[number]] for number, bodies in sent.items()}
    assert all(is_prefix(wired.received(number), everything[number]) for number in sent)
    if not wired.ended():
        assert {number: wired.received(number) for number in sent} == everything
    assert how != "sent" or not wired.ended()


@given(SIZES, st.floats(0, 0.999), st.integers(1, 255), st.floats(0, 0.999))
@settings(max_examples=500, deadline=None)
async def test_a_byte_that_is_other_than_sent_never_makes_a_body_that_was_not_sent_with_its_tag(
    sizes: dict[int, list[int]], where: float, flip: int, inside: float
) -> None:
    frames, sent = streams(sizes)
    raw = [bytearray(f) for _, f in frames]
    changed = raw[int(where * len(raw))]
    # What a body says is nobody's business: only the frame around it is changed.
    places = [*range(7), len(changed) - 1] if changed[0] == 3 else range(len(changed))
    changed[places[int(inside * len(places))]] ^= flip
    wired = Wired()
    for number in (1, 2):
        wired.inbound(number)

    wired.tap.data_received(b"".join(raw))  # in one read: what a header lies about shows only in the next frame

    assert all(is_prefix(wired.received(number), bodies) for number, bodies in sent.items())


@given(SIZES, st.floats(0, 0.999), st.floats(0, 1), st.integers(1, 40), CUTS)
@settings(max_examples=300, deadline=None)
async def test_bytes_missing_from_a_frame_end_the_connection_and_deliver_nothing_else(
    sizes: dict[int, list[int]], where: float, inside: float, missing: int, cuts: list[float]
) -> None:
    frames, sent = streams(sizes)
    raw = [f for _, f in frames]
    cut = int(where * len(raw))
    at = int(inside * (len(raw[cut]) - 1))
    raw[cut] = raw[cut][:at] + raw[cut][at + missing :]
    stream = b"".join(raw)
    wired = Wired()
    for number in (1, 2):
        wired.inbound(number)

    feed(wired, stream, [int(each * len(stream)) for each in cuts])

    assert all(is_prefix(wired.received(number), bodies) for number, bodies in sent.items())


@given(st.binary(max_size=600), st.booleans(), CUTS)
@settings(max_examples=200, deadline=None)
async def test_no_bytes_whatever_raise_out_of_the_tap(junk: bytes, framed: bool, cuts: list[float]) -> None:
    wired = Wired()
    wired.inbound(1)
    published(wired.outbound(2), a_message("k", "1"))
    pieces = [junk[i : i + 40] for i in range(0, len(junk), 40)]
    heads = [bytes((1 + len(p) % 3, 0, p[0] % 4)) + (len(p) - 1).to_bytes(4, "big") for p in pieces]
    stream = b"".join(h + p[1:] + b"\xce" for h, p in zip(heads, pieces, strict=True)) if framed else junk

    feed(wired, stream, [int(cut * len(stream)) for cut in cuts])

    assert not wired.delivered


METHODS = st.sampled_from(
    [
        frame.marshal(method, 1)[7:-1]
        for method in (
            commands.Basic.Deliver("tag", 1, False, "events", "order"),
            commands.Basic.Return(312, "NO_ROUTE", "events", "k"),
            commands.Basic.Ack(1, True),
            commands.Basic.Nack(1, True),
            commands.Channel.Close(404, "NOT_FOUND", 60, 40),
            commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0),
            commands.Connection.Blocked("memory"),
        )
    ]
)


@given(METHODS, st.integers(0, 2), st.data())
@settings(max_examples=300, deadline=None)
async def test_a_method_of_any_other_length_ends_the_connection_or_is_aiormqs(
    method: bytes, channel: int, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(method) + 20).filter(lambda n: n != len(method)))
    payload = (method + b"\x01" * 20)[:length]
    wired = Wired()
    wired.inbound(1)
    answers = published(wired.outbound(2), a_message("k", "1"))
    whole = b"\x01\x00" + bytes((channel,)) + len(payload).to_bytes(4, "big") + payload + b"\xce"

    wired.tap.data_received(whole)

    assert wired.ended() or (await wired.fed() == whole and not answers[0].done())
    assert not wired.delivered
    assert wired.tap.blocked is None


# --- the end --------------------------------------------------------------------------------------------------------


async def test_when_the_broker_closes_the_connection_every_lane_ends_and_aiormq_answers() -> None:
    wired = Wired()
    inbound, outbound = wired.inbound(1), wired.outbound(2)
    close = frame.marshal(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0)

    wired.tap.data_received(DELIVERED + close + b"".join(a_delivery(1, 2, b"late")))

    assert wired.tap.closed == (320, "CONNECTION_FORCED")
    assert (
        inbound.ended.result() == outbound.ended.result() == "the broker closed the connection: 320 CONNECTION_FORCED"
    )
    assert not wired.delivered
    assert not wired.ended()
    assert await wired.fed() == close


@pytest.mark.parametrize("number", [0, 1])
async def test_a_close_that_aiormq_asked_for_ends_the_lane_too(number: int) -> None:
    wired = Wired()
    lane = wired.inbound(1)
    wired.tap.data_received(DELIVERED)

    closed = commands.Channel.CloseOk() if number else commands.Connection.CloseOk()
    wired.tap.data_received(frame.marshal(closed, number))

    assert lane.ended.result() == ("the channel was closed" if number else "the connection was closed")


async def test_a_lane_that_comes_to_a_connection_that_has_ended_ends_at_once() -> None:
    wired = Wired()
    wired.tap.abort("gone")

    inbound, outbound = wired.inbound(1), wired.outbound(2)

    assert inbound.ended.result() == outbound.ended.result() == "gone"


async def test_an_alarm_is_told_and_fed_on() -> None:
    wired, told = Wired(), list[str | None]()
    wired.tap.on_blocked = told.append
    end = frame.marshal(commands.Connection.Unblocked(), 0)

    wired.tap.data_received(HELLO + end)

    assert told == ["memory", None]
    assert wired.tap.blocked is None
    assert await wired.fed() == HELLO + end


async def test_a_full_socket_holds_publishers_and_one_with_room_lets_them_go_on() -> None:
    wired = Wired()
    wired.inbound(1)
    wired.outbound(2)

    wired.tap.pause_writing()
    held = wired.tap.paused, wired.rooms
    wired.tap.resume_writing()

    assert held == (True, 0)
    assert (wired.tap.paused, wired.rooms) == (False, 1)


async def test_the_last_words_of_a_connection_reach_every_lane() -> None:
    wired = Wired()
    lane = wired.inbound()
    wired.tap.data_received(an_ack(1, number=9))

    wired.tap.connection_lost(ConnectionResetError("reset by peer"))
    wired.tap.connection_lost(None)

    assert lane.ended.result() == wired.tap.lost.result() == "reset by peer"


def test_what_the_tap_leans_on_is_there_in_this_version_of_aiormq() -> None:
    parameters = inspect.signature(Connection.__init__).parameters

    assert "transport_factory" in parameters
    assert inspect.iscoroutinefunction(TransportFactory.create)
    assert version("aiormq").startswith("7.2.")
