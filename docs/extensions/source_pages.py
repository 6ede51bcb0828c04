"""A link that leads out of ``docs/`` leads somewhere on the site, too.

The pages link to source files (``../rabbitevents/bus.py``), to Markdown at the top of the repository, and to folders.
A file becomes a page that shows it, ``source/rabbitevents/bus.py.html``; the Markdown that the site includes is linked
where it stands there; a folder has no page, and its name remains as text. What the reference documents links to its
lines on these pages, by `source_of` (``linkcode_resolve`` in conf.py).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

INCLUDED = {
    "README.md": "index",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "benchmarks/README.md": "benchmarks",
    "docs/decisions": "decisions",
}
"""What the site shows as a page of its own, and where."""

CHECKOUT = Path(__file__).parent.parent.parent
CODE = ("rabbitevents/**/*.py", "plugins/**/*.py")
"""Files that have a page whether somebody links to them or not."""

LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".md": "markdown", ".json": "json"}


class SourceLinks(SphinxTransform):
    """Find the links that lead out of ``docs/``, and give each its place on the site."""

    default_priority = 5  # before Sphinx collects what is to be downloaded

    def apply(self, **kwargs: Any) -> None:
        """Change the links of one document."""
        for kind in (addnodes.download_reference, addnodes.pending_xref):
            for link in list(self.document.findall(kind)):
                if link.get("reftype") == "myst":
                    self._lead(link)

    def _lead(self, link: nodes.Element) -> None:
        path = self._target(link)
        if not path.exists() or not path.is_relative_to(CHECKOUT):
            return
        name = str(path.relative_to(CHECKOUT))
        if INCLUDED.get(name, self.env.docname) != self.env.docname:
            page = INCLUDED[name]
        elif path.is_relative_to(self.app.srcdir):
            return
        elif path.is_dir():
            link.replace_self(link.children)
            return
        else:
            page = f"source/{name}"
            sources(self.app).setdefault(self.env.docname, set()).add(name)
        up = "../" * self.env.docname.count("/")
        link.replace_self(nodes.reference("", "", *link.children, refuri=f"{up}{page}.html", internal=True))

    def _target(self, link: nodes.Element) -> Path:
        if link.get("refdomain") == "doc":
            return Path(f"{link['reftarget']}.md")  # a document's name: absolute where it is none of ours
        return (Path(self.app.srcdir) / self.env.docname).parent.joinpath(link["reftarget"]).resolve()


def sources(app: Sphinx) -> dict[str, set[str]]:
    """Return the files that each document links to; they are kept with the environment, for the next build."""
    kept: dict[str, Any] = vars(app.env)
    found: dict[str, set[str]] = kept.setdefault("source_pages", {})
    return found


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget the files that a document linked to, since it is read anew."""
    sources(app).pop(docname, None)


def render(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file of the library, and for each other one that is linked to."""
    builder: Any = app.builder
    code = {str(path.relative_to(CHECKOUT)) for pattern in CODE for path in CHECKOUT.glob(pattern)}
    for name in sorted(code.union(*sources(app).values())):
        path = CHECKOUT / name
        language = LANGUAGES.get(path.suffix, "text")
        shown = builder.highlighter.highlight_block(path.read_text(), language, linenos="inline", lineanchors="line")
        yield f"source/{name}", {"title": name, "body": f"<h1>{name}</h1>{shown}"}, "page.html"


class Sidebar:
    """The sidebar of the pages of sources, which those of a folder share: made for each, it is half of the whole build."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], str] = {}

    def share(self, app: Sphinx, page: str, template: str, context: dict[str, Any], *_: object) -> None:
        """Have a page take what another one of its folder had made."""
        folder, make = page.rpartition("/")[0], context.get("toctree")
        if page.startswith("source/") and make is not None:

            def toctree(**how: object) -> str:
                which = (folder, *sorted(how.items()))
                if which not in self._made:
                    self._made[which] = str(make(**how))
                return self._made[which]

            context["toctree"] = toctree


def source_of(domain: str, info: dict[str, str]) -> str | None:
    """Return where the source of a documented thing is shown, as seen from a page of the reference; None if nowhere."""
    found: Any = sys.modules.get(info.get("module", ""))
    for name in info["fullname"].split("."):
        found = getattr(found, name, None)
    found = found.fget if isinstance(found, property) else inspect.unwrap(found) if callable(found) else found
    try:
        path = Path(inspect.getsourcefile(found) or "").resolve()
        line = inspect.getsourcelines(found)[1]
    except (TypeError, OSError):
        return None  # a value has no place of its own
    return f"../source/{path.relative_to(CHECKOUT)}.html#line-{line}" if path.is_relative_to(CHECKOUT) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect it."""
    app.add_transform(SourceLinks)
    app.connect("html-collect-pages", render)
    app.connect("env-purge-doc", forget)
    app.connect("html-page-context", Sidebar().share, priority=400)  # before the theme's, 500, which asks for it
    return {"parallel_read_safe": False, "parallel_write_safe": True, "env_version": 1}
