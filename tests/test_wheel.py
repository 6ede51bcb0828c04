"""What people install: the wheel, in environments that have never seen the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(found.parent.name for found in (ROOT / "plugins").glob("*/__init__.py"))
PACKAGES = ["rabbitevents", *PLUGINS]

NEED_AN_EXTRA = ("django", "eventstore", "metrics", "outbox", "process", "sql", "tracing")
"""The packages that are for what an extra brings."""

FOR_DJANGO = tuple(f"rabbitevents_django.{name}." for name in ("admin", "apps", "management", "migrations", "models"))
"""What Django finds by its name, and nobody imports: its base classes, which are Django's, have no types there."""

NOT_SOURCES = (".*", "build", "dist", "*.egg-info", "__pycache__", "node_modules")
"""What a checkout has besides what it was published with; the copy is built as a clean one would be."""

USERS_SERVICE = """
import asyncio

from attrs import frozen

from rabbitevents import Bus, Router, event


@event("order.placed")
@frozen
class OrderPlaced:
    order_id: str


shop = Router("shop")
done = asyncio.Event()


@shop.on(OrderPlaced)
async def record(order: OrderPlaced) -> None:
    print("recorded", order.order_id)
    done.set()


async def main() -> None:
    async with Bus("memory://", shop) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await done.wait()


asyncio.run(main())
"""

USERS_TEST = """
import asyncio

from rabbitevents.testing import EmbeddedBroker


def test_the_fixture_is_there(embedded_broker):
    assert isinstance(embedded_broker, EmbeddedBroker)
"""

EVERY_MODULE = """
import importlib, pkgutil, sys
import django
from django.conf import settings
apps = [f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "messages", "sessions")]
settings.configure(INSTALLED_APPS=[*apps, "rabbitevents_django"])
django.setup()
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    assert "site-packages" in package.__file__, package.__file__
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel in it, and an empty folder to work from."""

    folder: Path
    home: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the empty folder, with this environment first in the path."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return run([shutil.which(words[0], path=path) or words[0], *words[1:]], self.home, PATH=path)


def run(words: Sequence[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that sees nothing of the checkout."""
    ours = {"PYTHONPATH", "VIRTUAL_ENV", "MYPYPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | variables
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=110)


def succeed(words: Sequence[str | Path], folder: Path) -> str:
    """Run a command that must succeed, and return what it printed."""
    ended = run(words, folder)
    assert ended.returncode == 0, f"{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout: building writes into it."""
    copy = tmp_path_factory.mktemp("sources") / "rabbitevents"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    return copy


@pytest.fixture(scope="session")
def wheel(sources: Path) -> Path:
    """The wheel, built in isolation with the pinned build tools."""
    pinned = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints-dev.txt")}
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", sources / "dist", sources],
        env=pinned,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    (wheel,) = (sources / "dist").glob("*.whl")
    return wheel


def installed(wheel: Path, extras: str, folder: Path) -> Environment:
    """Make an environment with nothing but the wheel and what it asks for, pip not among it."""
    home = folder / "empty"
    home.mkdir()
    succeed([sys.executable, "-m", "venv", "--without-pip", folder / "env"], home)
    environment = Environment(folder / "env", home)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", environment.python]
    succeed([*pip, "install", "--no-compile", "--constraint", ROOT / "constraints-dev.txt", f"{wheel}{extras}"], home)
    return environment


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel and no extra."""
    return installed(wheel, "", tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def equipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel and all extras."""
    return installed(wheel, "[all,test]", tmp_path_factory.mktemp("equipped"))


# --- what is in it -------------------------------------------------------------------------------------------------


def test_every_file_of_every_package_is_in_the_wheel_and_nothing_else_is(wheel: Path, sources: Path) -> None:
    folders = [sources / "rabbitevents", *(sources / "plugins" / plugin for plugin in PLUGINS)]
    expected = {
        path.relative_to(folder.parent).as_posix() for folder in folders for path in folder.rglob("*") if path.is_file()
    }

    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}

    assert inside == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside
    assert {"METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= about


def test_the_plugins_that_ship_are_those_of_the_folder() -> None:
    assert {"rabbitevents_deadletter", "rabbitevents_idempotency", "rabbitevents_retry"} <= set(PLUGINS)


# --- without extras ------------------------------------------------------------------------------------------------


def test_a_service_runs_from_an_empty_folder_with_the_wheel_alone(bare: Environment) -> None:
    (bare.home / "service.py").write_text(USERS_SERVICE)

    ended = bare.run("python", "-X", "dev", "-W", "error", "service.py")

    # asyncio's development mode tells of each step that took over 0.1 s, as one does on a busy machine.
    said = [line for line in ended.stderr.splitlines() if not re.fullmatch(r"Executing <.*> took \S+ seconds", line)]
    assert (ended.stdout, said) == ("recorded o-1\n", [])


@pytest.mark.parametrize("package", [p for p in PACKAGES if p.partition("_")[2] not in NEED_AN_EXTRA])
def test_what_needs_no_extra_is_imported_without_one(bare: Environment, package: str) -> None:
    ended = bare.run("python", "-W", "error", "-c", f"import {package}; print({package}.__file__)")

    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.strip()).is_relative_to(bare.folder)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["rabbitevents", "version"], "cli"),
        (["rabbitevents", "dlq", "list", "--help"], "cli"),
        (["python", "-m", "rabbitevents", "version"], "cli"),
        (["python", "-c", "from rabbitevents_idempotency import RedisStore; RedisStore"], "redis"),
        (["python", "-c", "import rabbitevents_tracing"], "otel"),
        (["python", "-c", "import rabbitevents_metrics"], "otel"),
        (["python", "-c", "import rabbitevents_django"], "django"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:3])[:60],
)
def test_without_an_extra_the_last_line_says_which_one_to_install(
    bare: Environment, words: list[str], extra: str
) -> None:
    ended = bare.run(*words)

    assert ended.returncode != 0
    assert f"pip install 'rabbitevents[{extra}]'" in ended.stderr.splitlines()[-1]


# --- with all extras -----------------------------------------------------------------------------------------------


def test_every_module_is_imported_from_the_wheel_alone(equipped: Environment, wheel: Path) -> None:
    (equipped.home / "every.py").write_text(EVERY_MODULE)

    ended = equipped.run("python", "every.py", *PACKAGES)

    assert ended.returncode == 0, ended.stderr
    with zipfile.ZipFile(wheel) as archive:
        modules = {name for name in archive.namelist() if name.endswith(".py") and not name.endswith("__main__.py")}
    assert len(set(ended.stdout.split())) == len(modules) - len(PACKAGES)


def test_the_command_line_is_there(equipped: Environment) -> None:
    ended = equipped.run("rabbitevents", "version")

    assert ended.returncode == 0, ended.stderr
    assert "0.1.0" in ended.stdout


def test_pytest_finds_the_fixture_without_being_told(equipped: Environment) -> None:
    (equipped.home / "test_users.py").write_text(USERS_TEST)

    ended = equipped.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_users.py")

    assert "1 passed" in ended.stdout, ended.stdout


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def users_files(equipped: Environment, sources: Path) -> Path:
    """A user's project: a service, its plugins, and a view that is not asynchronous, as `tests/typing` has them."""
    project = equipped.home / "project"
    project.mkdir()
    for name in ("service.py", "plugins.py", "synchronous.py"):
        text = (sources / "tests" / "typing" / name).read_text()
        (project / name).write_text(text.replace("tests.typing.", ""))
    config = {"typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (project / "pyrightconfig.json").write_text(json.dumps(config))
    return project


def test_mypy_agrees_with_a_users_files_and_reads_the_installed_types(equipped: Environment, users_files: Path) -> None:
    words = ["-m", "mypy", "--strict", "--cache-dir", "cache", "--python-executable", equipped.python]
    mypy = [sys.executable, *words]

    succeed([*mypy, "."], users_files)
    (users_files / "wrong.py").write_text("from rabbitevents import Bus\n\nBus(5)\n")
    wrong = run([*mypy, "wrong.py"], users_files)
    (users_files / "wrong.py").unlink()

    assert 'Argument 1 to "Bus" has incompatible type "int"' in wrong.stdout


def test_pyright_agrees_with_a_users_files_and_reads_the_installed_types(
    equipped: Environment, users_files: Path
) -> None:
    pyright = [sys.executable, "-m", "pyright", "--pythonpath", equipped.python]

    succeed([*pyright, "."], users_files)
    (users_files / "wrong.py").write_text("from rabbitevents import Bus\n\nBus(5)\n")
    wrong = run([*pyright, "wrong.py"], users_files)
    (users_files / "wrong.py").unlink()

    assert "reportArgumentType" in wrong.stdout


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.sampled
def test_every_public_name_has_a_type(equipped: Environment, package: str) -> None:
    # What a dependency leaves untyped is not for us to annotate: --ignoreexternal.
    ended = equipped.run(sys.executable, "-m", "pyright", "--outputjson", "--ignoreexternal", "--verifytypes", package)
    report = json.loads(ended.stdout)["typeCompleteness"]

    symbols = [symbol for symbol in report["symbols"] if not symbol["name"].startswith(FOR_DJANGO)]
    exported = [symbol for symbol in symbols if symbol["isExported"]]
    inexact = [symbol for symbol in exported if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]]
    vague = [f"{symbol['name']}: {each['message']}" for symbol in inexact for each in symbol["diagnostics"]]
    assert report["packageRootDirectory"].startswith(str(equipped.folder))
    assert len(exported) > 0
    assert not vague, "\n".join(vague)
    if len(symbols) == len(report["symbols"]):  # else the score counts what is Django's too
        assert report["completenessScore"] == 1
