"""The chaos suite: what its judge sees, what it plans, and a share of what it runs (``make chaos`` is the whole)."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.faults.broker import keeps_bindings
from tests.chaos.judge import Promises, Verdict, judge
from tests.chaos.lanes import Pace, pace, publish
from tests.chaos.ledger import Ledger, Record, Tail
from tests.chaos.loads import LOADS
from tests.chaos.peers import COMPARED, PEERS
from tests.chaos.plan import Scenario, compared, fits, pairs, planned, singles
from tests.chaos.process import Process
from tests.chaos.run import run
from tests.chaos.selftest import MUTATIONS, Mutation
from tests.chaos.soak import pairs as together
from tests.chaos.soak import soak
from tests.chaos.world import ROOT
from tests.committed import until

DYING = Promises(dies=lambda id: id == "a/9")


def records(text: str) -> list[Record]:
    """Return what a ledger says: ``attempt a/0, confirmed a/0``; each a second after the one before."""
    words = (line.split() for line in text.split(","))
    return [Record(what, id, 1, float(at)) for at, (what, id) in enumerate(words)]


def found(text: str, promises: Promises | None = None, *, crashes: int = 0, forfeit_until: float = 0.0) -> Verdict:
    return judge(records(text), promises or Promises(), crashes=crashes, forfeit_until=forfeit_until)


# --- the judge -----------------------------------------------------------------------------------------------------


def test_what_was_published_and_handled_is_well() -> None:
    verdict = found("attempt a/0, confirmed a/0, start a/0, effect a/0")

    assert (verdict.confirmed, verdict.handled, verdict.faults) == (1, 1, 0)


def test_what_was_confirmed_and_never_handled_is_lost() -> None:
    assert found("attempt a/0, confirmed a/0, start a/0").lost == 1


def test_what_still_lies_in_a_queue_is_stuck_and_not_lost() -> None:
    verdict = found("attempt a/0, confirmed a/0, left a/0")

    assert (verdict.lost, verdict.stuck) == (0, 1)


def test_what_missed_a_later_stage_is_lost() -> None:
    assert found("attempt a/0, confirmed a/0, effect a/0", Promises(stages=("effect", "passed"))).lost == 1


def test_what_nobody_answered_is_neither_lost_nor_unexpected() -> None:
    verdict = found("attempt a/0, unknown a/0, attempt a/1, unknown a/1, effect a/1")

    assert (verdict.unknown, verdict.recovered, verdict.faults) == (2, 1, 0)


@pytest.mark.parametrize("text", ["effect a/0", "attempt a/0, failed a/0, effect a/0"])
def test_an_effect_of_what_was_not_published_is_unexpected(text: str) -> None:
    assert found(text).unexpected == 1


def test_a_dead_letter_of_what_does_not_fail_is_unexpected() -> None:
    assert found("attempt a/0, confirmed a/0, dead a/0").unexpected == 1


def test_what_fails_for_good_is_expected_among_the_dead_and_nowhere_else() -> None:
    assert found("attempt a/9, confirmed a/9, start a/9, dead a/9", DYING).faults == 0
    assert found("attempt a/9, confirmed a/9, start a/9", DYING).lost == 1
    assert found("attempt a/9, confirmed a/9, effect a/9, dead a/9", DYING).unexpected == 1


def test_an_attempt_without_an_outcome_is_silent() -> None:
    assert found("attempt a/0").silent == 1


TWICE = "attempt a/0, confirmed a/0, start a/0, effect a/0, start a/0, effect a/0"


def test_a_second_effect_is_counted_and_is_a_fault_only_where_one_is_promised() -> None:
    at_least_once, once = found(TWICE), found(TWICE, Promises(per_crash=0))

    assert (at_least_once.duplicate_deliveries, at_least_once.duplicate_effects, at_least_once.faults) == (1, 1, 0)
    assert once.excess == 1


def test_a_crash_allows_one_more_effect_of_as_many_events_as_were_handled() -> None:
    promises = Promises(per_crash=1)

    assert found(TWICE, promises, crashes=1).excess == 0
    assert found(f"{TWICE}, effect a/0", promises, crashes=1).excess == 1
    assert found(f"{TWICE}, {TWICE.replace('a/0', 'b/0')}", promises, crashes=1).excess == 1


def test_an_event_that_is_first_handled_after_a_later_one_of_its_lane_is_an_inversion() -> None:
    text = "effect a/0, effect b/2, effect a/2, effect a/1, effect a/0"

    assert found(text, Promises(in_order=True)).inversions == 1
    assert found(text).inversions == 0


def test_an_effect_before_its_time_is_unexpected() -> None:
    text = "attempt a/0, confirmed a/0, effect a/0"

    assert found(text, Promises(waits=lambda id: 2.0)).unexpected == 0  # a line is a second
    assert found(text, Promises(waits=lambda id: 2.5)).unexpected == 1


def test_each_kind_of_record_that_is_there_once_counts() -> None:
    text = "attempt a/0, confirmed a/0, effect a/0, passed a/0, passed a/0"

    assert found(text, Promises(per_crash=0)).excess == 0
    assert found(text, Promises(once=("effect", "passed"), per_crash=0)).excess == 1


def test_what_was_in_a_deleted_queue_is_forfeited_and_what_came_later_is_not() -> None:
    verdict = found("attempt a/0, confirmed a/0, attempt a/1, confirmed a/1", forfeit_until=1.5)

    assert (verdict.forfeited, verdict.lost) == (1, 1)


def test_what_a_policy_has_thrown_out_is_forfeited_also_among_the_dead_and_what_came_later_is_not() -> None:
    verdict = found("attempt a/0, dead a/0, attempt a/1, dead a/1", forfeit_until=1.5)

    assert (verdict.forfeited, verdict.unexpected) == (1, 1)


def test_what_was_published_before_entities_moved_may_come_late_where_a_restart_moves_them_and_what_came_later_may_not() -> (
    None
):
    text = "attempt a/0, attempt a/1, effect a/1, effect a/0, attempt a/2, attempt a/3, effect a/3, effect a/2"
    moves, stays = Promises(in_order=True, moves=True), Promises(in_order=True)

    excused, held = judge(records(text), moves, moved_until=4), judge(records(text), stays, moved_until=4)
    assert (excused.inversions, excused.moved) == (1, 1)
    assert (held.inversions, held.moved) == (2, 0)


@pytest.mark.parametrize(("version", "keeps"), [("3.10.8", False), ("4.0.5", False), ("4.2.0", True), ("4.3.6", True)])
def test_a_restart_moves_entities_before_khepri(version: str, keeps: bool) -> None:
    assert keeps_bindings(version) == keeps


def test_what_was_published_before_its_marks_were_deleted_may_come_again_and_what_came_later_may_not() -> None:
    records_ = records(f"{TWICE}, {TWICE.replace('a/0', 'a/1')}")

    assert judge(records_, Promises(per_crash=0)).excess == 2
    assert judge(records_, Promises(per_crash=0), forgotten_until=3).excess == 1


# --- the ledger ----------------------------------------------------------------------------------------------------


async def test_what_many_note_at_once_is_read_as_they_wrote_it(tmp_path: Path) -> None:
    ledger, tail = Ledger(tmp_path / "ledger"), Tail(tmp_path / "ledger")

    await asyncio.gather(*(ledger.note("attempt", f"a/{number}") for number in range(100)))
    first = tail.read().under_way
    await ledger.note("confirmed", *(f"a/{number}" for number in range(100)))
    ledger.write("effect", [f"a/{number}" for number in range(60)])

    assert first == 100
    assert tail.read().under_way == 40
    assert [record.id for record in tail.records[:100]] == [f"a/{number}" for number in range(100)]


def test_what_came_after_a_moment_is_found_and_what_was_before_is_not(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "ledger")
    lines = [f"confirmed a/{n} 1 {n}.0\nstart a/{n} 1 {n}.2\neffect a/{n} 1 {n}.4\n" for n in range(100)]
    (tmp_path / "ledger").write_text("".join([*lines, "confirmed b/0 1 98.9\n"]))

    tail.read()

    assert (tail.recovered(97.1), tail.flows(97.1)) == (98.0, True)
    assert (tail.recovered(99.3), tail.flows(99.1)) == (math.inf, False)


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    tail = Tail(path)

    path.write_bytes(b"attempt a/0 1 2.0\nattempt a/")
    assert list(tail.read().attempted) == ["a/0"]
    with path.open("ab") as file:
        file.write(b"1 1 3.0\n")
    assert list(tail.read().attempted) == ["a/0", "a/1"]


# --- the plan ------------------------------------------------------------------------------------------------------


def test_every_fault_meets_every_load_that_it_makes_sense_for() -> None:
    met = {(each.load, *each.faults) for each in (*singles(), *singles(cluster=True))}

    assert met == {(load, name) for load in LOADS for name, fault in FAULTS.items() if fits(fault, load)}


def test_what_an_operator_or_a_deploy_does_meets_the_loads_with_one_queue_alone_and_in_no_shared_process() -> None:
    met = {(each.load, *each.faults) for each in singles()}
    names = ("topology-drifted", "policy-overrides", "migration", "rolling-rename")

    assert {("handle", name) for name in names} <= met
    assert {("ordered", "migration"), ("idempotent", "rolling-rename"), ("workers", "hung-worker")} <= met
    assert not {("partitions", name) for name in (*names, "unbound")} & met
    assert {("partitions", "service-killed"), ("partitions", "broker-killed")} <= met
    assert all(FAULTS[name].operated and FAULTS[name].alone for name in names)
    assert not {*names, "hung-worker"} & {fault.name for both in together() for fault in both}


def test_two_faults_meet_once_where_they_touch_different_things() -> None:
    met = [scenario.faults for scenario in pairs(1)]

    assert len(met) == len(set(met))
    assert ("broker-killed", "service-killed") in met
    assert all(FAULTS[one].touches != FAULTS[other].touches for one, other in met)


def test_a_cluster_s_faults_meet_each_load_alone_and_in_pairs_what_is_beside_the_broker() -> None:
    alone, both = planned(1, 100, cluster=True), pairs(1, cluster=True)

    assert {FAULTS[name].touches for each in alone for name in each.faults} == {"cluster"}
    assert {each.load for each in alone} == set(LOADS)
    assert ("nodes-cut", "service-killed") in {tuple(sorted(each.faults)) for each in both}
    assert {FAULTS[name].touches for each in both for name in each.faults} == {
        *("cluster", "service", "redis", "postgres"),
    }


def test_what_meets_in_one_process_leaves_it_alive_and_loses_nothing() -> None:
    met = {fault for both in together() for fault in both}

    assert {fault.name for fault in met} >= {
        "broker-killed",
        "link-black-holed",
        "redis-flushed",
        "descriptors-exhausted",
    }
    assert not any(fault.alone or fault.touches == "cluster" or not fault.lossless for fault in met)
    assert not {"service-killed", "service-stopped", "group-stopped"} & {fault.name for fault in met}


def test_a_seed_says_which_scenarios_in_which_order() -> None:
    assert planned(3, 30, pairwise=True) == planned(3, 30, pairwise=True)
    assert planned(3, 30, pairwise=True) != planned(4, 30, pairwise=True)
    assert sum(scenario.injections for scenario in planned(3, 30)) == 30


def test_names_narrow_a_plan_and_an_unknown_one_is_said() -> None:
    assert planned(1, 5, only=["ordered", "link-reset"]) == [Scenario("ordered", ("link-reset",), 5)]
    [both] = planned(1, 5, only=["ordered", "service-killed", "broker-killed"])
    assert (both.load, set(both.faults)) == ("ordered", {"service-killed", "broker-killed"})
    with pytest.raises(ValueError, match="there is no 'link-rest'"):
        planned(1, 5, only=["link-rest"])
    with pytest.raises(ValueError, match="nothing has all of"):
        planned(1, 5, only=["handle", "redis-killed"])


def test_we_and_the_others_meet_the_same_faults_as_often() -> None:
    met = {(scenario.load, scenario.faults, scenario.injections) for scenario in compared(48)}

    assert met == {(load, (fault,), 2) for load in ("handle", *PEERS) for fault in COMPARED}
    assert {scenario.load for scenario in compared(48, ["celery"])} == {"celery"}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_place_of_a_defect_that_the_self_test_builds_in_is_there_once(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()

    assert text.count(mutation.old) == 1
    compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")


# --- its processes and publishers ------------------------------------------------------------------------------------


async def test_a_signal_to_all_reaches_what_a_process_has_started_in_a_group_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(
        "import subprocess; print(subprocess.run(['sleep', '60'], process_group=0).returncode)"
    )
    process = Process(["parent"], {}, tmp_path / "output", tmp_path, sys.executable)

    await process.start()
    await until(lambda: len(process.pids) == 2, "both", 20, every=0.05)
    there = process.pids
    process.send_all(signal.SIGTERM)
    await until(lambda: not process.pids, "their end", 20, every=0.05)

    assert there[0] == process.pid
    assert await process.ended(10)


async def test_lanes_publish_until_they_are_told_to_stop(tmp_path: Path) -> None:
    stopped, answered = threading.Event(), list[str]()

    async def answer(lane: str, number: int) -> str:
        answered.append(f"{lane}/{number}")
        if len(answered) >= 20 and len({id.rpartition("/")[0] for id in answered}) == 3:
            stopped.set()
        return "unknown" if len(answered) == 1 else "confirmed"

    pace.set(Pace(lanes=2, pause=0.001, stopped=stopped))
    await publish(Ledger(tmp_path / "ledger"), answer, lanes=50)

    tail = Tail(tmp_path / "ledger").read()
    assert set(answered) == set(tail.attempted) == tail.answered
    assert (
        len({id.rpartition("/")[0] for id in answered}) == 3
    )  # what got no answer has its lane go on under another name


# --- a share of it -------------------------------------------------------------------------------------------------

SHARE = (Scenario("retries", ("link-reset", "service-killed")), Scenario("ordered", ("connections-closed",)))


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("own_node")
async def test_faults_meet_loads_and_nothing_is_lost_stuck_or_out_of_order() -> None:
    counts, _ = await run(SHARE, 17)

    assert [(count.scenario.name, count.error, count.verdict.faults) for count in counts] == [
        (scenario.name, "", 0) for scenario in SHARE
    ]
    assert all(count.injections and count.verdict.confirmed for count in counts)


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("own_node", "postgres_server", "redis_server")
async def test_all_loads_live_in_one_process_which_is_counted_and_loses_nothing() -> None:
    found, red = await soak(17, minutes=0)

    assert not red
    assert [name for name, each in found["scenarios"].items() if not each["handled"]] == []
    assert set(found["scenarios"]) == set(LOADS) - {"workers", "sharded"}
    [sample] = found["samples"]
    assert sample["tasks"] > 0
    assert sample["broker_connections"] > len(found["scenarios"])
