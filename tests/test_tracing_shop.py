"""The shop's traces: five services in processes of their own on RabbitMQ, as a collector receives them."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.bed.otlp import Collector, Span
from tests.bed.rabbitmq import RabbitNode
from tests.test_tracing_conventions import unconventional

ROOT = Path(__file__).parent.parent
PASSWORD = "marker-in-the-password"
USERS = itertools.count(1)


async def demo(*options: str) -> str:
    """Run the demonstration to its end, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins"))), "COLUMNS": "200"}
    command = [sys.executable, "-m", "rabbitevents", "demo", *options]
    ended = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
async def seen(otlp: Collector, rabbit_url: str, rabbit_node: RabbitNode) -> tuple[Collector, str]:
    """What a collector got of a run in which payments fail and one order is poisoned, and what was printed."""
    user = f"shopkeeper-{next(USERS)}"  # the node is shared by all tests, and its users are
    url = rabbit_node.add_user(rabbit_url, user, PASSWORD)
    rabbit_node.set_permissions(rabbit_url, ".*", ".*", ".*", user=user)
    printed = await demo(
        "--broker", url, "--processes", "--orders", "6", "--fail", "0.5", "--poison", "--trace", "--otlp", otlp.endpoint
    )
    return otlp, printed


def by_trace(spans: list[Span]) -> list[list[Span]]:
    traces = dict[str, list[Span]]()
    for span in spans:
        traces.setdefault(span.trace, []).append(span)
    return list(traces.values())


async def test_each_order_of_the_shop_is_one_trace(seen: tuple[Collector, str]) -> None:
    otlp, printed = seen

    traces = by_trace(otlp.spans)
    assert len(traces) >= 6
    for trace in traces:
        ids = {span.id for span in trace}
        roots = [span for span in trace if span.parent == ""]
        assert [span.name for span in roots] == ["publish shop:order.placed"]
        assert all(span.parent in ids for span in trace if span not in roots)
        assert all(link.trace == trace[0].trace and link.span in ids for span in trace for link in span.links)
        assert (
            len({span.attributes["messaging.message.conversation_id"] for span in trace if span.kind != "INTERNAL"})
            == 1
        )
    happened = Counter(span.name.split()[0] for span in otlp.spans)
    assert happened["retry"] > 0
    assert happened["dead-letter"] >= 1
    assert {"shop.order", "shop.inventory", "shop.payment", "shop.notification"} <= {
        span.service for span in otlp.spans
    }
    assert "publish shop:order.placed" in printed


async def test_each_attempt_of_the_shop_is_linked_to_the_one_before(seen: tuple[Collector, str]) -> None:
    otlp, _ = seen

    attempts = dict[tuple[str, str], list[Span]]()
    for span in sorted(otlp.spans, key=lambda span: span.start):
        if span.kind == "CONSUMER":
            attempts.setdefault(
                (span.attributes["rabbitevents.queue"], span.attributes["messaging.message.id"]), []
            ).append(span)
    repeated = [spans for spans in attempts.values() if len(spans) > 1]
    assert repeated
    for spans in repeated:
        assert [[link.span for link in span.links] for span in spans] == [[], *([span.id] for span in spans[:-1])]
        assert [span.attributes["rabbitevents.attempt"] for span in spans] == list(range(1, len(spans) + 1))
        assert all(span.failed for span in spans[:-1])


async def test_the_shop_s_spans_keep_to_the_conventions_and_its_password_to_itself(seen: tuple[Collector, str]) -> None:
    otlp, printed = seen

    assert unconventional(name for span in otlp.spans for name in span.attributes) == []
    assert {span.schema for span in otlp.spans} == {"https://opentelemetry.io/schemas/1.44.0"}
    assert PASSWORD.encode() not in b"".join(otlp.requests)
    assert PASSWORD not in printed
