"""While connections flap, each event runs as often as its attempts say, plus once for each delivery that was cut off."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.bed.fixtures import NodeFactory
from tests.flapping import flapping
from tests.flapping_ledger import Ledger, Run, judge

STALE = "begun though it was known to be stale"
DOUBLE = "dead more than once, without a cut at the wrong moment"
OTHERWISE = "a run for each attempt and each delivery that was cut off, and no other"


@pytest.mark.timeout(150)
async def test_while_connections_flap_each_event_runs_as_often_as_its_attempts_say(own_node: NodeFactory) -> None:
    node = await own_node()

    judgement = await flapping(node, events=150, seconds=20, every=1, seed=1)

    print(judgement)
    assert judgement["faults"] == {}
    assert judgement["left"] == {}
    assert judgement["events"] == 150
    assert judgement["lost"] == 0
    assert judgement["runs_cut_off"] >= judgement["runs_that_ended_stale"] > 0, "no cut found a handler at work"
    if not judgement["doubled"]:
        assert judgement["runs"] == judgement["runs_said"] + judgement["runs_cut_off"]
        assert judgement["dead"] == judgement["failing"]


def run(attempt: int, began: float, *, place: int = 1, copy: int = 1, stale: bool = False, failed: bool = True) -> Run:
    """A run of a second; ``stale`` when it ended."""
    return Run("e", copy, attempt, (place, 1), began, False, began + 1, stale, failed)


def ledger(
    *runs: Run,
    dead: int = 1,
    cuts: tuple[float, ...] = (),
    said: int = 3,
    delivered: int = 1,
    safe: tuple[float, ...] | None = None,
) -> Ledger:
    """What is known of one event that is tried again in the process. Each copy is ``safe`` at once unless said."""
    if safe is None:
        safe = tuple(run.ended + 0.01 for run in runs if run.attempt == said) if dead else ()
    return Ledger(
        confirmed={"e": said},
        in_process={"e"},
        runs=list(runs),
        forwarded=[("e", at) for at in safe],
        cuts=list(cuts),
        copies=Counter({("e", 1): 1, ("e", 0): dead}),
        delivered=Counter({("e", 1): delivered}),
        dead=Counter({"e": dead} if dead else {}),
    )


def test_three_attempts_and_a_dead_letter_are_what_is_said() -> None:
    assert judge(ledger(run(1, 0), run(2, 2), run(3, 4)))["faults"] == {}


def test_the_runs_of_a_delivery_that_was_cut_off_are_no_attempts() -> None:
    runs = [run(1, 0), run(2, 2, stale=True), *(run(n, 4 + 2 * n, place=2) for n in (1, 2, 3))]

    judgement = judge(ledger(*runs, cuts=(2.5,), delivered=2))

    assert judgement["faults"] == {}
    assert (judgement["runs"], judgement["runs_said"], judgement["runs_cut_off"]) == (5, 3, 2)
    assert judgement["deliveries_cut_off"] == 1


def test_a_stale_delivery_that_goes_on_being_tried_is_found() -> None:
    late = Run("e", 1, 3, (1, 1), 4, True, 5, True, True)
    runs = [run(1, 0), run(2, 2, stale=True), late, *(run(n, 6 + 2 * n, place=2) for n in (1, 2, 3))]

    assert STALE in judge(ledger(*runs, cuts=(2.5,), delivered=2))["faults"]


def test_a_dead_letter_of_a_stale_delivery_is_one_too_many() -> None:
    runs = [run(1, 0), run(2, 2), run(3, 4, stale=True), *(run(n, 6 + 2 * n, place=2) for n in (1, 2, 3))]

    judgement = judge(ledger(*runs, cuts=(4.5,), delivered=2, dead=2))

    assert list(judgement["faults"]) == [DOUBLE]


def test_a_cut_between_the_end_of_a_run_and_its_acknowledgement_may_double_a_dead_letter_once() -> None:
    runs = [run(1, 0), run(2, 2), run(3, 4), *(run(n, 6 + 2 * n, place=2) for n in (1, 2, 3))]

    twice = judge(ledger(*runs, cuts=(5.05,), delivered=2, dead=2))
    thrice = judge(ledger(*runs, cuts=(5.05,), delivered=2, dead=3))

    assert (twice["faults"], twice["doubled"]) == ({}, 1)
    assert list(thrice["faults"]) == [DOUBLE]


def test_a_cut_that_nobody_has_heard_of_yet_may_double_a_dead_letter_and_repeat_a_run() -> None:
    runs = [run(1, 0), run(2, 2), run(3, 4), *(run(n, 6 + 2 * n, place=2) for n in (1, 2, 3))]
    again = [run(1, 0, failed=False), run(1, 2, place=2, failed=False)]

    heard_late = judge(ledger(*runs, cuts=(4.999,), delivered=2, dead=2))
    long_before = judge(ledger(*runs, cuts=(4.5,), delivered=2, dead=2))
    repeated = judge(ledger(*again, cuts=(-0.001,), said=1, dead=0, delivered=2))
    repeated_uncut = judge(ledger(*again, cuts=(-0.5,), said=1, dead=0, delivered=2))

    assert (heard_late["faults"], heard_late["doubled"]) == ({}, 1)
    assert list(long_before["faults"]) == [DOUBLE]
    assert repeated["faults"] == {}
    assert list(repeated_uncut["faults"]) == ["repeated without a cut"]


def test_a_cut_while_a_copy_is_under_way_may_have_it_published_again_besides() -> None:
    runs = [run(1, 0), run(2, 2), run(3, 4), *(run(n, 6 + 2 * n, place=2) for n in (1, 2, 3))]

    under_way = judge(ledger(*runs, cuts=(5.005,), delivered=2, dead=3))
    one_too_many = judge(ledger(*runs, cuts=(5.005,), delivered=2, dead=4))

    assert under_way["faults"] == {}
    assert list(one_too_many["faults"]) == [DOUBLE]


def test_every_cut_before_the_broker_confirms_a_copy_may_have_it_published_once_more() -> None:
    """A disk that takes three seconds, and a cut in each of them."""
    runs = [run(1, 0), run(2, 2), run(3, 4), *(run(n, 8 + 2 * n, place=2) for n in (1, 2, 3))]
    cuts, safe = (5.5, 6.5, 7.5), (8.0, 15.01)

    as_often = judge(ledger(*runs, cuts=cuts, safe=safe, delivered=2, dead=5))
    one_too_many = judge(ledger(*runs, cuts=cuts, safe=safe, delivered=2, dead=6))

    assert as_often["faults"] == {}
    assert list(one_too_many["faults"]) == [DOUBLE]


def test_that_one_copy_is_safe_says_nothing_of_the_one_of_the_delivery_that_came_again() -> None:
    runs = [run(1, 0), run(2, 2), run(3, 4), *(run(n, 5 + n, place=2) for n in (1, 2, 3))]
    cuts, safe = (5.5, 9.2), (9.1, 9.3)

    as_often = judge(ledger(*runs, cuts=cuts, safe=safe, delivered=2, dead=5))
    one_too_many = judge(ledger(*runs, cuts=cuts, safe=safe, delivered=2, dead=6))

    assert as_often["faults"] == {}
    assert list(one_too_many["faults"]) == [DOUBLE]


@pytest.mark.parametrize(
    ("known", "fault"),
    [
        (ledger(dead=0), "lost"),
        (ledger(run(1, 0), run(2, 2), run(3, 4), dead=0), "lost"),
        (ledger(run(1, 0, failed=False), said=1), "dead, though it never failed"),
        (ledger(run(1, 0), run(2, 2), run(3, 4), run(4, 6)), "more attempts than are said"),
        (ledger(run(1, 0), run(2, 2)), OTHERWISE),
        (ledger(run(1, 0, failed=False), run(1, 2, place=2, failed=False), said=1, dead=0), "run more often than delivered"),
        (ledger(run(1, 0, failed=False), run(1, 2, place=2, failed=False), said=1, dead=0, delivered=2), "repeated without a cut"),
    ],
)  # fmt: skip
def test_the_judge_finds(known: Ledger, fault: str) -> None:
    assert fault in judge(known)["faults"]
