"""``rabbitevents version``: what is installed here, as a report of a defect needs it."""

from __future__ import annotations

import pkgutil
import platform
from collections.abc import Iterator

import click

from rabbitevents.cli.console import out
from rabbitevents.cli.extras import PACKAGE, commands, extras, missing, version_of
from rabbitevents.cli.loop import loop_name


@click.command(
    epilog="""\b
Example:
  rabbitevents version | grep aio-pika"""
)
def version() -> None:
    """Show what is installed here: versions, extras, plugins."""
    for name, value in _rows():
        out.print(f"{name:<14}{value}")


def _rows() -> Iterator[tuple[str, str]]:
    loop = loop_name()
    yield PACKAGE, version_of(PACKAGE) or "not installed, but found on Python's path"
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "aio-pika", version_of("aio-pika") or "not installed"
    yield "event loop", f"{loop} {version_of(loop) or ''}".strip()
    yield "platform", platform.platform()
    for extra in extras():
        lacking = missing(extra)
        without = f"without {', '.join(lacking)}: pip install '{PACKAGE}[{extra}]'"
        yield f"[{extra}]", without if lacking else "installed"
    yield "plugins", ", ".join(plugins()) or "none"
    yield "commands", ", ".join(f"{name} ({entry.module})" for name, entry in commands().items()) or "none from plugins"


def plugins() -> list[str]:
    """Name the installed packages that are called after us; nothing is imported."""
    return sorted({each.name for each in pkgutil.iter_modules() if each.name.startswith(f"{PACKAGE}_")})
