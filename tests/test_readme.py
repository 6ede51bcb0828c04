"""What the documentation says is so: its programs run, its links lead somewhere, and the names it uses exist."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from attrs import frozen

from rabbitevents import Bus, Delivery, Event, Metadata, UnroutableError, event
from rabbitevents.codec import Codec
from rabbitevents.events import now
from rabbitevents.ids import new_id
from rabbitevents.properties import Properties
from rabbitevents.wire import DOCUMENT, identify, read, write

CHECKOUT = Path(__file__).parent.parent
PAGES = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), *CHECKOUT.glob("benchmarks/*.md")]
README = CHECKOUT / "README.md"
TOUR = CHECKOUT / "docs" / "tour.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def programs(page: Path, language: str = "python") -> list[str]:
    """Return the blocks of code on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


# --- programs ------------------------------------------------------------------------------------------------------


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def test_the_shortest_service_runs_when_it_is_pasted(tmp_path: Path) -> None:
    (tmp_path / "shortest.py").write_text(programs(README)[0])

    command = [sys.executable, "-W", "error", "shortest.py"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False
    )

    assert (ran.stdout, ran.stderr, ran.returncode) == ("reserved for order o-1\n", "", 0)


async def test_the_service_on_rabbitmq_runs_until_sigterm(tmp_path: Path, rabbit_url: str) -> None:
    service, main = programs(README)
    handlers = service[: service.index("async def main")]
    (tmp_path / "service.py").write_text(handlers + main.replace("amqp://localhost", rabbit_url))

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "service.py", cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    try:
        await order_when_bound(rabbit_url)
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readline(), 30)
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), 30)
    finally:
        with suppress(ProcessLookupError):
            process.kill()

    assert (said, code) == (b"reserved for order o-2\n", 0)


@event("order.placed", version=1, entity="order", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    quantity: int


async def order_when_bound(url: str) -> None:
    """Publish an order as soon as the service's queue is there to take it."""
    async with asyncio.timeout(30), Bus(url, unroutable="raise") as bus:
        while True:
            try:
                await bus.publish(OrderPlaced("o-2", 1))
            except UnroutableError:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.parametrize("page", [p for p in PAGES if programs(p)], ids=name_of)
def test_every_program_can_be_compiled(page: Path) -> None:
    for program in programs(page):
        compile(program, name_of(page), "exec")


# --- the wire contract ---------------------------------------------------------------------------------------------

CONTRACT = CHECKOUT / "docs" / "wire-contract.md"


def said_to_be_sent(where: str) -> set[str]:
    """Return the names of one kind in the contract's first table."""
    return set(re.findall(rf"^\| {where} \| `([^`]+)`", CONTRACT.read_text(), re.MULTILINE))


def test_what_is_sent_is_what_the_contract_says() -> None:
    metadata = Metadata("correlation", "causation", "shop", {"<key>": "value"})
    envelope = Event(new_id(), "order.placed", 1, "order", "o-1", now(), OrderPlaced("o-1", 2), metadata)

    body, properties = write(envelope, Codec(OrderPlaced), "amqp")

    assert body == b'{"order_id":"o-1","quantity":2}'
    assert set(properties.headers) == said_to_be_sent("header")
    known = msgspec.structs.asdict(properties)
    assert {name for name, value in known.items() if value is not None} - {"headers"} == said_to_be_sent("property")


def test_the_contracts_structured_document_is_understood() -> None:
    (document,) = programs(CONTRACT, "json")
    properties = Properties(content_type=DOCUMENT)
    delivery = Delivery("queue", 1, 1, False, "events", "order.placed", document.encode(), properties)

    identify(delivery)
    received = read(delivery)
    envelope = received.envelope(Codec(OrderPlaced).decode(received.body, received.version))

    assert (str(envelope.id), envelope.type, envelope.version) == (
        "01936b2e-7c1a-7e3b-9f00-0123456789ab",
        "order.placed",
        1,
    )
    assert (envelope.entity_type, envelope.entity_id) == ("order", "o-1")
    assert envelope.timestamp == datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
    assert envelope.payload == OrderPlaced("o-1", 2)
    assert envelope.metadata.source == "shop"


# --- links and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())

    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:rabbitevents|tests|docs|scripts|benchmarks)/[\w/.-]+)`", page.read_text())

    assert [name for name in named if not (CHECKOUT / name).exists()] == []


STEP = re.compile(r"\*\*\[([\w/.]+)\]\([^)]*\)\*\*(.*?)(?=\*\*\[|\Z)", re.DOTALL)
"""A step of the tour: a file, and what is said of it up to the next one or the end of the paragraph."""


def test_the_tour_names_functions_that_are_in_the_files() -> None:
    steps = [step for paragraph in TOUR.read_text().split("\n\n") for step in STEP.findall(paragraph)]
    missing: list[str] = []
    for path, text in steps:
        defined = names_in(CHECKOUT / path)
        missing += [f"{path}: {name}" for name in re.findall(r"`([\w.]+)\(\)`", text) if name not in defined]

    assert len(steps) > 30
    assert missing == []


def test_the_tour_names_classes_that_are_in_the_files() -> None:
    missing: list[str] = []
    for paragraph in TOUR.read_text().split("\n\n"):
        files = [CHECKOUT / path for path, _ in STEP.findall(paragraph)]
        words = {word for path in files for word in re.findall(r"\w+", path.read_text())}
        missing += [name for name in re.findall(r"`([A-Z]\w+)`", paragraph) if files and name not in words]

    assert missing == []


def names_in(path: Path) -> set[str]:
    """Return the functions of a module, and the methods of its classes as ``Class.method``."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            found.update(f"{node.name}.{method.name}" for method in methods)
    return found
