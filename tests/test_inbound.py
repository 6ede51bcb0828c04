"""A consuming channel's lane: deliveries come whole or not at all, acknowledgements together, nothing after the end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, frame

from rabbitevents.brokers import Verdict
from rabbitevents.brokers.rabbitmq.inbound import InboundLane, Settled
from tests.wired import Wired, a_delivery, a_return, body_frame, content_head, deliveries

DELIVER = frame.marshal(commands.Basic.Deliver("tag", 1, False, "events", "order"), 1)


def a_method(payload: bytes) -> bytes:
    return b"\x01\x00\x01" + len(payload).to_bytes(4, "big") + payload + b"\xce"


def a_header(payload: bytes) -> bytes:
    return b"\x02\x00\x01" + len(payload).to_bytes(4, "big") + payload + b"\xce"


def without(payload: bytes, at: int, byte: int) -> bytes:
    """A delivery with one other byte."""
    return a_method(payload[:at] + bytes((byte,)) + payload[at + 1 :])


WRONG = {
    "a body with no header": [DELIVER, body_frame(1, b"x")],
    "a body with no delivery": [body_frame(1, b"x")],
    "a header with no delivery": [content_head(1, 1), body_frame(1, b"x")],
    "a second header": [DELIVER, content_head(1, 1), content_head(1, 1)],
    "a delivery without its header": [DELIVER, DELIVER],
    "a delivery inside another's body": [DELIVER, content_head(1, 2), body_frame(1, b"x"), a_delivery(1, 2, b"y")[0]],
    "an answer inside a delivery": [DELIVER, frame.marshal(commands.Basic.QosOk(), 1)],
    "a frame of another type inside a body": [DELIVER, content_head(1, 1), b"\x08\x00\x01\x00\x00\x00\x01x\xce"],
    "a frame longer than announced": [DELIVER, content_head(1, 5), body_frame(1, b"longer")],
    "a frame longer than what is left": [DELIVER, content_head(1, 5), body_frame(1, b"hel"), body_frame(1, b"loMORE")],
    "a frame longer than announced, over the limit": [DELIVER, content_head(1, 5), body_frame(1, bytes(5000))],
    "a frame beyond a body": [DELIVER, content_head(1, 5), body_frame(1, b"hello"), body_frame(1, b"more")],
    "a frame of an empty body": [DELIVER, content_head(1, 0), body_frame(1, b"boo")],
    "an empty frame of an empty body": [DELIVER, content_head(1, 0), body_frame(1, b"")],
    "an empty frame of a body": [DELIVER, content_head(1, 1), body_frame(1, b"")],
    "a body shorter than announced": [DELIVER, content_head(1, 9), body_frame(1, b"short"), *a_delivery(1, 2, b"next")],
    "a body of 2^63 bytes": [DELIVER, content_head(1, 2**63)],
    "a body of 2^64-1 bytes": [DELIVER, content_head(1, 2**64 - 1)],
    "a header of another class": [DELIVER, content_head(1, 0, class_id=50)],
    "an empty header": [DELIVER, a_header(b"")],
    "a header without flags": [DELIVER, a_header(b"\x00\x3c\x00\x00" + bytes(8))],
    "an empty method": [a_method(b"")],
    "half a method's number": [a_method(b"\x00\x3c\x00")],
    "a delivery without fields": [a_method(b"\x00\x3c\x00\x3c")],
    "a consumer tag that is said to be longer": [without(DELIVER[7:-1], 4, 4), content_head(1, 0)],
    "a consumer tag that is said to be much longer": [without(DELIVER[7:-1], 4, 255), content_head(1, 0)],
    "a consumer tag that is said to be shorter": [without(DELIVER[7:-1], 4, 2), content_head(1, 0)],
    "a consumer tag that reaches into the next frame": [
        a_method(b"\x00\x3c\x00\x3c\x0ac" + bytes(7) + b"\x01\x00\x00\x01q"),
        content_head(1, 2),
        body_frame(1, b"{}"),
    ],
    "an exchange that is said to be longer": [without(DELIVER[7:-1], 17, 7), content_head(1, 0)],
    "a routing key that is said to be shorter": [without(DELIVER[7:-1], 24, 4), content_head(1, 0)],
    "the same delivery again": [*a_delivery(1, 1, b"x"), *a_delivery(1, 1, b"x")],
    "a delivery that was left out": a_delivery(1, 2, b"x"),
    "an earlier delivery": [*a_delivery(1, 1, b"x"), *a_delivery(1, 2, b"x"), *a_delivery(1, 1, b"x")],
    "a returned message": [a_return("k", "1")],
}


@pytest.mark.parametrize("what", WRONG)
async def test_frames_other_than_announced_end_the_connection_and_deliver_nothing(what: str) -> None:
    wired = Wired()
    lane = wired.inbound(body_limit=100)
    wired.inbound(2)

    wired.tap.data_received(deliveries(2, b"a neighbour") + b"".join(WRONG[what]))

    assert "what is no AMQP" in wired.ended()
    assert "on channel 1" in wired.ended()
    assert lane.ended.result() == wired.ended()
    assert not wired.delivered


@pytest.mark.parametrize("what", WRONG)
async def test_the_same_frames_one_by_one_deliver_at_most_what_was_whole(what: str) -> None:
    wired = Wired()
    wired.inbound(body_limit=100)

    for each in WRONG[what]:
        wired.tap.data_received(each)

    assert wired.ended()
    assert wired.received(1) in ([], [(1, b"x")], [(1, b"x"), (2, b"x")], [(1, b"hello")], [(1, b"")])


async def test_a_body_over_the_limit_is_not_kept() -> None:
    wired = Wired()
    wired.inbound(body_limit=200)

    wired.tap.data_received(deliveries(1, b"y" * 201, b"y" * 200))

    assert [(d.tag, len(d.body), d.oversize) for d in wired.delivered] == [(1, 0, 201), (2, 200, 0)]


# --- settling -------------------------------------------------------------------------------------------------------


def settled(wired: Wired, count: int = 3) -> InboundLane:
    """A lane with some deliveries."""
    lane = wired.inbound()
    wired.tap.data_received(deliveries(1, *[b"x"] * count))
    return lane


def acks(wired: Wired) -> list[tuple[int, bool]]:
    return [(f.delivery_tag or 0, f.multiple) for f in wired.transport.frames() if isinstance(f, commands.Basic.Ack)]


@given(st.permutations(range(1, 25)), st.data())
@settings(max_examples=200, deadline=None)
async def test_every_tag_is_told_exactly_once_in_whatever_order(order: list[int], data: st.DataObject) -> None:
    book, told, unsettled = Settled(), set[int](), set(range(1, 25))
    book.outstanding.update(dict.fromkeys(range(1, 25)))

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
            book.add(tag)
        else:
            book.add_written(tag)
            told.add(tag)
        if data.draw(st.booleans()):
            tell(*book.take())
    tell(*book.take())

    assert told == set(range(1, 25))


async def test_acks_of_one_turn_are_one_frame() -> None:
    wired = Wired()
    lane = settled(wired, 100)

    first = [lane.settle(tag, Verdict.ACK) for tag in range(1, 101)]
    again = [lane.settle(tag, Verdict.ACK) for tag in range(1, 101)]
    await asyncio.sleep(0)

    assert all(first)
    assert not any(again)
    assert acks(wired) == [(100, True)]


async def test_acks_of_a_later_turn_are_written_too() -> None:
    wired = Wired()
    lane = settled(wired)

    lane.settle(1, Verdict.ACK)
    await asyncio.sleep(0)
    lane.settle(3, Verdict.ACK)
    await asyncio.sleep(0)

    assert acks(wired) == [(1, True), (3, False)]


async def test_what_is_given_back_or_rejected_is_written_at_once_and_only_once() -> None:
    wired = Wired()
    lane = settled(wired)

    done = [lane.settle(1, Verdict.REQUEUE), lane.settle(2, Verdict.REJECT)]
    again = [lane.settle(tag, verdict) for tag in (1, 2) for verdict in Verdict]
    unknown = [lane.settle(tag, verdict) for tag in (0, 4) for verdict in Verdict]

    nack, reject = wired.transport.frames()
    assert isinstance(nack, commands.Basic.Nack)
    assert (nack.delivery_tag, nack.multiple, nack.requeue) == (1, False, True)
    assert isinstance(reject, commands.Basic.Reject)
    assert (reject.delivery_tag, reject.requeue) == (2, False)
    assert done == [True, True]
    assert not any([*again, *unknown])


# --- the end --------------------------------------------------------------------------------------------------------

CLOSES = {
    "cancel": frame.marshal(commands.Basic.Cancel("tag", True), 1),
    "close": frame.marshal(commands.Channel.Close(406, "PRECONDITION_FAILED", 60, 80), 1),
    "close-ok": frame.marshal(commands.Channel.CloseOk(), 1),
}


@pytest.mark.parametrize("how", CLOSES)
async def test_nothing_is_written_to_a_channel_that_the_broker_ended(how: str) -> None:
    wired = Wired()
    lane = settled(wired)
    lane.settle(1, Verdict.ACK)

    wired.tap.data_received(CLOSES[how])
    await asyncio.sleep(0)
    late = [lane.settle(2, verdict) for verdict in Verdict]
    lane.leave("left")
    await asyncio.sleep(0)

    assert not lane.open
    assert not any(late)
    assert lane.ended.result() != "left"
    assert lane.close_code == (406 if how == "close" else 0)
    assert wired.transport.frames() == []
    assert await wired.fed() == CLOSES[how]


async def test_a_lane_that_is_left_writes_what_was_acknowledged_and_nothing_more() -> None:
    wired = Wired()
    lane = settled(wired)
    lane.settle(1, Verdict.ACK)

    lane.leave("enough")
    late = [lane.settle(tag, verdict) for tag in (2, 3) for verdict in Verdict]
    lane.lost("the connection went after that")
    await asyncio.sleep(0)

    assert acks(wired) == [(1, True)]
    assert not any(late)
    assert (lane.open, lane.ended.result()) == (False, "enough")


@pytest.mark.parametrize("end", ["lost", "leave"])
async def test_what_still_comes_after_the_end_is_passed_over_and_not_aiormqs(end: str) -> None:
    wired = Wired()
    lane = settled(wired, 1)
    getattr(lane, end)("enough")

    wired.tap.data_received(b"".join(a_delivery(1, 2, b"late") + a_delivery(1, 3, b"late")))

    assert wired.received(1) == [(1, b"x")]
    assert not wired.ended()
    assert await wired.fed() == b""


async def test_what_came_together_with_the_end_is_not_delivered() -> None:
    wired = Wired()
    wired.inbound()

    wired.tap.data_received(b"".join(a_delivery(1, 1, b"x")) + CLOSES["cancel"])

    assert not wired.delivered


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([*Verdict, "turn", "leave", "lost", "cancel"]))))
@settings(max_examples=200, deadline=None)
async def test_whatever_is_done_nothing_is_written_after_the_end_and_each_settlement_counts_once(
    steps: list[tuple[int, Verdict | str]],
) -> None:
    wired = Wired()
    lane = settled(wired, 5)
    taken = list[int]()

    for tag, step in steps:
        before, was_open = len(wired.transport.written), lane.open
        if isinstance(step, Verdict):
            done = lane.settle(tag, step)
            assert done == (was_open and 1 <= tag <= 5 and tag not in taken)
            taken += [tag] if done else []
        elif step == "turn":
            await asyncio.sleep(0)
        elif step == "cancel":
            wired.tap.data_received(CLOSES["cancel"])
        else:
            getattr(lane, step)(step)
        assert was_open or len(wired.transport.written) == before
    assert lane.open != lane.ended.done()
