"""What it costs to observe: tracing and metrics, ours and FastStream's, in one run.

``python -m benchmarks.observing --url amqp://`` runs each contender with and without its observing plugins, in turns,
every phase in a process of its own (``pip install 'faststream[rabbit,otel,prometheus]' orjson``). With ``--collector``
it runs ours instead, with a collector that is there, away, and slow.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aio_pika
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import CollectorRegistry

from benchmarks.contenders.rabbitevents_ import OrderPlaced, RabbitEvents
from benchmarks.end_to_end import Broker
from benchmarks.workload import PHASES, PREFETCH, Contender, Handle, Publish
from rabbitevents import Bus, Plugin, Router
from rabbitevents_metrics import Metrics
from rabbitevents_tracing import Tracing

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins")))}
COMMAND = (sys.executable, "-m", "benchmarks.observing")

Result = dict[str, Any]
Round = dict[str, dict[str, Result]]
"""contender -> phase -> what the phase reported"""

MEASURED = ("publish_many", "consume")
SLOW = 5.0
"""Seconds that the slow collector takes for each answer."""


class Discarding(SpanExporter):
    """What is exported goes nowhere: what is left is the cost of making spans, and of handing them over in batches."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to close."""


def tracer(share: float, exporter: SpanExporter | None = None) -> TracerProvider:
    """Return a provider that samples this share of the traces."""
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or Discarding()))
    return provider


def exporting(exporter: Callable[[], SpanExporter]) -> list[Plugin]:
    return [Tracing(tracer_provider=tracer(1.0, exporter()))]


def ours(endpoint: str) -> dict[str, Callable[[], list[Plugin]]]:
    """Return what each of our contenders plugs in."""

    def otlp() -> SpanExporter:
        return OTLPSpanExporter(endpoint)

    return {
        "rabbitevents": list,
        "rabbitevents, tracing 100 %": lambda: [Tracing(tracer_provider=tracer(1.0))],
        "rabbitevents, tracing 1 %": lambda: [Tracing(tracer_provider=tracer(0.01))],
        "rabbitevents, tracing 0 %": lambda: [Tracing(tracer_provider=tracer(0.0))],
        "rabbitevents, metrics": lambda: [
            Metrics(meter_provider=MeterProvider([PrometheusMetricReader(registry=CollectorRegistry())]))
        ],
        "rabbitevents, collector there": lambda: exporting(otlp),
        "rabbitevents, collector away": lambda: exporting(otlp),
        "rabbitevents, collector slow": lambda: exporting(otlp),
    }


def theirs() -> dict[str, Callable[[], list[Any]]]:
    """Return what each of FastStream's contenders adds as middleware."""
    from faststream.rabbit.opentelemetry import RabbitTelemetryMiddleware
    from faststream.rabbit.prometheus import RabbitPrometheusMiddleware

    return {
        "FastStream": list,
        "FastStream, tracing 100 %": lambda: [RabbitTelemetryMiddleware(tracer_provider=tracer(1.0))],
        "FastStream, tracing 1 %": lambda: [RabbitTelemetryMiddleware(tracer_provider=tracer(0.01))],
        "FastStream, tracing 0 %": lambda: [RabbitTelemetryMiddleware(tracer_provider=tracer(0.0))],
        "FastStream, metrics": lambda: [RabbitPrometheusMiddleware(registry=CollectorRegistry())],
    }


OBSERVED = (
    *(f"rabbitevents{how}" for how in ("", ", tracing 100 %", ", tracing 1 %", ", tracing 0 %", ", metrics")),
    *(f"FastStream{how}" for how in ("", ", tracing 100 %", ", tracing 1 %", ", tracing 0 %", ", metrics")),
)
COLLECTED = tuple(f"rabbitevents, collector {how}" for how in ("there", "away", "slow"))


# --- contenders ------------------------------------------------------------------------------------------------------


class Observed(RabbitEvents):
    """rabbitevents with plugins."""

    def __init__(self, plugins: list[Plugin]) -> None:
        super().__init__()
        self._plugins = plugins

    @asynccontextmanager
    async def publisher(self, url: str) -> AsyncIterator[Publish]:
        async with Bus(url, name="bench", exchange=self.exchange, plugins=self._plugins) as bus:
            yield bus.publish

    @asynccontextmanager
    async def consumer(self, url: str, handle: Handle) -> AsyncIterator[None]:
        router = Router("bench.rabbitevents")

        @router.on(OrderPlaced, prefetch=PREFETCH, concurrency=16)
        async def on_order(order: OrderPlaced) -> None:
            handle(order.order_id)

        async with Bus(url, router, exchange=self.exchange, plugins=self._plugins):
            yield


def contender(name: str, endpoint: str) -> Contender:
    """Make a contender; FastStream is imported only where it is one."""
    if name.startswith("rabbitevents"):
        return Observed(ours(endpoint)[name]())
    from faststream.rabbit import Channel, RabbitBroker

    from benchmarks.contenders.faststream_pydantic import FastStreamPydantic

    class ObservedFastStream(FastStreamPydantic):
        def broker(self, url: str) -> RabbitBroker:
            middlewares = theirs()[name]()
            channel = Channel(prefetch_count=PREFETCH)
            return RabbitBroker(url, logger=None, default_channel=channel, middlewares=middlewares)

    return ObservedFastStream()


# --- the collector ---------------------------------------------------------------------------------------------------


class Receiver(BaseHTTPRequestHandler):
    """Takes whatever is exported."""

    delay = 0.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.delay)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def collector(name: str) -> Iterator[str]:
    """Run the collector that a contender is to have, in a process of its own; yield its endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = None
    if name.endswith(("there", "slow")):
        delay = SLOW if name.endswith("slow") else 0.0
        running = subprocess.Popen([*COMMAND, "--receive", str(port), str(delay)], cwd=ROOT, env=ENVIRONMENT)
        time.sleep(1.0)
    try:
        yield f"http://127.0.0.1:{port}/v1/traces"
    finally:
        if running is not None:
            running.kill()
            running.wait()


def receive(port: int, delay: float) -> None:
    Receiver.delay = delay
    ThreadingHTTPServer(("127.0.0.1", port), Receiver).serve_forever()


# --- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What to run, and how often."""

    url: str
    names: list[str]
    events: int
    rounds: int


def one(name: str, phase: str, url: str, events: int) -> Result:
    """Run one phase of a contender in a new process and return what it reported."""
    with collector(name) as endpoint:
        options = ["--contender", name, "--phase", phase, "--url", url, "--events", str(events), "--endpoint", endpoint]
        finished = subprocess.run(
            [*COMMAND, *options],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=120 + events / 100,
            check=True,
        )
    result: Result = json.loads(finished.stdout.splitlines()[-1])
    return result


async def measure(run: Run) -> list[Round]:
    """Run all rounds; each begins with another contender. After each phase the broker is asked what is left."""
    rounds: list[Round] = []
    async with await aio_pika.connect(run.url) as connection:
        broker = Broker(connection)
        declared = {name: await asyncio.to_thread(one, name, "declare", run.url, 0) for name in run.names}
        for number in range(run.rounds):
            rounds.append({})
            for name in run.names[number % len(run.names) :] + run.names[: number % len(run.names)]:
                queue = declared[name]["queue"]
                await broker.purge(queue)
                rounds[-1][name] = results = {}
                for phase in MEASURED:
                    results[phase] = result = await asyncio.to_thread(one, name, phase, run.url, run.events)
                    shown = "".join(f"{k} {v:<12,.4g}" for k, v in result.items())
                    print(f"  {name:32s}{phase:14s}{shown}", file=sys.stderr)
                    await broker.expect(queue, result["left"])
        await broker.delete(*{x for d in declared.values() for x in (d["queue"], d["exchange"], *d["leftovers"])})
        print(f"{broker.version()}, {os.cpu_count()} cores, Python {platform.python_version()}, {run.events:,} events")
    return rounds


def table(rounds: list[Round], names: list[str]) -> str:
    """Render medians over the rounds; what is compared is compared within a round."""
    lines = [f"medians of {len(rounds)} rounds"]
    for phase in MEASURED:
        lines += ["", phase, f"  {'':32s}{'events/s':>12s}{'x':>8s}{'CPU us':>10s}{'adds us':>10s}"]
        for name in names:
            plain = base(name)
            rate = [r[name][phase]["rate"] for r in rounds]
            cpu = [r[name][phase]["cpu_us"] for r in rounds]
            faster = [r[name][phase]["rate"] / r[plain][phase]["rate"] for r in rounds if plain in r]
            added = [r[name][phase]["cpu_us"] - r[plain][phase]["cpu_us"] for r in rounds if plain in r]
            cells = f"{statistics.median(rate):>12,.0f}{median(faster):>8}{statistics.median(cpu):>10.1f}{median(added):>10}"
            lines.append(f"  {name:32s}{cells}")
    return "\n".join(lines)


def base(name: str) -> str:
    """Return what a contender is compared with: a collector's with tracing whose spans go nowhere."""
    return "rabbitevents, tracing 100 %" if "collector" in name else name.partition(",")[0]


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "-"


def compete(name: str, phase: str, url: str, events: int, endpoint: str) -> None:
    """Run one phase in this process, and print what came out."""
    result = asyncio.run(PHASES[phase](contender(name, endpoint), url, events))
    print(json.dumps(result), flush=True)
    os._exit(0)  # the exporter's last batches are not waited for: nobody reads them


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="amqp://guest:guest@localhost/", help="a RabbitMQ that may be kept busy")
    parser.add_argument("--events", type=int, default=20_000, help="how many to publish and consume (20000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the contenders")
    parser.add_argument("--collector", action="store_true", help="ours with a collector there, away and slow, instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every single figure")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    parser.add_argument("--receive", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        receive(int(given.receive[0]), float(given.receive[1]))
    elif given.contender:
        compete(given.contender, given.phase, given.url, given.events, given.endpoint)
    else:
        names = given.only or list(("rabbitevents, tracing 100 %", *COLLECTED) if given.collector else OBSERVED)
        rounds = asyncio.run(measure(Run(given.url, names, given.events, given.rounds)))
        print(table(rounds, names))
        if given.json:
            given.json.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
