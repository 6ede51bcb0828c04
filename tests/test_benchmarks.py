"""The benchmark's own sums, its page, and what a contender is held to: a wrong figure is worse than none."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import beside, page
from benchmarks.building import MissingError, made
from benchmarks.cases import CASES, fit
from benchmarks.event_store import EventStores
from benchmarks.field import BY_NAME, CONTENDERS, OURS, SOURCES, Contender, in_turn
from benchmarks.figures import Figures, Spread
from benchmarks.plots import VALUES, WIDTH, Bar, bars
from benchmarks.stage import ContenderError, Place, Work
from benchmarks.targets import judged
from benchmarks.workload import document
from tests.bed.postgres import PostgresServer
from tests.bed.rabbitmq import RabbitNode


def figure(contender: str, number: int, rate: float, case: str = "flow", role: str = "consume") -> dict[str, Any]:
    return {"case": case, "role": role, "contender": contender, "round": number, "rate": rate, "cpu_us": 1e6 / rate}


def report(figures: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "at": "2026-11-26",
        "broker": "RabbitMQ 4.0.5",
        "machine": {"processors": 2, "text": "2 processors"},
        "load": "0.1 to 0.2",
        "role_seconds": 3.0,
        "quick": False,
        "versions": {OURS: {"python": "3.11.7"}, "faststream": {"python": "3.11.7"}},
        "left_out": {"amqplib": "node is not installed"},
        "failed": [],
        "figures": figures,
        "targets": [each.plain() for each in judged(Figures(figures))],
    }


# --- sums ----------------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_medians() -> None:
    ours = [figure(OURS, 0, 100), figure(OURS, 1, 10), figure(OURS, 2, 90)]
    theirs = [figure("faststream", 0, 10), figure("faststream", 1, 2), figure("faststream", 2, 30)]

    found = Figures(ours + theirs).ratio("rate", ("flow", "consume", OURS), ("flow", "consume", "faststream"))

    assert found == Spread(5, 3, 10)


def test_a_round_in_which_one_of_the_two_is_missing_is_not_compared() -> None:
    figures = Figures([figure(OURS, 0, 100), figure(OURS, 1, 50), figure("faststream", 1, 10)])

    found = figures.ratio("rate", ("flow", "consume", OURS), ("flow", "consume", "faststream"))

    assert found == Spread(5, 5, 5)


@pytest.mark.parametrize(("rate", "verdict"), [(100, "met"), (99, "missed")])
def test_a_target_is_met_from_its_bound_on(rate: float, verdict: str) -> None:
    figures = Figures([figure(OURS, 0, rate), figure("faststream", 0, 10)])

    found = next(each for each in judged(figures) if each.name == "consume, no-op, beside FastStream")

    assert (found.verdict, found.figure) == (verdict, f"{rate / 10:.2f}x")


def test_a_target_without_figures_is_neither_met_nor_missed() -> None:
    assert {each.verdict for each in judged(Figures([]))} == {"not measured"}


@pytest.mark.parametrize("size", [300, 4_096, 262_144])
def test_an_order_can_be_made_that_is_so_many_bytes_long(size: int) -> None:
    items, note = fit(size)

    assert len(json.dumps(document(7, items, note), separators=(",", ":"))) == size


def test_each_round_begins_with_another_one() -> None:
    assert [in_turn("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert sorted(in_turn("abc", 1)) == ["a", "b", "c"]
    assert in_turn([], 1) == []


# --- comparisons over a database -----------------------------------------------------------------------------------


WITH_NOBODY = {**EventStores.contenders, "nobody": "benchmarks.stores.nobody"}


class Stores(EventStores):
    """Ours, and one whose module is not there."""

    contenders = WITH_NOBODY


class Dictated(beside.Comparison):
    """Takes so much CPU time as its way says."""

    @contextmanager
    def place(self) -> Generator[tuple[str, ...]]:
        yield ()

    def ask(self, contender: str, *words: str) -> beside.Result:
        return {"cpu_us": float(words[words.index("--way") + 1])}


def test_a_comparison_measures_who_is_there_and_says_who_is_not(
    postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    told = argparse.Namespace(only=[OURS, "nobody"], phases=["read"], rounds=2, quick=True, scale=0.02)

    beside.compare(Stores(sys.executable, postgres), told)

    printed, said = capsys.readouterr()
    result = json.loads(printed.splitlines()[-1])
    missing = "No module named benchmarks.stores.nobody"
    assert [missing in each for each in result["left_out"]] == [True]
    assert missing in said
    assert {name: len(found["rate"]) for name, found in result["values"]["read"].items()} == {OURS: 2}
    assert re.search(r"\| rabbitevents \| [\d,]+ \([\d,]+ to [\d,]+\) \|", printed)


def test_a_way_is_told_by_what_it_adds_to_the_first_one(postgres: PostgresServer) -> None:
    figures = (beside.Figure("CPU us", "cpu_us"), beside.Figure("added", "added_us", over="cpu_us"))
    phase = beside.Phase("handled", (), figures, 1, 1, ways="inboxes")

    rows = dict(Dictated("", postgres).rows(phase, OURS, {"inboxes": ["100", "130"]}, 1))

    assert {name: row["added_us"] for name, row in rows.items()} == {f"{OURS}: 100": 0, f"{OURS}: 130": 30}


def test_a_cell_has_the_median_and_the_spread_of_several_rounds() -> None:
    phase = beside.Phase(
        "read", (), (beside.Figure("events/s", "rate"), beside.Figure("CPU us", "cpu_us", ".1f")), 1, 1
    )

    lines = beside.table({"read": {OURS: {"rate": [3000, 1000, 2000], "cpu_us": [1.25]}}}, [phase])

    assert lines[1:] == [
        "| read | events/s | CPU us |",
        "|---|---|---|",
        "| rabbitevents | 2,000 (1,000 to 3,000) | 1.2 |",
    ]


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_has_every_figure_target_and_version_and_what_was_left_out(tmp_path: Path) -> None:
    figures = [
        figure(OURS, 0, 61_234),
        figure(OURS, 1, 61_234),
        figure("faststream", 0, 5_000),
        figure("faststream", 1, 5_000),
    ]

    page.write(report(figures), tmp_path)

    text = (tmp_path / "performance.md").read_text()
    assert "| **rabbitevents** | 61,234 | 16.3 | 12.25 |" in text
    assert "| consume, no-op, beside FastStream | at least 10x | 12.25x | met |" in text
    assert "| FastStream, pydantic | python 3.11.7 |" in text
    assert "* amqplib: node is not installed" in text
    assert "61,234" in (tmp_path / "performance" / "consume.svg").read_text()


def test_the_page_of_a_run_on_a_busy_machine_says_so(tmp_path: Path) -> None:
    page.write(report([]) | {"load": "0.5 to 7.1"}, tmp_path)

    assert "The machine did much else meanwhile" in (tmp_path / "performance.md").read_text()


def test_a_picture_of_an_earlier_run_does_not_stay(tmp_path: Path) -> None:
    page.write(report([figure(OURS, 0, 1)]), tmp_path)

    page.write(report([]), tmp_path)

    assert list((tmp_path / "performance").iterdir()) == []


def test_the_longest_bar_ends_inside_of_the_picture() -> None:
    drawn = bars("rates", [Bar("a", Spread(50, 40, 100), ours=True), Bar("b", Spread(7, 7, 7), ours=False)], str)

    ends = [float(x) for x in re.findall(r'x2="([\d.]+)"', drawn)]
    assert max(ends) + VALUES <= WIDTH


# --- contenders ----------------------------------------------------------------------------------------------------


def test_every_contender_runs_in_a_case_and_says_what_differs() -> None:
    running = {name for case in CASES for name, _ in case.trials}

    assert running == set(BY_NAME)
    assert [each.name for each in CONTENDERS if not (each.differs or each.chain)] == []


def test_files_that_pin_versions_have_no_addresses() -> None:
    files = [
        path
        for path in SOURCES.rglob("*")
        if path.name in {"pom.xml", "package-lock.json", "package.json", "constraints.txt"}
    ]

    assert len(files) == 4
    assert [path.name for path in files if "://" in path.read_text()] == []


def test_contenders_whose_tools_are_missing_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(MissingError, match="java, javac, mvn is not installed"):
        made("java", print)


@pytest.fixture
def place(rabbit_node: RabbitNode) -> Iterator[Place]:
    """The place of this library's own contender, which runs with the tests' own Python."""
    url = rabbit_node.add_vhost()
    there = Place(rabbit_node, None, url, "bench.on_order")
    there.run(ours(), Work("declare", 0, 0))
    yield there
    rabbit_node.delete_vhost(url)


def ours() -> Contender:
    command = (sys.executable, "-m", "benchmarks.contenders.python.rabbitevents_", "plain")
    return Contender(OURS, OURS, "python", command, 1_000)


def pretending(handled: int) -> Contender:
    """Return a contender that does nothing, and says that it has handled so many."""
    said = json.dumps({"events": 8, "handled": handled, "distinct": handled})
    return Contender("pretending", "", "python", (sys.executable, "-c", f"print({said!r})"), 1_000)


def test_a_contender_publishes_and_consumes_and_says_what_it_took(place: Place) -> None:
    published = place.run(ours(), Work("publish_in_flight", 300, 100))
    consumed = place.run(ours(), Work("consume", 300, 100))

    assert published["events"] == consumed["events"] == 300
    assert (consumed["handled"], consumed["distinct"]) == (400, 400)
    assert min(consumed["seconds"], consumed["cpu_seconds"], consumed["peak_mb"]) > 0


def test_latency_is_told_in_order(place: Place) -> None:
    found = place.run(ours(), Work("latency", 100, 20, rate=500))

    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["p999_ms"]


def test_a_contender_that_loses_an_event_has_failed(place: Place) -> None:
    with pytest.raises(ContenderError, match="9 events handled, 9 differ, 10 expected"):
        place.run(pretending(9), Work("consume", 8, 2))


def test_a_contender_that_leaves_events_behind_has_failed(place: Place) -> None:
    place.run(ours(), Work("publish_in_flight", 8, 2))
    place.patience = 0.2

    with pytest.raises(ContenderError, match="the queue holds 10 events, 0 expected"):
        place.run(pretending(10), Work("consume", 8, 2))
