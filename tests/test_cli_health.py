"""``rabbitevents run --log`` and ``--health``: what an orchestrator reads, of one process and of several."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.bed.loopback import free_port
from tests.test_cli_run import GRACE, Service, publish, service
from tests.test_cli_workers import until_running


async def asked(port: int, question: str) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient() as client:
        response = await client.get(f"http://127.0.0.1:{port}/{question}")
    return response.status_code, response.json()


async def until(port: int, question: str, status: int, seconds: float) -> dict[str, Any]:
    """Ask until the answer has ``status``; return it."""
    answer: tuple[int, dict[str, Any]] = (0, {})
    end = asyncio.get_running_loop().time() + seconds
    while answer[0] != status:
        assert asyncio.get_running_loop().time() < end, f"no {status} within {seconds:g} s, but {answer}"
        await asyncio.sleep(0.05)
        try:
            answer = await asked(port, question)
        except httpx.TransportError:
            continue  # nobody listens yet
    return answer[1]


def failing(document: dict[str, Any]) -> set[str]:
    return {check["name"] for check in document["checks"] if not check["ok"]}


async def test_a_service_says_that_it_is_ready_once_it_consumes(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--health", "0", url=rabbit_url) as told:
        await told.until_said("store runs on")
        found = re.search(r"health on port (\d+): /live, /ready, /health", told.said)
        assert found is not None
        port = int(found[1])

        ready = await until(port, "ready", 200, 10)
        live, health = await asked(port, "live"), await asked(port, "health")
        told.process.terminate()
        code = await told.ends(GRACE + 5)

    assert ready["status"] == "ok"
    assert (live[0], health[0]) == (200, 200)
    assert {"bus", "connection publish", "subscription store.pack"} <= {c["name"] for c in health[1]["checks"]}
    assert code == 0


async def test_a_service_whose_broker_is_still_away_lives_and_is_not_ready(tmp_path: Path) -> None:
    port = free_port()
    async with service(tmp_path, "--health", str(port), url=f"amqp://127.0.0.1:{free_port()}"):
        live = await until(port, "live", 200, 10)
        ready = await asked(port, "ready")

    assert live["status"] == "ok"
    assert ready[0] == 503
    assert "bus" in failing(ready[1])


async def test_one_port_answers_for_all_workers_and_names_the_one_that_does_not_run(
    rabbit_url: str, tmp_path: Path
) -> None:
    port = free_port()
    async with service(tmp_path, "--workers", "2", "--health", str(port), url=rabbit_url) as told:
        pids = await until_running(told, 2)
        before = await until(port, "ready", 200, 10)
        os.kill(pids[1], signal.SIGSTOP)
        silent = await until(port, "ready", 503, 10)
        os.kill(pids[1], signal.SIGKILL)
        gone = await until(port, "ready", 503, 10)
        back = await until(port, "ready", 200, 30)

    assert before["checks"] == back["checks"] == []
    assert [check["detail"] for check in silent["checks"]] == ["has said nothing for 5 s"]
    assert {name.partition(":")[0] for name in failing(silent) | failing(gone)} == {"worker 2"}


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    port = free_port()
    async with (
        await asyncio.start_server(lambda reader, writer: writer.close(), "0.0.0.0", port),
        service(tmp_path, "--health", str(port)) as told,
    ):
        code = await told.ends(20)

    assert code == 2
    assert f"health cannot be served on port {port}" in told.said.splitlines()[-1]


def lines(told: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.said.splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
async def test_every_line_of_a_json_log_is_a_document_that_says_which_event_it_is_about(
    rabbit_url: str, tmp_path: Path, workers: int
) -> None:
    source = """
import logging, os
from rabbitevents import Bus, Router
from tests.shop import OrderPlaced
store = Router("store")
log = logging.getLogger("parcels")
@store.on(OrderPlaced)
async def pack(order: OrderPlaced) -> None:
    log.info("packing")
    raise ValueError("a secret of the payload")
bus = Bus(os.environ["URL"], store, grace=1)
"""
    options = ["--log", "json", *(["--workers", "2"] if workers > 1 else [])]
    async with service(tmp_path, *options, url=rabbit_url, source=source) as told:
        await told.until_said("store runs on", workers)
        await publish(rabbit_url, "o-1")
        await told.until_said("and no plugin took care of it")
        told.process.terminate()
        await told.ends(10)

    own = next(line for line in lines(told) if line["logger"] == "parcels")
    held = next(line for line in lines(told) if line["logger"] == "rabbitevents.consumer")
    for line in (own, held):
        assert (line["event_type"], line["subscription"], line["attempt"]) == ("order.placed", "store.pack", 1)
    assert own["event_id"] == held["event_id"] != ""
    assert (own["message"], own["level"]) == ("packing", "INFO")
    assert ("worker" in own) is (workers > 1)
