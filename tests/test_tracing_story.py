"""A trace as text: order, branches, durations, and what is noted."""

from __future__ import annotations

import re
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from rabbitevents_tracing import Step, Tracing, story
from tests.test_tracing import OrderPlaced, Traces, inventory, replay

BEGAN = 1_800_000_000.0


def step(id: str, parent: str, start: float, end: float, name: str = "", **more: object) -> Step:
    known = {"id": id, "trace": "t", "name": name or id, "start": BEGAN + start, "end": BEGAN + end, "parent": parent}
    return msgspec.convert({**known, **more}, Step)


def test_a_story_is_a_tree_in_the_order_in_which_things_began() -> None:
    steps = [
        step("charge again", "publish", 31.0, 31.5, attributes={"rabbitevents.attempt": 2, "rabbitevents.wait": 30.2}),
        step("notify", "charge again", 31.2, 31.25),
        step("publish", "web", 0.001, 0.0025),
        step(
            "charge",
            "publish",
            0.5,
            0.75,
            failed=True,
            attributes={"error.type": "Declined", "rabbitevents.error.location": "payment.py:4 in charge"},
        ),
        step("retry", "charge", 0.76, 0.76, attributes={"rabbitevents.delay": 30.0}),
    ]

    assert story(steps) == "\n".join(
        [
            "    0.000 s   1.50 ms  publish",
            "    0.499 s    250 ms  ├─ charge        attempt 1, failed with Declined at payment.py:4 in charge",
            "    0.759 s   0.00 ms  │  └─ retry      in 30 s",
            "   30.999 s    500 ms  └─ charge again  waited 30.20 s, attempt 2",
            "   31.199 s     50 ms     └─ notify",
        ]
    )


def test_a_linked_trace_stands_below_the_producer_s_span() -> None:
    steps = [step("publish", "", 0, 1), step("process", "", 2, 3, producer="publish", trace="other")]

    assert story(steps).splitlines()[1].endswith("└─ process")


def test_nothing_traced_is_said() -> None:
    assert story([]) == "(nothing was traced)"


ids = st.integers(0, 40)


@given(st.lists(ids, max_size=41, unique=True))
def test_every_step_of_a_tree_is_told_once(numbers: list[int]) -> None:
    steps = [step(str(n), str(n // 2) if n // 2 in numbers and n else "gone", float(n), n + 1.0) for n in numbers]

    told = [line.split()[-1] for line in story(steps).splitlines()] if steps else []

    assert sorted(told) == sorted(map(str, numbers))


def test_a_very_deep_trace_is_told() -> None:
    steps = [step(str(n), str(n - 1), float(n), n + 1.0) for n in range(5000)]

    assert len(story(steps).splitlines()) == 5000


async def test_the_story_of_a_failed_order_reads_in_order() -> None:
    traces = Traces()
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(30)),
        Tracing(tracer_provider=traces.provider),
    ]
    async with running(Bus("memory://", inventory(fail=2), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(minutes=1))
        await replay(probe.bus, "inventory.reserve")
        await probe.settled()

    steps = [Step.of(span) for span in traces.spans]
    again = msgspec.json.decode(msgspec.json.encode(steps), type=list[Step])
    told = [line[23:].strip() for line in story(again).splitlines()]
    assert again == steps
    assert [" ".join(line.split()[:3]) for line in told] == [
        "publish events:order.placed",
        "├─ process events:order.placed:inventory.reserve",
        "│ └─ retry",
        "├─ wait inventory.reserve",
        "├─ process events:order.placed:inventory.reserve",
        "│ └─ dead-letter",
        "├─ replay inventory.reserve",
        "└─ process events:order.placed:inventory.reserve",
        "└─ publish events:stock.reserved",
    ]


def test_nothing_that_a_stranger_named_reaches_a_terminal_as_it_is() -> None:
    told = story([Step("1", "t", "process \x1b[2J:q\u202e", 0.0, 1.0, events=("a\nforged line",))])

    assert told.isprintable()
    assert "\\x1b[2J" in told


@pytest.mark.parametrize("width", [50, 80])
def test_where_there_is_little_room_each_step_is_broken_within_its_branch(width: int) -> None:
    name = "process shop:inventory.reserved:shop.payment.charge"
    failed = {"error.type": "shop.payment.ProviderUnavailableError", "rabbitevents.wait": 30.2}
    steps = [step(f"{n}", f"{n - 1}" if n else "", n, n + 0.5, name, attributes=failed, failed=True) for n in range(8)]
    steps.append(step("beside", "0", 9.0, 9.5, "retry"))

    lines = story(steps, width).splitlines()

    assert max(map(len, lines)) <= width
    said = "".join(re.sub(r"[│├└─ ]", "", line) for line in lines)
    assert said.count(name.replace(" ", "")) == 8
    assert "at3.000s,500ms,waited30.20s,attempt1,failedwithshop.payment.ProviderUnavailableError" in said
    assert all(line.startswith(("│", "├", "└", " ", "process")) for line in lines)
    assert lines[-2] == "└─ retry"


def test_where_there_is_room_a_step_is_a_line() -> None:
    steps = [step("publish", "", 0.0, 0.1), step("process", "publish", 0.2, 0.3)]

    assert story(steps, 40) == story(steps)
    assert story(steps, 20) != story(steps)
