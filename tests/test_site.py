"""The documentation becomes a site, without a warning, and the site needs nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.documents import CHECKOUT, PAGES, blocks

pytestmark = pytest.mark.timeout(300)
"""Sphinx computes for half a minute, and on a busy machine that is minutes."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "trees")]
    built = subprocess.run(
        [*command, str(CHECKOUT / "docs"), str(folder / "html")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (built.stderr, built.returncode) == ("", 0)
    return folder / "html"


class Fetched(HTMLParser):
    """What a browser fetches for a page, and where the page's links lead."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif tag in ("script", "img", "iframe", "source"):
            self.fetched.append(given.get("src", ""))
        elif tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.fetched.append(given.get("href", ""))


def pages(site: Path) -> Iterator[tuple[Path, Fetched]]:
    for page in sorted(site.rglob("*.html")):
        yield page, Fetched(page)


def test_a_page_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = [(page.name, address) for page, found in pages(site) for address in found.fetched if address]
    styles = "".join(style.read_text() for style in site.rglob("*.css"))

    assert len(fetched) > 100
    assert [each for each in fetched if "://" in each[1] or each[1].startswith("//")] == []
    assert re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^)]*""", styles) == []


def test_links_within_the_site_lead_somewhere(site: Path) -> None:
    there = dict(pages(site))
    broken: list[str] = []
    for page, found in there.items():
        for link in found.links:
            path, _, anchor = link.partition("#")
            if "://" in link or not (path or anchor):
                continue
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and target in there and anchor not in there[target].ids):
                broken.append(f"{page.relative_to(site)}: {link}")

    assert broken == []


def test_a_file_that_the_tour_names_is_a_page(site: Path) -> None:
    assert "class Bus" in re.sub("<[^>]+>", "", (site / "source/rabbitevents/bus.py.html").read_text())
    assert 'href="source/rabbitevents/bus.py.html"' in (site / "tour.html").read_text()


# --- pictures ------------------------------------------------------------------------------------------------------


def test_every_picture_is_drawn_with_all_of_its_words_and_says_what_it_shows(site: Path) -> None:
    drawn = 0
    for page in (CHECKOUT / "docs").rglob("*.md"):
        texts = [block.text for block in blocks(page, "mermaid")] if page in PAGES else []
        for text, svg in zip(texts, pictures(site, page), strict=True):
            words = re.sub(r"\s", "", "".join(svg.itertext()))
            said = re.findall(r"(?:: | as |\[|\||\()([^\]|()\[:]+?)(?:[\]|)]|$)", text, re.MULTILINE)
            assert svg.get("aria-label") == re.findall(r"accTitle: (.*)", text)[0]
            assert [each for each in said if re.sub(r"\s", "", each) not in words] == []
            drawn += 1

    assert drawn >= 5


def pictures(site: Path, page: Path) -> list[ElementTree.Element]:
    built = (site / page.relative_to(CHECKOUT / "docs")).with_suffix(".html")
    found = re.findall(r'<div class="picture">(<svg.*?</svg>)</div>', built.read_text()) if built.exists() else []
    return [ElementTree.fromstring(each) for each in found]


WRONG_PICTURES = {
    "sequenceDiagram\n  participant s as shop": "needs a line 'accTitle",
    "sequenceDiagram\n  accTitle: x\n  s->>b: placed": "no participant 's'",
    "sequenceDiagram\n  accTitle: x\n  loop each": "not understood: 'loop each'",
    "flowchart TD\n  accTitle: x\n  a --> b\n  b --> a": "in a circle",
    "pie\n  accTitle: x": "no picture begins with 'pie'",
}


def test_a_picture_that_is_not_understood_fails_the_build_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.append({str(CHECKOUT / 'docs/extensions')!r})\n"
        "extensions = ['myst_parser', 'pictures']\nmyst_fence_as_directive = ['mermaid']\n"
    )
    blocks_of_it = "\n\n".join(f"```mermaid\n{text}\n```" for text in WRONG_PICTURES)
    (tmp_path / "index.md").write_text(f"# A page\n\n{blocks_of_it}\n")
    places = [number for number, line in enumerate(blocks_of_it.splitlines(), 3) if line == "```mermaid"]

    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(tmp_path), str(tmp_path / "html")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert built.returncode != 0
    for place, problem in zip(places, WRONG_PICTURES.values(), strict=True):
        assert re.search(rf"index\.md:{place}: WARNING: .*{re.escape(problem)}", built.stderr)


# --- on a telephone ------------------------------------------------------------------------------------------------


def test_lines_of_a_log_are_wrapped_and_columns_are_not(site: Path) -> None:
    tutorial, errors = ((site / f"{name}.html").read_text() for name in ("tutorial", "reference/errors"))

    assert re.search(
        r'class="[^"]*wrapped[^"]*"[^>]*>\s*<div class="highlight"><pre>(?:(?!</pre>).)*INFO', tutorial, re.DOTALL
    )
    tree = errors[: errors.index("├──")].rpartition('<div class="highlight-')[2]
    assert "wrapped" not in tree


def test_a_cell_of_a_wide_table_knows_its_column(site: Path) -> None:
    page = (site / "howto/failures.html").read_text()

    assert 'data-column="what to do"' in page
    assert '<td data-column="what fails"' in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium is installed here")
def test_what_is_beyond_the_edge_is_found(tmp_path: Path) -> None:
    (tmp_path / "wide.html").write_text("<article><p style='width: 800px'>words</p></article>")
    (tmp_path / "scrolls.html").write_text(
        "<article><div style='overflow-x: auto'><p style='width: 2000px'>words</p></div></article>"
    )

    command = [sys.executable, str(CHECKOUT / "scripts/screenshots.py"), str(tmp_path)]
    looked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert looked.returncode == 1
    assert "wide.html at 390: p to " in looked.stdout
    assert "wide.html at 1024" not in looked.stdout
    assert "scrolls.html" not in looked.stdout
