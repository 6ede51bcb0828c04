"""The house's rules about who may import whom, read from the imports themselves.

Floors, from the ground up; an import leads to a lower floor, or sideways:

    values < pure logic < brokers < handling < bus < around the bus < applications

Imports under TYPE_CHECKING count like any other, but for one: on its own floor a module may name another's type that
it does not need at run time. An import inside a function counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

CORE = "rabbitevents"

FLOORS: Sequence[tuple[str, frozenset[str]]] = (
    ("values", frozenset({"errors", "properties", "ids", "events", "message", "facts"})),
    ("pure logic", frozenset({"paths", "codec", "wire", "routing", "plugin", "topology", "fields"})),
    ("brokers", frozenset({"brokers", "delay"})),
    (
        "handling",
        frozenset(
            {
                "threads",
                "handling",
                "holding",
                "consumer",
                "publishing",
                "browsing",
                "configuration",
                "consuming",
                "logs",
                "loops",
            }
        ),
    ),
    ("bus", frozenset({"bus", "background", "sync"})),
    ("around the bus", frozenset({"testing", "health", "asgi"})),
    ("applications", frozenset({"cli", "demo", "__main__"})),
)

CLIENT_LIBRARIES = frozenset({"aio_pika", "aiormq", "pamqp"})

PUBLIC_MODULES = frozenset({CORE, f"{CORE}.testing", f"{CORE}.cli"})
"""What a plugin may import of the core: names that these modules list in ``__all__``."""

CHECKOUT = Path(__file__).parent.parent


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported name: ``target`` is the module, as far as the tree has one, ``name`` what is taken from it."""

    module: str
    line: int
    target: str
    name: str | None
    at_run_time: bool

    def __str__(self) -> str:
        what = self.target if self.name is None else f"{self.name} from {self.target}"
        return f"{self.module}:{self.line} imports {what}"


@dataclass(frozen=True)
class Tree:
    """All modules below the source roots, by their dotted names, and what they import."""

    sources: dict[str, ast.Module]
    packages: frozenset[str]

    @staticmethod
    def read(*roots: Path) -> Tree:
        sources: dict[str, ast.Module] = {}
        packages: set[str] = set()
        for root in roots:
            for path in sorted(root.glob("rabbitevents*/**/*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                if parts[-1] == "__init__":
                    parts = parts[:-1]
                    packages.add(".".join(parts))
                sources[".".join(parts)] = ast.parse(path.read_text(), str(path))
        return Tree(sources, frozenset(packages))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(found for module in self.sources for found in self._imports_of(module))

    def exported(self, module: str) -> set[str]:
        """Return what a module lists in ``__all__``."""
        for statement in self.sources[module].body if module in self.sources else ():
            if isinstance(statement, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "__all__" for t in statement.targets
            ):
                return set(ast.literal_eval(statement.value))
        return set()

    def _imports_of(self, module: str) -> Iterator[Import]:
        for node, at_run_time in _walk(self.sources[module], at_run_time=True):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(module, node.lineno, alias.name, None, at_run_time)
            elif isinstance(node, ast.ImportFrom):
                target = self._absolute(module, node)
                for alias in node.names:
                    inner = f"{target}.{alias.name}"
                    if inner in self.sources:
                        yield Import(module, node.lineno, inner, None, at_run_time)
                    else:
                        yield Import(module, node.lineno, target, alias.name, at_run_time)

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        up = node.level - 1 if module in self.packages else node.level
        base = module.split(".")[: len(module.split(".")) - up]
        return ".".join([*base, *([node.module] if node.module else [])])


def _walk(node: ast.AST, *, at_run_time: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node, and whether it is reached at run time: not under ``if TYPE_CHECKING``."""
    yield node, at_run_time
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        for statement in node.body:
            yield from _walk(statement, at_run_time=False)
        for statement in node.orelse:
            yield from _walk(statement, at_run_time=at_run_time)
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, at_run_time=at_run_time)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _top(module: str) -> str:
    return module.split(".")[0]


def _floor(module: str) -> int | None:
    """Return the floor of a module of the core; None for the core's front door, and for what is not the core's."""
    parts = module.split(".")
    if parts[0] != CORE or len(parts) == 1:
        return None
    return next((height for height, (_, rooms) in enumerate(FLOORS) if parts[1] in rooms), None)


# --- the rules -----------------------------------------------------------------------------------------------------


def without_a_floor(tree: Tree) -> list[str]:
    return [m for m in tree.sources if _top(m) == CORE and m != CORE and _floor(m) is None]


def going_up(tree: Tree) -> list[str]:
    """Imports that lead to a higher floor. The front door stands above the bus: only what stands above may use it."""
    door = next(height for height, (name, _) in enumerate(FLOORS) if name == "bus")
    found: list[str] = []
    for each in tree.imports:
        here = door if each.module == CORE else _floor(each.module)
        there = _floor(each.target)
        if here is None:
            continue
        if each.target == CORE and each.module != CORE and here <= door:
            found.append(f"{each}, the front door of the house it is inside of")
        elif there is not None and there > here:
            found.append(f"{each}, which is higher up")
    return found


def cycles(tree: Tree) -> list[str]:
    """Modules that need each other at run time. (Modules inside one package may still be reached through it.)"""
    graph: dict[str, set[str]] = {module: set() for module in tree.sources}
    for each in tree.imports:
        if each.at_run_time and each.target in graph and each.target != each.module:
            graph[each.module].add(each.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


def outside_brokers(tree: Tree) -> list[str]:
    """Imports of the AMQP client libraries by anybody but the room that is for them."""
    room = f"{CORE}.brokers"
    return [
        str(each)
        for each in tree.imports
        if _top(each.target) in CLIENT_LIBRARIES and not f"{each.module}.".startswith(f"{room}.")
    ]


def core_to_plugin(tree: Tree) -> list[str]:
    """Imports of a plugin by the core; only the applications on top may use one."""
    applications = len(FLOORS) - 1
    return [
        str(each)
        for each in tree.imports
        if _top(each.module) == CORE
        and _floor(each.module) != applications
        and _top(each.target) != CORE
        and _top(each.target).startswith(f"{CORE}_")
    ]


def past_the_public_names(tree: Tree) -> list[str]:
    """Imports by which a plugin takes from the core what a third party's plugin could not rely on."""
    found: list[str] = []
    for each in tree.imports:
        if _top(each.module) == CORE or _top(each.target) != CORE:
            continue
        module, _, name = each.target.rpartition(".")
        is_public = (
            name in tree.exported(CORE)  # a module that is a public name itself
            if module == CORE and each.target not in PUBLIC_MODULES
            else each.target in PUBLIC_MODULES and (each.name is None or each.name in tree.exported(each.target))
        )
        if not is_public:
            found.append(str(each))
    return found


def plugin_to_plugin(tree: Tree) -> list[str]:
    return [
        str(each)
        for each in tree.imports
        if _top(each.module) != CORE
        and _top(each.target).startswith(f"{CORE}_")
        and _top(each.target) != _top(each.module)
    ]


# --- the house as it is --------------------------------------------------------------------------------------------

THE_HOUSE = Tree.read(CHECKOUT, CHECKOUT / "plugins")


def test_the_house_is_read_at_all() -> None:
    assert {"rabbitevents.bus", "rabbitevents.brokers.lane", "rabbitevents.demo.services"} <= set(THE_HOUSE.sources)
    assert ("rabbitevents", "rabbitevents.bus", "Bus") in {(i.module, i.target, i.name) for i in THE_HOUSE.imports}


def test_every_module_stands_on_a_floor() -> None:
    assert without_a_floor(THE_HOUSE) == []


def test_no_import_goes_up() -> None:
    assert going_up(THE_HOUSE) == []


def test_no_modules_need_each_other() -> None:
    assert cycles(THE_HOUSE) == []


def test_only_the_brokers_know_the_client_library() -> None:
    assert outside_brokers(THE_HOUSE) == []


def test_the_core_knows_no_plugin() -> None:
    assert core_to_plugin(THE_HOUSE) == []


def test_plugins_use_public_names_only() -> None:
    assert past_the_public_names(THE_HOUSE) == []


def test_plugins_do_not_know_each_other() -> None:
    assert plugin_to_plugin(THE_HOUSE) == []


# --- houses that break the rules: each rule can fail ---------------------------------------------------------------


def built(folder: Path, **files: str) -> Tree:
    """Write a small tree, `__` in names standing for a folder's `/`, and read it."""
    for name, source in {"rabbitevents____init__": "", **files}.items():
        path = folder / (name.replace("__init__", "\0").replace("__", "/").replace("\0", "__init__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return Tree.read(folder)


def test_a_module_that_nobody_gave_a_floor_is_found(tmp_path: Path) -> None:
    tree = built(tmp_path, rabbitevents__odds_and_ends="")

    assert without_a_floor(tree) == ["rabbitevents.odds_and_ends"]


def test_a_value_that_imports_the_bus_is_found_however_it_does(tmp_path: Path) -> None:
    ways = {
        "at the top": "from rabbitevents.bus import Bus",
        "as a module": "import rabbitevents.bus",
        "from the package": "from rabbitevents import bus",
        "relatively": "from .bus import Bus",
        "relatively, as a module": "from . import bus",
        "inside a function": "def f():\n    from rabbitevents.bus import Bus",
        "for its type": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rabbitevents.bus import Bus",
    }
    for way, source in ways.items():
        tree = built(tmp_path, rabbitevents__bus="class Bus: ...", rabbitevents__message=source)

        assert len(going_up(tree)) == 1, way


def test_logic_that_imports_a_module_inside_the_brokers_is_found(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__brokers____init__="",
        rabbitevents__brokers__lane="class Lane: ...",
        rabbitevents__wire="from rabbitevents.brokers.lane import Lane",
    )

    assert going_up(tree) == ["rabbitevents.wire:1 imports Lane from rabbitevents.brokers.lane, which is higher up"]


def test_the_front_door_is_not_for_those_inside(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents____init__="__all__ = ['Event']",
        rabbitevents__consumer="from rabbitevents import Event",
        rabbitevents__demo____init__="from rabbitevents import Event",
    )

    assert [line.split(":")[0] for line in going_up(tree)] == ["rabbitevents.consumer"]


def test_the_front_door_that_leads_to_an_application_is_found(tmp_path: Path) -> None:
    tree = built(tmp_path, rabbitevents____init__="from rabbitevents.demo import main", rabbitevents__demo____init__="")

    assert len(going_up(tree)) == 1


def test_two_modules_that_need_each_other_are_found(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__codec="import rabbitevents.wire",
        rabbitevents__wire="from rabbitevents.codec import Codec",
    )

    assert len(cycles(tree)) == 1


def test_a_type_of_the_same_floor_may_be_named_both_ways(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__errors="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rabbitevents.message import M",
        rabbitevents__message="from rabbitevents.errors import E",
    )

    assert cycles(tree) == []
    assert going_up(tree) == []


def test_the_else_of_type_checking_is_run_time(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__codec="import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import rabbitevents.wire",
        rabbitevents__wire="import rabbitevents.codec",
    )

    assert len(cycles(tree)) == 1


def test_a_client_library_outside_of_the_brokers_is_found(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__brokers____init__="import aio_pika",
        rabbitevents__brokers__rabbitmq="from pamqp import commands",
        rabbitevents__brokers_of_old="import aiormq",
        rabbitevents__message="def f():\n    from aiormq.abc import AbstractChannel",
    )

    assert [line.split(":")[0] for line in outside_brokers(tree)] == [
        "rabbitevents.brokers_of_old",
        "rabbitevents.message",
    ]


def test_a_core_that_imports_a_plugin_is_found_but_an_application_may(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__bus="from rabbitevents_retry import Retry",
        rabbitevents__demo____init__="from rabbitevents_retry import Retry",
        rabbitevents_retry____init__="",
    )

    assert [line.split(":")[0] for line in core_to_plugin(tree)] == ["rabbitevents.bus"]


def test_a_plugin_that_takes_what_is_not_public_is_found(tmp_path: Path) -> None:
    ways = {
        "from rabbitevents.message import Delivery": False,
        "import rabbitevents.message": False,
        "from rabbitevents import message": False,
        "from rabbitevents import Hidden": False,
        "from rabbitevents import *": False,
        "from rabbitevents.testing.bench import bench": False,
        "from rabbitevents.testing import running": True,
        "from rabbitevents import Plugin": True,
        "import rabbitevents": True,
        "import msgspec": True,
    }
    for source, is_allowed in ways.items():
        tree = built(
            tmp_path,
            rabbitevents____init__="from rabbitevents.plugin import Plugin, Hidden\n__all__ = ['Plugin']",
            rabbitevents__message="",
            rabbitevents__plugin="",
            rabbitevents__testing____init__="__all__ = ['running']",
            rabbitevents__testing__bench="",
            rabbitevents_retry____init__=source,
        )

        assert (past_the_public_names(tree) == []) is is_allowed, source


def test_a_plugin_that_imports_another_is_found(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents_outbox____init__="from rabbitevents_outbox.relay import Relay",
        rabbitevents_outbox__relay="def f():\n    import rabbitevents_retry.policy",
        rabbitevents_retry____init__="",
        rabbitevents_retry__policy="",
    )

    assert plugin_to_plugin(tree) == ["rabbitevents_outbox.relay:2 imports rabbitevents_retry.policy"]
