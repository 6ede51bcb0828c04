"""What installed packages say of themselves: the extras that `pip install 'rabbitevents[...]'` brings, and commands."""

from __future__ import annotations

import re
from importlib import metadata

PACKAGE = "rabbitevents"


def extras() -> dict[str, tuple[str, ...]]:
    """Return each extra's distributions. Empty where the package is not installed, but lies on the path."""
    found: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*["']([\w.-]+)["']""", requirement)
        if name is not None and extra is not None and name[0] != PACKAGE:  # an extra of extras has nothing of its own
            found.setdefault(extra[1], []).append(name[0])
    return {extra: tuple(names) for extra, names in sorted(found.items())}


def missing(extra: str) -> tuple[str, ...]:
    """Return those of an extra's distributions that are not installed."""
    return tuple(name for name in extras().get(extra, ()) if version_of(name) is None)


def version_of(distribution: str) -> str | None:
    """Return an installed distribution's version; None if it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def way_out(error: ImportError) -> str:
    """Say which extra brings what could not be imported; empty if none does, or the error says it already."""
    module = (error.name or "").partition(".")[0].replace("_", "-")
    for extra, names in extras().items():
        if module and any(name == module or name.startswith(f"{module}-") for name in names):
            return "" if "pip install" in str(error) else f"; pip install '{PACKAGE}[{extra}]' brings it"
    return ""


COMMANDS = "rabbitevents.commands"
"""The entry point group by which a plugin, anybody's, brings commands for the command line."""


def commands() -> dict[str, metadata.EntryPoint]:
    """Return the commands that installed packages bring, by name; ``.load()`` gives one. Raises nothing.

    Where two packages bring the same name, the first in the order of their names has it.
    """
    found = sorted(metadata.entry_points(group=COMMANDS), key=lambda each: (each.name, each.value), reverse=True)
    return {each.name: each for each in found}
