"""What the documentation says is so: its code runs, its commands exist, its links and names lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import rabbitevents
import rabbitevents.cli
import rabbitevents.testing
from tests.documents import CHECKOUT, PAGES, blocks, name_of, prose
from tests.follow import BROKER, follow

README = CHECKOUT / "README.md"
TOUR = CHECKOUT / "docs" / "tour.md"
TUTORIAL = CHECKOUT / "docs" / "tutorial.md"  # which tests/test_tutorial.py follows
FOLLOWED = [page for page in PAGES if blocks(page, "python", "console") and page != TUTORIAL]


# --- code ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", FOLLOWED, ids=name_of)
async def test_a_page_can_be_followed(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    needs_rabbitmq = any(BROKER in block.text for block in blocks(page, "python", "console"))
    url: str | None = request.getfixturevalue("rabbit_url") if needs_rabbitmq else None

    await follow(page, tmp_path, url)


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
    there |= set(re.findall(r"def (test_\w+)", CONFORMANCE.read_text()))

    assert named - there == set()


CONFORMANCE = CHECKOUT / "rabbitevents" / "testing" / "conformance.py"
REFERENCE = sorted((CHECKOUT / "docs" / "reference").glob("*.md"))


@pytest.mark.parametrize("module", [rabbitevents, rabbitevents.cli, rabbitevents.testing])
def test_the_reference_has_every_public_name(module: object) -> None:
    name: str = getattr(module, "__name__")  # noqa: B009
    public: list[str] = getattr(module, "__all__")  # noqa: B009
    text = "\n".join(page.read_text() for page in REFERENCE)
    said = set(re.findall(rf"^\.\. (?:auto\w+|data):: {re.escape(name)}\.(\w+)$", text, re.MULTILINE))

    assert said == set(public)


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
