"""Slow files begin first, and no file is remembered that is gone."""

from copy import copy
from pathlib import Path

import pytest

from tests.order import SECONDS, slow_first


def test_every_file_that_is_called_slow_is_there() -> None:
    there = {path.name for path in Path(__file__).parent.rglob("test_*.py")}

    assert set(SECONDS) <= there


def test_slow_files_begin_and_tests_of_a_file_stay_together_in_their_order(request: pytest.FixtureRequest) -> None:
    ours = [item for item in request.session.items if item.path == request.path]
    slow = copy(ours[0])
    slow.path = request.path.with_name("test_soak.py")
    items = [*ours, slow]

    slow_first(items)

    assert items == [slow, *ours]
