"""Whatever a day brings, nothing of it stays: half a minute of what `tests.soak` does for an hour."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.bed.fixtures import NodeFactory
from tests.soak import SLACK, Sample, day, floor, verdict

CYCLES = 6
PER_CYCLE = 15
"""So many more objects a cycle are noise: a worker's context keeps its last delivery, with the channel that is gone; there
are 20 workers. One object that stays with each operation would be 40 a cycle and more."""


COUNTED = ("tasks", "fds", "broker_connections", "broker_channels")
TO_CLOSE = 20.0
"""Seconds for what is under way to come to its end."""


def more(after: Sample, before: Sample) -> list[str]:
    """Say of what there is more than before."""
    return [name for name in COUNTED if getattr(after, name) > getattr(before, name)]


@pytest.mark.timeout(150)
async def test_nothing_stays_of_looks_pauses_and_lost_connections(
    own_node: NodeFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # what is logged is kept for the report, with its exceptions' frames
    caplog.set_level(logging.CRITICAL, "rabbitevents")
    node, now = await own_node(), asyncio.get_running_loop().time
    async with day(node) as today:

        async def cycle() -> None:
            for _ in range(2):
                await today.all()
            today.cut()
            await today.all()
            await today.recovered()

        for _ in range(3):
            await cycle()
        before = await floor(node)
        for _ in range(CYCLES):
            await cycle()
        after = await floor(node)
        ends = now() + TO_CLOSE
        while more(after, before) and now() < ends:  # what is under way lasts as long as a busy machine has it last
            after = await floor(node)

    for name in COUNTED:
        assert getattr(after, name) == getattr(before, name), name
    grown = {kind: n - before.types.get(kind, 0) for kind, n in after.types.items() if n > before.types.get(kind, 0)}
    assert after.objects - before.objects <= CYCLES * PER_CYCLE, grown
    assert after.callbacks <= before.callbacks + CYCLES, grown


def sample(**more: float) -> Sample:
    """A sample as a service has it that stands still, with something ``more``."""
    still = {
        "rss_kib": 50_000.0,
        "in_use_kib": 30_000.0,
        "objects": 50_000.0,
        "callbacks": 100.0,
        "tasks": 40.0,
        "fds": 16.0,
    }
    still |= {"broker_connections": 2.0, "broker_channels": 4.0}
    return Sample(
        **{name: value + more.get(name, 0) for name, value in still.items()}, types={"x": int(more.get("x", 0))}
    )


@pytest.mark.parametrize(
    ("name", "a_sample"),
    [("rss_kib", 50), ("in_use_kib", 50), ("objects", 60), ("callbacks", 2), ("tasks", 1), ("fds", 1)],
)
def test_what_grows_with_every_sample_is_not_flat(name: str, a_sample: float) -> None:
    found = verdict([sample(**{name: number * a_sample}) for number in range(60)])

    assert not found["flat"]
    assert [each for each in SLACK if not found["figures"][each]["flat"]] == [name]


def test_what_is_under_way_now_and_then_is_no_growth() -> None:
    found = verdict([sample(tasks=number % 3, callbacks=number % 7, rss_kib=number % 5 * 200) for number in range(60)])

    assert found["flat"]


def test_the_types_that_grew_are_named() -> None:
    assert verdict([sample(x=number) for number in range(60)])["grown"] == {"x": 45}
