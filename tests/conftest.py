"""What all tests share."""

import os
from collections.abc import Generator

import pytest

for _size in ("COLUMNS", "LINES"):
    os.environ.pop(_size, None)  # a test process is told 80 by 24; what it writes is read by no terminal

pytest.register_assert_rewrite("rabbitevents.testing.bench", "rabbitevents.testing.conformance")

pytest_plugins = ["tests.bed.fixtures"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what no process can tell another: hostile events leave half surrogate pairs in what tests log."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
