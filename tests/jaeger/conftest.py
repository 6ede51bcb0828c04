"""A real Jaeger for all tests of this folder; without the program they are skipped, and say what runs them."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.jaeger.server import PROGRAM, Jaeger


@pytest.fixture(scope="session")
def new_jaeger() -> Iterator[Callable[[int], Jaeger]]:
    """Start a Jaeger that keeps so many traces; it is gone when the tests end."""
    program = os.environ.get(PROGRAM)
    if program is None:
        pytest.skip("make test-jaeger runs this: it builds Jaeger, and needs Go")
    with ExitStack() as running:
        yield lambda most: running.enter_context(Jaeger(program, most))


@pytest.fixture(scope="session")
def jaeger(new_jaeger: Callable[[int], Jaeger]) -> Jaeger:
    """The Jaeger that all tests share: ask for what is yours."""
    return new_jaeger(10_000)
