"""What all tests share.

RABBITEVENTS_TEST_LOOP=uvloop runs all of them on uvloop, which otherwise has those that say so.
"""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Generator, Mapping

import pytest
from hypothesis import HealthCheck, settings

from tests.bed.rabbitmq import RabbitNode
from tests.loops import LOOPS
from tests.operating import Place
from tests.order import slow_first
from tests.scale import left_out

pytest.register_assert_rewrite("rabbitevents.testing.bench", "rabbitevents.testing.conformance")

pytest_plugins = ["tests.bed.fixtures", "tests.bed.databases"]

# No test is about speed: an example that took a second had a busy machine.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run a module's tests on both event loops that services run on, where it says ``BOTH_LOOPS = True``."""
    if getattr(getattr(item, "module", None), "BOTH_LOOPS", False):
        return LOOPS
    own = item.get_closest_marker("asyncio_loop") is not None
    name = "asyncio" if own else os.environ.get("RABBITEVENTS_TEST_LOOP", "asyncio")
    return {name: LOOPS[name]}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the garbage collector leave alone what all the tests consist of: a million objects, which stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another run has, and begin with what lasts."""
    if unwanted := left_out(items):
        config.hook.pytest_deselected(items=unwanted)
        gone = set(unwanted)
        items[:] = [item for item in items if item not in gone]
    slow_first(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what no process can tell another: hostile events leave half surrogate pairs in what tests log."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
async def place(managed_node: RabbitNode) -> AsyncIterator[Place]:
    """An empty virtual host, for an operator's commands."""
    here = Place(managed_node, managed_node.add_vhost())
    yield here
    managed_node.delete_vhost(here.url)
