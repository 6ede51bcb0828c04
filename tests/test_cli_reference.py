"""MODULE:BUS, written in every wrong way that a person would think of, and in the right ones."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rabbitevents import Bus, ConfigurationError
from rabbitevents.cli import load_bus
from tests.test_cli import PASSWORD, environment, started, the_line

MAKE_A_BUS = "from rabbitevents import Bus, Router\nbus = Bus('memory://', name='{}')\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a test, empty at first; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def module(name: str, source: str) -> None:
    """Write a module into the current folder, its packages included."""
    path = Path(*name.split(".")).with_suffix(".py")
    for package in reversed(path.parents[:-1]):
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
    path.write_text(source)


def refused(reference: str) -> str:
    """Load what cannot be loaded; return what is said, which is one line."""
    with pytest.raises(ConfigurationError) as raised:
        load_bus(reference)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- what is right -------------------------------------------------------------------------------------------------


def test_the_bus_of_a_module_in_the_current_folder_is_loaded_and_not_started() -> None:
    module("store", MAKE_A_BUS.format("here"))

    bus = load_bus("store:bus")

    assert isinstance(bus, Bus)
    assert bus.name == "here"
    assert not bus.health().ok


def test_a_module_in_a_package_an_attribute_of_an_attribute_and_spaces_around_are_understood() -> None:
    module(
        "store.inside.services", MAKE_A_BUS.format("inside") + "class Rack:\n    top = Bus('memory://', name='top')\n"
    )

    assert load_bus("store.inside.services:bus").name == "inside"
    assert load_bus("store.inside.services:Rack.top").name == "top"
    assert load_bus(" store.inside.services:bus ").name == "inside"


def test_a_function_without_parameters_makes_the_bus() -> None:
    module(
        "store",
        "from rabbitevents import Bus\ndef make(name='made', *more, **others): return Bus('memory://', name=name)",
    )

    assert load_bus("store:make").name == "made"


def test_the_current_folder_stands_before_what_is_installed() -> None:
    module("click", MAKE_A_BUS.format("ours"))
    there = sys.modules.pop("click")

    try:
        assert load_bus("click:bus").name == "ours"
    finally:
        sys.modules["click"] = there


# --- what is wrong with the words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("store", "'store' names no bus: write MODULE:BUS, such as shop.inventory:bus"),
        ("store:", "'store:' names no bus: write MODULE:BUS"),
        (":bus", "':bus' names no module: write MODULE:BUS"),
        (":", "':' names no module"),
        ("", "'' names no bus: write MODULE:BUS"),
        ("store:bus:more", "'store:bus:more' cannot be read: write MODULE:BUS"),
        ("store..x:bus", "cannot be read"),
        (".store:bus", "cannot be read"),
        ("store:my bus", "cannot be read"),
        ("store-front:bus", "cannot be read"),
        ("store:bus()", "cannot be read"),
        ("store.py", "'store.py' is a file's name: write the module's, as in an import, store:bus"),
        ("store.py:queue", "as in an import, store:queue"),
        ("./store.py:bus", "as in an import, store:bus"),
        ("store/front.py:bus", "as in an import, store.front:bus"),
        ("store/front:bus", "as in an import, store.front:bus"),
        ("store\\front.py:bus", "as in an import, store.front:bus"),
        ("amqp://localhost", "cannot be read"),
    ],
)
def test_what_is_no_module_and_bus_is_said_with_what_to_write(reference: str, said: str) -> None:
    assert said in refused(reference)


def test_a_module_that_is_not_there_is_said_with_where_it_was_looked_for(folder: Path) -> None:
    said = refused("nowhere:bus")

    assert f"there is no module 'nowhere' in {folder}, nor on Python's path" in said
    assert "call it from the folder that the module is in" in said


def test_a_module_that_is_misspelt_is_said_with_the_one_that_is_there() -> None:
    module("store", MAKE_A_BUS)
    module("parcels.post", MAKE_A_BUS)

    assert "there is no module 'stroe'" in refused("stroe:bus")
    assert "did you mean store?" in refused("stroe:bus")
    assert "there is no module 'parcels.past'" in refused("parcels.past:bus")
    assert "did you mean parcels.post?" in refused("parcels.past:bus")


def test_a_module_inside_of_a_module_that_is_no_package_is_said() -> None:
    module("store", MAKE_A_BUS)

    assert refused("store.bus:bus") == (
        "there is no module 'store.bus': store is a module, and not a folder of modules"
    )


# --- what is wrong in the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("\n\nx = 1 / 0", "store.py, line 3: importing store failed with ZeroDivisionError: division by zero"),
        ("def f():\n    return {}['key']\nf()", "store.py, line 2: importing store failed with KeyError: 'key'"),
        ("import os\nx = (\n", "store.py, line 2: importing store failed with SyntaxError: '(' was never closed"),
        ("if True:\nx = 1", "store.py, line 2: importing store failed with IndentationError: expected an indented"),
        (
            "import nowhere",
            "store.py, line 1: importing store failed with ModuleNotFoundError: No module named 'nowhere'",
        ),
        (
            "from os import nothing",
            "store.py, line 1: importing store failed with ImportError: cannot import name 'nothing'",
        ),
        (
            "import sys\nsys.exit('no settings')",
            "store.py, line 2: importing store failed with SystemExit: no settings",
        ),
        ("raise ValueError", "store.py, line 1: importing store failed with ValueError ("),
        ("raise ValueError('a\\nb')", "failed with ValueError: a b ("),
        ("import json\njson.loads('{')", "store.py, line 2: importing store failed with JSONDecodeError"),
    ],
)
def test_a_module_that_raises_is_said_with_the_line_of_the_users_file(source: str, said: str) -> None:
    module("store", source)

    assert said in refused("store:bus")
    assert "(rabbitevents --debug shows the traceback)" in refused("store:bus")


def test_a_port_that_the_running_service_has_is_said_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        module("store", f"import socket\n\ndef make_bus():\n    socket.create_server(('127.0.0.1', {port}))\n")

        said = refused("store:make_bus")

    assert "store.py, line 4: calling store:make_bus failed with OSError" in said
    assert said.endswith("it opens when its bus starts, in a plugin's lifespan, and not where its bus is made")


def test_the_line_is_in_the_file_that_raised_and_not_in_the_one_that_imports_it() -> None:
    module("store.settings", "# nothing here\nlimit = int('many')\n")
    module("store.services", "from store import settings\n")

    assert "store/settings.py, line 2: importing store.services failed with ValueError" in refused("store.services:bus")


def test_a_library_that_an_extra_brings_is_said_with_the_extra(folder: Path) -> None:
    module("store", "raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')")

    assert refused("store:bus") == (
        "store.py, line 1: importing store failed with ModuleNotFoundError: No module named 'redis'; "
        "pip install 'rabbitevents[redis]' brings it"
    )


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        ("bus = Bus('localhost')", 2, "the broker's URL does not begin with amqp:// or amqps://: write amqp://"),
        (f"bus = Bus('ampq://me:{PASSWORD}@host')", 2, "the broker's URL begins with ampq://, and not with amqp://"),
        ("bus = Bus('memory://', delivery_limit=0)", 2, "delivery_limit=0: say a whole number, 1 or more"),
        ("r = Router('my router')", 2, "the router's name 'my router' must be words"),
        ("r = Router('r')\n@r.on(int)\ndef f(): ...", 3, "not an event class"),
        (
            "r = Router('r')\nbus = Bus('memory://', plugins=[Router])",
            3,
            "plugins has the class Router in it: it takes instances",
        ),
    ],
)
def test_what_the_library_refuses_is_said_with_the_line_and_without_a_traceback(
    source: str, line: int, said: str
) -> None:
    module("store", f"from rabbitevents import Bus, Router\n{source}\n")

    assert refused("store:bus").startswith(f"store.py, line {line}: ")
    assert said in refused("store:bus")
    assert PASSWORD not in refused("store:bus")
    assert "importing" not in refused("store:bus")


def test_a_name_that_is_not_there_is_said_with_the_buses_that_are() -> None:
    module("store", MAKE_A_BUS + "other = Bus('memory://')\nrouter = Router('store')\n")

    assert refused("store:buss") == "store has no 'buss'; write store:bus or store:other"
    assert refused("store:bus.inner") == "store has no 'bus.inner'; write store:bus or store:other"


def test_a_module_without_a_bus_is_said() -> None:
    module("store", "router = 3\n")

    said = refused("store:bus")

    assert said == "store has no 'bus'; no Bus is in store: write one there, bus = Bus('amqp://localhost', your_router)"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("router", "store:router is a Router, not a Bus; write store:bus"),
        ("Bus", "store:Bus is the class Bus itself, not a Bus; write store:bus"),
        ("text", "store:text is a str, not a Bus; write store:bus"),
        ("number", "store:number is an int, not a Bus"),
        ("nothing", "store:nothing is None, not a Bus"),
        ("os", "store:os is a module, not a Bus"),
        ("makes_nothing", "store:makes_nothing is None, not a Bus"),
        ("wants", "store:wants is a function that wants url, name; one that makes a bus has no parameters"),
        ("waits", "store:waits is a coroutine function; what makes a bus is a plain function"),
        ("raises", "store.py, line 12: calling store:raises failed with LookupError: no settings"),
    ],
)
def test_what_is_no_bus_is_said_with_what_it_is_and_the_buses_that_are_there(name: str, said: str) -> None:
    lines = [
        MAKE_A_BUS.rstrip(),
        "import os",
        "router = Router('store')",
        "text = 'amqp://localhost'",
        "number, nothing = 3, None",
        "def makes_nothing(): ...",
        "def wants(url, *, name, more=1): ...",
        "async def waits(): return bus",
        "# what is next raises",
        "def raises():",
        "    raise LookupError('no settings')",
    ]
    module("store", "\n".join(lines))

    assert said in refused(f"store:{name}")


# --- as it is seen -------------------------------------------------------------------------------------------------


def test_on_the_command_line_it_is_one_line_and_exit_code_2_and_the_password_is_not_in_the_traceback(
    folder: Path,
) -> None:
    module("store", f"from rabbitevents import Bus\nbus = Bus('ampq://me:{PASSWORD}@host')\n")

    plain = started("run", "store:bus", folder=folder)
    debug = started("--debug", "run", "store:bus", folder=folder)
    late = started("run", "store:bus", "--debug", folder=folder)

    assert plain.returncode == debug.returncode == late.returncode == 2
    assert the_line(plain).startswith("rabbitevents run: store.py, line 2: the broker's URL begins with ampq://")
    for result in (debug, late):
        assert "Traceback" in result.stderr
        assert "ampq://me:...@host" in result.stderr
        assert result.stderr.splitlines()[-1] == the_line(plain)
        assert PASSWORD not in result.stderr


def test_the_console_script_finds_the_module_in_the_current_folder_too(folder: Path) -> None:
    module("store", "bus = 3")
    script = folder / "elsewhere" / "rabbitevents-script.py"
    script.parent.mkdir()
    script.write_text("from rabbitevents.__main__ import main\nif __name__ == '__main__':\n    main()\n")

    result = subprocess.run(
        [sys.executable, script, "run", "store:bus"], cwd=folder, env=environment(), capture_output=True, text=True
    )

    assert result.returncode == 2
    assert "store:bus is an int, not a Bus" in the_line(result)
