"""The documentation becomes a site, without a warning, and the site needs nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.documents import CHECKOUT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "trees")]
    built = subprocess.run(
        [*command, str(CHECKOUT / "docs"), str(folder / "html")],
        capture_output=True,
        text=True,
        timeout=110,
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
