"""What Grafana's panels show of a run is what the run's own books say, by a Prometheus that scrapes two workers."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import pytest

from rabbitevents import Bus
from rabbitevents.demo.ledger import Ledger
from rabbitevents.demo.orders import Order, make_orders, poisoned
from rabbitevents.demo.recorder import Recorder
from rabbitevents.demo.services import SERVICES, listeners
from rabbitevents.demo.shop.events import OrderPlaced
from rabbitevents.demo.shop.order import place
from rabbitevents.demo.tally import Tally
from tests.alerts import RULES, yaml
from tests.bed.prometheus import Prometheus, Sample
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import RedisServer
from tests.measured_shop import CUSTOMERS, Books, Numbers, books, summed
from tests.serving import Service
from tests.test_metrics_exporters import DASHBOARD

WORKERS: Final = 2

SCRAPE: Final = 1.0
"""Seconds between two scrapes, and those that one may take."""

FIRST: Final = 40
"""Orders after which each worker has seen each kind of event: a rate knows nothing of how a series began."""

ORDERS: Final = 300

WINDOW: Final = 10
"""Seconds over which rates are asked for, at least. They are extrapolated by a scrape at both ends, and by more where one
came late: what is counted twice, or by one worker alone, is further off than that."""

MANY: Final = 50
"""Events of a kind from which on its rate is compared."""

LISTENING: Final = [each.queue for service in SERVICES.values() for each in service.router.subscriptions()]
PANELS: Final = [
    (panel["title"], target["expr"])
    for panel in json.loads(DASHBOARD.read_text())["panels"]
    for target in panel.get("targets", ())
]
RATE: Final = re.compile(r"rate\((\w+\{[^}]*\})\[\$__rate_interval\]\)")

Answers = Mapping[str, list[Sample]]
"""What the server said, by query."""


@dataclass(frozen=True)
class Run:
    """A run that is over: what its books said before the larger part of it and at last, and what the server said.

    ``rates`` are the panels' queries as Grafana asks them, over the ``window`` of the larger part, in seconds; ``totals`` the
    same of what there is since the beginning.
    """

    before: Books
    after: Books
    window: int
    rates: Answers
    totals: Answers
    alerts: Answers
    jobs: list[str]
    errors: Mapping[str, str]


@pytest.fixture(scope="module")
def run(rabbit_node: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Run:
    if shutil.which("prometheus") is None or shutil.which("redis-server") is None:
        pytest.skip("no prometheus or no redis-server is installed here")
    url = rabbit_node.add_vhost()
    with RedisServer() as redis:
        ran = asyncio.run(ran_in(tmp_path_factory.mktemp("shop"), url, redis.url))
    rabbit_node.delete_vhost(url)
    return ran


async def ran_in(folder: Path, url: str, redis: str) -> Run:
    """Place orders in a shop of two workers, one of them poisoned and some twice, while a server scrapes it."""
    ledger, tally = Ledger(folder / f"{CUSTOMERS}.ledger"), Tally(folder, listeners)
    rules = yaml.safe_load(RULES.read_text())
    orders = [*poisoned(list(make_orders(FIRST, 1))), *list(make_orders(ORDERS, 1))[FIRST:]]
    async with Service(folder, "tests.measured_shop:bus", WORKERS, URL=url, REDIS=redis) as shop:
        with Prometheus({"shop": shop.port}, every=SCRAPE, rules=rules) as prometheus:
            await until_known(prometheus, f"rabbitevents_consumers_running == {len(LISTENING)}", WORKERS)
            await until_known(prometheus, "rabbitevents_queue_depth", WORKERS * (2 * len(LISTENING) + 1))
            async with Bus(url, name=CUSTOMERS, plugins=[Recorder(CUSTOMERS, ledger)]) as customers:
                first = [await customers.publish(placed(each)) for each in orders[:20]]
                await place(customers, orders[:FIRST])
                before = await closed(prometheus, tally, folder)
                began = monotonic()
                await place(customers, orders[FIRST:])
                for event in first:  # long since handled
                    await customers.publish(event.payload, id=event.id)
                after = await closed(prometheus, tally, folder)
            await ledger.close()
            window = max(math.ceil(monotonic() - began + SCRAPE), WINDOW)
            await asyncio.sleep(began + window - SCRAPE - monotonic())
            await until_known(prometheus, f"min_over_time(up[{3 * SCRAPE:g}s]) == 1", 1)  # a busy machine misses some
            return await asyncio.to_thread(answers, prometheus, rules, before, after, window)


def answers(
    prometheus: Prometheus,
    rules: dict[str, list[dict[str, list[dict[str, str]]]]],
    before: Books,
    after: Books,
    window: int,
) -> Run:
    shown = [expression.replace("$job", "shop") for _, expression in PANELS]
    return Run(
        before=before,
        after=after,
        window=window,
        rates={each: prometheus.query(each.replace("$__rate_interval", f"{window}s")) for each in shown},
        totals={each: prometheus.query(RATE.sub(r"\1", each)) for each in shown},
        alerts={rule["alert"]: prometheus.query(rule["expr"]) for group in rules["groups"] for rule in group["rules"]},
        jobs=prometheus.values_of("job", "rabbitevents_consumers_expected"),
        errors=prometheus.rules(),
    )


def placed(order: Order) -> OrderPlaced:
    return OrderPlaced(f"more-{order.order_id}", order.customer, order.sku, order.quantity, order.price)


async def until_known(prometheus: Prometheus, query: str, number: int) -> None:
    async with asyncio.timeout(60):
        while True:
            if len(await prometheus.aquery(query)) >= number:
                return
            await asyncio.sleep(SCRAPE / 2)


async def closed(prometheus: Prometheus, tally: Tally, folder: Path) -> Books:
    """Wait until all that was placed is done, and the server knows as much as the books; return them."""
    said = {
        "rabbitevents_settled_total": "sum(rabbitevents_settled_total)",
        "rabbitevents_queue_depth": 'sum(max by (rabbitevents_queue) (rabbitevents_queue_depth{rabbitevents_queue!="delay.lost"}))',
    }
    async with asyncio.timeout(60):
        while True:
            tally.read()
            found = books(folder)
            known = [
                total(await prometheus.aquery(query)) == sum(found.of(name).values()) for name, query in said.items()
            ]
            if not tally.awaited and all(known):
                return found
            await asyncio.sleep(SCRAPE / 2)


def total(samples: Iterable[Sample]) -> float:
    return sum(sample.value for sample in samples)


def numbers(samples: Iterable[Sample]) -> Numbers:
    """Return what a query said; an exception's class by its short name, which books have."""
    return summed(({name: short(name, value) for name, value in each.labels.items()}, each.value) for each in samples)


def short(label: str, value: str) -> str:
    return value.rpartition(".")[2] if label == "error_type" else value


def metric_of(expression: str) -> str:
    found = re.search(r"\b((?:messaging|rabbitevents)_\w+)\{", expression)
    assert found is not None
    return found[1]


# --- the panels ----------------------------------------------------------------------------------------------------


def test_every_panel_of_a_counter_shows_what_the_books_say(run: Run) -> None:
    counters = [each for each in run.totals if RATE.search(each) and not each.startswith("histogram_quantile")]

    wrong = {
        each: (dict(shown.items() - said.items()), dict(said.items() - shown.items()))
        for each in counters
        if (shown := numbers(run.totals[each])) != (said := run.after.of(metric_of(each)))
    }

    assert len(counters) >= 15
    assert wrong == {}


def test_the_run_had_something_for_the_panels_to_show(run: Run) -> None:
    happened = {metric_of(each) for each in run.totals if run.after.of(metric_of(each))}

    assert happened == {
        "messaging_client_sent_messages_total",
        "messaging_client_consumed_messages_total",
        "messaging_process_duration_seconds_count",
        "rabbitevents_settled_total",
        "rabbitevents_retries_total",
        "rabbitevents_dead_letters_total",
        "rabbitevents_duplicates_total",
        "rabbitevents_unroutable_total",
        "rabbitevents_queue_depth",
    }


def test_rates_as_grafana_asks_for_them_are_those_of_the_run(run: Run) -> None:
    compared, wrong = 0, list[tuple[str, frozenset[tuple[str, str]], float, float]]()
    for expression, samples in run.rates.items():
        if not RATE.search(expression) or expression.startswith("histogram_quantile"):
            continue
        said = numbers(samples)
        then, now = run.before.of(metric_of(expression)), run.after.of(metric_of(expression))
        for labels, number in now.items():
            happened = number - then.get(labels, 0)
            if happened >= MANY:
                compared += 1
                if said.get(labels, 0) * run.window != pytest.approx(happened, rel=0.5):
                    wrong.append((metric_of(expression), labels, said.get(labels, 0) * run.window, happened))

    assert compared >= 10
    assert wrong == []


def test_durations_are_shown_for_each_way_that_events_went(run: Run) -> None:
    quantiles = [each for each in run.rates if each.startswith("histogram_quantile")]
    ways = {
        "messaging_process_duration_seconds_bucket": run.after.of("messaging_client_consumed_messages_total"),
        "messaging_client_operation_duration_seconds_bucket": run.after.of("messaging_client_sent_messages_total"),
        "rabbitevents_event_loop_lag_seconds_bucket": {frozenset({("rabbitevents_bus", "shop")}): 1.0},
    }

    for each in quantiles:
        shown = numbers(run.rates[each])
        assert set(shown) == set(ways[metric_of(each)])
        assert [value for value in shown.values() if not 0 < value < 10] == []


def test_gauges_show_how_the_shop_is(run: Run) -> None:
    everybody = {frozenset({("rabbitevents_bus", "shop")}): float(WORKERS * len(LISTENING))}
    expected = {
        "rabbitevents_consumers_expected": everybody,
        "rabbitevents_consumers_running": everybody,
        "rabbitevents_queue_consumers": {
            frozenset({("rabbitevents_queue", each)}): float(WORKERS) for each in LISTENING
        },
    }
    dead = run.after.of("rabbitevents_queue_depth")
    gauges = [each for each in run.totals if "rate(" not in each]

    assert len(gauges) >= 10
    for each in gauges:
        said = dead if '=~".*[.]dead"' in each else expected.get(metric_of(each), {})
        assert (each, numbers(run.totals[each])) == (each, said)


def test_the_board_offers_the_job(run: Run) -> None:
    assert run.jobs == ["shop"]


# --- the alerts ----------------------------------------------------------------------------------------------------


def test_every_alert_that_the_books_have_a_cause_for_is_there_and_no_other(run: Run) -> None:
    retried, gave_up = run.after.of("rabbitevents_retries_total"), run.after.of("rabbitevents_queue_depth")
    there = {
        alert: {frozenset(each.labels.items()) for each in samples} for alert, samples in run.alerts.items() if samples
    }
    there.pop("RabbiteventsEventLoopLag", None)  # the machine's, while others work on it

    job = ("job", "shop")
    assert sum(retried.values()) < sum(run.after.of("rabbitevents_settled_total").values()) / 2
    assert there == {
        "RabbiteventsDeadLettersGrowing": {labels | {job} for labels in gave_up},
        "RabbiteventsUnroutable": {labels | {job} for labels in run.after.of("rabbitevents_unroutable_total")},
    }


def test_the_server_could_evaluate_every_rule(run: Run) -> None:
    assert set(run.errors) == set(run.alerts)
    assert [error for error in run.errors.values() if error] == []
