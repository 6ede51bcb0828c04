"""The alerts of docs/alerts.yaml: what they say of given series, of real causes, and what the page says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.alerts import RULES, see, table, yaml
from tests.bed.prometheus import scaled
from tests.bed.rabbitmq import RabbitNode
from tests.test_metrics import ALL
from tests.test_metrics_exporters import names_in

SERIES = Path(__file__).with_name("alerts.yaml")
PAGE = RULES.parent / "howto" / "metrics.md"
COMPOSE = RULES.parent.parent / "compose.yaml"
ALERTS: dict[str, Any] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}


def promtool(*words: str) -> str:
    """Have promtool look at something; return what it is not content with, nothing if it is."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool is installed here (Debian's package prometheus)")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


# --- the rules -----------------------------------------------------------------------------------------------------


def test_the_rules_can_be_loaded() -> None:
    assert promtool("check", "rules", str(RULES)) == ""
    assert len(ALERTS) == 10


def test_the_rules_say_of_series_what_they_should() -> None:
    assert promtool("test", "rules", str(SERIES)) == ""


@pytest.mark.parametrize(("said", "instead"), [("> 100", "> 1000"), ("offset 15m", "offset 1m"), ("[5m:]", "[5m:5m]")])
def test_the_series_notice_a_rule_that_says_something_else(said: str, instead: str, tmp_path: Path) -> None:
    changed = RULES.read_text().replace(said, instead)
    assert changed != RULES.read_text()
    (tmp_path / "alerts.yaml").write_text(changed)
    (tmp_path / "series.yaml").write_text(SERIES.read_text().replace("../docs/alerts.yaml", "alerts.yaml"))

    assert "FAILED" in promtool("test", "rules", str(tmp_path / "series.yaml"))


def test_for_each_alert_there_are_series_that_make_it_fire_and_some_that_do_not() -> None:
    looks = [look for each in yaml.safe_load(SERIES.read_text())["tests"] for look in each["alert_rule_test"]]

    for firing in (True, False):
        assert {look["alertname"] for look in looks if bool(look.get("exp_alerts")) is firing} == set(ALERTS)


def test_the_rules_ask_for_metrics_that_there_are() -> None:
    asked = {
        re.sub("_(total|bucket|count|seconds)", "", name) for rule in ALERTS.values() for name in names_in(rule["expr"])
    }
    others = {"rabbitevents_worker_answered"}

    assert {name for name in asked if name.startswith("rabbitevents_")} <= others | {
        name.replace(".", "_") for name in ALL
    }


def test_minutes_can_be_made_shorter_and_days_are_left_alone() -> None:
    rule = {"alert": "A", "expr": "x[15m] offset 2m > 60 and y[1d] or max(w_lag_seconds) > 60", "for": "1m"}

    (group,) = scaled({"groups": [{"name": "g", "rules": [rule]}]}, 0.5)["groups"]

    assert group["rules"][0]["expr"] == "x[7500ms] offset 1000ms > 60 and y[1d] or max(w_lag_seconds) > 0.5"
    assert group["rules"][0]["for"] == "500ms"


# --- what is said of them ------------------------------------------------------------------------------------------


def test_the_page_has_every_alert_with_the_time_that_it_waits() -> None:
    rows = re.findall(r"^\| `(Rabbitevents\w+)` \| ([^|]*) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)

    said = {name: (waits, severity) for name, waits, severity in rows}

    assert list(said) == list(ALERTS)
    assert said == {name: (rule.get("for", "at once"), rule["labels"]["severity"]) for name, rule in ALERTS.items()}


def test_compose_gives_the_rules_to_its_prometheus() -> None:
    compose, config = (
        yaml.safe_load(path.read_text()) for path in (COMPOSE, RULES.parent / "compose" / "prometheus.yaml")
    )
    (mounted,) = (
        each for each in compose["services"]["prometheus"]["volumes"] if each.startswith("./docs/alerts.yaml:")
    )

    assert config["rule_files"] == [mounted.split(":")[1]]


# --- of real causes ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_every_alert_fires_of_its_cause_and_is_resolved_without_it(
    rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus is installed here")

    seen, at_rest = await see(rabbit_node, rabbit_node.add_vhost(), tmp_path, minute=0.5)

    print(table(seen))
    assert at_rest == set()
    assert {each.alert for each in seen} == set(ALERTS)
