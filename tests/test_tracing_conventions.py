"""Every name that leaves the house in a span or a metric is in OpenTelemetry's conventions, or is ours and says so.

The rule is read out of the conventions' own package, deprecations included: there is no list of ours.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import opentelemetry.semconv
import pytest
from opentelemetry.semconv.schemas import Schemas
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from rabbitevents_tracing import Tracing
from tests.test_tracing import OrderPlaced, Traces, inventory, replay

PACKAGE = Path(opentelemetry.semconv.__path__[0])
MESSAGING: Any = import_module("opentelemetry.semconv._incubating.attributes.messaging_attributes")  # has no stubs
CONVENTIONAL = ("messaging.", "error.", "exception.", "server.", "network.")
OURS = "rabbitevents."


@dataclass(frozen=True)
class Named:
    """A name in the conventions, and what is said of it."""

    name: str
    said: str

    @property
    def deprecated(self) -> bool:
        return self.said.lstrip().startswith("Deprecated")


def named_in(*folders: str) -> Iterator[Named]:
    """Read constants, and the docstrings below them."""
    for folder in folders:
        for path in sorted((PACKAGE / folder).glob("*.py")):
            body = ast.parse(path.read_text()).body
            for statement, after in pairwise([*body, None]):
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant):
                    said = after.value if isinstance(after, ast.Expr) else None
                    yield Named(str(statement.value.value), str(said.value) if isinstance(said, ast.Constant) else "")


ATTRIBUTES = {
    each.name for each in named_in("attributes", "_incubating/attributes") if each.name and not each.deprecated
}
METRICS = {each.name: each.said for each in named_in("metrics", "_incubating/metrics") if not each.deprecated}


def unconventional(names: Iterable[str]) -> list[str]:
    """Return the attributes that are neither in the conventions, undeprecated, nor ours."""
    return sorted({each for each in names if not (conventional(each) or each.startswith(OURS))})


def conventional(name: str) -> bool:
    return name.startswith(CONVENTIONAL) and name in ATTRIBUTES


def test_the_rule_knows_good_names_from_bad_ones() -> None:
    assert len(ATTRIBUTES) > 500
    assert conventional("messaging.destination.name")
    assert conventional("error.type")
    assert unconventional(
        [
            "messaging.operation",  # deprecated
            "messaging.rabbitmq.delivery_tag",  # does not exist
            "error.message",  # deprecated
            "http.request.method",  # not ours to say
            "net.peer.name",
            "rabbitevents.attempt",
            "server.port",
        ]
    ) == [
        "error.message",
        "http.request.method",
        "messaging.operation",
        "messaging.rabbitmq.delivery_tag",
        "net.peer.name",
    ]


async def everything_that_can_happen(traces: Traces, **options: bool) -> None:
    """Let an event be retried here and at the broker, dead-lettered, replayed, and one be unroutable."""
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(2), wait=wait_fixed(30)),
        Tracing(tracer_provider=traces.provider, **options),
    ]
    async with running(Bus("memory://", inventory(fail=3), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"), delay=timedelta(seconds=5), correlation_id="c-1")
        await probe.advance(timedelta(minutes=5))
        await replay(probe.bus, "inventory.reserve")
        await probe.advance(timedelta(minutes=5))


@pytest.mark.parametrize("link", [False, True])
async def test_every_attribute_of_a_span_is_in_the_conventions_or_ours(link: bool) -> None:
    traces = Traces()
    await everything_that_can_happen(traces, link=link, error_text=True)

    names = set[str]()
    for span in traces.spans:
        names |= set(span.attributes or {})
        names |= {name for event in span.events for name in event.attributes or {}}
        names |= {name for each in span.links for name in each.attributes or {}}
    assert {"retry", "wait", "dead-letter", "replay", "process", "publish"} == {
        each.split()[0] for each in traces.names
    }
    assert unconventional(names) == []
    assert len(names) > 15


async def test_spans_are_named_by_operation_and_destination_and_operations_have_conventional_types() -> None:
    traces = Traces()
    await everything_that_can_happen(traces)

    types = {
        value.value for value in MESSAGING.MessagingOperationTypeValues if value.value not in ("publish", "deliver")
    }
    for span in traces.spans:
        said = dict(span.attributes or {})
        assert span.name == f"{said['messaging.operation.name']} {said['messaging.destination.name']}"
        assert said["messaging.system"] == MESSAGING.MessagingSystemValues.RABBITMQ.value
        assert said.get("messaging.operation.type") in {None, *types}


async def test_the_schema_and_the_scope_are_named() -> None:
    traces = Traces()
    await everything_that_can_happen(traces)

    for span in traces.spans:
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "rabbitevents"
        assert span.instrumentation_scope.schema_url in {each.value for each in Schemas}


async def test_the_opt_in_for_new_conventions_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list[list[str]]()
    for value in ("", "messaging", "messaging/dup"):
        monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", value)
        traces = Traces()
        await everything_that_can_happen(traces)
        names.append([f"{span.name} {sorted(span.attributes or {})}" for span in traces.spans])

    assert names[0] == names[1] == names[2]
