"""The matrix runs what was not seen yet, believes no report of another run, and its table says what was left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.documents import CHECKOUT

STAND_IN = """#!/bin/bash
set -eu
printf '%s\\n' "$COMMANDS" >>asked
if [[ -e does-not-boot ]]; then exit 1; fi
if [[ -e moves-on ]]; then
    echo >>tests/kept
    git -c user.name=nobody -c user.email=nobody@example.org -c commit.gpgsign=false commit --quiet --all --message later
fi
seen=$2/srv/rabbitevents/.work
mkdir -p "$seen"
cp reports/* "$seen"
"""
"""`scripts/in-debian` on a machine without root: it keeps what it was asked for, and the reports are there already."""

REPORT = """<testsuites><testsuite errors="0" failures="{failures}" skipped="2" tests="{tests}">
<testcase classname="tests.test_a" name="test_it"/>{failed}
<testcase time="0"/><testcase classname="pytest" name="internal"><error/></testcase></testsuite></testsuites>"""
FAILED = '<testcase classname="tests.test_a" name="test_other"><failure/></testcase>'
OTHER = FAILED.replace("test_other", "test_another")


class Checkout:
    """A checkout with nothing but the matrix and what it asks of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("scripts", "docs", "reports", "rabbitevents", "plugins", "tests"):
            (folder / name).mkdir()
            (folder / name / "kept").touch()
        for name in ("scripts/matrix.py", "pyproject.toml", "constraints-dev.txt"):
            shutil.copy(CHECKOUT / name, folder / name)
        (folder / "scripts" / "in-debian").write_text(STAND_IN)
        (folder / "scripts" / "in-debian").chmod(0o755)
        (folder / "reports" / "servers").write_text(
            "rabbitmq-server 3.10.8-1.1+deb12u1\nredis-server 5:7.0.15-1\npostgresql 15+248\n"
        )
        (folder / "reports" / "versions.json").write_text(json.dumps({"python": "3.11.2", "attrs": "24.3.0"}))
        self.ends(0)
        self.passes()
        self.git("init", "--quiet")
        self.commit()

    def git(self, *words: str) -> None:
        """Run git here, as somebody."""
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *words], cwd=self.folder, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "rabbitevents", "plugins", "tests", "pyproject.toml", "constraints-dev.txt")
        self.git("commit", "--quiet", "--message", "what there is")

    def passes(self) -> None:
        """Have every run pass 40 tests from now on."""
        self.ends(0)
        self.report("first", REPORT.format(failures=0, tests=42, failed=""))

    def fails(self, *, alone: bool) -> None:
        """Have 2 tests of every run fail from now on; alone, one of them still does, or none."""
        self.ends(1)
        again = (FAILED.replace("<failure/>", "") if alone else FAILED) + OTHER.replace("<failure/>", "")
        self.report("first", REPORT.format(failures=2, tests=42, failed=FAILED + OTHER))
        self.report("second", REPORT.format(failures=0 if alone else 1, tests=2, failed=again))

    def ends(self, status: int) -> None:
        """Have the tests end so from now on: 0 if all pass, 1 if not, 124 if they are broken off."""
        (self.folder / "reports" / "status").write_text(f"{status}\n")

    def report(self, name: str, text: str) -> None:
        """Have every run leave this report from now on."""
        (self.folder / "reports" / f"{name}.xml").write_text(text)

    def matrix(self, *words: str, tests: str = "") -> subprocess.CompletedProcess[str]:
        """Run it."""
        command = [sys.executable, "scripts/matrix.py", *words]
        environ = {**os.environ, "TESTS": tests}
        return subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)

    @property
    def asked(self) -> str:
        """What was to be run in Debians up to now."""
        path = self.folder / "asked"
        return path.read_text() if path.exists() else ""

    @property
    def runs(self) -> int:
        return self.asked.count("junitxml .work/first.xml")

    @property
    def seen(self) -> dict[str, Any]:
        """What is recorded, by cell."""
        found: dict[str, Any] = json.loads((self.folder / "docs" / "matrix.json").read_text())
        return found

    def row(self, cell: str) -> list[str]:
        """What the table says of a cell: its name, what is different, the versions, the counts; without the day."""
        lines = (self.folder / "docs" / "matrix.md").read_text().splitlines()
        [line] = [line for line in lines if line.startswith(f"| `{cell}` |")]
        found = line.removeprefix("| ").removesuffix(" |").split(" | ")
        name, *counts = found[:5]
        return [name, found[10], *found[5:9], *counts]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_run_that_passed_is_a_row_with_what_was_there(checkout: Checkout) -> None:
    ran = checkout.matrix("lowest")

    assert ran.returncode == 0, ran.stderr
    assert checkout.row("lowest") == [
        *("`lowest`", "the lowest version of every range", "3.11.2", "3.10.8", "7.0.15", "15"),
        *("40", "0", "0", "2"),
    ]
    assert "| `attrs` | `>=24.3,<27` | 24.3.0 |" in (checkout.folder / "docs" / "matrix.md").read_text()
    assert "attrs==24.3 " in checkout.asked


@pytest.mark.parametrize(("alone", "code", "numbers"), [(False, 1, ["1", "1"]), (True, 0, ["2", "0"])])
def test_what_fails_again_by_itself_has_failed_and_is_named(
    checkout: Checkout, alone: bool, code: int, numbers: list[str]
) -> None:
    checkout.fails(alone=alone)

    ran = checkout.matrix("redis-6")

    assert ran.returncode == code
    assert checkout.row("redis-6")[-4:] == ["38", *numbers, "2"]
    named = "* `redis-6`: `test_a::test_other`" in (checkout.folder / "docs" / "matrix.md").read_text()
    assert named is not alone


def test_a_part_is_said_to_be_one_and_the_whole_is_still_due(checkout: Checkout) -> None:
    assert checkout.matrix("lowest", tests="tests/test_retry*.py").returncode == 0
    after_the_part = checkout.row("lowest")[1]

    checkout.matrix()

    assert after_the_part == "the lowest version of every range; of the tests `tests/test_retry*.py`"
    assert checkout.asked.count("tests/test_retry*.py") == 1
    assert checkout.row("lowest")[1] == "the lowest version of every range"


def test_what_rests_on_the_version_of_rabbitmq_has_a_cell_of_its_own_for_each(checkout: Checkout) -> None:
    ran = checkout.matrix("versions-3.10", "versions-4.0", "versions-4.3")

    assert ran.returncode == 0
    assert checkout.asked.count('--strict-config -o cache_dir=.work/cache "${@:2}" -m each_version') == 3
    assert sorted(checkout.seen) == ["versions-3.10", "versions-4.0", "versions-4.3"]


def test_each_part_has_a_row_until_the_whole_has_one(checkout: Checkout) -> None:
    checkout.matrix("lowest", tests="tests/test_retry.py")
    checkout.matrix("lowest", tests="tests/test_codec.py")
    checkout.matrix("redis-6")
    in_parts = sorted(checkout.seen)

    checkout.matrix("lowest")

    assert in_parts == ["lowest tests/test_codec.py", "lowest tests/test_retry.py", "redis-6"]
    assert sorted(checkout.seen) == ["lowest", "redis-6"]


@pytest.mark.parametrize(("cell", "failed"), [("lowest", "0"), ("redis-6", "1")])
def test_what_passes_later_in_its_cell_did_not_fail(checkout: Checkout, cell: str, failed: str) -> None:
    checkout.fails(alone=False)
    checkout.matrix("lowest")
    (checkout.folder / "reports" / "second.xml").unlink()
    checkout.ends(0)
    checkout.report("first", REPORT.format(failures=0, tests=4, failed=FAILED.replace("<failure/>", "")))

    ran = checkout.matrix(cell, tests="tests/test_a.py")

    of_the_whole = checkout.seen["lowest"]
    assert (of_the_whole["passed"], len(of_the_whole["failed"])) == (39 - int(failed), int(failed))
    assert ran.returncode == 0


def test_broken_off_it_goes_on_with_what_was_not_seen(checkout: Checkout) -> None:
    checkout.matrix("lowest", "valkey")

    first = checkout.matrix()
    cells = len(checkout.seen)
    again = checkout.matrix()

    assert checkout.runs == cells
    assert (first.returncode, again.returncode) == (0, 0)
    assert again.stdout == ""


def test_with_other_sources_all_are_due_again(checkout: Checkout) -> None:
    checkout.matrix()
    cells = checkout.runs

    (checkout.folder / "tests" / "test_new.py").touch()
    checkout.commit()
    checkout.matrix()

    assert checkout.runs == 2 * cells


def test_what_was_committed_while_it_ran_was_not_seen(checkout: Checkout) -> None:
    (checkout.folder / "moves-on").touch()
    checkout.matrix("lowest")
    (checkout.folder / "moves-on").unlink()

    ran = checkout.matrix()

    assert "lowest: " in ran.stdout


def test_it_fails_for_what_an_earlier_run_saw_fail(checkout: Checkout) -> None:
    checkout.fails(alone=False)
    checkout.matrix("lowest")
    (checkout.folder / "reports" / "second.xml").unlink()
    checkout.passes()

    ran = checkout.matrix()

    assert "lowest" not in ran.stdout
    assert ran.returncode == 1
    assert checkout.matrix("valkey").returncode == 0


@pytest.mark.parametrize("whose", ["lowest", "redis-6"])
def test_a_debian_that_does_not_come_up_was_not_seen_whatever_ran_in_it_before(checkout: Checkout, whose: str) -> None:
    checkout.matrix(whose)
    (checkout.folder / "does-not-boot").touch()

    ran = checkout.matrix("lowest")

    assert ran.returncode == 1
    assert checkout.row("lowest")[2:] == ["", "", "", "", "not finished", "", "", ""]
    (checkout.folder / "does-not-boot").unlink()
    assert "lowest: " in checkout.matrix().stdout


def test_what_there_was_no_time_to_run_again_has_failed(checkout: Checkout) -> None:
    checkout.fails(alone=True)
    checkout.report("second", REPORT.format(failures=0, tests=1, failed=FAILED.replace("<failure/>", "")))

    checkout.matrix("lowest")

    assert checkout.row("lowest")[-4:] == ["38", "1", "1", "2"]
    assert checkout.seen["lowest"]["failed"] == ["test_a::test_another"]


def test_a_run_whose_failures_were_not_run_again_is_not_finished(checkout: Checkout) -> None:
    checkout.ends(1)
    checkout.report("first", REPORT.format(failures=1, tests=42, failed=FAILED))

    ran = checkout.matrix("lowest")

    assert ran.returncode == 1
    assert checkout.row("lowest")[-4:] == ["39, not finished", "0", "1", "2"]


def test_what_was_broken_off_counts_up_to_there_and_is_due_again(checkout: Checkout) -> None:
    checkout.ends(124)

    ran = checkout.matrix("lowest")

    assert ran.returncode == 1
    assert checkout.row("lowest")[-4:] == ["40, not finished", "0", "0", "2"]
    assert "lowest: " in checkout.matrix().stdout


def test_a_cell_that_there_is_not_is_refused_before_anything_runs(checkout: Checkout) -> None:
    ran = checkout.matrix("lowest", "python-2.7")

    assert ran.returncode == 2
    assert ran.stdout.startswith("matrix: no such cell: python-2.7; there are python-3.11, ")
    assert checkout.runs == 0


def test_what_there_is_can_be_listed_without_running_it(checkout: Checkout) -> None:
    ran = checkout.matrix("--list")

    assert ran.returncode == 0
    assert ran.stdout.startswith("python-3.11    bookworm  the pinned versions")
    assert checkout.runs == 0
