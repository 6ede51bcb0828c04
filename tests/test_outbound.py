"""A publishing channel's lane: whole messages out, answers and returns matched, whatever the broker does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body as amqp_body
from pamqp import commands, frame, header

from rabbitevents.brokers.rabbitmq.outbound import Answer
from rabbitevents.errors import EncodeError
from rabbitevents.message import Message
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


async def test_a_publish_past_its_deadline_is_answered_and_a_late_confirm_harms_nobody() -> None:
    wired = Wired()
    lane = wired.outbound()
    answers = published(lane, a_message("k", "1"), a_message("k", "2"))

    lane.expire(101.0)
    wired.tap.data_received(an_ack(2, True))

    assert [a.result() for a in answers] == [Answer.EXPIRED, Answer.EXPIRED]
    assert (lane.pending, lane.unanswered) == ({}, 0)


async def test_what_nobody_waits_for_any_more_makes_room_and_is_counted() -> None:
    wired = Wired()
    lane = wired.outbound()
    published(lane, a_message("k", "late"), deadline=10.0)
    cancelled, kept = published(lane, a_message("k", "cancelled"), a_message("k", "kept"), deadline=20.0)

    cancelled.cancel()
    lane.expire(9.0)
    seen = [(lane.waiting, lane.unanswered, wired.rooms)]
    for now in (15.0, 15.0):
        lane.expire(now)
        seen.append((lane.waiting, lane.unanswered, wired.rooms))

    assert seen == [(2, 1, 1), (1, 2, 2), (1, 2, 2)]
    assert not kept.done()
    assert list(lane.pending) == [1, 2, 3]


async def test_a_late_return_is_matched_with_the_publish_that_expired() -> None:
    wired = Wired()
    lane = wired.outbound()
    published(lane, a_message("k", "same"), deadline=10.0)
    (answer,) = published(lane, a_message("k", "same"), deadline=20.0)
    lane.expire(15.0)

    wired.tap.data_received(a_return("k", "same") + an_ack(2, True))

    assert answer.result() is Answer.CONFIRMED


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 30)),
        st.tuples(st.just("expire"), st.integers(0, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["ack", "ack all"]), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=300, deadline=None)
async def test_the_counts_hold_whatever_is_answered_given_up_or_late(steps: list[tuple[str, int]]) -> None:
    wired = Wired()
    lane = wired.outbound()
    answers = list[asyncio.Future[Answer]]()
    given_up = set[int]()

    for step, number in steps:
        if step == "publish":
            answers += published(lane, a_message("k", "id"), deadline=float(number))
        elif step == "expire":
            lane.expire(float(number))
            given_up |= {tag for tag in lane.pending if answers[tag - 1].done()}
        elif answers and step == "cancel":
            answers[number % len(answers)].cancel()
        elif answers:
            wired.tap.data_received(an_ack(1 + number % len(answers), step == "ack all"))
        given_up &= set(lane.pending)
        assert lane.unanswered == len(given_up)
        assert lane.waiting == len(set(lane.pending) - given_up)
    lane.lost("over")

    assert all(a.done() for a in answers)
    assert (lane.waiting, lane.unanswered) == (0, 0)


RETURNING = a_return("k", "1").removesuffix(body_frame(1, b"body"))

WRONG = {
    "an answer to nothing": [an_ack(0)],
    "an answer to what was not published": [an_ack(4)],
    "an answer to everything, and more": [an_ack(2**62, True)],
    "an answer that is too short": [b"\x01\x00\x01\x00\x00\x00\x0c\x00\x3c\x00\x50" + bytes(7) + b"\x01\xce"],
    "an answer that is too long": [b"\x01\x00\x01\x00\x00\x00\x0e\x00\x3c\x00\x50" + bytes(7) + b"\x01\x00\x00\xce"],
    "an answer inside a returned message": [RETURNING, an_ack(1)],
    "a return without its message, and another one": [
        frame.marshal(commands.Basic.Return(312, "NO_ROUTE", "events", "k"), 1),
        a_return("k", "1"),
    ],
    "a header without a return": [content_head(1, 0)],
    "a body without a return": [body_frame(1, b"body")],
    "a returned body that is too long": [a_return("k", "1"), body_frame(1, b"more")],
    "a returned body that begins too long": [RETURNING, body_frame(1, b"longer")],
    "a returned body with an empty frame": [RETURNING, body_frame(1, b"")],
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


def ids(wired: Wired) -> list[str | None]:
    """The ids of the messages that were written."""
    return [f.properties.message_id for f in wired.transport.frames() if isinstance(f, header.ContentHeader)]


def raising(data: bytes) -> None:
    raise RuntimeError("the transport is in no state to write")


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


@pytest.mark.parametrize("body", ["text", None, 5, bytearray(b"{}"), memoryview(b"{}"), ["{}"]])
async def test_a_body_that_is_no_bytes_is_refused_alone(body: Any) -> None:
    wired = Wired()
    lane = wired.outbound()

    published(lane, a_message("k", "before"))
    with pytest.raises(EncodeError, match="its body is no bytes"):
        published(lane, a_message("k", "bad", body))
    published(lane, a_message("k", "after"))
    await asyncio.sleep(0)

    assert list(lane.pending) == [1, 2]
    assert ids(wired) == ["before", "after"]


@pytest.mark.parametrize(
    ("message", "properties"),
    [
        (a_message("k" * 256, "bad"), b"\x00\x00"),
        (a_message("\ud800", "bad"), b"\x00\x00"),
        (a_message("k", "bad").replace(exchange="e" * 256), b"\x00\x00"),
        (a_message("k", "bad"), bytes(4077)),
    ],
    ids=["key too long", "key that UTF-8 cannot say", "exchange too long", "headers over the frame"],
)
async def test_what_fits_no_frame_is_refused_alone(message: Message, properties: bytes) -> None:
    wired = Wired()
    lane = wired.outbound(frame_max=4096)

    published(lane, a_message("k", "before"))
    with pytest.raises(EncodeError):
        lane.publish(message, properties, 100.0)
    published(lane, a_message("k", "after"))
    await asyncio.sleep(0)

    assert list(lane.pending) == [1, 2]
    assert ids(wired) == ["before", "after"]


async def test_headers_that_just_fit_a_frame_are_written() -> None:
    wired = Wired()
    lane = wired.outbound(frame_max=4096)

    lane.publish(a_message("k", "1"), b"\x00\x00" + bytes(4074), 100.0)
    await asyncio.sleep(0)

    assert [f.name for f in wired.transport.frames()] == ["Basic.Publish", "ContentHeader", "ContentBody"]


async def test_methods_are_written_right_for_more_destinations_than_are_kept() -> None:
    wired = Wired()
    lane = wired.outbound()
    keys = [f"key.{number}" for number in range(1500)]

    published(lane, *(a_message(key, key) for key in [*keys, *keys]))
    await asyncio.sleep(0)

    written = [f.routing_key for f in wired.transport.frames() if isinstance(f, commands.Basic.Publish)]
    assert written == [*keys, *keys]
    assert len(vars(lane)["_methods"]) <= 1024


async def test_a_write_that_fails_ends_the_channel_and_every_publish_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wired = Wired()
    lane = wired.outbound()
    monkeypatch.setattr(wired.transport, "write", raising)
    answers = published(lane, a_message("k", "1"), a_message("k", "2"))

    await asyncio.sleep(0)

    assert "could not be written" in lane.ended.result()
    assert [a.result() for a in answers] == [Answer.LOST, Answer.LOST]
