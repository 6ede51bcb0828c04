"""What a process measures as a page, and one page for several workers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from rabbitevents import Check, Health
from rabbitevents.exposition import exposition, union
from rabbitevents.health import HealthServer
from tests.bed.loopback import LOOPBACK
from tests.shop import eventually


def page(handled: int, **labels: str) -> bytes:
    """What one worker measured."""
    registry = CollectorRegistry()
    counter = Counter("handled", "Events \\ \n handled.", list(labels), registry=registry)
    (counter.labels(**labels) if labels else counter).inc(handled)
    Histogram("took", "How long.", buckets=(0.1, 1), registry=registry).observe(0.5)
    return generate_latest(registry)


def samples(text: bytes) -> dict[tuple[str, str], float]:
    """Values by name and worker."""
    return {
        (sample.name, sample.labels["worker"]): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_the_union_has_each_family_once_and_each_sample_under_its_worker() -> None:
    found = union({1: page(3), 2: page(4)})

    assert found.count(b"# TYPE handled_total counter") == found.count(b"# TYPE took histogram") == 1
    assert samples(found)["handled_total", "1"] == 3
    assert samples(found)["handled_total", "2"] == 4
    assert samples(found)["took_count", "2"] == 1
    assert b'took_bucket{le="+Inf",worker="1"} 1.0' in found


def test_the_union_of_one_worker_is_its_own_page_with_a_label() -> None:
    own = list(text_string_to_metric_families(page(3, place='a \\ " \n }').decode()))

    found = [
        each
        for each in text_string_to_metric_families(union({1: page(3, place='a \\ " \n }')}).decode())
        if each.name != "rabbitevents_worker_answered"
    ]

    assert [(each.name, each.type, each.documentation) for each in own] == [
        (each.name, each.type, each.documentation) for each in found
    ]
    for before, after in zip(own, found, strict=True):
        without = [(s.name, {n: v for n, v in s.labels.items() if n != "worker"}) for s in after.samples]
        assert without == [(s.name, s.labels) for s in before.samples] or "_created" in after.name


def test_a_worker_that_did_not_answer_is_said_and_the_others_are_there() -> None:
    found = samples(union({1: page(3), 2: b""}))

    assert found["rabbitevents_worker_answered", "1"] == 1
    assert found["rabbitevents_worker_answered", "2"] == 0
    assert ("handled_total", "2") not in found


def test_a_label_of_that_name_is_kept_under_another_as_prometheus_does() -> None:
    assert b'handled_total{exported_worker="theirs",worker="1"} 3.0' in union({1: page(3, worker="theirs")})


class Failing(Collector):
    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        raise LookupError("a secret of the collector")


async def asked(server: HealthServer) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{LOOPBACK}:{server.port}/metrics")


def well() -> Health:
    return Health((Check("bus", True),))


async def test_a_server_shows_what_its_process_measures_and_what_fails_is_said() -> None:
    async with HealthServer(well, 0, LOOPBACK) as server:
        shown = await asked(server)
        failing = Failing()
        REGISTRY.register(failing)
        try:
            failed = await asked(server)
        finally:
            REGISTRY.unregister(failing)

    assert (shown.status_code, shown.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert "python_info" in shown.text
    assert b"python_info" in exposition()
    assert failed.status_code == 500
    assert "secret" not in failed.text


async def test_without_the_library_the_page_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "rabbitevents.exposition")
    async with HealthServer(well, 0, LOOPBACK) as server:
        found = await asked(server)

    assert found.status_code == 404
    assert "pip install 'rabbitevents[otel]'" in found.json()["status"]


async def test_what_is_measured_is_collected_once_for_all_who_ask_meanwhile() -> None:
    collected, go = 0, asyncio.Event()

    async def measured() -> bytes:
        nonlocal collected
        collected += 1
        await go.wait()
        return b"x 1\n"

    async with HealthServer(well, 0, LOOPBACK, measured=measured) as server:
        asking = [asyncio.create_task(asked(server)) for _ in range(10)]
        inside: Any = server
        await eventually(lambda: len(inside._open) == 10 and not inside._silent, "all to have asked")
        go.set()
        answers = await asyncio.gather(*asking)

    assert [each.text for each in answers] == ["x 1\n"] * 10
    assert collected == 1
