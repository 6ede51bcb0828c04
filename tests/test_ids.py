"""Which event is which: ids that are new, that derive from a cause, and that an author says."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import stop_after_attempt, wait_none

from rabbitevents import Bus, ConfigurationError, Delivery, Event, Router, detached, event
from rabbitevents.ids import derived_id, named_id, new_id
from rabbitevents.logs import event_context
from rabbitevents.testing import running
from rabbitevents_retry import Retry


@event("day.ended")
@frozen
class DayEnded:
    day: str


@event("parcel.packed")
@frozen
class Packed:
    parcel: str
    weight: int = 1


@event("parcel.weighed")
@frozen
class Weighed:
    parcel: str


# --- new and derived -------------------------------------------------------------------------------------------------


def test_new_ids_are_of_version_7_and_of_this_moment() -> None:
    before = datetime.now(UTC)

    ids = [new_id() for _ in range(1000)]

    assert len(set(ids)) == 1000
    for id in ids:
        moment = datetime.fromtimestamp((id.int >> 80) / 1000, UTC)
        assert id.version == 7
        assert id.variant == "specified in RFC 4122"
        assert before - timedelta(milliseconds=1) <= moment <= datetime.now(UTC)


def test_a_forked_process_gives_other_ids_than_its_parent() -> None:
    new_id()  # there is a supply of random numbers, which a child must not share
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a test process may have other threads
        child = os.fork()
    if child == 0:
        os.write(theirs, b"".join(new_id().bytes[6:] for _ in range(100)))
        os._exit(0)
    os.waitpid(child, 0)
    written = os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)

    assert len(written) == 1000
    assert not {written[at : at + 10] for at in range(0, 1000, 10)} & {new_id().bytes[6:] for _ in range(300)}


causes = st.uuids() | st.builds(new_id)
words = st.text("abc.\0", min_size=1, max_size=6)
arguments = st.tuples(causes, words, words.map(str.encode), st.integers(0, 3))


@given(arguments)
def test_a_derived_id_is_always_the_same_and_has_its_cause_s_time(of: tuple[UUID, str, bytes, int]) -> None:
    derived = derived_id(*of)

    assert derived == derived_id(*of)
    assert derived != of[0]
    assert derived.int >> 80 == of[0].int >> 80
    assert derived.version == 7
    assert derived.variant == "specified in RFC 4122"


@given(arguments, arguments)
def test_derived_ids_of_different_things_differ(
    one: tuple[UUID, str, bytes, int], other: tuple[UUID, str, bytes, int]
) -> None:
    mixed = (one[0], *other[1:])

    assert (derived_id(*one) == derived_id(*other)) == (one == other)
    assert (derived_id(*one) == derived_id(*mixed)) == (one == mixed)


# --- the law of repeated attempts ------------------------------------------------------------------------------------

payloads = st.builds(Packed, st.sampled_from("AB"), st.integers(1, 2)) | st.builds(Weighed, st.sampled_from("AB"))
attempts = st.lists(st.lists(st.tuples(payloads, st.booleans()), max_size=6), min_size=2, max_size=4)
"""What each attempt publishes, in order; True: with a metadata pair of its own."""


async def published_by(tries: Sequence[Sequence[tuple[Any, bool]]]) -> list[list[Event[Any]]]:
    """Have a handler publish that, attempt by attempt, each but the last failing at its end; return the events."""
    router, seen = Router("work"), list[list[Event[Any]]]()

    @router.on(DayEnded)
    async def work(day: DayEnded, bus: Bus, delivery: Delivery) -> None:
        seen.append([])
        for payload, marked in tries[delivery.attempt - 1]:
            seen[-1].append(await bus.publish(payload, metadata={"lane": "2"} if marked else None))
        if delivery.attempt < len(tries):
            raise OSError("the database went away")

    retry = Retry(stop=stop_after_attempt(10), wait=wait_none())
    async with running(Bus("memory://", router, plugins=[retry], unroutable="ignore")) as probe:
        await probe.bus.publish(DayEnded("monday"))
        await probe.settled()
    return seen


@settings(max_examples=60, deadline=None)
@given(attempts)
def test_whatever_a_repeated_attempt_publishes_no_two_different_events_share_an_id_and_the_same_ones_do(
    tries: list[list[tuple[Any, bool]]],
) -> None:
    seen = asyncio.run(published_by(tries))

    said: dict[UUID, tuple[Any, bool]] = {}
    numbers: dict[tuple[Any, bool], set[UUID]] = {}
    for attempt, events in zip(tries, seen, strict=True):
        assert len({each.id for each in events}) == len(events)
        for what, each in zip(attempt, events, strict=True):
            assert said.setdefault(each.id, what) == what
            numbers.setdefault(what, set()).add(each.id)
    for what, ids in numbers.items():  # as many ids as one attempt published it at most: the others repeated them
        assert len(ids) == max(attempt.count(what) for attempt in tries)


async def test_an_attempt_that_skips_what_it_did_before_loses_nothing() -> None:
    first, second = await published_by([[(Packed("A"), False), (Packed("B"), False)], [(Packed("B"), False)]])

    assert second[0].id == first[1].id
    assert second[0].id != first[0].id


async def test_the_delay_is_part_of_what_an_event_says() -> None:
    router, ids = Router("work"), list[UUID]()

    @router.on(DayEnded)
    async def work(day: DayEnded, bus: Bus) -> None:
        for days in (1, 7):
            ids.append((await bus.publish(Packed("A"), delay=timedelta(days=days))).id)

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(DayEnded("monday"))
        await probe.settled()

    assert len(set(ids)) == 2


# --- ids that an author says -----------------------------------------------------------------------------------------


async def test_an_author_can_say_an_id() -> None:
    given = uuid4()
    async with Bus("memory://", name="shop", unroutable="ignore") as bus:
        by_uuid = await bus.publish(Packed("A"), id=given)
        by_text = await bus.publish(Packed("A"), id=str(given))
        named = await bus.publish(Packed("A"), id="order-17")
        again = await bus.publish(Packed("B"), id="order-17")
        other = await bus.publish(Weighed("A"), id="order-17")

    async with Bus("memory://", name="till", unroutable="ignore") as bus:
        elsewhere = await bus.publish(Packed("A"), id="order-17")

    assert by_uuid.id == by_text.id == given
    assert named.id == again.id == named_id("shop", "parcel.packed", "order-17")
    assert len({named.id, other.id, elsewhere.id, given}) == 4


async def test_in_a_handler_an_id_that_is_said_derives_from_the_cause() -> None:
    router, ids = Router("work"), dict[str, list[UUID]]()

    @router.on(DayEnded)
    async def work(day: DayEnded, bus: Bus) -> None:
        sent = [await bus.publish(Packed("A", weight), id="the one") for weight in (1, 2)]
        ids[day.day] = [each.id for each in sent]

    async with running(Bus("memory://", router, unroutable="ignore")) as probe:
        await probe.bus.publish(DayEnded("monday"))
        await probe.bus.publish(DayEnded("tuesday"))
        await probe.settled()

    assert ids["monday"][0] == ids["monday"][1]
    assert ids["monday"][0] != ids["tuesday"][0]


@pytest.mark.parametrize("id", ["", "  "])
async def test_a_blank_id_is_refused(id: str) -> None:
    async with Bus("memory://") as bus:
        with pytest.raises(ConfigurationError, match="blank"):
            await bus.publish(Packed("A"), id=id)


async def test_an_envelope_keeps_its_own_id() -> None:
    async with Bus("memory://", unroutable="ignore") as bus:
        sent = await bus.publish(Packed("A"))
        with pytest.raises(ConfigurationError, match="of its own"):
            await bus.publish(sent, id="another")


# --- tasks that outlive their handler --------------------------------------------------------------------------------


async def after_its_handler(*, in_detached: bool) -> tuple[Event[Packed], Event[DayEnded], dict[str, Any]]:
    """Return what a task publishes that its handler left behind, the cause, and what a log record there would say."""
    router, done, go = Router("work"), list[tuple[Event[Packed], dict[str, Any]]](), asyncio.Event()
    left: list[asyncio.Task[None]] = []

    @router.on(DayEnded)
    async def work(day: DayEnded, bus: Bus) -> None:
        async def later() -> None:
            await go.wait()
            done.append((await bus.publish(Packed("A")), dict(event_context())))

        if in_detached:
            with detached():
                left.append(asyncio.create_task(later()))
        else:
            left.append(asyncio.create_task(later()))
        assert event_context()

    async with running(Bus("memory://", router, unroutable="ignore")) as probe:
        cause = await probe.bus.publish(DayEnded("monday"), correlation_id="c-1")
        await probe.settled()
        go.set()
        await left[0]
    return done[0][0], cause, done[0][1]


async def test_a_task_that_outlives_its_handler_derives_no_ids_but_keeps_its_cause() -> None:
    sent, cause, fields = await after_its_handler(in_detached=False)

    assert sent.id.int >> 80 >= cause.id.int >> 80
    assert sent.metadata.causation_id == str(cause.id)
    assert sent.metadata.correlation_id == "c-1"
    assert fields == {}
    again, _, _ = await after_its_handler(in_detached=False)
    assert again.id != sent.id


async def test_what_is_published_detached_has_neither_cause_nor_correlation() -> None:
    sent, _, fields = await after_its_handler(in_detached=True)

    assert sent.metadata.causation_id is None
    assert sent.metadata.correlation_id == str(sent.id)
    assert fields == {}
