"""What the documentation shows type-checks as strictly as the library does: all of its Python, in one run of mypy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.documents import CHECKOUT, PAGES, Block, blocks, name_of

pytest.importorskip("mypy")

CHECKED = [page for page in PAGES if blocks(page, "python")]

FOREIGN = ("import-untyped", "untyped-decorator", "no-untyped-call")
"""What libraries without types, such as Celery and Django, make of those who use them: not ours to mend."""


@pytest.mark.timeout(360)  # mypy, over some hundred files
def test_every_snippet_type_checks_strictly(tmp_path: Path) -> None:
    places = write_all(tmp_path)

    found = errors(tmp_path)

    assert len(places) > 50
    assert "\n".join(said(line, places, tmp_path) for line in found) == ""


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ('from attrs import frozen\nlamps: int = "two"\n', "Incompatible types"),
        ("# shop.py\ndef place(order):\n    return order\n", "missing a type annotation"),
        ("# shop.py\nx = 1\n", ""),
        ("await asyncio.sleep(1)\n", 'Name "asyncio" is not defined'),
    ],
)
def test_a_snippet_that_is_wrong_is_found(tmp_path: Path, code: str, problem: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```python\n{code}```\n")
    folder = tmp_path / "written"
    folder.mkdir()
    places = write(page, folder)

    found = [said(line, places, folder) for line in errors(folder)]

    assert [problem in line and line.startswith("page.md:") for line in found] == [True] * len(found)
    assert bool(found) == bool(problem)


# --- a folder that mypy can look through ---------------------------------------------------------------------------

Places = dict[Path, list[str]]
"""For each file that was written, where each of its lines stands."""


def write_all(folder: Path) -> Places:
    """Write the Python of all pages, each page's in a folder of its own; return where each line stands."""
    places: Places = {}
    for page in CHECKED:
        places |= write(page, folder)
    return places


def write(page: Path, folder: Path) -> Places:
    """Write one page's Python: a package for its files, another where a file is replaced, a module for its lines."""
    package = re.sub(r"\W", "_", name_of(page).removesuffix(".md"))
    modules = {block.file.split("/")[0].removesuffix(".py") for block in blocks(page, "python") if block.file}
    places: Places = {}
    stage = package
    for number, files in enumerate(stages(page)):
        stage = f"{package}_{number}"
        for name, found in files.items():
            path = folder / stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(own_imports("".join(block.text for block in found), modules & own(files), stage))
            places[path] = [place for block in found for place in lines_of(block)]
    lines = [block for block in blocks(page, "python") if block.file is None]
    if lines:
        path = folder / f"{package}_lines.py"
        text = own_imports("".join(block.text for block in lines), modules, stage)
        path.write_text("async def page() -> None:\n" + textwrap.indent(text, "    "))
        places[path] = ["", *(place for block in lines for place in lines_of(block))]
    return places


def stages(page: Path) -> Iterator[Mapping[str, list[Block]]]:
    """Yield the files of a page, each time before one of them is replaced, and at the end."""
    files: dict[str, list[Block]] = {}
    for block in blocks(page, "python"):
        if block.file is None:
            continue
        if block.goes_on:
            files[block.file] = [*files[block.file], block]
            continue
        if block.file in files:
            yield dict(files)
        files[block.file] = [block]
    if files:
        yield files


def own(files: Mapping[str, list[Block]]) -> set[str]:
    return {name.split("/")[0].removesuffix(".py") for name in files}


def own_imports(text: str, modules: set[str], package: str) -> str:
    """Return the text with its imports of the page's own modules made those of a package: pages have the same names."""
    if not modules:
        return text
    names = "|".join(map(re.escape, sorted(modules)))
    text = re.sub(rf"^(\s*)from ({names})(?=[. ])", rf"\1from {package}.\2", text, flags=re.MULTILINE)
    return re.sub(rf"^(\s*)import ({names})(?=$| as )", rf"\1from {package} import \2", text, flags=re.MULTILINE)


def lines_of(block: Block) -> list[str]:
    return [f"{name_of(block.page)}:{block.line + number}" for number in range(block.text.count("\n"))]


def errors(folder: Path) -> list[str]:
    """Return what mypy says of all that is in ``folder``; our own sources are checked by themselves, with one pydantic."""
    environment = {**os.environ, "MYPYPATH": f"{folder}:{CHECKOUT}:{CHECKOUT / 'plugins'}"}
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--explicit-package-bases", "--no-error-summary"]
        + [f"--disable-error-code={code}" for code in FOREIGN]
        + [f"--cache-dir={CHECKOUT / '.mypy_cache' / 'snippets'}", str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    lines = [line for line in ran.stdout.splitlines() if ": error: " in line]
    return [line for line in lines if not line.startswith(f"{CHECKOUT}/")]


def said(line: str, places: Places, folder: Path) -> str:
    """Return what mypy says with the page's line in the place of the file's."""
    name, number, rest = line.split(":", 2)
    there = places.get(folder / name, [])
    return f"{there[int(number) - 1] if there else name}:{rest}"
