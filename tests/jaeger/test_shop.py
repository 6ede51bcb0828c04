"""What people look for in Jaeger, asked of a real one: the shop, each service a process, payments that fail, one order
that nobody can handle, and its replay with another body.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest

from tests.bed.rabbitmq import RabbitNode
from tests.documents import blocks
from tests.jaeger.outline import PAGE, on_the_page, outline, without_numbers
from tests.jaeger.server import PAGE_SETTINGS, Jaeger, Span

ROOT = Path(__file__).parent.parent.parent
SERVICES = {"shop.order", "shop.inventory", "shop.payment", "shop.notification", "shop.analytics"}
RESERVE, CHARGE = "shop.inventory.reserve", "shop.payment.charge"
ORDERS = 40


@dataclass(frozen=True)
class Shop:
    """What was in Jaeger after it: the dead letter as ``dlq show`` told it, and what the demonstration printed."""

    jaeger: Jaeger
    letter: dict[str, Any]
    shown: str
    printed: str

    @property
    def order(self) -> str:
        """The id of the order that died, and was replayed."""
        return str(self.letter["body"]["order_id"])

    @property
    def traces(self) -> list[list[Span]]:
        """All traces of the shop."""
        return [trace for trace in self.jaeger.all() if trace[0].service in SERVICES]

    @property
    def story(self) -> list[Span]:
        """The one trace that is found by its id."""
        (trace,) = self.jaeger.find("shop.inventory", tags={"rabbitevents.entity.id": self.order})
        return trace


def called(*arguments: str) -> str:
    """Run ``rabbitevents``, and return what it printed."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "plugins")))
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}
    command = [sys.executable, "-m", "rabbitevents", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def shop(jaeger: Jaeger, rabbit_node: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    url, where = rabbit_node.add_vhost(), ("--queue", RESERVE)
    run = ("demo", "--broker", url, "--processes", "--otlp", jaeger.otlp)
    mended = tmp_path_factory.mktemp("replay") / "mended.json"

    printed = called(*run, "--orders", str(ORDERS), "--fail", "0.3", "--poison")
    shown = called("dlq", "show", "--url", url, *where)
    letter: dict[str, Any] = json.loads(called("dlq", "show", "--json", "--url", url, *where))
    mended.write_text(json.dumps({**letter["body"], "quantity": 2}))
    called("dlq", "replay", "--url", url, *where, "--id", letter["id"], "--edit", str(mended))
    called(*run, "--orders", "5")  # the services are back, and handle what was replayed

    return Shop(jaeger, letter, shown, printed)


def attempts(trace: list[Span], queue: str) -> list[Span]:
    return [span for span in trace if span.operation == "process" and span.tags["rabbitevents.queue"] == queue]


# --- the lists that one chooses from -------------------------------------------------------------------------------


def test_services_are_called_as_in_the_code(shop: Shop) -> None:
    assert shop.jaeger.services() >= SERVICES


def test_operations_say_what_is_done_to_what_and_are_as_many_as_there_are_destinations(shop: Shop) -> None:
    assert shop.jaeger.operations("shop.payment") == {
        "process shop:inventory.reserved:shop.payment.charge",
        "publish shop:payment.declined",
        "publish shop:payment.processed",
        "retry shop.payment.charge",
        "wait shop.payment.charge",
    }
    assert shop.jaeger.operations("shop.inventory") >= {
        "process shop:order.placed:shop.inventory.reserve",
        "dead-letter shop.inventory.reserve.dead",
        "replay shop.inventory.reserve",
    }


def test_system_architecture_shows_who_leads_to_whom(shop: Shop) -> None:
    assert {edge for edge in shop.jaeger.edges() if edge[0] != edge[1] and set(edge) <= SERVICES} == {
        ("shop.order", "shop.inventory"),
        ("shop.order", "shop.analytics"),
        ("shop.order", "shop.notification"),
        ("shop.inventory", "shop.payment"),
        ("shop.inventory", "shop.analytics"),
        ("shop.inventory", "shop.order"),  # what is not in stock is cancelled
        ("shop.payment", "shop.order"),
    }


# --- searching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_an_order_is_found_by_its_id_wherever_it_has_been(shop: Shop, service: str) -> None:
    found = shop.jaeger.find(service, tags={"rabbitevents.entity.id": shop.order})

    assert [trace[0].trace for trace in found] == [shop.story[0].trace]


@pytest.mark.parametrize("tag", ["messaging.message.id", "messaging.message.conversation_id"])
def test_an_event_is_found_by_its_id_and_by_that_of_the_request(shop: Shop, tag: str) -> None:
    found = shop.jaeger.find("shop.analytics", tags={tag: shop.letter["id"]})  # its first event: the two are one

    assert [trace[0].trace for trace in found] == [shop.story[0].trace]


def test_long_waits_are_found_by_their_duration(shop: Shop) -> None:
    asked = {"service": "shop.payment", "operation": "wait shop.payment.charge", "limit": 100}

    waited = shop.jaeger.ask("/api/traces", **asked, minDuration="900ms")["data"]

    assert 0 < len(waited) < len(shop.jaeger.ask("/api/traces", **asked)["data"])


def test_what_the_demonstration_and_dlq_show_print_is_found(shop: Shop) -> None:
    named = re.search(r"The story of order (\S+),", shop.printed)
    trace = re.search(r"^trace +([0-9a-f]{32}) *$", shop.shown, re.MULTILINE)
    assert named is not None
    assert trace is not None

    assert len(shop.jaeger.find("shop.payment", tags={"rabbitevents.entity.id": named[1]})) == 1
    assert trace[1] == shop.story[0].trace


def test_orders_are_found_by_type(shop: Shop) -> None:
    placed = shop.jaeger.find("shop.inventory", tags={"rabbitevents.event.type": "order.placed"})

    assert len(placed) == ORDERS + 5
    assert shop.jaeger.find("shop.payment", tags={"rabbitevents.event.type": "order.placed"}) == []


def test_failures_are_found_by_outcome_and_by_error(shop: Shop) -> None:
    failed = shop.jaeger.find("shop.inventory", tags={"rabbitevents.outcome": "failed"})
    fatal = shop.jaeger.find("shop.inventory", tags={"error.type": "rabbitevents.failures.Fatal"})
    unpaid = shop.jaeger.find("shop.payment", tags={"rabbitevents.outcome": "failed"})

    assert [trace[0].trace for trace in failed] == [trace[0].trace for trace in fatal] == [shop.story[0].trace]
    assert len(unpaid) > 3
    assert all(any(span.is_red for span in attempts(trace, CHARGE)) for trace in unpaid)


def test_this_jaeger_finds_nothing_by_error_true_which_is_why_the_pages_say_outcome(shop: Shop) -> None:
    assert shop.jaeger.find("shop.payment", tags={"error": "true"}) == []


def test_tags_of_a_search_are_those_of_one_span(shop: Shop) -> None:
    def found(**tags: str) -> int:
        asked = {f"rabbitevents.{name}".replace("__", "."): value for name, value in tags.items()}
        return len(shop.jaeger.find("shop.inventory", tags={**asked, "rabbitevents.entity.id": shop.order}))

    assert found(outcome="failed", queue=RESERVE, event__type="order.placed", attempt="1") == 1
    assert found(replays="1", queue=RESERVE, event__type="order.placed") == 1
    assert found(outcome="failed", replays="1") == 0  # it failed before it was replayed, and not again


@pytest.mark.parametrize("operation", ["dead-letter shop.inventory.reserve.dead", "replay shop.inventory.reserve"])
def test_dead_letters_and_replays_are_found_by_operation_and_order(shop: Shop, operation: str) -> None:
    found = shop.jaeger.find("shop.inventory", operation, {"rabbitevents.entity.id": shop.order})

    assert [trace[0].trace for trace in found] == [shop.story[0].trace]


def test_which_replica_it_was_is_said_and_can_be_searched_for(shop: Shop) -> None:
    before, after = (span.process["service.instance.id"] for span in attempts(shop.story, RESERVE))

    assert before != after  # the services were started again for the replay
    found = shop.jaeger.find("shop.inventory", tags={"service.instance.id": after})
    assert len(found) == 5 + 1
    assert {span.process["host.name"] for trace in found for span in trace} == {gethostname()}


# --- reading -------------------------------------------------------------------------------------------------------


def test_the_whole_story_of_an_order_that_died_and_was_replayed_is_one_trace(shop: Shop) -> None:
    told = [(span.service, span.name) for span in shop.story if span.service != "shop.analytics"]

    assert told[:5] == [
        ("shop.order", "publish shop:order.placed"),
        ("shop.inventory", "process shop:order.placed:shop.inventory.reserve"),
        ("shop.inventory", "dead-letter shop.inventory.reserve.dead"),
        ("shop.inventory", "replay shop.inventory.reserve"),
        ("shop.inventory", "process shop:order.placed:shop.inventory.reserve"),
    ]
    rest = [name for _, name in told[5:]]
    for name in ("publish shop:inventory.reserved", f"process shop:inventory.reserved:{CHARGE}"):
        assert rest.count(name) == 1
    assert [span.name for span in shop.story if not span.parent] == ["publish shop:order.placed"]


def test_the_attempts_before_and_after_a_replay_are_told_apart_and_lead_to_each_other(shop: Shop) -> None:
    died, done = attempts(shop.story, RESERVE)
    (dead,) = (span for span in shop.story if span.operation == "dead-letter")
    (replay,) = (span for span in shop.story if span.operation == "replay")

    assert (died.tags["rabbitevents.outcome"], done.tags["rabbitevents.outcome"]) == ("failed", "ack")
    assert ("rabbitevents.replays" in died.tags, done.tags["rabbitevents.replays"]) == (False, 1)
    assert dead.parent == died.id
    assert died.id in replay.links
    assert died.id in done.links
    assert replay.duration == pytest.approx(done.start - replay.start, abs=2e-6)
    assert done.tags["rabbitevents.dead_for"] == pytest.approx(replay.start - dead.start, abs=0.1)


def test_each_wait_is_a_bar_as_long_as_it_was_between_two_attempts(shop: Shop) -> None:
    seen = 0
    for trace in shop.jaeger.find("shop.payment", "wait shop.payment.charge"):
        waits = [span for span in trace if span.operation == "wait"]
        retries = [span for span in trace if span.operation == "retry"]
        for (before, after), retry, wait in zip(pairwise(attempts(trace, CHARGE)), retries, waits, strict=True):
            assert retry.parent == before.id
            assert wait.parent == before.parent == after.parent
            assert before.start <= retry.start <= wait.start + 1e-3
            assert wait.end == pytest.approx(after.start, abs=2e-6)
            assert wait.duration >= retry.tags["rabbitevents.delay"] - 0.01
            assert after.links == (before.id,)
            assert after.tags["rabbitevents.attempt"] == before.tags["rabbitevents.attempt"] + 1
            seen += 1
    assert seen > 3


def test_what_failed_says_why_and_where(shop: Shop) -> None:
    died = attempts(shop.story, RESERVE)[0]

    assert died.tags["error.type"] == "rabbitevents.failures.Fatal"
    assert re.fullmatch(r"inventory\.py:\d+ in reserve", died.tags["rabbitevents.error.location"])
    assert "otel.status_description" not in died.tags  # which would be the error's name once more
    (log,) = died.logs
    assert log["event"] == "exception"
    assert log["exception.stacktrace"].splitlines()[-1].endswith("in reserve")


def test_only_what_failed_and_what_was_given_up_on_is_red(shop: Shop) -> None:
    spans = [span for trace in shop.traces for span in trace]
    red = Counter(span.operation for span in spans if span.is_red)

    assert red == {
        "process": sum(span.tags.get("rabbitevents.outcome") == "failed" for span in spans),
        "dead-letter": 1,
    }
    assert all("error.type" in span.tags for span in spans if span.is_red and span.operation == "process")
    assert not any("error.type" in span.tags for span in spans if not span.is_red)


def test_nothing_is_warned_of(shop: Shop) -> None:
    traces = shop.traces

    assert len(traces) == ORDERS + 5
    assert sum(map(len, traces)) > 10 * ORDERS
    assert [(span.name, span.warnings) for trace in traces for span in trace if span.warnings] == []
    assert [warning for trace in traces for warning in shop.jaeger.warnings_of_v3(trace[0].trace)] == []


def test_nothing_begins_before_what_led_to_it(shop: Shop) -> None:
    for trace in shop.traces:
        by_id = {span.id: span for span in trace}
        assert len(by_id) == len(trace)
        early = [span.name for span in trace if span.parent and span.start < by_id[span.parent].start]
        assert early == []


# --- what the pages say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["publish shop:order.placed$", "publish shop:inventory.reserved$"])
def test_the_page_shows_what_there_is_to_be_seen(shop: Shop, first: str) -> None:
    shown = on_the_page(first)

    assert len(shown) >= 8
    assert shown - without_numbers(map(outline, shop.traces)) == set()


def test_the_answers_on_the_page_are_jaeger_s(shop: Shop) -> None:
    operations, said = (json.loads(block.text) for block in blocks(PAGE, "json")[:2])
    died = attempts(shop.story, RESERVE)[0]

    assert {each["name"] for each in operations["data"]} == shop.jaeger.operations("shop.payment")
    assert said["operationName"] == died.name
    assert {each["key"] for each in said["tags"]} <= set(died.tags)
    for name in ("error.type", "rabbitevents.outcome", "rabbitevents.attempt", "rabbitevents.event.type"):
        (value,) = (each["value"] for each in said["tags"] if each["key"] == name)
        assert value == died.tags[name]


def test_what_compose_says_of_the_page_jaeger_takes(shop: Shop) -> None:
    assert (
        f"JAEGER_CONFIG = {json.dumps(json.loads(PAGE_SETTINGS.read_text()), separators=(',', ':'))}"
        in shop.jaeger.get("/search")
    )


def test_a_span_has_25_tags_at_most(shop: Shop) -> None:
    assert max(len(span.tags) for trace in shop.traces for span in trace) <= 25
