"""A Prometheus server that belongs to the tests: it scrapes as often as they say, and is asked by its own API."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.processes import spawn, unpin

_numbers = itertools.count(1)

MINUTE = re.compile(r"\b(\d+)m\b")
WAITED = re.compile(r"(?<=_lag_seconds\) > )\d+")


class PrometheusError(Exception):
    """A server did not do what it was told; the text is what it said."""


@dataclass(frozen=True)
class Sample:
    """A series and its value, as a query returns it."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Alert:
    """An alert of the server: what it is about, and whether it is "pending" or "firing"."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    state: str


class Prometheus:
    """One Prometheus process. ``targets`` are the jobs and their ports here, ``every`` the seconds between two scrapes.

    ``rules`` is what a file of rules says. Every method blocks, for milliseconds; `aquery` and `aalerts` leave the event
    loop running.
    """

    def __init__(
        self, targets: Mapping[str, int], *, every: float = 0.5, rules: Mapping[str, Any] | None = None
    ) -> None:
        # Named like the folders of RabbitMQ nodes, so that what a killed test run left behind is removed with theirs.
        self.folder = Path(tempfile.mkdtemp(prefix=f"rbt-{os.getpid()}-prometheus-{next(_numbers)}-"))
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        interval = f"{every * 1000:.0f}ms"
        scraped = [
            {"job_name": job, "static_configs": [{"targets": [f"{LOOPBACK}:{port}"]}]} for job, port in targets.items()
        ]
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": ["rules.yaml"],
            "scrape_configs": scraped,
        }
        # JSON is YAML.
        (self.folder / "prometheus.yaml").write_text(json.dumps(config))
        (self.folder / "rules.yaml").write_text(json.dumps(rules or {"groups": []}))

    def __enter__(self) -> Self:
        try:
            return self.start()
        except PrometheusError:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, timeout: float = 30) -> Self:
        """Start the server and wait until it is ready; raises PrometheusError with what it printed if it is not."""
        command = [
            "prometheus",
            f"--config.file={self.folder}/prometheus.yaml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address={LOOPBACK}:{self.port}",
            "--log.level=warn",
        ]
        self._server = spawn(command, {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}, self.folder / "output")
        unpin(self._server.pid)
        deadline = time.monotonic() + timeout
        while not self._is_ready():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise PrometheusError(f"the server did not start:\n{(self.folder / 'output').read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def close(self) -> None:
        """End the server at once, and remove its data."""
        if self._server is not None and self._server.poll() is None:
            self._server.kill()
            self._server.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def query(self, expression: str) -> list[Sample]:
        """Ask for what an expression is now; raises PrometheusError for one that it cannot evaluate."""
        return [
            Sample(
                {name: value for name, value in each["metric"].items() if name != "__name__"}, float(each["value"][1])
            )
            for each in self._ask("query", query=expression)["result"]
        ]

    def values_of(self, label: str, metric: str) -> list[str]:
        """Ask for a label's values on a metric, as Grafana's ``label_values`` does."""
        return list(self._ask(f"label/{label}/values", **{"match[]": metric}))

    def alerts(self) -> list[Alert]:
        """Ask for the alerts that are pending or fire."""
        return [
            Alert(each["labels"].pop("alertname"), each["labels"], each["annotations"], each["state"])
            for each in self._ask("alerts")["alerts"]
        ]

    def rules(self) -> dict[str, str]:
        """Ask for each rule's last error, by its name; "" for one that went well."""
        groups = self._ask("rules")["groups"]
        return {rule["name"]: rule.get("lastError", "") for group in groups for rule in group["rules"]}

    async def aquery(self, expression: str) -> list[Sample]:
        """See `query`."""
        return await to_thread(self.query, expression)

    async def aalerts(self) -> list[Alert]:
        """See `alerts`."""
        return await to_thread(self.alerts)

    def _ask(self, what: str, **said: str) -> Any:
        url = f"http://{LOOPBACK}:{self.port}/api/v1/{what}?{urlencode(said)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise PrometheusError(f"{what} {said}: {error.read().decode()}") from error

    def _is_ready(self) -> bool:
        url = f"http://{LOOPBACK}:{self.port}/-/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
        return False


def scaled(rules: Mapping[str, Any], minute: float) -> dict[str, Any]:
    """Return rules in which every window, and every time that a thing must last or wait, has minutes of ``minute`` seconds."""

    def shorter(text: str) -> str:
        in_seconds = WAITED.sub(lambda found: f"{int(found[0]) * minute / 60:g}", text)
        return MINUTE.sub(lambda found: f"{int(found[1]) * minute * 1000:.0f}ms", in_seconds)

    groups = [
        {
            **group,
            "rules": [
                {**rule, "expr": shorter(rule["expr"]), **({"for": shorter(rule["for"])} if "for" in rule else {})}
                for rule in group["rules"]
            ],
        }
        for group in rules["groups"]
    ]
    return {**rules, "groups": groups}
