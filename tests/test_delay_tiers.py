"""The waiting times there are queues for: never early, seldom late, and not too many of them."""

from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rabbitevents import Binding, ConfigurationError, Exchange, Queue
from rabbitevents.publishing.delay import LONGEST, tier, waiting_room
from rabbitevents.topology import way_out

MILLISECOND = timedelta(milliseconds=1)
waits = st.timedeltas(timedelta(0), LONGEST)


@given(waits)
@example(timedelta(0))
@example(timedelta(microseconds=1))
@example(timedelta(milliseconds=500))
@example(timedelta(milliseconds=500, microseconds=1))
@example(timedelta(seconds=5))
@example(timedelta(seconds=5, microseconds=1))
@example(LONGEST)
def test_a_wait_is_never_cut_short_and_little_longer_than_wanted(wanted: timedelta) -> None:
    given = tier(wanted) * MILLISECOND

    assert wanted <= given
    assert given <= wanted * 1.1 + timedelta(seconds=1)


@given(waits, waits)
def test_who_wants_to_wait_longer_does_not_wait_shorter(one: timedelta, other: timedelta) -> None:
    shorter, longer = sorted((one, other))

    assert tier(shorter) <= tier(longer)


@given(waits)
def test_a_waiting_time_is_its_own_tier(wanted: timedelta) -> None:
    ms = tier(wanted)

    if ms * MILLISECOND <= LONGEST:
        assert tier(ms * MILLISECOND) == ms


def test_there_are_tens_of_tiers_up_to_an_hour_and_about_a_hundred_up_to_a_day() -> None:
    hour = {tier(timedelta(milliseconds=ms)) for ms in range(0, 3_600_000, 250)}
    day = hour | {tier(timedelta(seconds=seconds)) for seconds in range(3_600, 86_401, 10)}

    assert 20 <= len(hour) <= 90
    assert 50 <= len(day) <= 120


def test_a_wait_in_the_past_is_the_shortest_one() -> None:
    assert tier(timedelta(days=-1)) == tier(timedelta(0)) == tier(MILLISECOND)


@pytest.mark.parametrize("wanted", [LONGEST + timedelta(microseconds=1), timedelta.max])
def test_a_wait_longer_than_the_longest_is_refused(wanted: timedelta) -> None:
    with pytest.raises(ConfigurationError, match="at most 30 days"):
        tier(wanted)


def test_the_longest_tier_is_one_that_rabbitmq_can_count() -> None:
    assert tier(LONGEST) < 2**32  # x-message-ttl, in milliseconds


def test_a_waiting_room_leads_on_whatever_comes_in_and_loses_nothing() -> None:
    room = waiting_room("delay.5000", "delay.due", 5_000)

    assert room.items == (
        *way_out("delay.due").items,  # the target stands before what leads to it
        Exchange("delay.5000", "fanout"),
        Queue(
            "delay.5000",
            {
                "x-queue-type": "quorum",
                "x-message-ttl": 5_000,
                "x-dead-letter-exchange": "delay.due",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-delivery-limit": 1_000_000,
            },
        ),
        Binding("delay.5000", "delay.5000", ""),
    )


def test_a_waiting_room_keeps_the_routing_key_of_what_waits() -> None:
    queue = waiting_room("delay.5000", "delay.due", 5_000).queue("delay.5000")

    assert queue is not None
    assert "x-dead-letter-routing-key" not in queue.arguments
