"""The house's rules about who may import whom, read from the imports themselves.

Floors, from the ground up; an import leads to a lower floor, or sideways:

    values < pure logic < brokers < ways in and out < bus < around the bus < applications

Imports under TYPE_CHECKING count like any other, and so does an import inside a function. No modules need each other,
and no rooms do.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

CORE = "rabbitevents"

FLOORS: Sequence[tuple[str, frozenset[str]]] = (
    (
        "values",
        frozenset(
            {
                "errors",
                "arguments",
                "expiration",
                "failures",
                "properties",
                "ids",
                "events",
                "message",
                "facts",
                "states",
                "texts",
            }
        ),
    ),
    (
        "pure logic",
        frozenset(
            {
                "payload",
                "wire",
                "options",
                "routing",
                "partitions",
                "plugin",
                "renaming",
                "topics",
                "topology",
                "fields",
                "lines",
            }
        ),
    ),
    ("brokers", frozenset({"brokers"})),
    (
        "ways in and out",
        frozenset({"consuming", "publishing", "browsing", "configuration", "logs", "loops"}),
    ),
    ("bus", frozenset({"bus", "sync"})),
    ("around the bus", frozenset({"testing", "health", "asgi", "exposition", "operations"})),
    ("applications", frozenset({"cli", "demo", "__main__"})),
)

FULFILMENTS = frozenset({f"{CORE}.brokers.rabbitmq", f"{CORE}.brokers.embedded"})
"""The rooms that fulfil the seam between the house and a broker. Neither knows the other."""

THE_CLIENT_LIBRARYS_ROOM = f"{CORE}.brokers.rabbitmq"

TYPES_ONLY = frozenset(
    {
        (f"{CORE}.errors", f"{CORE}.message"),  # an error of a publish carries its message, which raises errors
        (f"{CORE}.routing", f"{CORE}.plugin"),  # a subscription has plugins, whose hooks are told the subscription
    }
)
"""The imports that lead back to where they came from, for the sake of a type. There must be no other ones."""

CLIENT_LIBRARIES = frozenset({"aio_pika", "aiormq", "pamqp"})

PUBLIC_MODULES = frozenset(
    {CORE, *(f"{CORE}.{room}" for room in ("arguments", "cli", "failures", "health", "partitions", "testing", "texts"))}
)
"""What a plugin may import of the core: names that these modules list in ``__all__``."""

APPLICATIONS = frozenset(
    {("rabbitevents_django", "rabbitevents_outbox"), ("rabbitevents_process", "rabbitevents_outbox")}
)
"""Packages that put another plugin to use, and are none themselves: they may import its public names."""

SHARED = f"{CORE}_sql"
"""What the plugins on SQLAlchemy share, and no plugin itself: every plugin may import its public names."""

CHECKOUT = Path(__file__).parent.parent


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported name: ``target`` is the module, as far as the tree has one, ``name`` what is taken from it."""

    module: str
    line: int
    target: str
    name: str | None

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
        for node in ast.walk(self.sources[module]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(module, node.lineno, alias.name, None)
            elif isinstance(node, ast.ImportFrom):
                target = self._absolute(module, node)
                for alias in node.names:
                    inner = f"{target}.{alias.name}"
                    if inner in self.sources:
                        yield Import(module, node.lineno, inner, None)
                    else:
                        yield Import(module, node.lineno, target, alias.name)

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        up = node.level - 1 if module in self.packages else node.level
        base = module.split(".")[: len(module.split(".")) - up]
        return ".".join([*base, *([node.module] if node.module else [])])


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


def circles(tree: Tree, apart_from: Collection[tuple[str, str]] = ()) -> list[str]:
    """Modules that need each other, be it for a type. (Modules inside one package may still be reached through it.)"""
    edges = {(each.module, each.target): str(each) for each in tree.imports if each.target in tree.sources}
    return _circle({edge: said for edge, said in edges.items() if edge not in apart_from})


def circles_of_rooms(tree: Tree, apart_from: Collection[tuple[str, str]] = ()) -> list[str]:
    """Rooms that need each other, by whichever of their modules."""
    edges = {
        (_room(each.module), _room(each.target)): str(each)
        for each in tree.imports
        if each.target in tree.sources and (each.module, each.target) not in apart_from
    }
    return _circle(edges)


def _circle(edges: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the imports that make up one circle; none, where there is none."""
    graph: dict[str, set[str]] = {}
    for here, there in edges:
        if here != there:
            graph.setdefault(here, set()).add(there)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        around: list[str] = error.args[1][::-1]
        return [edges[step] for step in pairwise(around)]
    return []


def _room(module: str) -> str:
    """Return the room of a module: its package, or the module itself where it has no package but the house."""
    for fulfilment in FULFILMENTS:
        if f"{module}.".startswith(f"{fulfilment}."):
            return fulfilment
    return ".".join(module.split(".")[:2])


def outside_their_room(tree: Tree) -> list[str]:
    """Imports of the AMQP client libraries by anybody but the room that is for them."""
    return [
        str(each)
        for each in tree.imports
        if _top(each.target) in CLIENT_LIBRARIES and not f"{each.module}.".startswith(f"{THE_CLIENT_LIBRARYS_ROOM}.")
    ]


def broker_to_broker(tree: Tree) -> list[str]:
    """Imports by which one fulfilment of the seam knows another one."""
    return [
        str(each)
        for each in tree.imports
        if _room(each.module) in FULFILMENTS
        and _room(each.target) in FULFILMENTS
        and _room(each.module) != _room(each.target)
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
    """Imports by which a plugin knows another one; what puts one to use, or what all share, is known by public names."""
    return [
        str(each)
        for each in tree.imports
        if _top(each.module) != CORE
        and _top(each.target).startswith(f"{CORE}_")
        and _top(each.target) != _top(each.module)
        and not (
            (each.target == SHARED or (_top(each.module), each.target) in APPLICATIONS)
            and each.name in tree.exported(each.target)
        )
    ]


# --- the house as it is --------------------------------------------------------------------------------------------

THE_HOUSE = Tree.read(CHECKOUT, CHECKOUT / "plugins")


def test_the_house_is_read_at_all() -> None:
    there = {"rabbitevents.bus", "rabbitevents.brokers.rabbitmq.tap", "rabbitevents.demo.services"}
    assert there <= set(THE_HOUSE.sources)
    assert ("rabbitevents", "rabbitevents.bus", "Bus") in {(i.module, i.target, i.name) for i in THE_HOUSE.imports}


def test_every_module_stands_on_a_floor() -> None:
    assert without_a_floor(THE_HOUSE) == []


def test_no_import_goes_up() -> None:
    assert going_up(THE_HOUSE) == []


def test_every_floor_names_rooms_that_are_there() -> None:
    there = {module.split(".")[1] for module in THE_HOUSE.sources if _top(module) == CORE and module != CORE}

    assert {room for _, rooms in FLOORS for room in rooms} == there


def test_no_modules_need_each_other() -> None:
    assert circles(THE_HOUSE, apart_from=TYPES_ONLY) == []


def test_no_rooms_need_each_other() -> None:
    assert circles_of_rooms(THE_HOUSE, apart_from=TYPES_ONLY) == []


def test_no_circle_is_allowed_that_is_not_there() -> None:
    """An entry that this test names is to be taken out of `TYPES_ONLY`: its circle is mended."""
    mended = [edge for edge in sorted(TYPES_ONLY) if circles(THE_HOUSE, apart_from=TYPES_ONLY - {edge}) == []]

    assert mended == []


def test_only_one_room_knows_the_client_library() -> None:
    assert outside_their_room(THE_HOUSE) == []


def test_the_brokers_do_not_know_each_other() -> None:
    assert broker_to_broker(THE_HOUSE) == []


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
        rabbitevents__brokers__rabbitmq____init__="",
        rabbitevents__brokers__rabbitmq__tap="class Tap: ...",
        rabbitevents__wire____init__="",
        rabbitevents__wire__reading="from rabbitevents.brokers.rabbitmq.tap import Tap",
    )

    assert going_up(tree) == [
        "rabbitevents.wire.reading:1 imports Tap from rabbitevents.brokers.rabbitmq.tap, which is higher up"
    ]


def test_the_front_door_is_not_for_those_inside(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents____init__="__all__ = ['Event']",
        rabbitevents__consuming__workers="from rabbitevents import Event",
        rabbitevents__demo____init__="from rabbitevents import Event",
    )

    assert [line.split(":")[0] for line in going_up(tree)] == ["rabbitevents.consuming.workers"]


def test_the_front_door_that_leads_to_an_application_is_found(tmp_path: Path) -> None:
    tree = built(tmp_path, rabbitevents____init__="from rabbitevents.demo import main", rabbitevents__demo____init__="")

    assert len(going_up(tree)) == 1


def test_two_modules_that_need_each_other_are_found_be_it_for_a_type(tmp_path: Path) -> None:
    ways = {
        "at the top": "import rabbitevents.topology",
        "for its type": "import typing\nif typing.TYPE_CHECKING:\n    from rabbitevents.topology import Queue",
        "inside a function": "def f():\n    from .topology import Queue",
    }
    for way, source in ways.items():
        tree = built(
            tmp_path,
            rabbitevents__routing=source,
            rabbitevents__topology="from rabbitevents.routing import Subscription",
        )

        assert {line.split(":")[0] for line in circles(tree)} == {"rabbitevents.routing", "rabbitevents.topology"}, way


def test_a_circle_says_where_it_closes(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__routing="from rabbitevents.plugin import Plugin",
        rabbitevents__plugin="\nfrom rabbitevents.topology import Topology",
        rabbitevents__topology="\n\nfrom rabbitevents.routing import Subscription",
    )

    assert sorted(circles(tree)) == [
        "rabbitevents.plugin:2 imports Topology from rabbitevents.topology",
        "rabbitevents.routing:1 imports Plugin from rabbitevents.plugin",
        "rabbitevents.topology:3 imports Subscription from rabbitevents.routing",
    ]


def test_an_import_that_is_allowed_hides_no_other_circle(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__errors="import rabbitevents.message",
        rabbitevents__message="import rabbitevents.errors\nimport rabbitevents.ids",
        rabbitevents__ids="import rabbitevents.message",
    )

    left = circles(tree, apart_from={("rabbitevents.errors", "rabbitevents.message")})

    assert {line.split(":")[0] for line in left} == {"rabbitevents.message", "rabbitevents.ids"}


def test_two_rooms_that_need_each_other_are_found_though_no_two_modules_do(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__consuming____init__="",
        rabbitevents__consuming__current="",
        rabbitevents__consuming__dispatch="from rabbitevents.publishing.delay import Delays",
        rabbitevents__publishing____init__="",
        rabbitevents__publishing__delay="",
        rabbitevents__publishing__publishing="from rabbitevents.consuming.current import CURRENT",
    )

    assert circles(tree) == []
    assert len(circles_of_rooms(tree)) == 2


def test_a_client_library_outside_of_its_room_is_found(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__brokers____init__="import aio_pika",
        rabbitevents__brokers__embedded____init__="import aiormq",
        rabbitevents__brokers__rabbitmq____init__="import aio_pika",
        rabbitevents__brokers__rabbitmq__tap="from pamqp import commands",
        rabbitevents__brokers__rabbitmq_of_old="import aiormq",
        rabbitevents__message="def f():\n    from aiormq.abc import AbstractChannel",
    )

    assert [line.split(":")[0] for line in outside_their_room(tree)] == [
        "rabbitevents.brokers",
        "rabbitevents.brokers.embedded",
        "rabbitevents.brokers.rabbitmq_of_old",
        "rabbitevents.message",
    ]


def test_a_broker_that_knows_another_one_is_found(tmp_path: Path) -> None:
    tree = built(
        tmp_path,
        rabbitevents__brokers____init__="",
        rabbitevents__brokers__home="",
        rabbitevents__brokers__embedded____init__="",
        rabbitevents__brokers__embedded__client="from rabbitevents.brokers.rabbitmq.tap import Tap",
        rabbitevents__brokers__rabbitmq____init__="",
        rabbitevents__brokers__rabbitmq__tap="import rabbitevents.brokers.home\nfrom . import frames",
        rabbitevents__brokers__rabbitmq__frames="",
    )

    assert [line.split(":")[0] for line in broker_to_broker(tree)] == ["rabbitevents.brokers.embedded.client"]


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


def test_an_application_of_a_plugin_may_use_its_public_names_and_no_others(tmp_path: Path) -> None:
    ways = {
        "from rabbitevents_outbox import Outbox": True,
        "from rabbitevents_outbox import Hidden": False,
        "from rabbitevents_outbox.relay import Relay": False,
        "import rabbitevents_outbox": False,
        "from rabbitevents_retry import Retry": False,
    }
    for source, is_allowed in ways.items():
        tree = built(
            tmp_path,
            rabbitevents_django____init__=source,
            rabbitevents_outbox____init__="__all__ = ['Outbox']",
            rabbitevents_outbox__relay="",
            rabbitevents_retry____init__="__all__ = ['Retry']",
        )

        assert (plugin_to_plugin(tree) == []) is is_allowed, source


def test_what_is_shared_may_be_used_by_every_plugin_by_its_public_names_and_uses_none_itself(tmp_path: Path) -> None:
    ways = {
        "from rabbitevents_sql import turn_of": True,
        "def f():\n    from rabbitevents_sql import turn_of": True,
        "from rabbitevents_sql import hidden": False,
        "from rabbitevents_sql import *": False,
        "from rabbitevents_sql.databases import turn_of": False,
        "from rabbitevents_sql import databases": False,
        "import rabbitevents_sql": False,
    }
    for source, is_allowed in ways.items():
        tree = built(
            tmp_path,
            rabbitevents_retry____init__=source,
            rabbitevents_outbox__tables=source,
            rabbitevents_sql____init__="__all__ = ['turn_of']",
            rabbitevents_sql__databases="",
        )

        assert len(plugin_to_plugin(tree)) == (0 if is_allowed else 2), source

    tree = built(
        tmp_path,
        rabbitevents_retry____init__="__all__ = ['Retry']",
        rabbitevents_outbox__tables="",
        rabbitevents_sql____init__="from rabbitevents_retry import Retry",
    )

    assert plugin_to_plugin(tree) == ["rabbitevents_sql:1 imports Retry from rabbitevents_retry"]
