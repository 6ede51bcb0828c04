"""A run of many processes has one variant of what is sampled, another in each run, and every other run has them all."""

from __future__ import annotations

from typing import cast

import attrs
import pytest

from tests import scale


@attrs.frozen
class Collected:
    """As much of a collected test as the choice is about."""

    nodeid: str
    marks: tuple[str, ...] = ("sampled",)

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None


KILLS = [Collected(f"tests/test_kills.py::test_killed[{who}]") for who in ("order", "payment", "stock")]
STOPS = [Collected(f"tests/test_kills.py::test_stopped[{who}]") for who in ("order", "payment")]
OTHERS = [Collected("tests/test_kills.py::test_alive[order]", ()), Collected("tests/test_kills.py::test_alone")]


def left_out() -> set[str]:
    found = scale.left_out(cast("list[pytest.Item]", [*KILLS, *OTHERS, *STOPS]))
    return {each.nodeid for each in found}


@pytest.fixture(autouse=True)
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "WHOLE", False)
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "a run")


def test_of_each_test_that_is_sampled_one_variant_stays_and_all_of_what_is_not() -> None:
    gone = left_out()

    assert (len(gone & {each.nodeid for each in KILLS}), len(gone & {each.nodeid for each in STOPS})) == (2, 1)
    assert not gone & {each.nodeid for each in OTHERS}


def test_all_processes_of_a_run_leave_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = left_out()
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw7")

    assert left_out() == first


def test_each_variant_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = set[str]()
    for run in range(50):
        monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", f"run {run}")
        kept |= {each.nodeid for each in KILLS} - left_out()

    assert kept == {each.nodeid for each in KILLS}


@pytest.mark.parametrize("how", ["in one process", "whole"])
def test_by_itself_and_in_the_matrix_all_of_them_run(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "whole":
        monkeypatch.setattr(scale, "WHOLE", True)
    else:
        monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID")

    assert left_out() == set()
