"""The course of leading over to another number of partitions, without a broker: an event has a way at each moment, and there is an end."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabbitevents import ConfigurationError
from rabbitevents.operations.differences import wanted_bindings
from rabbitevents.operations.moving.course import Act, Empty
from rabbitevents.operations.moving.resizing import Resizing, next_resizing_step
from rabbitevents.operations.standing import Standing, StandingExchange, StandingQueue
from rabbitevents.partitions import division, names
from rabbitevents.topology import Exchange, Queue, Topology
from tests.test_partitions import Book
from tests.test_topology_course import after

WHOLE = "shop.record"
KEY = "ordered.step"


@cache
def wanted(total: int) -> Topology:
    return Book().bus("memory://", total).topology


def resizing(total: int) -> Resizing:
    return Resizing(WHOLE, total, wanted(total))


def standing(total: int) -> Standing:
    """What stands where a bus with so many partitions has started."""
    items = wanted(total).items
    return Standing(
        queues={
            each.name: StandingQueue(name=each.name, arguments=each.arguments)
            for each in items
            if isinstance(each, Queue)
        },
        exchanges={
            each.name: StandingExchange(name=each.name, kind=each.kind or "topic", arguments=each.arguments)
            for each in items
            if isinstance(each, Exchange)
        },
        bindings=wanted_bindings(wanted(total)),
    )


def course(total: int, here: Standing) -> list[tuple[Act, Standing]]:
    """All acts, and what stands after each."""
    found: list[tuple[Act, Standing]] = []
    while (step := next_resizing_step(resizing(total), here)) is not None:
        here = after(here, step.act)
        found.append((step.act, here))
        assert len(found) < 200
    return found


def led_to(here: Standing) -> set[str]:
    """What divides or takes an event as it is published, and as it has waited: the same."""
    ways = {
        (each.exchange, each.target)
        for each in here.bindings
        if each.routing_key == KEY and (each.target == WHOLE or not each.to_queue)
    }
    return {target for source, target in ways if source == "events"} | {
        target for source, target in ways if source == "events.due"
    }


def is_consumed(here: Standing, total: int) -> bool:
    """Whether code that wants so many partitions consumes them, and code that wants others does not."""
    if total == 1:
        return not {f"{WHOLE}.partitions", f"{WHOLE}.ended"} & here.exchanges.keys()
    return resizing(total).says(here) == division(WHOLE, total)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5))
def test_every_event_is_led_to_some_partitions_at_each_moment_and_to_the_new_ones_alone_in_the_end(
    old: int, new: int
) -> None:
    moments = [standing(old), *(here for _, here in course(new, standing(old)))]

    assert all(led_to(each) for each in moments)
    assert led_to(moments[-1]) == {division(WHOLE, new)}


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5))
def test_the_new_ones_are_consumed_only_when_no_old_one_is_left(old: int, new: int) -> None:
    for _, here in course(new, standing(old)):
        if is_consumed(here, new) and old != new:
            assert not here.queues.keys() & set(names(WHOLE, old))


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5))
def test_a_partition_is_emptied_only_when_nothing_more_comes_to_it(old: int, new: int) -> None:
    moments = [standing(old), *(here for _, here in course(new, standing(old)))]

    for before, (act, _) in zip(moments, course(new, standing(old)), strict=False):
        if isinstance(act, Empty):
            assert division(WHOLE, old) not in led_to(before)
            assert act.name not in {each.target for each in before.bindings if each.exchange == "delay.due"}
            assert {each.target for each in before.bindings if each.routing_key == act.name} - {f"{WHOLE}.dead"}


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_from_number_to_number_and_back_the_end_is_what_a_start_would_make(totals: list[int]) -> None:
    here = standing(3)
    for total in totals:
        here = ([(None, here), *course(total, here)])[-1][1]

    last = totals[-1]
    fresh = standing(last)
    assert fresh.queues.keys() == here.queues.keys()
    assert fresh.bindings <= here.bindings
    assert is_consumed(here, last)
    assert f"{division(WHOLE, last)}.ended" not in here.exchanges
    assert next_resizing_step(resizing(last), here) is None


def test_begun_with_one_number_it_is_not_gone_on_with_by_another() -> None:
    begun = course(5, standing(3))[10][1]

    with pytest.raises(ConfigurationError, match="Run this with that code first"):
        next_resizing_step(resizing(4), begun)


def test_where_there_are_no_partitions_nothing_is_led_over() -> None:
    with pytest.raises(ConfigurationError, match="topology apply declares that"):
        next_resizing_step(resizing(4), Standing())
