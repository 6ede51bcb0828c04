"""A service that shows its metrics on a port, its workers, and the tools beside it: nobody takes another's port."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.bed.loopback import free_port
from tests.documents import CHECKOUT, blocks
from tests.shop import eventually
from tests.test_cli import environment, started
from tests.test_cli_run import service

SERVICE = """
import os
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from page import MetricsPage
from rabbitevents import Bus, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_metrics import Metrics
from tests.shop import OrderPlaced

store = Router("store")

@store.on(OrderPlaced)
async def pack(order: OrderPlaced) -> None: ...

def make_bus() -> Bus:
    metrics = Metrics(meter_provider=MeterProvider([PrometheusMetricReader()]))
    page = MetricsPage(int(os.environ["PORT"]))
    return Bus(os.environ["URL"], store, plugins=[DeadLetter(), metrics, page], grace=2)

bus = make_bus()
"""


def write_the_documented_page(folder: Path) -> None:
    (page,) = (b for b in blocks(CHECKOUT / "docs" / "howto" / "metrics.md", "python") if b.file == "page.py")
    (folder / "page.py").write_text(page.text)


def shows_the_consumers(port: int) -> bool:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return b"rabbitevents_consumers_running" in answer.read()


async def test_workers_have_a_page_each_and_the_dead_letter_tools_run_beside_them(
    rabbit_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_the_documented_page(tmp_path)
    port = free_port()
    monkeypatch.setenv("PORT", str(port))

    async with service(tmp_path, "--workers", "2", url=rabbit_url, source=SERVICE) as running:
        await running.until_said("store runs on", 2)
        for number in (port, port + 1):
            await eventually(partial(shows_the_consumers, number), f"the page on port {number}")
        looked = [
            await asyncio.to_thread(
                started, "dlq", "list", f"parcels:{name}", folder=tmp_path, env=environment(URL=rabbit_url)
            )
            for name in ("bus", "make_bus")
        ]
        running.process.terminate()
        code = await running.ends(10)

    assert [(each.returncode, each.stdout.strip()) for each in looked] == [(0, "no dead letters")] * 2
    assert code == 0
