"""How long lasts what is slow by itself, and how often what repeats: less in `make test` than in `make test-versions`."""

import os
import random
from typing import Final

import pytest

WHOLE: Final = "RABBITEVENTS_MATRIX" in os.environ
"""Whether waits and outages last as long as they do in production; else so long that what they show shows. And whether a
promise that holds each time is asked for each time; else now and then, at other places in each run."""


def left_out(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return which variants of tests that are marked ``sampled`` this run leaves out: of each test, all but one.

    Which one it keeps is another in each run, and the same in all processes of a run. A run in one process keeps all of
    them, as whoever asks for a part wants to see that part.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if WHOLE or run is None:
        return []
    variants: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") is not None:
            variants.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {random.Random(f"{run} {name}").choice(each) for name, each in variants.items()}
    return [item for each in variants.values() for item in each if item not in kept]
