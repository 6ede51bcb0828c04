"""What an event costs, in calls: how fast it is depends on the machine, how many calls it takes does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tests.documents import CHECKOUT

EVENTS = 3_000
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'plugins'}"}
MOST = {
    "consume": {"calls": 28.0, "handed_over": 0.3},
    "publish": {"calls": 58.0, "handed_over": 1.3},
    "publish_many": {"calls": 41.0, "handed_over": 0.1},
}
"""A little above what an event takes; ``handed_over`` counts callbacks of the event loop.

A change that needs more says in a decision what for; one that needs fewer lowers them.
"""


@contextmanager
def peer() -> Generator[str]:
    """Start a process that speaks just enough AMQP, and yield its URL."""
    words = [sys.executable, str(CHECKOUT / "benchmarks" / "cost_peer.py")]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"amqp://guest:guest@127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.kill()


def counted(what: str) -> dict[str, float]:
    """Return the calls of one event: all, and those of this library."""
    with peer() as url:
        words = [sys.executable, str(CHECKOUT / "benchmarks" / "cost_run.py"), str(CHECKOUT), what, url, str(EVENTS)]
        done = subprocess.run([*words, "--count"], env=ENVIRONMENT, stdout=subprocess.PIPE, timeout=60, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("what", MOST)
def test_an_event_takes_no_more_calls_than_it_did(what: str) -> None:
    found = counted(what)

    assert {name: most for name, most in MOST[what].items() if found[name] > most} == {}, found
