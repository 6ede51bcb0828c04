"""A publishing channel's lane: whole messages out, answers and returns matched, whatever the broker does."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body as amqp_body
from pamqp import commands, frame, header

from rabbitevents.brokers.rabbitmq.outbound import Answer
from tests.wired import Wired, a_delivery, a_message, a_return, an_ack, body_frame, content_head, published

# --- answers --------------------------------------------------------------------------------------------------------


async def test_a_multiple_ack_answers_everything_up_to_it() -> None:
    wired = Wired()
    answers = published(wired.outbound(), *(a_message("k", str(i)) for i in range(5)))

    wired.tap.data_received(an_ack(2))
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
            wired.tap.data_received(an_ack(tag, True))
            upto = tag

    assert upto == len(keys)
    assert [a.result() is Answer.RETURNED for a in answers] == [key == "free" for key in keys]


async def test_a_return_that_matches_no_publish_marks_none() -> None:
    wired = Wired()
    answers = published(wired.outbound(), *(a_message("k", str(i)) for i in range(3)))

    wired.tap.data_received(a_return("k", "another") + a_return("another", "1") + a_return("k", "2", body=b""))
    wired.tap.data_received(an_ack(3, True))

    assert [a.result() for a in answers] == [Answer.CONFIRMED, Answer.CONFIRMED, Answer.RETURNED]


async def test_when_the_channel_ends_every_publish_has_an_answer_at_once() -> None:
    wired = Wired()
    lane = wired.outbound()
    answers = published(lane, a_message("k", "1"), a_message("k", "2"))

    wired.tap.data_received(frame.marshal(commands.Channel.Close(404, "NOT_FOUND - no exchange 'events'", 60, 40), 1))

    assert [a.result() for a in answers] == [Answer.LOST, Answer.LOST]
    assert (lane.close_code, lane.closed_by_publish, lane.unanswered_at_end) == (404, True, 2)


async def test_nothing_is_written_to_a_channel_that_has_ended() -> None:
    wired = Wired()
    lane = wired.outbound()
    published(lane, a_message("k", "1"))

    lane.lost("gone")
    await asyncio.sleep(0)

    assert wired.transport.frames() == []


async def test_a_cancelled_publish_harms_no_other() -> None:
    wired = Wired()
    answers = published(wired.outbound(), *(a_message("k", str(i)) for i in range(3)))

    answers[1].cancel()
    wired.tap.data_received(an_ack(3, True))

    assert [a.cancelled() or a.result() for a in answers] == [Answer.CONFIRMED, True, Answer.CONFIRMED]


WRONG = {
    "an answer to nothing": [an_ack(0)],
    "an answer to what was not published": [an_ack(4)],
    "an answer to everything, and more": [an_ack(2**62, True)],
    "an answer that is too short": [b"\x01\x00\x01\x00\x00\x00\x0c\x00\x3c\x00\x50" + bytes(7) + b"\x01\xce"],
    "an answer that is too long": [b"\x01\x00\x01\x00\x00\x00\x0e\x00\x3c\x00\x50" + bytes(7) + b"\x01\x00\x00\xce"],
    "an answer inside a returned message": [a_return("k", "1")[:-13] + an_ack(1)],
    "a return without its message, and another one": [
        frame.marshal(commands.Basic.Return(312, "NO_ROUTE", "events", "k"), 1),
        a_return("k", "1"),
    ],
    "a header without a return": [content_head(1, 0)],
    "a body without a return": [body_frame(1, b"body")],
    "a returned body that is too long": [a_return("k", "1"), body_frame(1, b"more")],
    "a returned body that begins too long": [a_return("k", "1")[:-13], content_head(1, 3), body_frame(1, b"long")],
    "an empty body that has a frame": [a_return("k", "1", body=b""), body_frame(1, b"")],
    "a delivery": a_delivery(1, 1, b"x"),
    "an empty method": [b"\x01\x00\x01\x00\x00\x00\x00\xce"],
}


@pytest.mark.parametrize("what", WRONG)
async def test_frames_other_than_announced_end_the_connection_and_every_publish_is_answered(what: str) -> None:
    wired = Wired()
    answers = published(wired.outbound(), *(a_message("k", str(i)) for i in range(3)))

    wired.tap.data_received(b"".join(WRONG[what]))

    assert "what is no AMQP" in wired.ended()
    assert {a.result() for a in answers} <= {Answer.LOST, Answer.CONFIRMED}
    assert answers[2].result() is Answer.LOST


# --- writing --------------------------------------------------------------------------------------------------------


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
