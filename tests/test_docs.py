"""What the documentation says is so: its code runs, its commands exist, its links and names lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import rabbitevents
import rabbitevents.asgi
import rabbitevents.cli
import rabbitevents.health
import rabbitevents.logs
import rabbitevents.testing
import rabbitevents_deadletter
import rabbitevents_django
import rabbitevents_django.testing
import rabbitevents_eventstore
import rabbitevents_idempotency
import rabbitevents_metrics
import rabbitevents_process
import rabbitevents_process.testing
import rabbitevents_retry
import rabbitevents_sql
import rabbitevents_tracing
from tests.bed.rabbitmq import RabbitNode
from tests.documents import CHECKOUT, PAGES, blocks, name_of, prose
from tests.follow import BROKER, MANAGEMENT, follow

README = CHECKOUT / "README.md"
TOUR = CHECKOUT / "docs" / "tour.md"
TUTORIAL = CHECKOUT / "docs" / "tutorial.md"  # which tests/test_tutorial.py follows
FOLLOWED = [page for page in PAGES if blocks(page, "python", "console") and page != TUTORIAL]


# --- code ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", FOLLOWED, ids=name_of)
async def test_a_page_can_be_followed(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = "".join(block.text for block in blocks(page, "python", "console"))
    if MANAGEMENT in text:
        node: RabbitNode = request.getfixturevalue("managed_node")
        await follow(page, tmp_path, node.add_vhost(), node.http_url)
    else:
        await follow(page, tmp_path, request.getfixturevalue("rabbit_url") if BROKER in text else None)


def test_a_page_has_something_to_follow() -> None:
    assert len(FOLLOWED) >= 10
    assert sum(len(blocks(page, "python")) for page in FOLLOWED) >= 50


# --- links and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", prose(page))

    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:rabbitevents|plugins|tests|docs|scripts|benchmarks)/[\w/.-]+)`", page.read_text())

    assert [name for name in named if not (CHECKOUT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    there = {
        name for file in CHECKOUT.glob("tests/**/*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    there |= {name for room in CONFORMANCE.glob("*.py") for name in re.findall(r"def (test_\w+)", room.read_text())}

    assert named - there == set()


CONFORMANCE = CHECKOUT / "rabbitevents" / "testing" / "conformance"
REFERENCE = sorted((CHECKOUT / "docs" / "reference").glob("*.md"))


EXPORTING: list[ModuleType] = [
    rabbitevents,
    rabbitevents.cli,
    rabbitevents.testing,
    rabbitevents_deadletter,
    rabbitevents_django,
    rabbitevents_django.testing,
    rabbitevents_eventstore,
    rabbitevents_idempotency,
    rabbitevents_metrics,
    rabbitevents_process,
    rabbitevents_process.testing,
    rabbitevents_retry,
    rabbitevents_sql,
    rabbitevents_tracing,
]
"""Packages: what is public is what they say they export."""

ROOMS: list[ModuleType] = [rabbitevents.asgi, rabbitevents.health, rabbitevents.logs]
"""Modules that are imported by their own name: what is public is what they define."""


def documented(module: ModuleType) -> set[str]:
    """Return the names of a module that the reference has."""
    text = "\n".join(page.read_text() for page in REFERENCE)
    name = re.escape(module.__name__)
    return set(re.findall(rf"^\.\. (?:auto\w+|data):: {name}\.(\w+)$", text, re.MULTILINE))


@pytest.mark.parametrize("module", EXPORTING, ids=lambda module: module.__name__)
def test_the_reference_has_every_public_name(module: ModuleType) -> None:
    exported: set[str] = set(vars(module)["__all__"])

    assert documented(module) == exported


@pytest.mark.parametrize("module", ROOMS, ids=lambda module: module.__name__)
def test_the_reference_has_every_function_and_class_of_a_room(module: ModuleType) -> None:
    defined = {
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }

    assert defined
    assert defined <= documented(module)
    assert documented(module) <= set(vars(module))


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
