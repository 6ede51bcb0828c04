"""What all tests share."""

from collections.abc import Generator

import pytest

pytest.register_assert_rewrite("rabbitevents.testing.bench", "rabbitevents.testing.conformance")

pytest_plugins = ["tests.bed.fixtures"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what no process can tell another: hostile events leave half surrogate pairs in what tests log."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
