"""The demonstration's traces: in the terminal, and at a collector."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from rabbitevents.demo import services, traces
from tests.bed.loopback import free_port
from tests.bed.otlp import Collector
from tests.test_demo import DEMO, ROOT, Main, main

__all__ = ["main"]


def test_the_trace_of_an_order_that_was_tried_again_is_shown_with_durations(main: Main) -> None:
    code, out, _ = main("--orders", "40", "--fail", "0.3", "--trace")
    trace = out[out.index("Its trace, when each step began and how long it took:") + 1 : -3]

    assert code == 0
    assert all(re.match(r" +\d+\.\d{3} s +[\d.]+ (ms|s)  ", line) for line in trace)
    assert re.search(r"  publish shop:order\.placed$", trace[0])
    attempts = [line for line in trace if "process shop:inventory.reserved:shop.payment.charge" in line]
    assert "attempt 1, failed with" in attempts[0]
    assert "ProviderUnavailableError" in attempts[0]
    assert f"attempt {len(attempts)}" in attempts[-1]
    assert any(re.search(r"retry shop\.payment\.charge +in [\d.]+ s", line) for line in trace)
    assert any("wait shop.payment.charge" in line for line in trace)
    assert any("process shop:order.confirmed:shop.notification.tell" in line for line in trace)


@pytest.mark.parametrize("width", [50, 80])
def test_what_people_see_fits_their_terminal(width: int) -> None:
    ran = subprocess.run(
        [*DEMO, "--orders", "60", "--fail", "0.3", "--poison", "--trace"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(width), "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )

    lines = ran.stdout.splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith("60 orders placed"))

    shown = [line for line in lines[:end] if not line.startswith("Its trace")]  # which is no terminal's here
    assert max(map(len, shown)) <= width
    assert any(re.match(r"notification +\d+ +\d+ +0 +0 +\d+$", line) for line in shown)
    assert any("OrderAnalyticsUpdated analytics" in line for line in shown)
    assert not any("…" in line for line in shown)
    assert any(line.startswith("publish shop:order.placed") for line in shown)


def test_five_processes_tell_one_trace_and_send_theirs_to_a_collector(
    main: Main, rabbit_url: str, otlp: Collector
) -> None:
    code, out, _ = main("--orders", "15", "--broker", rabbit_url, "--processes", "--trace", "--otlp", otlp.endpoint)

    assert code == 0
    shown = [line for line in out if re.match(r" +\d+\.\d{3} s ", line)]
    assert any("shop.notification.tell" in line for line in shown)
    assert {span.service for span in otlp.spans} == {f"shop.{name}" for name in services.SERVICES}
    placed = otlp.named("publish shop:order.placed")
    assert len(placed) == len({span.trace for span in otlp.spans}) == 15
    assert {span.id for span in otlp.spans if not span.parent} == {span.id for span in placed}
    assert len(shown) in {sum(span.trace == each.trace for span in otlp.spans) for each in placed}


@pytest.mark.parametrize("more", [[], ["--processes"]])
def test_a_collector_that_is_away_is_one_line_and_the_shop_goes_on(
    request: pytest.FixtureRequest, more: list[str]
) -> None:
    port = free_port()
    broker = ["--broker", request.getfixturevalue("rabbit_url")] if more else []
    arguments = ["--orders", "40", "--otlp", f"http://user:secret@127.0.0.1:{port}", "--json", *more, *broker]

    ran = subprocess.run([*DEMO, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ran.returncode == 0
    warnings = [line for line in ran.stderr.splitlines() if "orders " not in line and " runs as process " not in line]
    assert warnings == [f"the collector at http://127.0.0.1:{port} takes no traces: the shop goes on without"]


def test_a_collector_that_takes_nothing_is_said_once_and_sent_to_again_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "PAUSE", 0.0)
    monkeypatch.setattr(traces, "TIMEOUT", 0.2)
    said: list[str] = []
    collector = Collector()
    sending = traces.Sending(collector.endpoint, said.append)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(sending))
    tracer = provider.get_tracer("shop")

    for name in ("first", "second"):
        tracer.start_span(name).end()
    with collector:
        tracer.start_span("third").end()
        collector.wait(lambda: bool(collector.spans), "the third span")
    provider.shutdown()

    assert [span.name for span in collector.spans] == ["third"]
    assert len(said) == 1


def test_a_collector_that_is_slow_is_not_waited_for_at_the_end(otlp: Collector) -> None:
    said: list[str] = []
    sending = traces.Sending(otlp.endpoint, said.append)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(sending))
    tracer = provider.get_tracer("shop")

    tracer.start_span("in time").end()
    sending.end_within(-0.001)
    tracer.start_span("too late").end()
    provider.shutdown()

    assert [span.name for span in otlp.spans] == ["in time"]
    assert said == [f"the collector at {otlp.endpoint} is slow: the last spans were not sent"]


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["--trace"], "opentelemetry.sdk.trace.export", "otel"),
        (["--otlp", "http://localhost:4318"], "opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel"),
        (["--redis", "redis://localhost"], "redis.asyncio", "redis"),
        (["--store", "sqlite:///shop.db"], "sqlalchemy", "sql"),
        (["--store", "sqlite:///shop.db"], "aiosqlite", "sql"),
        (["--store", "postgresql://localhost/shop"], "asyncpg", "sql"),
    ],
)
def test_an_extra_that_is_not_installed_is_named_in_one_line(
    main: Main, monkeypatch: pytest.MonkeyPatch, arguments: list[str], module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    monkeypatch.delitem(sys.modules, "rabbitevents.demo.traces", raising=False)
    monkeypatch.delitem(sys.modules, "rabbitevents.demo.store", raising=False)

    code, out, err = main("--orders", "5", *arguments)

    assert code == 2
    assert out == []
    assert len(err) == 1
    assert f"pip install 'rabbitevents[{extra}]'" in err[0]
