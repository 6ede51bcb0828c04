"""MODULE:BUS, as it is written on the command line, and the bus that it means."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

from rabbitevents import Bus, ConfigurationError, RabbitEventsError
from rabbitevents.cli.console import one_line
from rabbitevents.cli.extras import way_out
from rabbitevents.cli.place import place_of

EXAMPLE: Final = "such as shop.inventory:bus for the `bus` in shop/inventory.py"

_PORT_TAKEN: Final = (
    ": something has that port already, such as the same service at work; what a service opens (a page of metrics), "
    "it opens when its bus starts, in a plugin's lifespan, and not where its bus is made"
)

_A_BUS: Final = re.compile(r"^(\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)?Bus\(", re.MULTILINE)
"""A bus that a module makes, as its source has it."""


def load_bus(reference: str) -> Bus:
    """Import the module of ``MODULE:BUS`` and return its bus, not started.

    The current folder is looked in first. A function without parameters that returns a bus serves as well.
    Raises `ConfigurationError` for all that can be wrong about it, in one line that says where and the way out.
    """
    module_name, name = _parts(reference)
    module = _imported(module_name)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{module_name} has no {name!r}; {_buses_of(module)}")
        found = getattr(found, part)
    if inspect.isfunction(found):
        found = _made_by(found, reference)
    if not isinstance(found, Bus):
        raise ConfigurationError(f"{reference} is {_kind(found)}, not a Bus; {_buses_of(module)}")
    return found


def _parts(reference: str) -> tuple[str, str]:
    module, colon, name = reference.strip().partition(":")
    as_module = ".".join(part for part in re.split(r"[/\\]", module.removesuffix(".py")) if part not in ("", "."))
    if as_module != module and as_module:
        raise ConfigurationError(
            f"{module!r} is a file's name: write the module's, as in an import, {as_module}:{name or 'bus'}"
        )
    if not module or not name:
        what = f"{reference!r} names no module" if colon and not module else f"{reference!r} names no bus"
        raise ConfigurationError(f"{what}: write MODULE:BUS, {EXAMPLE}")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ConfigurationError(f"{reference!r} cannot be read: write MODULE:BUS, {EXAMPLE}")
    return module, name


def _imported(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # a module may have been written since the last import looked
    with _in_the_users_code(f"importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ConfigurationError(_no_module(name, error)) from error


def _no_module(name: str, error: ModuleNotFoundError) -> str:
    if "is not a package" in str(error):
        return f"there is no module {name!r}: {name.rpartition('.')[0]} is a module, and not a folder of modules"
    here = [module for module in _modules_here() if module]
    close = get_close_matches(name, here, n=1)
    hint = f"did you mean {close[0]}?" if close else "call it from the folder that the module is in"
    return f"there is no module {error.name!r} in {Path.cwd()}, nor on Python's path; {hint}"


@contextmanager
def _in_the_users_code(doing: str) -> Generator[None]:
    """Turn whatever the user's code raises into one line that says where it did."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except RabbitEventsError as error:
        raise ConfigurationError(f"{place_of(error)}{one_line(error)}") from error
    except BaseException as error:
        # Anything can come out of a user's module, SystemExit too, and none of it is a defect of ours.
        hint = way_out(error) if isinstance(error, ImportError) else _PORT_TAKEN if _is_port_taken(error) else ""
        said = one_line(error.msg if isinstance(error, SyntaxError) else error)
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise ConfigurationError(
            f"{place_of(error)}{doing} failed with {what}{hint or ' (rabbitevents --debug shows the traceback)'}"
        ) from error


def _is_port_taken(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EADDRINUSE


def _made_by(function: Any, reference: str) -> Any:
    """Call a function that is to make the bus."""
    needed = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigurationError(
            f"{reference} is a function that wants {', '.join(needed)}; one that makes a bus has no parameters"
        )
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"{reference} is a coroutine function; what makes a bus is a plain function, called before there is a loop"
        )
    with _in_the_users_code(f"calling {reference}"):
        return function()


def _kind(found: object) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__} itself"
    if found is None:
        return "None"
    name = type(found).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _buses_of(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Bus)]
    if not names:
        return f"no Bus is in {module.__name__}: write one there, bus = Bus('amqp://localhost', your_router)"
    return f"write {' or '.join(f'{module.__name__}:{name}' for name in names)}"


def _modules_here() -> Iterator[str]:
    """Name the modules in the current folder and in the packages right below it."""
    for path in sorted(Path().glob("*.py")):
        yield path.stem
    for path in sorted(Path().glob("*/__init__.py")):
        yield path.parent.name
        for inner in sorted(path.parent.glob("[!_]*.py")):
            yield f"{path.parent.name}.{inner.stem}"


def _references_here() -> Iterator[str]:
    """Name the buses in the modules here, by their source: nothing is imported."""
    for module in _modules_here():
        path = Path(*module.split("."))
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if os.access(source, os.R_OK):
            yield from (f"{module}:{name}" for name in _A_BUS.findall(source.read_text(errors="replace")))


class BusReference(StringParamType):
    """MODULE:BUS as a parameter of a command: its value is the text, for `load_bus`; shells complete it."""

    name = "module:bus"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer the buses of the modules in the current folder."""
        return [CompletionItem(each) for each in _references_here() if each.startswith(incomplete)]
