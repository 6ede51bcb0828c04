"""A Jaeger that belongs to the tests, and what its query API answers, as values.

Its own page asks ``/api``; ``/api/v3`` is the newer way in. Both are asked here, since they do not answer alike: each has
rules of its own for what is worth a warning.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.processes import spawn, unpin

PROGRAM: Final = "RABBITEVENTS_TEST_JAEGER"
"""The environment variable that says where the program is; ``make test-jaeger`` sets it."""

CONFIGURATION: Final = Path(__file__).with_name("jaeger.yaml")
PAGE_SETTINGS: Final = Path(__file__).parent.parent.parent / "docs" / "compose" / "jaeger-ui.json"
"""What compose.yaml gives to Jaeger's page."""


@dataclass(frozen=True)
class Span:
    """A span as Jaeger's page shows it. Times are seconds."""

    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    """The spans that it refers to besides its parent."""
    service: str
    name: str
    start: float
    duration: float
    tags: dict[str, Any]
    process: dict[str, Any]
    """What is said of the process that it was in."""
    logs: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]

    @property
    def operation(self) -> str:
        """The first word of its name."""
        return self.name.partition(" ")[0]

    @property
    def end(self) -> float:
        """When it ended."""
        return self.start + self.duration

    @property
    def is_red(self) -> bool:
        """Whether the page marks it as failed."""
        return self.tags.get("error") is True


class Jaeger:
    """One Jaeger, all of it in one process, in memory, for as long as it is entered: it keeps ``most`` traces."""

    def __init__(self, program: str, most: int = 10_000) -> None:
        # Named like the folders of RabbitMQ nodes, so that what a killed test run left behind is removed with theirs.
        self._folder = Path(tempfile.mkdtemp(prefix=f"rbt-{os.getpid()}-jaeger-"))
        self._program = program
        self._most = most
        self._query, self._otlp = free_port(), free_port()
        self._environment = {
            "JAEGER_QUERY_PORT": str(self._query),
            "JAEGER_QUERY_GRPC_PORT": str(free_port()),
            "JAEGER_OTLP_HTTP_PORT": str(self._otlp),
            "JAEGER_OTLP_GRPC_PORT": str(free_port()),
            "JAEGER_MAX_TRACES": str(most),
            "JAEGER_UI": str(PAGE_SETTINGS),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def otlp(self) -> str:
        """Where it takes traces, over HTTP: what `OTEL_EXPORTER_OTLP_ENDPOINT` and ``--otlp`` take."""
        return f"http://{LOOPBACK}:{self._otlp}"

    def __enter__(self) -> Self:
        output = self._folder / "output"
        self._process = spawn([self._program, "--config", str(CONFIGURATION)], self._environment, output)
        unpin(self._process.pid)
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"Jaeger did not start:\n{output.read_text()[-3000:]}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()  # what it has is in memory
            self._process.wait(10)
        if self._process is None or self._process.poll() is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            self.ask("/api/services")
            nothing = urllib.request.Request(f"{self.otlp}/v1/traces", b"{}", {"Content-Type": "application/json"})
            urllib.request.urlopen(nothing, timeout=10).close()
        except OSError:
            return False
        return True

    def ask(self, path: str, **query: object) -> Any:
        """Ask the API, and return its answer as it is."""
        return json.loads(self.get(f"{path}?{urlencode(query)}"))

    def get(self, path: str) -> str:
        """Return what a browser gets."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self._query}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    # --- what people ask ---

    def services(self) -> set[str]:
        """Return the names in the list of services."""
        return set(self.ask("/api/services")["data"] or ())

    def operations(self, service: str) -> set[str]:
        """Return the names in a service's list of operations."""
        return {each["name"] for each in self.ask("/api/operations", service=service)["data"]}

    def find(self, service: str, operation: str = "", tags: dict[str, str] | None = None) -> list[list[Span]]:
        """Return the traces that a search finds, each by the beginnings of its spans."""
        query = {"service": service, "operation": operation, "tags": json.dumps(tags or {}), "limit": self._most}
        return [_spans(each) for each in self.ask("/api/traces", **query)["data"]]

    def all(self) -> list[list[Span]]:
        """Return all traces."""
        found = {trace[0].trace: trace for service in self.services() for trace in self.find(service)}
        return list(found.values())

    def edges(self) -> set[tuple[str, str]]:
        """Return who leads to whom in System Architecture."""
        data = self.ask("/api/dependencies", endTs=int(time.time() * 1000) + 60_000, lookback=86_400_000)["data"]
        return {(each["parent"], each["child"]) for each in data}

    def warnings_of_v3(self, trace: str) -> list[str]:
        """Return what the newer way in warns of in a trace."""
        result = self.ask(f"/api/v3/traces/{trace}")["result"]
        spans = [span for each in result["resourceSpans"] for scope in each["scopeSpans"] for span in scope["spans"]]
        said = [each for span in spans for each in span.get("attributes", ())]
        return [str(each["value"]) for each in said if each["key"] == "@jaeger@warnings"]


def _spans(trace: dict[str, Any]) -> list[Span]:
    return sorted((_span(each, trace["processes"]) for each in trace["spans"]), key=lambda span: span.start)


def _span(said: dict[str, Any], processes: dict[str, Any]) -> Span:
    parents = [each["spanID"] for each in said["references"] if each["refType"] == "CHILD_OF"]
    return Span(
        trace=said["traceID"],
        id=said["spanID"],
        parent=parents[0] if parents else "",
        links=tuple(each["spanID"] for each in said["references"] if each["refType"] != "CHILD_OF"),
        service=processes[said["processID"]]["serviceName"],
        name=said["operationName"],
        start=said["startTime"] / 1e6,
        duration=said["duration"] / 1e6,
        tags=_values(said["tags"]),
        process=_values(processes[said["processID"]]["tags"]),
        logs=tuple(_values(each["fields"]) for each in said["logs"]),
        warnings=tuple(said["warnings"] or ()),
    )


def _values(fields: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: each["value"] for each in fields}
