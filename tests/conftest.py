"""What all tests share.

RABBITEVENTS_TEST_LOOP=uvloop runs all of them on uvloop, which otherwise has those that say so.
"""

import asyncio
import os
from collections.abc import Callable, Generator, Mapping

import pytest

from tests.loops import LOOPS

pytest.register_assert_rewrite("rabbitevents.testing.bench", "rabbitevents.testing.conformance")

pytest_plugins = ["tests.bed.fixtures", "tests.bed.databases"]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run a module's tests on both event loops that services run on, where it says ``BOTH_LOOPS = True``."""
    if getattr(getattr(item, "module", None), "BOTH_LOOPS", False):
        return LOOPS
    name = os.environ.get("RABBITEVENTS_TEST_LOOP", "asyncio")
    return {name: LOOPS[name]}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what no process can tell another: hostile events leave half surrogate pairs in what tests log."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
