"""Pages of documentation as their readers take them: files to write, code to run, commands to type, output to see.

How a page says what a block is:

* ``python``, ``ini`` or ``toml`` whose first line is a name, ``# name.py``: a file. A second block of the same name
  takes its place, and one that begins ``# name.py, further down`` goes on with it.
* any other ``python``: lines that run one after the other, in one namespace a page; they may ``await``.
* ``console``: after each ``$`` a command, and below it what it prints. A command whose block ends without a prompt that
  comes back, and that goes on running, is a terminal of its own: the next ``text`` blocks say what it prints later on,
  and ``^C`` in one of them is Ctrl-C there.
* ``sh``: commands that are looked up and not run, as they need what is not here.
* ``text``: what is seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

CHECKOUT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "plugins/*.md")
    for path in CHECKOUT.glob(pattern)
    if "_build" not in path.parts
)

_NAME = re.compile(r"# ([\w/]+\.(?:py|ini|toml))(, further down)?\n")


@dataclass(frozen=True)
class Block:
    """A block of code on a page; ``line`` is where its first line stands."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, or is a part of."""
        found = _NAME.match(self.text) if self.language in ("python", "ini", "toml") else None
        return found[1] if found else None

    @property
    def goes_on(self) -> bool:
        """Whether it is added to what the file has already."""
        found = _NAME.match(self.text)
        return found is not None and found[2] is not None

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return f"{name_of(self.page)}:{self.line}"

    @property
    def code(self) -> str:
        """The text, moved down so that a traceback names the page's lines."""
        return "\n" * (self.line - 1) + self.text

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """What is typed, each with the lines that it prints; continued lines are joined."""
        found: list[tuple[str, list[str]]] = []
        prompted = self.language == "console"
        for line in self.text.replace("\\\n", " ").splitlines():
            if prompted and not line.startswith("$ "):
                found[-1][1].append(line)
            elif line.strip() and not line.startswith("#"):
                found.append((line.removeprefix("$ ").strip(), []))
        return found


def name_of(page: Path) -> str:
    """Return a page's path from the top of the checkout."""
    return str(page.relative_to(CHECKOUT)) if page.is_relative_to(CHECKOUT) else page.name


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of code on a page, those of ``languages`` if any are given; indented ones are ``sh``."""
    return [block for block in _blocks(page) if not languages or block.language in languages]


@cache
def _blocks(page: Path) -> tuple[Block, ...]:
    return tuple(_read(page))


def _read(page: Path) -> Iterator[Block]:
    for token in MarkdownIt().parse(page.read_text()):
        if token.map is None:
            continue
        if token.type == "fence":
            yield Block(page, token.map[0] + 2, token.info.strip() or "text", token.content)
        elif token.type == "code_block":
            yield Block(page, token.map[0] + 1, "sh", token.content)


def prose(page: Path) -> str:
    """Return what a page says outside its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
